"""Merge adjacent axes that a pointwise body treats as one, so that inner loops are long.

``add(x[B, L, 64], broadcast(w[64]))`` becomes ``[B*L, 64]``, and without the broadcast ``[B*L*64]``. A merged axis is a
``reshape`` that has been pushed down to the body's inputs, where it is free because tensors are dense.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from coilc.ir import Graph, Node, Value, ops
from coilc.ir.dims import Dim, Dims, matching_groups
from coilc.ir.opdef import ELEMENTWISE, REDUCTION


class _Fixed(Exception):
    """The two axes have to stay apart."""


LONG = 64  # elements of a row: where rows are picked from several tensors or from padding, a vector lies in one row


def _is_long(extent: Dim) -> bool:
    return not isinstance(extent, int) or extent >= LONG


def collapse_axes(body: Graph, strided: Collection[Value] = ()) -> Graph:
    """Merge axes of the results, which all have equal rank, as far as possible, from the innermost pair outwards.

    Args:
        strided: inputs that are not dense, so that merged axes would have to be taken apart again at every element.
    """
    for axis in reversed(range(body.results[0].type.rank - 1)):
        merged = merge_axes(body, axis, strided)
        if merged is not None:
            body = merged
    return body


def merge_axes(body: Graph, axis: int, strided: Collection[Value] = ()) -> Graph | None:
    """The body with axes ``axis`` and ``axis + 1`` of every result as one, or ``None`` when something tells them apart."""
    merger = _Merger(body, strided)
    try:
        return body.with_results([merger.merge(value, axis) for value in body.results])
    except _Fixed:
        return None


def merge_value(body: Graph, value: Value, axis: int, strided: Collection[Value] = ()) -> Value | None:
    """One value of the body with two adjacent axes as one, or ``None``."""
    try:
        return _Merger(body, strided).merge(value, axis)
    except _Fixed:
        return None


def merge_dims(dims: Dims, axis: int) -> Dims:
    """``dims`` with the extents of two adjacent axes multiplied."""
    return (*dims[:axis], dims[axis] * dims[axis + 1], *dims[axis + 2 :])


class _Merger:
    def __init__(self, body: Graph, strided: Collection[Value]) -> None:
        self.inputs, self.strided = frozenset(body.inputs), frozenset(strided)
        self.memo: dict[tuple[Value, int], Value] = {}

    def merge(self, value: Value, axis: int) -> Value:
        key = (value, axis)
        if key not in self.memo:
            self.memo[key] = self._merge(value, axis)
        return self.memo[key]

    def _merge(self, value: Value, axis: int) -> Value:
        op, node = value.op, value.node
        if self._in_memory(value):
            if _base(value) in self.strided and 1 not in value.dims[axis : axis + 2]:
                raise _Fixed
            return ops.reshape(value, dims=merge_dims(value.dims, axis))
        if ELEMENTWISE in op.traits:
            return _rebuild(node, tuple(self.merge(v, axis) for v in node.inputs))
        if REDUCTION in op.traits:
            return self._reduction(value, axis)
        if op.name in _RULES:
            return _RULES[op.name](self, value, axis)
        raise _Fixed

    def _in_memory(self, value: Value) -> bool:
        base = _base(value)
        return base in self.inputs or base.op.name == "constant"

    def _reduction(self, value: Value, axis: int) -> Value:
        (x,) = value.node.inputs
        axes = value.node.attrs["axes"]
        kept = [a for a in range(x.type.rank) if value.node.attrs["keepdims"] or a not in axes]
        first, second = kept[axis], kept[axis + 1]
        if second != first + 1 or (first in axes) != (second in axes):
            raise _Fixed
        return _rebuild(value.node, (self.merge(x, first),), axes=merged_axes(axes, first))

    def broadcast(self, value: Value, axis: int) -> Value:
        (x,) = value.node.inputs
        dims = merge_dims(value.dims, axis)
        first = axis - (value.type.rank - x.type.rank)
        if first < 0:  # the operand has the second axis at most
            if first == -1 and x.dims[0] != 1 and value.dims[axis] != 1:
                raise _Fixed
            return ops.broadcast(x, dims=dims)
        pairs = [(x.dims[first + i], value.dims[axis + i]) for i in (0, 1)]
        kept, repeated = all(a == b for a, b in pairs), all(a == 1 for a, _ in pairs)
        if not kept and not repeated and all(b != 1 for _, b in pairs):
            raise _Fixed
        return ops.broadcast(self.merge(x, first), dims=dims)

    def reshape(self, value: Value, axis: int) -> Value:
        (x,) = value.node.inputs
        dims = merge_dims(value.dims, axis)
        for here, there in matching_groups(value.dims, x.dims):
            if here.start <= axis and axis + 1 < here.stop:
                return ops.reshape(x, dims=dims)
            if axis + 1 == here.stop and there.stop - there.start == 1 and there.stop < x.type.rank:
                return ops.reshape(self.merge(x, there.start), dims=dims)
        raise _Fixed

    def transpose(self, value: Value, axis: int) -> Value:
        (x,) = value.node.inputs
        perm = value.node.attrs["perm"]
        source = perm[axis]
        if perm[axis + 1] != source + 1:
            raise _Fixed
        kept = [p - (p > source) for i, p in enumerate(perm) if i != axis + 1]
        return ops.transpose(self.merge(x, source), perm=tuple(kept))

    def slice(self, value: Value, axis: int) -> Value:
        (x,) = value.node.inputs
        starts, stops, steps = (value.node.attrs[name] for name in ("starts", "stops", "steps"))
        inner = x.dims[axis + 1]
        if (starts[axis + 1], stops[axis + 1], steps[axis + 1], steps[axis]) != (0, inner, 1, 1):
            raise _Fixed
        return ops.slice(
            self.merge(x, axis),
            starts=_with(starts, axis, starts[axis] * inner),
            stops=_with(stops, axis, stops[axis] * inner),
            steps=_with(steps, axis, 1),
        )

    def pad(self, value: Value, axis: int) -> Value:
        (x,) = value.node.inputs
        low, high = value.node.attrs["low"], value.node.attrs["high"]
        inner = x.dims[axis + 1]
        if low[axis + 1] != 0 or high[axis + 1] != 0 or (_is_long(inner) and (low[axis], high[axis]) != (0, 0)):
            raise _Fixed
        return _rebuild(
            value.node,
            (self.merge(x, axis),),
            low=_with(low, axis, low[axis] * inner),
            high=_with(high, axis, high[axis] * inner),
        )

    def concat(self, value: Value, axis: int) -> Value:
        along = value.node.attrs["axis"]
        if along == axis + 1 or (along == axis and _is_long(value.dims[axis + 1])):
            raise _Fixed
        parts = tuple(self.merge(v, axis) for v in value.node.inputs)
        return _rebuild(value.node, parts, axis=along - (along > axis))

    def take(self, value: Value, axis: int) -> Value:
        x, where = value.node.inputs
        along, rank = value.node.attrs["axis"], where.type.rank
        if axis + 1 < along:
            return _rebuild(value.node, (self.merge(x, axis), where), axis=along - 1)
        if axis >= along + rank:
            return _rebuild(value.node, (self.merge(x, axis - rank + 1), where))
        if along <= axis and axis + 1 < along + rank:
            return _rebuild(value.node, (x, self.merge(where, axis - along)))
        raise _Fixed

    def gather(self, value: Value, axis: int) -> Value:
        along = value.node.attrs["axis"]
        if along in (axis, axis + 1):
            raise _Fixed
        operands = tuple(self.merge(v, axis) for v in value.node.inputs)
        return _rebuild(value.node, operands, axis=along - (along > axis))

    def iota(self, value: Value, axis: int) -> Value:
        along = value.node.attrs["axis"]
        if along in (axis, axis + 1):
            raise _Fixed
        return _rebuild(value.node, (), dims=merge_dims(value.dims, axis), axis=along - (along > axis))


_RULES: Mapping[str, Callable[[_Merger, Value, int], Value]] = {
    "broadcast": _Merger.broadcast, "reshape": _Merger.reshape, "transpose": _Merger.transpose, "slice": _Merger.slice,
    "pad": _Merger.pad, "concat": _Merger.concat, "take": _Merger.take, "gather": _Merger.gather, "iota": _Merger.iota,
}  # fmt: skip


def _base(value: Value) -> Value:
    """What a value is a reshape of."""
    while value.op.name == "reshape":
        (value,) = value.node.inputs
    return value


def merged_axes(axes: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Axis numbers after ``axis`` and ``axis + 1`` have become one."""
    return tuple(sorted({a - (a > axis) for a in axes}))


def _with(items: tuple[Any, ...], axis: int, item: Any) -> tuple[Any, ...]:
    """Two adjacent entries replaced by one."""
    return (*items[:axis], item, *items[axis + 2 :])


def _rebuild(node: Node, operands: tuple[Value, ...], **changed: Any) -> Value:
    return Value(Node.make(node.op, operands, {**node.attrs, **changed}))
