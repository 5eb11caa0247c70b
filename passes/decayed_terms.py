"""Sums of products with exponentials of running sums: what masked, cumulative and chunked recurrences are made of.

An element of a tensor is written as a sum of ``Term``s, each

    sum over its bound variables, where its guards hold, of  scale * ref_1 * ... * ref_n * exp(exponent)

with every ref a tensor of the graph read at an index, and the exponent a combination of *prefixes*
``P(t) = a[0] + ... + a[t - 1]`` of tensors at points of time. ``exp(segment_sum(a))``, a chunk's total decay and the
product of a loop's factors are differences of prefixes, and differences telescope: that is all the algebra there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from coilc.ir import Dim, Dims, Value, dims

from .index_algebra import NotExact, Space

Move = Callable[[Dim], Dim]


@dataclass(frozen=True)
class Ref:
    """An element of ``value``."""

    value: Value
    index: Dims

    def at(self, move: Move) -> Ref:
        return replace(self, index=tuple(map(move, self.index)))


@dataclass(frozen=True)
class Atom:
    """A product of elements; the first one stands for its running sum along ``axis``, up to its index there, if given.

    The sum does not hold the element at that index itself, and it is constant before the tensor begins and after it ends.
    """

    refs: tuple[Ref, ...]
    axis: int | None = None

    @property
    def point(self) -> Dim:
        assert self.axis is not None
        return self.refs[0].index[self.axis]

    def with_point(self, point: Dim) -> Atom:
        assert self.axis is not None
        first, *rest = self.refs
        index = tuple(point if i == self.axis else e for i, e in enumerate(first.index))
        return Atom((Ref(first.value, index), *rest), self.axis)

    def at(self, move: Move) -> Atom:
        return Atom(tuple(r.at(move) for r in self.refs), self.axis)

    def times(self, refs: Iterable[Ref]) -> Atom:
        return Atom((*self.refs, *refs), self.axis)


Exponent = Mapping[Atom, Dim]


def plus(*parts: Exponent) -> Exponent:
    total: dict[Atom, Dim] = {}
    for part in parts:
        for atom, factor in part.items():
            total[atom] = total.get(atom, 0) + factor
    return {atom: factor for atom, factor in total.items() if factor != 0}


def times(exponent: Exponent, factor: Dim) -> Exponent:
    return {atom: f * factor for atom, f in exponent.items()} if factor != 0 else {}


def without_last(exponent: Exponent) -> Exponent:
    """P(t + 1) - a[t] as P(t)."""
    result = dict(exponent)
    for atom, factor in exponent.items():
        if atom.axis is not None and result.get(element := Atom(atom.with_point(atom.point - 1).refs)) == -factor:
            del result[atom], result[element]
            result = dict(plus(result, {atom.with_point(atom.point - 1): factor}))
    return result


def moved(exponent: Exponent, move: Move) -> Exponent:
    return plus(*({atom.at(move): move(factor)} for atom, factor in exponent.items()))


@dataclass(frozen=True)
class Term:
    """See the module; ``bound`` are the indices that are summed over, each a variable or, when it was split, its digits."""

    scale: float = 1.0
    refs: tuple[Ref, ...] = ()
    exponent: Exponent = field(default_factory=dict)
    guards: tuple[Dim, ...] = ()
    bound: tuple[Dim, ...] = ()

    def __mul__(self, other: Term) -> Term:
        return Term(
            self.scale * other.scale,
            self.refs + other.refs,
            plus(self.exponent, other.exponent),
            tuple(dict.fromkeys(self.guards + other.guards)),
            self.bound + other.bound,
        )

    def where(self, *guards: Dim) -> Term:
        return replace(self, guards=tuple(dict.fromkeys((*self.guards, *guards))))

    def summed(self, *indices: Dim) -> Term:
        return replace(self, bound=(*self.bound, *indices))

    def at(self, move: Move) -> Term:
        return Term(
            self.scale,
            tuple(r.at(move) for r in self.refs),
            moved(self.exponent, move),
            tuple(dict.fromkeys(map(move, self.guards))),
            tuple(map(move, self.bound)),
        )


@dataclass(frozen=True)
class Logarithm:
    """A value that is exponentiated later: ``exponent``, but 0 unless ``present`` hold, and -inf unless ``kept`` hold."""

    exponent: Exponent
    present: tuple[Dim, ...] = ()
    kept: tuple[Dim, ...] = ()

    def exponentials(self) -> list[Term]:
        """``exp`` of it: 1 where it is absent, 0 where it is not kept."""
        terms = [Term(exponent=self.exponent, guards=(*self.kept, *self.present))]
        for i, guard in enumerate(self.present):
            terms.append(Term(guards=(*self.kept, *self.present[:i], -1 - guard)))
        return terms


def possible(term: Term, space: Space) -> bool:
    """Whether the guards can hold together; each alone and two by two."""
    guards = [space.resolve(g) for g in term.guards]
    pairs = (a + b for i, a in enumerate(guards) for b in guards[i + 1 :])
    return term.scale != 0 and not any(space.never(g) for g in (*guards, *pairs))


# --- sums of exponents ----------------------------------------------------------------------------------------------


def total(exponent: Exponent, index: Dim, first: Dim, last: Dim, space: Space) -> Exponent:
    """The sum of an exponent over ``index`` from ``first`` to ``last``, both included; a telescope.

    Raises:
        NotExact: it does not telescope.
    """
    parts: list[Exponent] = []
    open_ends: list[tuple[Atom, Dim, Dim, Dim]] = []
    for atom, factor in moved(exponent, space.resolve).items():
        if space.variables(factor) & space.variables(index):
            raise NotExact("a decay that grows over time is summed")
        touched = [
            (i, j) for i, r in enumerate(atom.refs) for j, e in enumerate(r.index)
            if space.variables(e) & space.variables(index)
        ]  # fmt: skip
        if not touched:
            parts.append({atom: factor * (last - first + 1)})
            continue
        (place, axis), *more = touched
        if more or (atom.axis is not None and (place, axis) != (0, atom.axis)):
            raise NotExact("a product of two sequences is summed over time in the exponent")
        slope, start = along(atom.refs[place].index[axis], index, space)
        if atom.axis is not None:
            open_ends.append((atom.with_point(0), factor, slope, start))
        elif slope == 1:
            ordered = (atom.refs[place], *atom.refs[:place], *atom.refs[place + 1 :])
            prefix = Atom(ordered, axis)
            parts += [{prefix.with_point(last + start + 1): factor}, {prefix.with_point(first + start): -factor}]
        else:
            raise NotExact("every other element is summed over time in the exponent")
    return plus(*parts, *_telescoped(open_ends, first, last))


def _telescoped(ends: list[tuple[Atom, Dim, Dim, Dim]], first: Dim, last: Dim) -> list[Exponent]:
    """Sums of ``P(slope * i + start + slope) - P(slope * i + start)``."""
    parts: list[Exponent] = []
    while ends:
        atom, factor, slope, start = ends.pop()
        for other in ends:
            if other[:3] != (atom, -factor, slope) or other[3] - start not in (slope, -slope):
                continue
            ends.remove(other)
            low, positive = (start, -factor) if other[3] - start == slope else (other[3], factor)
            parts.append({atom.with_point(slope * last + low + slope): positive})
            parts.append({atom.with_point(slope * first + low): -positive})
            break
        else:
            raise NotExact("a running sum is summed again over time, and does not telescope")
    return parts


def along(index: Dim, variable: Dim, space: Space) -> tuple[Dim, Dim]:
    """``(slope, start)`` with ``index == slope * variable + start``, also when the variable was split.

    Raises:
        NotExact: there are none.
    """
    factors, _ = space.linear(index)
    digits, _ = space.linear(variable)
    name = next(iter(digits))
    slope = dims.divide_exactly(factors.get(name, 0), digits[name])
    rest = None if slope is None else space.resolve(index - slope * space.resolve(variable))
    if slope is None or rest is None or space.variables(rest) & space.variables(variable):
        raise NotExact(f"{index} does not follow one variable")
    return slope, rest
