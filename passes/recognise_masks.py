"""Masks that are a matter of positions: computed from two counts, they become attributes of the attention."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coilc.ir import Module, Node, Value, ops

from .match import both_orders, scalar, unspread
from .rewrite import on, rewrite_module
from .trace import Declined, no

HIDDEN = -1e30  # a mask of numbers hides what gets this or less: its weight is 0 beside anything that is seen


def recognise_masks(module: Module) -> Module:
    """Replace masks that depend on positions alone by ``causal`` and ``window``.

    Before::

        v0: i64[L, L] = iota(dims=(L, L), axis=0, dtype=i64)
        v1: i64[L, L] = iota(dims=(L, L), axis=1, dtype=i64)
        v2: bool[L, L] = le(v1, v0)
        v3: f32[B, 2, L, 8] = attention(q, k, v, v2, optional=("mask",), scale=0.25, causal=False, window=None)

    After::

        v0: f32[B, 2, L, 8] = attention(q, k, v, optional=(), scale=0.25, causal=True, window=None)

    Needs: attention recognised. Guarantees: equal results; masks over data stay.
    """
    return rewrite_module(module, mask_by_position)


@dataclass(frozen=True)
class Band:
    """Column c is seen from row r when ``r - behind <= c <= r + ahead``; ``None`` is no limit."""

    behind: int | None = None
    ahead: int | None = None

    def __and__(self, other: Band) -> Band:
        return Band(_smaller(self.behind, other.behind), _smaller(self.ahead, other.ahead))


def _smaller(a: int | None, b: int | None) -> int | None:
    return min((x for x in (a, b) if x is not None), default=None)


@on("attention")
def mask_by_position(node: Node) -> Value | Declined | None:
    """attention(q, k, v, mask of positions) = attention(q, k, v, causal=..., window=...)"""
    attrs = node.attrs
    if "mask" not in attrs["optional"] or "offset" in attrs["optional"]:
        return None
    *operands, mask = node.inputs
    band = band_of(mask)
    if band is None:
        return no("the mask depends on more than the positions of query and key")
    if attrs["causal"]:
        band &= Band(None if attrs["window"] is None else attrs["window"] - 1, 0)
    rest = {**attrs, "optional": ()}
    if band == Band():
        return ops.attention(*operands, **rest)
    if band.ahead != 0 or (band.behind is not None and band.behind < 0):
        return no(f"the mask is a band from {band.behind} behind to {band.ahead} ahead, not causal")
    window = None if band.behind is None else band.behind + 1
    return ops.attention(*operands, **{**rest, "causal": True, "window": window})


def band_of(mask: Value) -> Band | None:
    """The band that a mask [..., row, column] is, if it is one."""
    mask = unspread(mask)
    number = scalar(mask)
    if number is not None:
        return Band() if (number if mask.type.dtype.kind == "bool" else number == 0) else None
    if mask.op is ops.where:
        seen, shown, hidden = mask.node.inputs
        low = scalar(hidden)
        return band_of(seen) if scalar(shown) == 0 and low is not None and low <= HIDDEN else None
    if mask.op in (ops.logical_and, ops.bitwise_and):
        left, right = map(band_of, mask.node.inputs)
        return left & right if left and right else None
    if mask.op in COMPARED:
        return compared(mask)
    return spread_band(mask)


def spread_band(mask: Value) -> Band | None:
    """Axes of extent 1 before the rows, and more heads, change nothing."""
    if mask.op is ops.reshape:
        (inner,) = mask.node.inputs
        same = [d for d in inner.dims if d != 1] == [d for d in mask.dims if d != 1] and inner.dims[-2:] == mask.dims[
            -2:
        ]
        return band_of(inner) if same else None
    return None


@dataclass(frozen=True)
class Position:
    """The index along an axis, counted from the end (-2: rows, -1: columns), plus a number."""

    axis: int
    plus: int

    def offset(self, number: int) -> Position:
        return Position(self.axis, self.plus + number)


def compared(mask: Value) -> Band | None:
    """row + a <= column + b and the like."""
    left, right = map(position, mask.node.inputs)
    if left is None or right is None or {left.axis, right.axis} != {-2, -1}:
        return None
    return COMPARED[mask.op](left, right) if left.axis == -1 else MIRRORED[mask.op](right, left)


def _up_to(column: Position, row: Position, slack: int = 0) -> Band:
    """column + a <= row + b + slack"""
    return Band(ahead=row.plus - column.plus + slack)


def _from(column: Position, row: Position, slack: int = 0) -> Band:
    """column + a >= row + b - slack"""
    return Band(behind=column.plus - row.plus + slack)


Comparison = Callable[[Position, Position], Band]
COMPARED: Mapping[object, Comparison] = {  # column on the left
    ops.le: _up_to,
    ops.lt: lambda column, row: _up_to(column, row, -1),
    ops.ge: _from,
    ops.gt: lambda column, row: _from(column, row, -1),
}
MIRRORED: Mapping[object, Comparison] = {
    ops.ge: COMPARED[ops.le],
    ops.gt: COMPARED[ops.lt],
    ops.le: COMPARED[ops.ge],
    ops.lt: COMPARED[ops.gt],
}


def position(value: Value) -> Position | None:
    """What a tensor of integers counts, if it is an index along one axis plus a number."""
    if value.op is ops.iota:
        return Position(value.node.attrs["axis"] - value.type.rank, 0)
    if value.op in (ops.add, ops.sub):
        sign = 1 if value.op is ops.add else -1
        for counted, other in both_orders(value.node) if sign == 1 else [value.node.inputs]:
            found, number = position(counted), scalar(other)
            if found and number is not None:
                return found.offset(operator.index(int(sign * number)))
        return None
    if value.op is ops.broadcast:
        return position(value.node.inputs[0])
    if value.op is ops.cast and value.type.dtype.is_integer:
        return position(value.node.inputs[0])
    if value.op is ops.reshape:
        return moved(value)
    return None


def moved(value: Value) -> Position | None:
    """A reshape that inserts or removes axes of extent 1 moves the axis that is counted."""
    (inner,) = value.node.inputs
    found = position(inner)
    if found is None or [d for d in inner.dims if d != 1] != [d for d in value.dims if d != 1]:
        return None
    extent = inner.dims[found.axis]
    if extent == 1:
        return None
    order = [d for d in inner.dims[inner.type.rank + found.axis :] if d != 1]
    places = [a for a, d in enumerate(value.dims) if d != 1]
    return Position(places[-len(order)] - value.type.rank, found.plus)
