"""Masks that are a matter of positions: computed from two counts, they become attributes of the attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coilc.ir import DTYPES, Dim, Module, Node, Value, ops

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

    Where rows are counted from the length of a cache on, that is the ``offset``.

    Needs: attention recognised. Guarantees: equal results; masks over data stay.
    """
    return rewrite_module(module, mask_by_position)


@dataclass(frozen=True)
class Band:
    """Column c is seen from row r when ``r - behind <= c <= r + ahead``; ``None`` is no limit."""

    behind: Dim | None = None
    ahead: Dim | None = None

    def both(self, other: Band | None) -> Band | None:
        """What is seen in two bands, if that is known for every size."""
        if other is None:
            return None
        sides = [(self.behind, other.behind), (self.ahead, other.ahead)]
        if not all(a is None or b is None or isinstance(a - b, int) for a, b in sides):
            return None
        return Band(*(_smaller(a, b) for a, b in sides))

    @property
    def width(self) -> Dim | None:
        """How many columns a row sees."""
        return None if self.behind is None or self.ahead is None else self.behind + self.ahead + 1

    @property
    def is_causal(self) -> bool:
        """Whether rows see columns up to their own, counted from the length of a cache on if that is not 0."""
        window = self.width
        ends = self.ahead == 0 or (self.ahead is not None and not isinstance(self.ahead, int))
        return ends and (window is None or (isinstance(window, int) and window >= 1))


def _smaller(a: Dim | None, b: Dim | None) -> Dim | None:
    if a is None or b is None:
        return b if a is None else a
    gap = a - b
    return a if isinstance(gap, int) and gap <= 0 else b


@on("attention")
def mask_by_position(node: Node) -> Value | Declined | None:
    """attention(q, k, v, mask of positions) = attention(q, k, v, causal=..., window=...)"""
    attrs = node.attrs
    if "mask" not in attrs["optional"] or "offset" in attrs["optional"]:
        return None
    *operands, mask = node.inputs
    band = band_of(mask, operands[0].dims[2] == 1)
    if band is None:
        return no("the mask depends on more than the positions of query and key")
    if attrs["causal"]:
        band = Band(None if attrs["window"] is None else attrs["window"] - 1, 0).both(band)
    if band == Band():
        return ops.attention(*operands, **{**attrs, "optional": ()})
    if band is None or not band.is_causal:
        sides = f"a band from {band.behind} behind to {band.ahead} ahead" if band else "several bands"
        return no(f"the mask is {sides}, not causal")
    given = () if band.ahead == 0 else (ops.extent(dim=band.ahead, dtype=DTYPES["i64"]),)
    optional = ("offset",) if given else ()
    return ops.attention(*operands, *given, **{**attrs, "optional": optional, "causal": True, "window": band.width})


def band_of(mask: Value, one_row: bool = False) -> Band | None:
    """The band that a mask [..., row, column] is, if it is one."""
    mask = unspread(mask)
    number = scalar(mask)
    if number is not None:
        return Band() if (number if mask.type.dtype.kind == "bool" else number == 0) else None
    if mask.op is ops.where:
        seen, shown, hidden = mask.node.inputs
        low = scalar(hidden)
        return band_of(seen, one_row) if scalar(shown) == 0 and low is not None and low <= HIDDEN else None
    if mask.op in (ops.logical_and, ops.bitwise_and):
        left, right = (band_of(v, one_row) for v in mask.node.inputs)
        return left.both(right) if left else None
    if mask.op in COMPARED:
        return compared(mask, one_row)
    return spread_band(mask, one_row)


def spread_band(mask: Value, one_row: bool) -> Band | None:
    """Axes of extent 1 before the rows, and more heads, change nothing."""
    if mask.op is ops.reshape:
        (inner,) = mask.node.inputs
        same = [d for d in inner.dims if d != 1] == [d for d in mask.dims if d != 1] and inner.dims[-2:] == mask.dims[
            -2:
        ]
        return band_of(inner, one_row) if same else None
    return None


@dataclass(frozen=True)
class Position:
    """The index along an axis, counted from the end (-2: rows, -1: columns), plus a number."""

    axis: int
    plus: Dim

    def offset(self, number: Dim) -> Position:
        return Position(self.axis, self.plus + number)


def compared(mask: Value, one_row: bool) -> Band | None:
    """row + a <= column + b and the like."""
    left, right = (position(v) or (of_row(v) if one_row else None) for v in mask.node.inputs)
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
        axis = value.node.attrs["axis"]
        return None if value.dims[axis] == 1 else Position(axis - value.type.rank, 0)
    if value.op in (ops.add, ops.sub):
        sign = 1 if value.op is ops.add else -1
        for counted, other in both_orders(value.node) if sign == 1 else [value.node.inputs]:
            found, number = position(counted), length(other)
            if found and number is not None:
                return found.offset(sign * number)
        return None
    if value.op is ops.broadcast:
        return position(value.node.inputs[0])
    if value.op is ops.cast and value.type.dtype.is_integer:
        return position(value.node.inputs[0])
    if value.op is ops.reshape:
        return moved(value)
    return None


def of_row(value: Value) -> Position | None:
    """What a number says of the position of a single row."""
    number = length(value)
    return None if number is None else Position(-2, number)


def length(value: Value) -> Dim | None:
    """A whole number made of extents, the same everywhere."""
    number = scalar(value)
    if number is not None:
        return int(number)
    value = unspread(value)
    if value.op in (ops.add, ops.sub):
        left, right = map(length, value.node.inputs)
        return None if left is None or right is None else left + right if value.op is ops.add else left - right
    if value.op is ops.reshape or (value.op is ops.cast and value.type.dtype.is_integer):
        return length(value.node.inputs[0])
    if value.op is ops.iota and value.dims[value.node.attrs["axis"]] == 1:
        return 0
    return value.node.attrs["dim"] if value.op is ops.extent else None


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
