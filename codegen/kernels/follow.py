"""Which axis of every value in a body follows a named dim, when no op mixes elements along it.

A scan whose body keeps, say, the batch dim apart can run one task per batch element, with memory for one element only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coilc.ir import Graph, Node, Value
from coilc.ir.dims import Dim
from coilc.ir.opdef import ELEMENTWISE, REDUCTION

from ..reader import matching_groups

Axes = tuple["int | None", ...]


class _Mixed(Exception):
    """An op combines elements at different indices of the axis."""


def follow_dim(body: Graph, dim: Dim, carries: int) -> Mapping[Value, int] | None:
    """For each value that varies along ``dim``, its axis; ``None`` when elements mix or a carry changes its axis."""
    axes: dict[Value, int] = {}
    for value in body.inputs:
        if value.dims.count(dim) > 1:
            return None
        if dim in value.dims:
            axes[value] = value.dims.index(dim)
    for node in body.nodes:
        try:
            axis = _axis(node, tuple(axes.get(v) for v in node.inputs)) if node.inputs else None
        except _Mixed:
            return None
        if axis is not None:
            axes.update(dict.fromkeys(node.results, axis))
    pairs = zip(body.inputs[:carries], body.results, strict=False)
    return axes if all(axes.get(after, axes.get(before)) == axes.get(before) for before, after in pairs) else None


def _axis(node: Node, axes: Axes) -> int | None:
    if all(axis is None for axis in axes):
        return None
    if ELEMENTWISE in node.op.traits:
        return _only(axes)
    if REDUCTION in node.op.traits:
        return _reduction(node, axes)
    if node.op.name not in _RULES:
        raise _Mixed
    return _RULES[node.op.name](node, axes)


def _only(axes: Axes) -> int:
    """The one axis that operands of equal dims agree on."""
    found = {axis for axis in axes if axis is not None}
    if len(found) != 1:
        raise _Mixed
    return found.pop()


def _require(condition: bool) -> None:
    if not condition:
        raise _Mixed


def _reduction(node: Node, axes: Axes) -> int:
    axis, reduced = _only(axes), [a % node.inputs[0].type.rank for a in node.attrs["axes"]]
    _require(axis not in reduced)
    return axis if node.attrs["keepdims"] else axis - sum(a < axis for a in reduced)


def _broadcast(node: Node, axes: Axes) -> int:
    (x,), result = node.inputs, node.results[0]
    axis = _only(axes) + result.type.rank - x.type.rank
    _require(result.dims[axis] == x.dims[_only(axes)])
    return axis


def _reshape(node: Node, axes: Axes) -> int:
    (x,), axis = node.inputs, _only(axes)
    for here, there in matching_groups(x.dims, node.results[0].dims):
        if (here.start, here.stop) == (axis, axis + 1) and there.stop - there.start == 1:
            return there.start
    raise _Mixed


def _transpose(node: Node, axes: Axes) -> int:
    return node.attrs["perm"].index(_only(axes))


def _slice(node: Node, axes: Axes) -> int:
    (x,), axis, attrs = node.inputs, _only(axes), node.attrs
    _require((attrs["starts"][axis], attrs["stops"][axis], attrs["steps"][axis]) == (0, x.dims[axis], 1))
    return axis


def _pad(node: Node, axes: Axes) -> int:
    axis = _only(axes)
    _require(node.attrs["low"][axis] == 0 and node.attrs["high"][axis] == 0)
    return axis


def _flip(node: Node, axes: Axes) -> int:
    _require(_only(axes) not in node.attrs["axes"])
    return _only(axes)


def _along(node: Node, axes: Axes) -> int:
    """concat and gather: any axis but their own."""
    _require(_only(axes) != node.attrs["axis"] % node.results[0].type.rank)
    return _only(axes)


def _take(node: Node, axes: Axes) -> int:
    along, (x, where) = node.attrs["axis"] % node.inputs[0].type.rank, axes
    if x is None and where is not None:
        return along + where
    _require(where is None and x is not None and x != along)
    assert x is not None
    return x if x < along else x + node.inputs[1].type.rank - 1


def _matmul(node: Node, axes: Axes) -> int:
    row, column = node.results[0].type.rank - 2, node.results[0].type.rank - 1
    x, y = axes
    if x is None:
        _require(y != row)
        assert y is not None
        return y
    _require(x != column and (y is None or (y == x and x < row)))
    return x


_RULES: Mapping[str, Callable[[Node, Axes], int]] = {
    "broadcast": _broadcast, "reshape": _reshape, "transpose": _transpose, "slice": _slice, "pad": _pad, "flip": _flip,
    "concat": _along, "gather": _along, "take": _take, "matmul": _matmul,
}  # fmt: skip
