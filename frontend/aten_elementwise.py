"""ATen's elementwise ops that are more than one op of the registry under another name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes

from coilc.ir import DType, SymDim, Value, literal, ops
from coilc.ir.types import DTYPES

from .aten import Call, Operand, Scalar, aten, broadcast, cast, full, slice_axis, tensor, truth

_BOOL = DTYPES["bool"]


def _scaled(x: Operand, alpha: Scalar, dtype: DType) -> Value:
    return tensor(x, dtype) if alpha == 1 else ops.mul(tensor(x, dtype), tensor(alpha, dtype))


def _is_bool(call: Call) -> bool:
    return call.dtype.kind == "bool"


# --- arithmetic -------------------------------------------------------------------------------------------------------


@aten("add.Tensor", "add.Scalar")
def _add(call: Call, x: Operand, y: Operand, alpha: Scalar = 1) -> Value:
    if _is_bool(call):
        return ops.logical_or(truth(x), truth(y))
    if isinstance(x, Value) and x.type == call.type and call.dtype.is_integer and isinstance(y, int) and y == 0:
        return x
    return ops.add(tensor(x, call.dtype), _scaled(y, alpha, call.dtype))


@aten("sub.Tensor", "sub.Scalar")
def _sub(call: Call, x: Operand, y: Operand, alpha: Scalar = 1) -> Value:
    return ops.sub(tensor(x, call.dtype), _scaled(y, alpha, call.dtype))


@aten("rsub.Tensor", "rsub.Scalar")
def _rsub(call: Call, x: Operand, y: Operand, alpha: Scalar = 1) -> Value:
    return _sub(call, y, x, alpha)


@aten("mul.Tensor", "mul.Scalar")
def _mul(call: Call, x: Operand, y: Operand) -> Value:
    if isinstance(x, Value) and x.type == call.type and isinstance(y, int | float) and y == 1:
        return x
    op = ops.logical_and if _is_bool(call) else ops.mul
    return op(tensor(x, call.dtype), tensor(y, call.dtype))


@aten("div.Tensor_mode", "div.Scalar_mode")
def _div_mode(call: Call, x: Operand, y: Operand, rounding_mode: str | None = None) -> Value:
    a, b = tensor(x, call.dtype), tensor(y, call.dtype)
    if rounding_mode == "floor":
        return ops.floor_div(a, b)
    if rounding_mode is None or call.dtype.is_float:
        quotient = ops.div(a, b)
        return quotient if rounding_mode is None else ops.trunc(quotient)
    # Truncation of an integer quotient: what is left after the remainder with the sign of x divides exactly.
    return ops.floor_div(ops.sub(a, ops.fmod(a, b)), b)


@aten("remainder.Scalar_Tensor")
def _remainder(call: Call, x: Operand, y: Operand) -> Value:
    return ops.mod(tensor(x, call.dtype), tensor(y, call.dtype))


_POWERS: dict[float, Callable[[Value], Value]] = {
    0.5: ops.sqrt,
    1: lambda x: x,
    2: ops.square,
    3: lambda x: ops.mul(ops.mul(x, x), x),
    -0.5: ops.rsqrt,
    -1: ops.reciprocal,
}


@aten("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def _pow(call: Call, x: Operand, exponent: Operand) -> Value:
    base = tensor(x, call.dtype)
    if isinstance(exponent, int | float) and exponent in _POWERS and (call.dtype.is_float or exponent in (1, 2, 3)):
        return _POWERS[exponent](base)
    return ops.pow(base, tensor(exponent, call.dtype))


@aten("addcmul")
def _addcmul(call: Call, x: Value, a: Value, b: Value, value: Scalar = 1) -> Value:
    product = ops.mul(cast(a, call.dtype), cast(b, call.dtype))
    return ops.add(cast(x, call.dtype), _scaled(product, value, call.dtype))


@aten("addcdiv")
def _addcdiv(call: Call, x: Value, a: Value, b: Value, value: Scalar = 1) -> Value:
    quotient = ops.div(cast(a, call.dtype), cast(b, call.dtype))
    return ops.add(cast(x, call.dtype), _scaled(quotient, value, call.dtype))


@aten("lerp.Scalar", "lerp.Tensor")
def _lerp(call: Call, x: Value, end: Value, weight: Operand) -> Value:
    return ops.add(x, ops.mul(ops.sub(end, x), tensor(weight, call.dtype)))


@aten("sign", "sgn")
def _sign(call: Call, x: Value) -> Value:
    if call.dtype.is_complex:
        raise call.unsupported("sgn of complex numbers is not supported")
    return x if _is_bool(call) else ops.sign(x)


@aten("signbit")
def _signbit(call: Call, x: Value) -> Value:
    zero = literal(0, x.type.dtype)
    return ops.lt(ops.atan2(x, ops.neg(ops.abs(x))), 0) if x.type.dtype.is_float else ops.lt(x, zero)


@aten("copysign.Tensor", "copysign.Scalar")
def _copysign(call: Call, x: Value, sign: Operand) -> Value:
    magnitude, other = ops.abs(cast(x, call.dtype)), tensor(sign, call.dtype)
    return ops.where(_signbit(call, other), ops.neg(magnitude), magnitude)


@aten("hypot")
def _hypot(call: Call, x: Value, y: Value) -> Value:
    """Scaled by the larger, so that squares neither overflow nor vanish."""
    a, b = ops.abs(cast(x, call.dtype)), ops.abs(cast(y, call.dtype))
    large, small = ops.maximum(a, b), ops.minimum(a, b)
    ratio = ops.div(small, ops.where(ops.eq(large, 0), 1, large))
    scaled = ops.mul(large, ops.sqrt(ops.add(ops.square(ratio), 1)))
    return ops.where(ops.isinf(large), large, scaled)


@aten("frac")
def _frac(call: Call, x: Value) -> Value:
    return ops.sub(x, ops.trunc(x))


@aten("positive")
def _positive(call: Call, x: Value) -> Value:
    return x


# --- functions --------------------------------------------------------------------------------------------------------


def _on_floats(function: Callable[[Value], Value]) -> Callable[[Call, Value], Value]:
    return lambda call, x: function(cast(x, call.dtype))


def _asin(x: Value) -> Value:
    return ops.atan2(x, ops.sqrt(ops.mul(ops.sub(1, x), ops.add(1, x))))


def _acos(x: Value) -> Value:
    return ops.atan2(ops.sqrt(ops.mul(ops.sub(1, x), ops.add(1, x))), x)


def _asinh(x: Value) -> Value:
    magnitude = ops.abs(x)
    root = ops.sqrt(ops.add(ops.mul(x, x), 1))
    return ops.mul(ops.sign(x), ops.log1p(ops.add(magnitude, ops.div(ops.mul(x, x), ops.add(root, 1)))))


def _acosh(x: Value) -> Value:
    return ops.log(ops.add(x, ops.sqrt(ops.mul(ops.sub(x, 1), ops.add(x, 1)))))


def _atanh(x: Value) -> Value:
    return ops.mul(ops.sub(ops.log1p(x), ops.log1p(ops.neg(x))), 0.5)


def _sinh(x: Value) -> Value:
    grown = ops.expm1(x)
    return ops.mul(ops.add(grown, ops.div(grown, ops.add(grown, 1))), 0.5)


def _cosh(x: Value) -> Value:
    return ops.mul(ops.add(ops.exp(x), ops.exp(ops.neg(x))), 0.5)


aten("asin", "arcsin")(_on_floats(_asin))
aten("acos", "arccos")(_on_floats(_acos))
aten("asinh")(_on_floats(_asinh))
aten("acosh")(_on_floats(_acosh))
aten("atanh")(_on_floats(_atanh))
aten("sinh")(_on_floats(_sinh))
aten("cosh")(_on_floats(_cosh))
aten("erfc")(_on_floats(lambda x: ops.sub(1, ops.erf(x))))
aten("deg2rad")(_on_floats(lambda x: ops.mul(x, math.pi / 180)))


@aten("floor", "ceil", "trunc", "fix", "round")
def _rounded(call: Call, x: Value) -> Value:
    name = call.name.split(".")[1].replace("fix", "trunc")
    return getattr(ops, name)(x) if x.type.dtype.is_float else x


@aten("isnan", "isinf")
def _is_special(call: Call, x: Value) -> Value:
    if not x.type.dtype.is_float:
        return full(call, False)
    return getattr(ops, call.name.split(".")[1])(x)


@aten("isfinite")
def _isfinite(call: Call, x: Value) -> Value:
    return ops.isfinite(x) if x.type.dtype.is_float else full(call, True)


@aten("nan_to_num")
def _nan_to_num(
    call: Call, x: Value, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Value:
    if not x.type.dtype.is_float:
        return x
    largest = float(_largest(x.type.dtype))
    no_nan = ops.where(ops.isnan(x), nan or 0.0, x)
    high = ops.where(ops.eq(no_nan, math.inf), largest if posinf is None else posinf, no_nan)
    return ops.where(ops.eq(high, -math.inf), -largest if neginf is None else neginf, high)


def _largest(dtype: DType) -> float:
    return float(ml_dtypes.finfo(dtype.numpy).max)


# --- logic ------------------------------------------------------------------------------------------------------------


@aten("__and__.Tensor", "__and__.Scalar", "bitwise_and.Scalar_Tensor")
def _and(call: Call, x: Operand, y: Operand) -> Value:
    return ops.bitwise_and(tensor(x, call.dtype), tensor(y, call.dtype))


@aten("__or__.Tensor", "__or__.Scalar", "bitwise_or.Scalar_Tensor")
def _or(call: Call, x: Operand, y: Operand) -> Value:
    return ops.bitwise_or(tensor(x, call.dtype), tensor(y, call.dtype))


@aten("__xor__.Tensor", "__xor__.Scalar", "bitwise_xor.Scalar_Tensor")
def _xor(call: Call, x: Operand, y: Operand) -> Value:
    return ops.bitwise_xor(tensor(x, call.dtype), tensor(y, call.dtype))


@aten("__lshift__.Tensor", "__lshift__.Scalar", "bitwise_left_shift.Tensor_Scalar")
def _shift_left(call: Call, x: Operand, y: Operand) -> Value:
    return ops.shift_left(tensor(x, call.dtype), tensor(y, call.dtype))


@aten("__rshift__.Tensor", "__rshift__.Scalar", "bitwise_right_shift.Tensor_Scalar")
def _shift_right(call: Call, x: Operand, y: Operand) -> Value:
    return ops.shift_right(tensor(x, call.dtype), tensor(y, call.dtype))


@aten("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def _where(call: Call, condition: Value, x: Operand, y: Operand) -> Value:
    return ops.where(truth(condition), tensor(x, call.dtype), tensor(y, call.dtype))


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(call: Call, x: Value, mask: Value, value: Operand) -> Value:
    return ops.where(truth(mask), tensor(value, call.dtype), x)


# --- ranges -----------------------------------------------------------------------------------------------------------


@aten("clamp", "clamp.Tensor", "clip", "clip.Tensor")
def _clamp(call: Call, x: Value, min: Operand | None = None, max: Operand | None = None) -> Value:
    value = cast(x, call.dtype)
    if not isinstance(min, Value | SymDim) and not isinstance(max, Value | SymDim):
        return ops.clamp(value, low=_number(min, call.dtype), high=_number(max, call.dtype))
    value = value if min is None else ops.maximum(value, tensor(min, call.dtype))
    return value if max is None else ops.minimum(value, tensor(max, call.dtype))


def _number(bound: Any, dtype: DType) -> float | int | None:
    return bound if bound is None else float(bound) if dtype.is_float else int(bound)


@aten("clamp_min", "clamp_min.Tensor")
def _clamp_min(call: Call, x: Value, min: Operand) -> Value:
    return _clamp(call, x, min, None)


@aten("clamp_max", "clamp_max.Tensor")
def _clamp_max(call: Call, x: Value, max: Operand) -> Value:
    return _clamp(call, x, None, max)


@aten("hardtanh")
def _hardtanh(call: Call, x: Value, min_val: Scalar = -1, max_val: Scalar = 1) -> Value:
    return _clamp(call, x, min_val, max_val)


@aten("max.other")
def _max_other(call: Call, x: Value, y: Value) -> Value:
    return ops.maximum(cast(x, call.dtype), cast(y, call.dtype))


@aten("min.other")
def _min_other(call: Call, x: Value, y: Value) -> Value:
    return ops.minimum(cast(x, call.dtype), cast(y, call.dtype))


@aten("fmin")
def _fmin(call: Call, x: Value, y: Value) -> Value:
    a, b = cast(x, call.dtype), cast(y, call.dtype)
    return ops.where(ops.isnan(a), b, ops.where(ops.isnan(b), a, ops.minimum(a, b)))


@aten("fmax")
def _fmax(call: Call, x: Value, y: Value) -> Value:
    a, b = cast(x, call.dtype), cast(y, call.dtype)
    return ops.where(ops.isnan(a), b, ops.where(ops.isnan(b), a, ops.maximum(a, b)))


@aten("threshold")
def _threshold(call: Call, x: Value, threshold: Scalar, value: Scalar) -> Value:
    return ops.where(ops.le(x, tensor(threshold, call.dtype)), tensor(value, call.dtype), x)


# --- activations ------------------------------------------------------------------------------------------------------


@aten("gelu")
def _gelu(call: Call, x: Value, approximate: str = "none") -> Value:
    return ops.gelu(x, approximate=approximate)


@aten("leaky_relu")
def _leaky_relu(call: Call, x: Value, negative_slope: float = 0.01) -> Value:
    return ops.leaky_relu(x, slope=float(negative_slope))


@aten("elu")
def _elu(call: Call, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Value:
    if (scale, input_scale) == (1, 1):
        return ops.elu(x, alpha=float(alpha))
    below = ops.mul(ops.expm1(ops.mul(x, input_scale)), alpha)
    return ops.mul(ops.where(ops.gt(x, 0), x, below), scale)


@aten("softplus")
def _softplus(call: Call, x: Value, beta: float = 1.0, threshold: float = 20.0) -> Value:
    """torch returns x itself above ``threshold``, where the difference is below 2.1e-9 for the default of 20."""
    if beta == 1 and threshold >= 20:
        return ops.softplus(x)
    scaled = ops.mul(x, float(beta))
    return ops.where(ops.gt(scaled, float(threshold)), x, ops.div(ops.softplus(scaled), float(beta)))


@aten("prelu", "_prelu_kernel")
def _prelu(call: Call, x: Value, weight: Value) -> Value:
    if call.name.startswith("aten.prelu") and x.type.rank > 1 and weight.dims != (1,):
        weight = ops.reshape(weight, dims=(weight.dims[0], *[1] * (x.type.rank - 2)))
    return ops.where(ops.gt(x, 0), x, ops.mul(broadcast(weight, x.dims), x))


@aten("dropout", "alpha_dropout", "feature_dropout")
def _dropout(call: Call, x: Value, p: float, train: bool) -> Value:
    if train and p:
        raise call.unsupported("dropout while training is random; export the module in eval mode")
    return x


@aten("native_dropout")
def _native_dropout(call: Call, x: Value, p: float, train: bool | None = None) -> tuple[Value, Value]:
    return _dropout(call, x, p, bool(train)), broadcast(literal(True, _BOOL), x.dims)


# --- complex ----------------------------------------------------------------------------------------------------------


@aten("view_as_complex")
def _view_as_complex(call: Call, x: Value) -> Value:
    last = x.type.rank - 1
    parts = [ops.reshape(slice_axis(x, last, i, i + 1), dims=call.dims) for i in range(2)]
    return ops.complex(*parts)


@aten("view_as_real")
def _view_as_real(call: Call, x: Value) -> Value:
    column = (*x.dims, 1)
    parts = [ops.reshape(part, dims=column) for part in (ops.real(x), ops.imag(x))]
    return ops.concat(*parts, axis=x.type.rank)


@aten("polar")
def _polar(call: Call, magnitude: Value, angle: Value) -> Value:
    return ops.complex(ops.mul(magnitude, ops.cos(angle)), ops.mul(magnitude, ops.sin(angle)))


@aten("complex")
def _complex(call: Call, re: Value, im: Value) -> Value:
    return ops.complex(re, im)


@aten("abs")
def _abs(call: Call, x: Value) -> Value:
    return x if _is_bool(call) or x.type.dtype.kind == "uint" else ops.abs(x)


@aten("angle")
def _angle(call: Call, x: Value) -> Value:
    if x.type.dtype.is_complex:
        return ops.atan2(ops.imag(x), ops.real(x))
    real = cast(x, call.dtype)
    return ops.where(ops.isnan(real), real, ops.where(ops.lt(real, 0), math.pi, tensor(0, call.dtype)))


@aten("conj", "_conj", "_conj_physical", "conj_physical")
def _conj(call: Call, x: Value) -> Value:
    return ops.conj(x) if x.type.dtype.is_complex else x


@aten("real")
def _real(call: Call, x: Value) -> Value:
    return ops.real(x) if x.type.dtype.is_complex else x


# --- conversions and copies -------------------------------------------------------------------------------------------


@aten("_to_copy", "to.dtype", "to.dtype_layout", "to.device", "to.other", "type_as")
def _to(call: Call, x: Value, *_: object, **__: object) -> Value:
    return cast(x, call.dtype)


@aten("clone", "detach", "detach_", "detach_copy", "alias", "alias_copy", "contiguous", "lift_fresh", "lift_fresh_copy", "lift",
      "resolve_conj", "resolve_neg", "view_as")  # fmt: skip
def _same(call: Call, x: Value, *_: object, **__: object) -> Value:
    return x


@aten("copy")
def _copy(call: Call, x: Value, source: Value, non_blocking: bool = False) -> Value:
    return broadcast(cast(source, call.dtype), call.dims)
