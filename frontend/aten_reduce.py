"""ATen's reductions, prefix sums and orderings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from coilc.ir import DType, OpDef, Value, literal, ops
from coilc.ir.types import DTYPES

from .aten import Call, Scalar, aten, axis_of, cast, concat, reshape, slice_axis, truth

Axes = int | Sequence[int] | None


def _axes(x: Value, dim: Axes) -> tuple[int, ...]:
    """Axes from the front, increasing; none given means all of them."""
    chosen = [dim] if isinstance(dim, int) else list(dim or range(x.type.rank))
    return tuple(sorted(axis_of(x, axis) for axis in chosen))


def _reduce(op: OpDef, x: Value, dim: Axes, keepdim: bool, **attrs: Any) -> Value:
    """A reduction; over no axes (a scalar) it is the identity on one extra axis."""
    if x.type.rank == 0:
        return ops.reshape(op(ops.reshape(x, dims=(1,)), axes=(0,), keepdims=True, **attrs), dims=())
    return op(x, axes=_axes(x, dim), keepdims=bool(keepdim), **attrs)


@aten("sum", "sum.dim_IntList")
def _sum(call: Call, x: Value, dim: Axes = None, keepdim: bool = False, dtype: object = None) -> Value:
    return _reduce(ops.sum, cast(x, call.dtype), dim, keepdim)


@aten("mean", "mean.dim")
def _mean(call: Call, x: Value, dim: Axes = None, keepdim: bool = False, dtype: object = None) -> Value:
    return _reduce(ops.mean, cast(x, call.dtype), dim, keepdim)


@aten("prod", "prod.dim_int")
def _prod(call: Call, x: Value, dim: Axes = None, keepdim: bool = False, dtype: object = None) -> Value:
    return _reduce(ops.prod, cast(x, call.dtype), dim, keepdim)


@aten("amax", "max")
def _amax(call: Call, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
    return _reduce(ops.max, x, dim, keepdim)


@aten("amin", "min")
def _amin(call: Call, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
    return _reduce(ops.min, x, dim, keepdim)


@aten("max.dim")
def _max_dim(call: Call, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    return _amax(call, x, dim, keepdim), _index_of(ops.argmax, x, dim, keepdim)


@aten("min.dim")
def _min_dim(call: Call, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
    return _amin(call, x, dim, keepdim), _index_of(ops.argmin, x, dim, keepdim)


@aten("argmax")
def _argmax(call: Call, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _index_of(ops.argmax, x, dim, keepdim)


@aten("argmin")
def _argmin(call: Call, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    return _index_of(ops.argmin, x, dim, keepdim)


def _index_of(op: OpDef, x: Value, dim: int | None, keepdim: bool) -> Value:
    if x.type.rank == 0:
        return literal(0, DTYPES["i64"])
    if dim is None:
        flat = op(reshape(x, (x.type.size,)), axis=0, keepdims=False)
        return reshape(flat, (1,) * x.type.rank) if keepdim else flat
    return op(x, axis=axis_of(x, dim), keepdims=bool(keepdim))


@aten("any", "any.dim", "any.dims")
def _any(call: Call, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
    return _reduce(ops.any, truth(x), dim, keepdim)


@aten("all", "all.dim", "all.dims")
def _all(call: Call, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
    return _reduce(ops.all, truth(x), dim, keepdim)


@aten("logsumexp")
def _logsumexp(call: Call, x: Value, dim: Axes, keepdim: bool = False) -> Value:
    return _reduce(ops.logsumexp, cast(x, call.dtype), dim, keepdim)


@aten("var", "var.dim", "var.correction")
def _var(call: Call, x: Value, dim: Axes = None, unbiased: bool = True, keepdim: bool = False,
         correction: float | None = None) -> Value:  # fmt: skip
    if isinstance(dim, bool):  # the overload without axes
        return _var(call, x, None, dim, keepdim, correction)
    return _reduce(ops.var, x, dim, keepdim, correction=int(unbiased) if correction is None else int(correction))


@aten("std", "std.dim", "std.correction")
def _std(call: Call, x: Value, dim: Axes = None, unbiased: bool = True, keepdim: bool = False,
         correction: float | None = None) -> Value:  # fmt: skip
    return ops.sqrt(_var(call, x, dim, unbiased, keepdim, correction))


@aten("var_mean", "var_mean.dim", "var_mean.correction")
def _var_mean(call: Call, x: Value, dim: Axes = None, unbiased: bool = True, keepdim: bool = False,
              correction: float | None = None) -> tuple[Value, Value]:  # fmt: skip
    mean = _reduce(ops.mean, x, None if isinstance(dim, bool) else dim, keepdim)
    return _var(call, x, dim, unbiased, keepdim, correction), mean


@aten("std_mean", "std_mean.dim", "std_mean.correction")
def _std_mean(call: Call, x: Value, *args: Any, **named: Any) -> tuple[Value, Value]:
    var, mean = _var_mean(call, x, *args, **named)
    return ops.sqrt(var), mean


@aten("norm.Scalar", "norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype", "norm.ScalarOpt_dtype", "linalg_vector_norm")
def _norm(
    call: Call, x: Value, p: Scalar | None = 2, dim: Axes = None, keepdim: bool = False, dtype: object = None
) -> Value:
    magnitude, order = cast(ops.abs(x), call.dtype), 2.0 if p is None else float(p)  # type: ignore[arg-type]
    if math.isinf(order):
        return _reduce(ops.max if order > 0 else ops.min, magnitude, dim, keepdim)
    if order == 0:
        return _reduce(ops.sum, cast(ops.ne(magnitude, 0), call.dtype), dim, keepdim)
    if order == 1:
        return _reduce(ops.sum, magnitude, dim, keepdim)
    if order == 2:
        return ops.sqrt(_reduce(ops.sum, ops.square(magnitude), dim, keepdim))
    return ops.pow(_reduce(ops.sum, ops.pow(magnitude, order), dim, keepdim), 1 / order)


@aten("count_nonzero", "count_nonzero.dim_IntList")
def _count_nonzero(call: Call, x: Value, dim: Axes = None) -> Value:
    return _reduce(ops.sum, cast(truth(x), call.dtype), dim, False)


# --- prefix -----------------------------------------------------------------------------------------------------------


def _prefix(op: OpDef, call: Call, x: Value, dim: int) -> Value:
    value = cast(x, call.dtype)
    return value if value.type.rank == 0 else op(value, axis=axis_of(value, dim))


@aten("cumsum")
def _cumsum(call: Call, x: Value, dim: int, dtype: DType | None = None) -> Value:
    return _prefix(ops.cumsum, call, x, dim)


@aten("cumprod")
def _cumprod(call: Call, x: Value, dim: int, dtype: DType | None = None) -> Value:
    return _prefix(ops.cumprod, call, x, dim)


@aten("logcumsumexp")
def _logcumsumexp(call: Call, x: Value, dim: int) -> Value:
    return _prefix(ops.logcumsumexp, call, x, dim)


@aten("cummax")
def _cummax(call: Call, x: Value, dim: int) -> tuple[Value, Value]:
    axis = axis_of(x, dim)
    largest = ops.cummax(x, axis=axis)
    return largest, _latest(x, largest, axis)


@aten("cummin")
def _cummin(call: Call, x: Value, dim: int) -> tuple[Value, Value]:
    axis = axis_of(x, dim)
    smallest = ops.neg(ops.cummax(ops.neg(x), axis=axis))
    return smallest, _latest(x, smallest, axis)


def _latest(x: Value, best: Value, axis: int) -> Value:
    """Where the best so far was met last."""
    place = ops.iota(dims=x.dims, axis=axis, dtype=DTYPES["i64"])
    return ops.cummax(ops.where(ops.eq(x, best), place, 0), axis=axis)


@aten("diff")
def _diff(
    call: Call, x: Value, n: int = 1, dim: int = -1, prepend: Value | None = None, append: Value | None = None
) -> Value:
    axis = axis_of(x, dim)
    x = concat([part for part in (prepend, x, append) if part is not None], axis)
    for _ in range(n):
        later, earlier = slice_axis(x, axis, 1, x.dims[axis]), slice_axis(x, axis, 0, x.dims[axis] - 1)
        x = ops.logical_xor(later, earlier) if x.type.dtype.kind == "bool" else ops.sub(later, earlier)
    return x


# --- orderings --------------------------------------------------------------------------------------------------------


@aten("sort", "sort.stable")
def _sort(call: Call, x: Value, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Any:
    if x.type.rank == 0:
        return x, literal(0, DTYPES["i64"])
    return ops.sort(x, axis=axis_of(x, dim), descending=bool(descending))


@aten("argsort", "argsort.stable")
def _argsort(call: Call, x: Value, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Value:
    return _sort(call, x, dim, descending)[1]


@aten("topk")
def _topk(call: Call, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    return ops.topk(x, k=k, axis=axis_of(x, dim), largest=bool(largest))
