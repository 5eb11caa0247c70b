"""Movement: every result element is a copy of an operand's element, or a constant that depends on its place only."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np

from .. import dims as d
from ..core import Value
from ..opdef import MOVEMENT, BadExample, Example, OpDef, literal
from ..types import DTYPES, DType, TensorType
from . import rules as r
from .elementwise import cast

_MOVES = frozenset({MOVEMENT})


def _broadcast(x: TensorType, *, dims: d.Dims) -> TensorType:
    r.broadcasts_to("the operand", x, dims)
    return x.with_dims(dims)


def _reshape(x: TensorType, *, dims: d.Dims) -> TensorType:
    r.require(d.size(dims) == x.size, f"{r.show(dims)} has {d.size(dims)} elements, the operand {x.size}")
    return x.with_dims(dims)


def _transpose(x: TensorType, *, perm: tuple[int, ...]) -> TensorType:
    r.require(sorted(perm) == list(range(x.rank)), f"perm {perm} must name each of {x.rank} axes once")
    return x.with_dims(tuple(x.dims[axis] for axis in perm))


def _slice(x: TensorType, *, starts: d.Dims, stops: d.Dims, steps: tuple[int, ...]) -> TensorType:
    r.per_axis(x, starts=starts, stops=stops, steps=steps)
    for start, stop, extent in zip(starts, stops, x.dims, strict=True):
        inside = r.at_most(0, start) and r.at_most(start, stop) and r.at_most(stop, extent)
        r.require(inside, f"{start}:{stop} is not inside an axis of {extent}")
    r.require(min(steps, default=1) >= 1, f"steps {steps} must be positive; flip reverses an axis")
    lengths = zip(starts, stops, steps, strict=True)
    return x.with_dims(tuple((stop - start + step - 1) // step for start, stop, step in lengths))


def _slice_reference(x: Any, *, starts: Any, stops: Any, steps: Any) -> Any:
    return x[tuple(map(builtins.slice, starts, stops, steps))]


def _flip(x: TensorType, *, axes: tuple[int, ...]) -> TensorType:
    r.axis_of(x, *axes)
    return x


def _concat(*xs: TensorType, axis: int) -> TensorType:
    r.require(bool(xs), "takes at least one operand")
    r.axis_of(xs[0], axis)
    r.same_dtype(*xs)
    for x in xs:
        equal = x.rank == xs[0].rank and r.replace_dim(x, axis) == r.replace_dim(xs[0], axis)
        r.require(equal, f"operands must agree on every axis but {axis}")
    total: d.Dim = 0
    return r.replace_dim(xs[0], axis, sum((x.dims[axis] for x in xs), total))


def _pad(x: TensorType, *, low: d.Dims, high: d.Dims, value: float = 0.0) -> TensorType:
    r.per_axis(x, low=low, high=high)
    r.require(all(r.at_most(0, pad) for pad in (*low, *high)), "padding must not be negative; slice removes elements")
    whole = x.dtype.kind in ("float", "complex") or (math.isfinite(value) and value == int(value))
    r.require(whole, f"{value} is not a value of {x.dtype}")
    return x.with_dims(tuple(before + dim + after for before, dim, after in zip(low, x.dims, high, strict=True)))


def _pad_reference(x: Any, *, low: Any, high: Any, value: float) -> Any:
    return np.pad(x, tuple(zip(low, high, strict=True)), constant_values=np.asarray(value).astype(x.dtype))


def _iota(*, dims: d.Dims, axis: int, dtype: DType) -> TensorType:
    result = TensorType(dtype, tuple(dims))
    r.of_kind(r.NUMBER, result)
    r.axis_of(result, axis)
    return result


def _iota_reference(*, dims: Any, axis: int, dtype: DType) -> Any:
    count = np.arange(dims[axis]).astype(dtype.numpy)
    return np.broadcast_to(count.reshape([-1 if i == axis else 1 for i in range(len(dims))]), dims)


def _extent(*, dim: d.Dim, dtype: DType) -> TensorType:
    result = TensorType(dtype, ())
    r.of_kind(r.NUMBER, result)
    return result


def _extent_value(*, dim: d.Dim, dtype: DType) -> Value:
    """``iota(dim + 1)[dim]``: movement, so it costs nothing inside a fused group."""
    counts = iota(dims=(dim + 1,), axis=0, dtype=DTYPES["i64"])
    return cast(reshape(slice(counts, starts=(dim,), stops=(dim + 1,), steps=(1,)), dims=()), dtype=dtype)


broadcast = OpDef(
    "broadcast",
    infer=_broadcast,
    reference=lambda x, *, dims: np.broadcast_to(x, dims),
    traits=_MOVES,
    aliases={"aten": ("aten.expand.default",)},
    examples=(Example(("f32[3, 1]",), {"dims": (2, 3, 5)}), Example(("f32[()]",), {"dims": (7,)})),
    bad_examples=(
        BadExample(("f32[3]",), {"dims": (4,)}, "a dim must be 1 or equal"),
        BadExample(("f32[2, 3]",), {"dims": (3,)}, "cannot be broadcast to [3]"),
    ),
    doc="Repeat along dims of extent 1 and new leading dims.",
)
reshape = OpDef(
    "reshape",
    infer=_reshape,
    reference=lambda x, *, dims: np.reshape(x, dims),
    traits=_MOVES,
    aliases={"aten": ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")},
    examples=(Example(("f32[3, 4]",), {"dims": (2, 6)}), Example(("f32[1]",), {"dims": ()})),
    bad_examples=(BadExample(("f32[3, 4]",), {"dims": (5, 2)}, "elements"),),
    doc="The same elements in row-major order under other dims.",
)
transpose = OpDef(
    "transpose",
    infer=_transpose,
    reference=lambda x, *, perm: np.transpose(x, perm),
    traits=_MOVES,
    aliases={"aten": ("aten.permute.default",)},
    examples=(Example(("f32[3, 1, 5]",), {"perm": (2, 0, 1)}), Example(("f32[()]",), {"perm": ()})),
    bad_examples=(BadExample(("f32[3, 4]",), {"perm": (0, 0)}, "must name each"),),
    doc="Result axis i is operand axis perm[i].",
)
slice = OpDef(
    "slice",
    infer=_slice,
    reference=_slice_reference,
    traits=_MOVES,
    examples=(
        Example(("f32[7, 5]",), {"starts": (1, 0), "stops": (6, 5), "steps": (2, 1)}),
        Example(("f32[3]",), {"starts": (2,), "stops": (2,), "steps": (1,)}),
    ),
    bad_examples=(
        BadExample(("f32[3]",), {"starts": (1,), "stops": (4,), "steps": (1,)}, "1:4 is not inside an axis of 3"),
        BadExample(("f32[3]",), {"starts": (2,), "stops": (1,), "steps": (1,)}, "is not inside"),
        BadExample(("f32[3]",), {"starts": (0,), "stops": (3,), "steps": (-1,)}, "must be positive"),
        BadExample(("f32[3, 2]",), {"starts": (0,), "stops": (3,), "steps": (1,)}, "1 entries for 2 axes"),
    ),
    doc="``x[start:stop:step]`` on every axis; starts and stops count from the front.",
)
flip = OpDef(
    "flip",
    infer=_flip,
    reference=lambda x, *, axes: np.flip(x, axes),
    traits=_MOVES,
    aliases={"aten": ("aten.flip.default",)},
    examples=(Example(("f32[3, 5]",), {"axes": (0, 1)}), Example(("f32[1]",), {"axes": (0,)})),
    bad_examples=(BadExample(("f32[3]",), {"axes": (1,)}, "axis 1 is not in 0..0"),),
    doc="Reverse the order along axes.",
)
concat = OpDef(
    "concat",
    infer=_concat,
    reference=lambda *xs, axis: np.concatenate(xs, axis),
    traits=_MOVES,
    aliases={"aten": ("aten.cat.default",)},
    examples=(Example(("f32[3, 1]", "f32[3, 4]", "f32[3, 0]"), {"axis": 1}), Example(("i64[5]",), {"axis": 0})),
    bad_examples=(
        BadExample(("f32[3, 1]", "f32[2, 4]"), {"axis": 1}, "must agree on every axis but 1"),
        BadExample(("f32[3]", "f64[3]"), {"axis": 0}, "one dtype"),
    ),
    doc="Operands one after another along axis.",
)
pad = OpDef(
    "pad",
    infer=_pad,
    reference=_pad_reference,
    traits=_MOVES,
    aliases={"aten": ("aten.constant_pad_nd.default",)},
    examples=(
        Example(("f32[3, 4]",), {"low": (1, 0), "high": (0, 2), "value": -1.5}),
        Example(("f32[1]",), {"low": (0,), "high": (6,), "value": -math.inf}),
        Example(("i64[3]",), {"low": (1,), "high": (1,), "value": 7.0}),
    ),
    bad_examples=(
        BadExample(("f32[3]",), {"low": (-1,), "high": (0,)}, "must not be negative"),
        BadExample(("i64[3]",), {"low": (1,), "high": (0,), "value": 0.5}, "0.5 is not a value of i64"),
    ),
    doc="Surround with a constant: low[i] elements before and high[i] after axis i.",
)
iota = OpDef(
    "iota",
    infer=_iota,
    reference=_iota_reference,
    traits=_MOVES,
    examples=(
        Example((), {"dims": (5,), "axis": 0, "dtype": DTYPES["i64"]}),
        Example((), {"dims": (3, 1, 4), "axis": 2, "dtype": DTYPES["f32"]}),
    ),
    bad_examples=(BadExample((), {"dims": (5,), "axis": 1, "dtype": DTYPES["i64"]}, "axis 1 is not in 0..0"),),
    doc="Each element is its index along axis.",
)
extent = OpDef(
    "extent",
    infer=_extent,
    reference=lambda *, dim, dtype: np.asarray(dim).astype(dtype.numpy),
    decompose=_extent_value,
    examples=(
        Example((), {"dim": 7, "dtype": DTYPES["f32"]}),
        Example((), {"dim": 1, "dtype": DTYPES["i64"]}),
    ),
    bad_examples=(BadExample((), {"dim": 3, "dtype": DTYPES["bool"]}, "cast first"),),
    doc="The value of a dimension as a scalar; the dimension must not be negative.",
)


def dim_value(dim: d.Dim, dtype: DType) -> Value:
    """A scalar holding ``dim``: a constant when it is known, else ``extent``."""
    return literal(dim, dtype) if isinstance(dim, int) else extent(dim=dim, dtype=dtype)


def expand_dims(x: Value, *axes: int) -> Value:
    """Insert axes of extent 1 so that they sit at ``axes`` of the result."""
    dims = list(x.dims)
    for axis in sorted(axes):
        dims.insert(axis, 1)
    return reshape(x, dims=tuple(dims))


def slice_axis(x: Value, axis: int, start: d.Dim, stop: d.Dim) -> Value:
    """``x[start:stop]`` along one axis, everything along the others."""
    starts = tuple(start if i == axis else 0 for i in range(x.type.rank))
    stops = tuple(stop if i == axis else dim for i, dim in enumerate(x.dims))
    return slice(x, starts=starts, stops=stops, steps=(1,) * x.type.rank)
