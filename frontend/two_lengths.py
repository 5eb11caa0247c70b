"""Which dimension a model is to be exported at two lengths of, for one whose Python loop fixes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coilc.ir import InputError
from coilc.ir.core import Range

from .dynamic_shapes import Dynamic

_BATCH = frozenset({"B", "batch"})  # what a dim that is no length is called
_SHORTEST = 5  # below it, the first and the last steps of a loop may be all there are


@dataclass(frozen=True)
class TwoLengths:
    """The symbol of the length, its range, and the two values that it is traced at."""

    symbol: str
    range: Range
    first: int
    second: int


def two_lengths(dynamic: Dynamic, lengths: Sequence[int] | Mapping[str, Sequence[int]]) -> TwoLengths:
    """Read ``lengths={"L": (7, 11)}``, or ``(7, 11)`` for the only dimension of ``dynamic_shapes`` besides the batch.

    Raises:
        InputError: the dimension is not among the dynamic ones or not the only one, or the lengths are of no use.
    """
    named = dict(lengths) if isinstance(lengths, Mapping) else {_only_length(dynamic): lengths}
    if len(named) != 1:
        raise InputError(
            f"lengths names {', '.join(named) or 'nothing'}; give it for one dimension, the others stay as they are"
        )
    ((symbol, pair),) = named.items()
    if symbol not in dynamic.ranges:
        known = ", ".join(dynamic.ranges) or "none"
        raise InputError(f"lengths is for '{symbol}', which is no dimension of dynamic_shapes; these are: {known}")
    if len(pair) != 2 or not all(type(n) is int and n >= _SHORTEST for n in pair) or pair[0] == pair[1]:
        raise InputError(f"lengths needs two different numbers from {_SHORTEST} on, such as (7, 11), not {tuple(pair)}")
    low, high = dynamic.ranges[symbol]
    if min(pair) < low or (high is not None and max(pair) > high):
        raise InputError(f"lengths {tuple(pair)} are outside the range of '{symbol}', {low}..{high or ''}")
    return TwoLengths(symbol, (low, high), *sorted(pair))


def _only_length(dynamic: Dynamic) -> str:
    candidates = [name for name in dynamic.ranges if name not in _BATCH]
    if len(candidates) != 1:
        found = f"it names {', '.join(candidates)}" if candidates else "it names none"
        raise InputError(
            f"lengths without a name is for the one dimension of dynamic_shapes that is not the batch, but {found}; "
            f'write for instance lengths={{"L": (7, 11)}} and dynamic_shapes={{"x": {{0: "B", 1: "L"}}}}'
        )
    return candidates[0]
