"""Reading and writing at places that are data: indices are i64 or i32, negative ones count from the end."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dims as d
from ..opdef import IN_PLACE, MOVEMENT, BadExample, Example, OpDef
from ..types import DTYPES, TensorType
from . import rules as r

_ADD_UP = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _indices(*operands: TensorType) -> None:
    for operand in operands:
        r.require(operand.dtype.kind == "int", f"indices must be i64 or i32, not {operand.dtype}")


def _take(x: TensorType, indices: TensorType, *, axis: int) -> TensorType:
    _indices(indices)
    r.axis_of(x, axis)
    return r.replace_dim(x, axis, *indices.dims)


def _gather(x: TensorType, indices: TensorType, *, axis: int) -> TensorType:
    _indices(indices)
    r.axis_of(x, axis)
    same = indices.rank == x.rank and r.replace_dim(indices, axis).dims == r.replace_dim(x, axis).dims
    r.require(same, f"indices must agree with the operand on every axis but {axis}")
    return x.with_dims(indices.dims)


def _scatter(x: TensorType, indices: TensorType, updates: TensorType, *, axis: int, reduce: str = "set") -> TensorType:
    r.require(reduce in ("set", *_ADD_UP), f'reduce is "set", "add", "mul", "max" or "min", not "{reduce}"')
    r.same_dtype(x, updates)
    r.shaped("updates", updates, _gather(x, indices, axis=axis).dims)
    return x


def _put(x: Any, places: tuple[Any, ...], updates: Any, reduce: str) -> Any:
    result = np.array(x)
    if reduce == "set":
        result[places] = updates
    else:
        _ADD_UP[reduce].at(result, places, updates)
    return result


def _scatter_reference(x: Any, indices: Any, updates: Any, *, axis: int, reduce: str) -> Any:
    places = list(np.indices(indices.shape, sparse=True))
    places[axis] = indices
    return _put(x, tuple(places), updates, reduce)


def _index_put(x: TensorType, updates: TensorType, *indices: TensorType, accumulate: bool = False) -> TensorType:
    _indices(*indices)
    r.require(0 < len(indices) <= x.rank, f"{len(indices)} index operands for rank {x.rank}")
    r.same_dtype(x, updates)
    r.require(len({i.dims for i in indices}) == 1, "indices must have equal dims; broadcast first")
    r.shaped("updates", updates, (*indices[0].dims, *x.dims[len(indices) :]))
    return x


def _update_slice(x: TensorType, update: TensorType, start: TensorType, *, axis: int) -> TensorType:
    r.same_dtype(x, update)
    r.axis_of(x, axis)
    r.ranked("update", update, (str(dim) for dim in x.dims))
    r.shaped("update", update, r.replace_dim(x, axis, update.dims[axis]).dims)
    r.require(start == TensorType(DTYPES["i64"], ()), f"start must be i64[()], not {start}")
    return x


def _update_slice_reference(x: Any, update: Any, start: Any, *, axis: int) -> Any:
    result, at = np.moveaxis(np.array(x), axis, 0), int(start)
    first, last = max(at, 0), min(at + update.shape[axis], len(result))
    if first < last:
        result[first:last] = np.moveaxis(update, axis, 0)[first - at : last - at]
    return np.moveaxis(result, 0, axis)


take = OpDef(
    "take",
    infer=_take,
    reference=lambda x, indices, *, axis: np.take(x, indices, axis),
    traits=frozenset({MOVEMENT}),
    examples=(
        Example(("f32[5, 3]", "i64[2, 4]"), {"axis": 0}, ranges={1: (-5, 4)}),
        Example(("f32[3, 7]", "i32[()]"), {"axis": 1}, ranges={1: (0, 6)}),
    ),
    bad_examples=(
        BadExample(("f32[5]", "f32[2]"), {"axis": 0}, "indices must be"),
        BadExample(("f32[5]", "i64[2]"), {"axis": 1}, "axis 1 is not in"),
    ),
    doc="``numpy.take``: the slices of x along axis that indices name; the dims of indices replace the axis.",
)
gather = OpDef(
    "gather",
    infer=_gather,
    reference=lambda x, indices, *, axis: np.take_along_axis(x, indices, axis),
    traits=frozenset({MOVEMENT}),
    aliases={"aten": ("aten.gather.default",)},
    examples=(
        Example(("f32[5, 3]", "i64[2, 3]"), {"axis": 0}, ranges={1: (-5, 4)}),
        Example(("f32[1]", "i64[4]"), {"axis": 0}, ranges={1: (0, 0)}),
    ),
    bad_examples=(BadExample(("f32[5, 3]", "i64[2, 2]"), {"axis": 0}, "on every axis but 0"),),
    doc="``numpy.take_along_axis``: result[i, j] = x[indices[i, j], j] for axis 0.",
)
scatter = OpDef(
    "scatter",
    infer=_scatter,
    reference=_scatter_reference,
    aliases={"aten": ("aten.scatter.src", "aten.scatter_add.default", "aten.scatter_reduce.two")},
    examples=tuple(
        Example(("f32[5, 3]", "i64[7, 3]", "f32[7, 3]"), {"axis": 0, "reduce": how}, ranges={1: (-5, 4)})
        for how in ("set", *_ADD_UP)
    ),
    bad_examples=(
        BadExample(("f32[5]", "i64[2]", "f32[3]"), {"axis": 0}, "updates must have dims [2]"),
        BadExample(("f32[5]", "i64[2]", "f32[2]"), {"axis": 0, "reduce": "mean"}, "reduce is"),
    ),
    doc="x with x[indices[i, j], j] set to, or combined with, updates[i, j] in row-major order (axis 0).",
)
index_put = OpDef(
    "index_put",
    infer=_index_put,
    reference=lambda x, updates, *indices, accumulate: _put(x, indices, updates, "add" if accumulate else "set"),
    examples=(
        Example(
            ("f32[5, 3, 2]", "f32[4, 2]", "i64[4]", "i64[4]"), {"accumulate": True}, ranges={2: (-5, 4), 3: (0, 2)}
        ),
        Example(("f32[5, 3]", "f32[2, 1, 3]", "i64[2, 1]"), {"accumulate": False}, ranges={2: (0, 4)}),
    ),
    bad_examples=(
        BadExample(("f32[5, 3]", "f32[4]", "i64[4]"), {}, "updates must have dims [4, 3]"),
        BadExample(("f32[5]", "f32[4]", "i64[4]", "i64[4]"), {}, "2 index operands for rank 1"),
    ),
    doc="x with x[indices[0][i], indices[1][i], ...] set to, or increased by, updates[i].",
)
update_slice = OpDef(
    "update_slice",
    infer=_update_slice,
    reference=_update_slice_reference,
    flops=lambda x, update, *_, **__: d.size(update.dims),
    traits=frozenset({IN_PLACE}),
    examples=(
        Example(("f32[2, 7, 3]", "f32[2, 2, 3]", "i64[()]"), {"axis": 1}, ranges={2: (0, 5)}),
        Example(("f32[5]", "f32[3]", "i64[()]"), {"axis": 0}, ranges={2: (-3, 4)}),
        Example(("bf16[1, 4]", "bf16[1, 1]", "i64[()]"), {"axis": 1}, ranges={2: (0, 3)}),
    ),
    bad_examples=(
        BadExample(("f32[2, 7]", "f32[3, 2]", "i64[()]"), {"axis": 1}, "update must have dims [2, 2]"),
        BadExample(("f32[7]", "f32[2]", "i32[()]"), {"axis": 0}, "start must be i64[()]"),
    ),
    doc="x with ``x[start : start + n]`` along axis replaced by update; what would lie outside x is dropped.",
)
