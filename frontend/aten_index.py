"""ATen's reading and writing at indices."""

from __future__ import annotations

from collections.abc import Sequence

from coilc.ir import Dim, Value, ops
from coilc.ir.opdef import broadcast_dims
from coilc.ir.types import DTYPES

from .aten import Call, Operand, Scalar, aten, axis_of, broadcast, cast, product, reshape, tensor, transpose

_I64 = DTYPES["i64"]


@aten("gather")
def _gather(call: Call, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    """Unlike take_along_axis, torch lets the index be shorter than x on the other axes."""
    if x.type.rank == 0:
        return broadcast(x, call.dims)
    axis = axis_of(x, dim)
    kept = tuple(extent if i == axis else index.dims[i] for i, extent in enumerate(x.dims))
    if kept != x.dims:
        x = ops.slice(x, starts=(0,) * len(kept), stops=kept, steps=(1,) * len(kept))
    return ops.gather(x, index, axis=axis)


@aten("take_along_dim")
def _take_along_dim(call: Call, x: Value, index: Value, dim: int | None = None) -> Value:
    if dim is None:
        return ops.take(reshape(x, (product(x.dims),)), reshape(index, (product(index.dims),)), axis=0)
    axis = axis_of(x, dim)
    lead = broadcast_dims([(*x.dims[:axis], 1, *x.dims[axis + 1 :]), (*index.dims[:axis], 1, *index.dims[axis + 1 :])])
    spread = lambda v: broadcast(v, (*lead[:axis], v.dims[axis], *lead[axis + 1 :]))
    return ops.gather(spread(x), spread(index), axis=axis)


@aten("take")
def _take(call: Call, x: Value, index: Value) -> Value:
    return ops.take(reshape(x, (product(x.dims),)), index, axis=0)


@aten("index_select")
def _index_select(call: Call, x: Value, dim: int, index: Value) -> Value:
    if x.type.rank == 0:
        return x
    return ops.take(x, reshape(index, (product(index.dims),)), axis=axis_of(x, dim))


@aten("index.Tensor", "_unsafe_index.Tensor")
def _index(call: Call, x: Value, indices: Sequence[Value | None]) -> Value:
    """One index is ``take``; several are ``take`` at flat places of the indexed axes, moved together."""
    axes, places = _index_axes(call, x, indices)
    if axes == list(range(x.type.rank)) and (view := _as_view(call, x, places)) is not None:
        return view
    if len(axes) == 1:
        return ops.take(x, places[0], axis=axes[0])
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    first = axes[0] if adjacent else 0
    rest = [i for i in range(x.type.rank) if i not in axes]
    moved = transpose(x, [*rest[:first], *axes, *rest[first:]])
    flat = reshape(moved, (*moved.dims[:first], product([x.dims[a] for a in axes]), *moved.dims[first + len(axes) :]))
    return ops.take(flat, _flat_places(x, axes, places), axis=first)


def _index_axes(call: Call, x: Value, indices: Sequence[Value | None]) -> tuple[list[int], list[Value]]:
    axes = [i for i, index in enumerate(indices) if index is not None]
    given = [index for index in indices if index is not None]
    if any(v.type.dtype.kind in ("bool", "uint") for v in given):
        raise call.unsupported(
            "a boolean mask as an index gives a result whose size depends on the values; use torch.where"
        )
    if not given:
        raise call.unsupported("indexing without an index")
    return axes, [cast(v, _I64) for v in given]


def _as_view(call: Call, x: Value, places: Sequence[Value]) -> Value | None:
    """``x[arange(B)[:, None], arange(L)]``, as masks are built, reads every element once: x with its axes arranged."""
    rank = call.type.rank
    spots: list[int] = []  # the axis of the result along which each axis of x runs
    for extent, place in zip(x.dims, places, strict=True):
        if not _counts_through(place, extent):
            return None
        wide = [i for i, d in enumerate(place.dims) if d != 1]
        spots.append(rank - place.type.rank + wide[0] if wide else -1)
    running = [spot for spot in spots if spot >= 0]
    if len(set(running)) != len(running):
        return None
    order = sorted(range(x.type.rank), key=lambda axis: spots[axis])
    apart = tuple(x.dims[spots.index(i)] if i in spots else 1 for i in range(rank))
    return broadcast(reshape(transpose(x, order), apart), call.dims)


def _counts_through(place: Value, extent: Dim) -> bool:
    """Whether ``place`` is 0, 1, ... up to ``extent``, under axes of extent 1."""
    if place.type.size != extent:
        return False
    while place.op.name == "reshape":
        place = place.node.inputs[0]
    return place.op.name == "iota" and place.dims == (extent,)


def _flat_places(x: Value, axes: Sequence[int], places: Sequence[Value]) -> Value:
    """Row-major place among the indexed axes; each index may be negative."""
    total: Value | None = None
    for axis, place in zip(axes, places, strict=True):
        extent = tensor(x.dims[axis], _I64)
        inside = place if _never_negative(place) else ops.where(ops.lt(place, 0), ops.add(place, extent), place)
        total = inside if total is None else ops.add(ops.mul(total, extent), inside)
    assert total is not None
    return total


def _never_negative(place: Value) -> bool:
    """Whether the index is counted up from zero, as masks do."""
    while place.op.name in ("reshape", "broadcast", "transpose", "cast"):
        place = place.node.inputs[0]
    return place.op.name == "iota"


@aten("index_put", "_unsafe_index_put")
def _index_put(call: Call, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False) -> Value:
    if len(indices) == 1 and indices[0] is not None and indices[0].type.dtype.kind == "bool" and values.type.size == 1:
        return _put_masked(x, indices[0], values, accumulate)
    axes, places = _index_axes(call, x, indices)
    rest = [i for i in range(x.type.rank) if i not in axes]
    front = transpose(x, [*axes, *rest])
    lead = broadcast_dims([p.dims for p in places])
    at = [broadcast(p, lead) for p in places]
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    before = axes[0] if adjacent else 0
    shape = (*(x.dims[i] for i in rest[:before]), *lead, *(x.dims[i] for i in rest[before:]))
    updates = broadcast(cast(values, x.type.dtype), shape)
    order = [*range(before, before + len(lead)), *range(before), *range(before + len(lead), len(shape))]
    result = ops.index_put(front, transpose(updates, order), *at, accumulate=accumulate)
    back = [axes.index(i) if i in axes else len(axes) + rest.index(i) for i in range(x.type.rank)]
    return transpose(result, back)


def _put_masked(x: Value, mask: Value, values: Value, accumulate: bool) -> Value:
    """``x[mask] = value`` needs no index: it is a where."""
    wide = broadcast(reshape(mask, (*mask.dims, *[1] * (x.type.rank - mask.type.rank))), x.dims)
    value = broadcast(reshape(cast(values, x.type.dtype), ()), x.dims)
    return ops.where(wide, ops.add(x, value) if accumulate else value, x)


# --- scatter ----------------------------------------------------------------------------------------------------------


def _scattered(call: Call, x: Value, dim: int, index: Value, source: Operand, reduce: str) -> Value:
    axis = axis_of(x, dim)
    updates = tensor(source, call.dtype)
    if updates.type.rank == 0:
        updates = broadcast(updates, index.dims)
    if updates.dims != index.dims:
        updates = ops.slice(updates, starts=(0,) * len(index.dims), stops=index.dims, steps=(1,) * len(index.dims))
    if any(index.dims[i] != extent for i, extent in enumerate(x.dims) if i != axis):
        return _scatter_at(x, axis, index, updates, reduce, call)
    return ops.scatter(x, index, updates, axis=axis, reduce=reduce)


def _scatter_at(x: Value, axis: int, index: Value, updates: Value, reduce: str, call: Call) -> Value:
    """An index shorter than x on the other axes: name every place."""
    if reduce not in ("set", "add"):
        raise call.unsupported(f"scatter with {reduce} and an index shorter than the tensor is not supported")
    places = [index if i == axis else ops.iota(dims=index.dims, axis=i, dtype=_I64) for i in range(x.type.rank)]
    return ops.index_put(x, updates, *places, accumulate=reduce == "add")


@aten("scatter.src", "scatter.value", "scatter.reduce", "scatter.value_reduce")
def _scatter(call: Call, x: Value, dim: int, index: Value, src: Operand | None = None, reduce: str | None = None,
             value: Operand | None = None) -> Value:  # fmt: skip
    how = {None: "set", "add": "add", "multiply": "mul"}[reduce]
    return _scattered(call, x, dim, index, value if src is None else src, how)  # type: ignore[arg-type]


@aten("scatter_add")
def _scatter_add(call: Call, x: Value, dim: int, index: Value, src: Value) -> Value:
    return _scattered(call, x, dim, index, src, "add")


_REDUCES = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}
_NEUTRAL = {"sum": 0.0, "prod": 1.0, "amax": float("-inf"), "amin": float("inf")}


@aten("scatter_reduce.two")
def _scatter_reduce(
    call: Call, x: Value, dim: int, index: Value, src: Value, reduce: str, include_self: bool = True
) -> Value:
    if reduce not in _REDUCES or (not include_self and not call.dtype.is_float):
        raise call.unsupported(f"scatter_reduce with {reduce} is not supported")
    if include_self:
        return _scattered(call, x, dim, index, src, _REDUCES[reduce])
    start = _scattered(call, x, dim, index, _NEUTRAL[reduce], "set")
    return _scattered(call, start, dim, index, src, _REDUCES[reduce])


@aten("index_add")
def _index_add(call: Call, x: Value, dim: int, index: Value, source: Value, alpha: Scalar = 1) -> Value:
    axis = axis_of(x, dim)
    updates = source if alpha == 1 else ops.mul(source, tensor(alpha, call.dtype))
    return _along(x, axis, index, updates, accumulate=True)


@aten("index_copy")
def _index_copy(call: Call, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _along(x, axis_of(x, dim), index, source, accumulate=False)


@aten("index_fill.int_Scalar", "index_fill.int_Tensor")
def _index_fill(call: Call, x: Value, dim: int, index: Value, value: Operand) -> Value:
    axis = axis_of(x, dim)
    shape = (*x.dims[:axis], product(index.dims), *x.dims[axis + 1 :])
    return _along(x, axis, index, broadcast(tensor(value, call.dtype), shape), accumulate=False)


def _along(x: Value, axis: int, index: Value, updates: Value, *, accumulate: bool) -> Value:
    to_front = [axis, *(i for i in range(x.type.rank) if i != axis)]
    flat = reshape(cast(index, _I64), (product(index.dims),))
    result = ops.index_put(transpose(x, to_front), transpose(updates, to_front), flat, accumulate=accumulate)
    return transpose(result, [to_front.index(i) for i in range(x.type.rank)])


@aten("masked_scatter", "masked_select", "nonzero", "nonzero_numpy", "_unique2", "unique_dim", "unique_consecutive")
def _sized_by_values(call: Call, *_: object, **__: object) -> Value:
    raise call.unsupported(
        f"{call.name} gives a result whose size depends on the values; use torch.where or a fixed size"
    )


@aten("bucketize.Tensor", "searchsorted.Tensor")
def _bucketize(call: Call, first: Value, second: Value, *, out_int32: bool = False, right: bool = False,
               side: str | None = None, sorter: Value | None = None) -> Value:  # fmt: skip
    """The count of boundaries below each element; linear in the number of boundaries."""
    x, edges = (first, second) if "bucketize" in call.name else (second, first)
    if edges.type.rank != 1 or sorter is not None:
        raise call.unsupported("searchsorted needs one sorted sequence")
    column = reshape(x, (*x.dims, 1))
    below = (ops.le if right or side == "right" else ops.lt)(edges, column)
    return cast(ops.sum(cast(below, _I64), axes=(x.type.rank,), keepdims=False), call.dtype)
