"""What one task of a scan computes: where its parts of the operands and results are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..reader import Indices, View
from ..scalar import Expr
from .anchor import Anchor

Starts = Mapping[int, Expr]  # where a task's part of a value begins on an axis; zero on the others


@dataclass(frozen=True)
class Part:
    """What one task computes.

    Attributes:
        operands: for each operand of the scan, where the part of a slice of it begins.
        results: the same for each result.
        places: indices that were asked for: the same ones again let a reader find what it has evaluated.
    """

    k: Anchor
    operands: Sequence[Starts]
    results: Sequence[Starts]
    places: dict[tuple[int, int], tuple[Expr, Expr, Expr]] = field(default_factory=dict)

    @property
    def carries(self) -> int:
        return self.k.node.attrs["carries"]

    def stacked(self, t: Expr, indices: Indices) -> list[Expr]:
        """The index into a sequence of an index into its slice at ``t``."""
        axis = self.k.node.attrs["axis"]
        return [*indices[:axis], t, *indices[axis:]]

    def operand(self, i: int, t: Expr | None = None) -> View:
        """Reads this part of an operand, or of its slice at ``t``."""

        def read(indices: Indices) -> Expr:
            return self.k.read(i, *self._place(i, t, indices))

        return read

    def prefetch_row(self, i: int, t: Expr, width: int, place: Callable[[Expr], Indices]) -> None:
        """Start loading ``width`` neighbouring elements of a sequence at ``t``."""
        self.k.prefetch_row(i, width, lambda j: self._place(i, t, place(j)))

    def store(self, i: int, t: Expr | None, indices: Indices, value: Expr) -> None:
        """Write an element of a carry, or of an output at ``t``."""
        place = self._shifted(indices, self.results[i])
        self.k.store(i, place if t is None else self.stacked(t, place), value)

    def _place(self, i: int, t: Expr | None, indices: Indices) -> list[Expr]:
        place = self._shifted(indices, self.operands[i])
        return place if t is None else self.stacked(t, place)

    def _shifted(self, indices: Indices, starts: Starts) -> list[Expr]:
        return [self._sum(starts[a], i) if a in starts else i for a, i in enumerate(indices)]

    def _sum(self, start: Expr, i: Expr) -> Expr:
        found = self.places.setdefault((hash(start), hash(i)), (start + i, start, i))
        return found[0]
