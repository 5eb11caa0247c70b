"""Normalisations; 16-bit operands are normalised in f32."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dims as d
from ..core import Value
from ..opdef import BadExample, Example, OpDef
from ..types import TensorType
from . import rules as r
from .elementwise import add, div, exp, log, mul, rsqrt, sub
from .movement import reshape
from .precision import in_f32
from .reduce import max, mean, sum

_EPS = 1e-5


def _along(x: TensorType, *, axis: int) -> TensorType:
    r.of_kind(r.FLOAT, x)
    r.axis_of(x, axis)
    return x


def _softmax_reference(x: Any, *, axis: int) -> Any:
    e = np.exp(x - np.max(x, axis, keepdims=True))
    return e / np.sum(e, axis, keepdims=True)


def _softmax(x: Value, *, axis: int) -> Value:
    e = exp(sub(x, max(x, axes=(axis,), keepdims=True)))
    return div(e, sum(e, axes=(axis,), keepdims=True))


def _log_softmax_reference(x: Any, *, axis: int) -> Any:
    shifted = x - np.max(x, axis, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis, keepdims=True))


def _log_softmax(x: Value, *, axis: int) -> Value:
    shifted = sub(x, max(x, axes=(axis,), keepdims=True))
    return sub(shifted, log(sum(exp(shifted), axes=(axis,), keepdims=True)))


def _last_axis(x: TensorType, *affine: TensorType, eps: float = _EPS) -> TensorType:
    r.of_kind(r.FLOAT, x)
    r.axis_of(x, x.rank - 1)
    r.same_dtype(x, *affine)
    for name, operand in zip(("w", "b"), affine, strict=False):
        r.shaped(name, operand, x.dims[-1:])
    return x


def _layer_norm_type(
    x: TensorType, w: TensorType | None = None, b: TensorType | None = None, *, eps: float = _EPS
) -> TensorType:
    return _last_axis(x, *(t for t in (w, b) if t is not None), eps=eps)


def _rms_norm_type(x: TensorType, w: TensorType | None = None, *, eps: float = _EPS) -> TensorType:
    return _last_axis(x, *(t for t in (w,) if t is not None), eps=eps)


def _standardised(x: Any, axes: tuple[int, ...], eps: float) -> Any:
    return (x - np.mean(x, axes, keepdims=True)) / np.sqrt(np.var(x, axes, keepdims=True) + eps)


def _standardise(x: Value, axes: tuple[int, ...], eps: float) -> Value:
    centred = sub(x, mean(x, axes=axes, keepdims=True))
    variance = mean(mul(centred, centred), axes=axes, keepdims=True)
    return mul(centred, rsqrt(add(variance, eps)))


def _affine(x: Any, affine: tuple[Any, ...], times: Any, plus: Any) -> Any:
    """``x * w + b`` for whichever of w, b are there."""
    for combine, operand in zip((times, plus), affine, strict=False):
        x = combine(x, operand)
    return x


def _layer_norm_reference(x: Any, *affine: Any, eps: float) -> Any:
    return _affine(_standardised(x, (-1,), eps), affine, np.multiply, np.add)


def _layer_norm(x: Value, *affine: Value, eps: float) -> Value:
    return _affine(_standardise(x, (x.type.rank - 1,), eps), affine, mul, add)


def _rms_norm_reference(x: Any, *w: Any, eps: float) -> Any:
    return _affine(x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + eps), w, np.multiply, np.add)


def _rms_norm(x: Value, *w: Value, eps: float) -> Value:
    power = mean(mul(x, x), axes=(x.type.rank - 1,), keepdims=True)
    return _affine(mul(x, rsqrt(add(power, eps))), w, mul, add)


def _channels(x: TensorType) -> d.Dim:
    r.of_kind(r.FLOAT, x)
    r.require(x.rank >= 2, f"takes x [B, C, *S], not {r.show(x.dims)}")
    return x.dims[1]


def _per_channel(parameter: Any, rank: int) -> tuple[int, ...]:
    """Dims that line a [C] parameter up with axis 1."""
    return (1, parameter.shape[0] if isinstance(parameter, np.ndarray) else parameter.dims[0], *(1,) * (rank - 2))


def _group_norm_type(x: TensorType, w: TensorType, b: TensorType, *, groups: int, eps: float = _EPS) -> TensorType:
    channels = _channels(x)
    r.divided("C and groups", channels, groups)
    r.shaped("w", w, (channels,))
    r.shaped("b", b, (channels,))
    r.same_dtype(x, w, b)
    return x


def _group_norm_reference(x: Any, w: Any, b: Any, *, groups: int, eps: float) -> Any:
    grouped = _standardised(x.reshape(x.shape[0], groups, -1), (2,), eps).reshape(x.shape)
    return grouped * w.reshape(_per_channel(w, x.ndim)) + b.reshape(_per_channel(b, x.ndim))


def _group_norm(x: Value, w: Value, b: Value, *, groups: int, eps: float) -> Value:
    inner = r.divided("C and groups", x.dims[1], groups) * d.size(x.dims[2:])
    grouped = _standardise(reshape(x, dims=(x.dims[0], groups, inner)), (2,), eps)
    scale, shift = (reshape(p, dims=_per_channel(p, x.type.rank)) for p in (w, b))
    return add(mul(reshape(grouped, dims=x.dims), scale), shift)


def _batch_norm_type(x: TensorType, *parameters: TensorType, eps: float = _EPS) -> TensorType:
    channels = _channels(x)
    r.require(len(parameters) == 4, "takes x, w, b, mean and variance")
    for name, parameter in zip(("w", "b", "mean", "variance"), parameters, strict=True):
        r.shaped(name, parameter, (channels,))
    r.same_dtype(x, *parameters)
    return x


def _batch_norm_reference(x: Any, *parameters: Any, eps: float) -> Any:
    w, b, centre, variance = (p.reshape(_per_channel(p, x.ndim)) for p in parameters)
    return (x - centre) / np.sqrt(variance + eps) * w + b


def _batch_norm(x: Value, *parameters: Value, eps: float) -> Value:
    w, b, centre, variance = parameters
    gain = mul(w, rsqrt(add(variance, eps)))  # per channel, so that it folds when the parameters are weights
    shift = sub(b, mul(centre, gain))
    scale, offset = (reshape(p, dims=_per_channel(p, x.type.rank)) for p in (gain, shift))
    return add(mul(x, scale), offset)


_AXIS = (
    BadExample(("f32[3]",), {"axis": 1}, "axis 1 is not in 0..0"),
    BadExample(("i64[3]",), {"axis": 0}, "cast first"),
)
_ROWS = (Example(("f32[3, 7]",), {"axis": 1}), Example(("f32[5, 1, 2]",), {"axis": 0}, low=-90, high=90))
softmax = OpDef(
    "softmax",
    _along,
    _softmax_reference,
    in_f32(_along, _softmax),
    aliases={"aten": ("aten._softmax.default", "aten.softmax.int")},
    examples=(*_ROWS, Example(("bf16[3, 33]",), {"axis": 1})),
    bad_examples=_AXIS,
    doc="``exp(x) / sum(exp(x))`` along axis.",
)
log_softmax = OpDef(
    "log_softmax",
    _along,
    _log_softmax_reference,
    in_f32(_along, _log_softmax),
    aliases={"aten": ("aten._log_softmax.default", "aten.log_softmax.int")},
    examples=_ROWS,
    bad_examples=_AXIS,
    doc="``log(softmax(x))`` along axis.",
)
layer_norm = OpDef(
    "layer_norm",
    _layer_norm_type,
    _layer_norm_reference,
    in_f32(_layer_norm_type, _layer_norm),
    aliases={"aten": ("aten.layer_norm.default",)},
    examples=(
        Example(("f32[2, 3, 7]", "f32[7]", "f32[7]"), {"eps": 1e-5}),
        Example(("f32[5]",), {"eps": 1e-3}),
        Example(("f16[3, 33]", "f16[33]"), {"eps": 1e-5}),
    ),
    bad_examples=(BadExample(("f32[2, 7]", "f32[2]", "f32[7]"), {}, "w must have dims [7]"),),
    doc="Zero mean and unit variance over the last axis, then ``* w + b``; w and b may be left out.",
)
rms_norm = OpDef(
    "rms_norm",
    _rms_norm_type,
    _rms_norm_reference,
    in_f32(_rms_norm_type, _rms_norm),
    aliases={"aten": ("aten.rms_norm.default",)},
    examples=(
        Example(("f32[2, 3, 7]", "f32[7]"), {"eps": 1e-6}),
        Example(("f32[1]",), {"eps": 1e-5}),
        Example(("bf16[3, 33]", "bf16[33]"), {"eps": 1e-5}),
    ),
    bad_examples=(BadExample(("f32[2, 7]", "f32[2]"), {}, "w must have dims [7]"),),
    doc="``x / sqrt(mean(x * x) + eps) * w`` over the last axis; w may be left out.",
)
group_norm = OpDef(
    "group_norm",
    _group_norm_type,
    _group_norm_reference,
    in_f32(_group_norm_type, _group_norm),
    aliases={"aten": ("aten.group_norm.default",)},
    examples=(
        Example(("f32[2, 6, 5, 3]", "f32[6]", "f32[6]"), {"groups": 3}),
        Example(("f32[2, 4]", "f32[4]", "f32[4]"), {"groups": 1}),
    ),
    bad_examples=(BadExample(("f32[2, 6]", "f32[6]", "f32[6]"), {"groups": 4}, "6 is not a multiple of 4"),),
    doc="x [B, C, *S]: zero mean and unit variance over each group of channels and its space, then ``* w + b``.",
)
batch_norm = OpDef(
    "batch_norm",
    _batch_norm_type,
    _batch_norm_reference,
    in_f32(_batch_norm_type, _batch_norm),
    aliases={"aten": ("aten._native_batch_norm_legit_no_training.default",)},
    examples=(
        Example(("f32[2, 3, 5]", *("f32[3]",) * 4), {"eps": 1e-5}, ranges={4: (0.1, 2.0)}),
        Example(("f32[1, 2]", *("f32[2]",) * 4), {"eps": 1e-5}, ranges={4: (0.1, 2.0)}),
    ),
    bad_examples=(BadExample(("f32[2, 3]", *("f32[2]",) * 4), {}, "w must have dims [3]"),),
    doc="x [B, C, *S] with stored statistics: ``(x - mean) / sqrt(variance + eps) * w + b`` per channel.",
)
