"""Where an element of a tensor is read: sums of multiples of index variables, divided and compared exactly.

An index is a ``Dim`` whose symbols are variables of a ``Space`` (besides the graph's own symbols). Reshapes turn an index
into mixed-radix digits; a variable that runs over a merged axis is then *split*, ``t = 64 * c + l``, everywhere at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coilc.ir import Dim, Dims, dims

Range = tuple[int, "int | None"]


class NotExact(Exception):
    """An index that these rules cannot divide or compare."""


@dataclass
class Space:
    """Index variables: each runs from 0 to its extent, exclusive.

    Attributes:
        ranges: of the graph's symbols.
        free: variables that name an element of the result; all others are summed over.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    extents: dict[str, Dim] = field(default_factory=dict)
    free: set[str] = field(default_factory=set)
    split: dict[str, Dim] = field(default_factory=dict)

    def fresh(self, extent: Dim, free: bool = False) -> Dim:
        """A new variable; over an extent of 1 it is 0."""
        if extent == 1:
            return 0
        name = f"${len(self.extents)}"
        self.extents[name] = extent
        if free:
            self.free.add(name)
        return dims.symbol(name)

    def resolve(self, index: Dim) -> Dim:
        """``index`` in variables that are not split."""
        while any(name in self.split for name in dims.symbols(index)):
            index = dims.substitute(index, self.split)
        return index

    def variables(self, index: Dim) -> frozenset[str]:
        return frozenset(name for name in dims.symbols(self.resolve(index)) if name in self.extents)

    def linear(self, index: Dim) -> tuple[dict[str, Dim], Dim]:
        """The factor of each variable, and the rest.

        Raises:
            NotExact: the index is not linear in its variables.
        """
        index = self.resolve(index)
        rest = dims.substitute(index, dict.fromkeys(self.variables(index), 0))
        factors: dict[str, Dim] = {}
        total = rest
        for name in sorted(self.variables(index)):
            others = dict.fromkeys(self.variables(index) - {name}, 0)
            factors[name] = dims.substitute(index, {**others, name: 1}) - rest
            total = total + factors[name] * dims.symbol(name)
        if total != index:
            raise NotExact(f"{index} is not linear")
        return factors, rest

    # --- comparison -------------------------------------------------------------------------------------------------

    def least(self, index: Dim) -> Dim:
        """Its smallest value when every variable runs over its extent."""
        return self._end(index, lowest=True)

    def greatest(self, index: Dim) -> Dim:
        return self._end(index, lowest=False)

    def _end(self, index: Dim, lowest: bool) -> Dim:
        factors, total = self.linear(index)
        for name, factor in factors.items():
            rises, falls = self.surely(factor), self.surely(-factor)
            if not rises and not falls:
                raise NotExact(f"the sign of {factor} is not known")
            if rises != lowest:
                total = total + factor * (self.extents[name] - 1)
        return total

    def surely(self, number: Dim) -> bool:
        """Whether a number without variables is never negative."""
        return dims.bounds(number, self.ranges)[0] >= 0

    def holds(self, index: Dim) -> bool:
        """Whether an index is never negative."""
        return self.surely(self.least(index))

    def never(self, index: Dim) -> bool:
        """Whether an index is always negative."""
        return self.surely(-1 - self.greatest(index))

    # --- mixed radix ------------------------------------------------------------------------------------------------

    def digits(self, index: Dim, extents: Dims) -> Dims:
        """The index into a merged axis as one index for each of the axes ``extents``."""
        found: list[Dim] = []
        for i in reversed(range(1, len(extents))):
            index, low = self.divided(index, extents[i], dims.size(extents[:i]))
            found.append(low)
        return (index, *reversed(found))

    def divided(self, index: Dim, by: Dim, count: Dim) -> tuple[Dim, Dim]:
        """Quotient, which is below ``count``, and remainder; splits variables as needed.

        Raises:
            NotExact: the remainder cannot be told from the quotient.
        """
        while True:
            quotient, rest = self._quotient(index, by)
            if self.holds(rest) and self.holds(by - 1 - rest):
                return quotient, rest
            self._split_for(rest, by, count)

    def _quotient(self, index: Dim, by: Dim) -> tuple[Dim, Dim]:
        factors, rest = self.linear(index)
        whole: Dim = dims.divide_exactly(rest, by) or 0
        if isinstance(rest, int) and isinstance(by, int):
            whole = rest // by
        quotient, low = whole, rest - whole * by
        for name, factor in factors.items():
            times = dims.divide_exactly(factor, by)
            if times is None:
                low = low + factor * dims.symbol(name)
            else:
                quotient = quotient + times * dims.symbol(name)
        return quotient, low

    def _split_for(self, rest: Dim, by: Dim, count: Dim) -> None:
        for name, factor in self.linear(rest)[0].items():
            inner = dims.divide_exactly(by, factor)
            if inner is not None and inner not in (1, self.extents[name]) and self._split(name, inner, count):
                return
        raise NotExact(f"{rest} is not a whole part of {by}")

    def _split(self, name: str, inner: Dim, count: Dim) -> bool:
        extent, free = self.extents[name], name in self.free
        outer = dims.divide_exactly(extent, inner)
        if outer is None:
            # An element of the result beyond the result is never asked for.
            if not free or not self.surely(count * inner - extent):
                return False
            outer = count
        self.split[name] = self.fresh(outer, free) * inner + self.fresh(inner, free)
        return True


def mixed(index: Sequence[Dim], extents: Dims) -> Dim:
    """The index into the axis that merges the axes ``extents``."""
    total: Dim = 0
    for digit, extent in zip(index, extents, strict=True):
        total = total * extent + digit
    return total
