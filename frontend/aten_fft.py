"""ATen's Fourier transforms: several axes are one after another, and the scaling is a number of its own."""

from __future__ import annotations

from collections.abc import Sequence

from coilc.ir import Dim, Value, dims, literal, ops
from coilc.ir.types import DTYPES, DType

from .aten import Call, aten, axis_of, dim_value

NONE, BY_ROOT, BY_LENGTH = range(3)  # what torch divides by: 1, sqrt(n), n
PARTS = {"c64": DTYPES["f32"], "c128": DTYPES["f64"]}


@aten("_fft_c2c")
def _complex_to_complex(call: Call, x: Value, dim: Sequence[int], normalization: int, forward: bool) -> Value:
    extents = [x.dims[axis_of(x, axis)] for axis in dim]
    for axis in dim:
        x = (ops.fft if forward else ops.ifft)(x, axis=axis_of(x, axis))
    return _scaled(x, extents, normalization, NONE if forward else BY_LENGTH)


@aten("_fft_r2c")
def _real_to_complex(call: Call, x: Value, dim: Sequence[int], normalization: int, onesided: bool) -> Value:
    extents = [x.dims[axis_of(x, axis)] for axis in dim]
    *others, last = dim
    if onesided:
        y = ops.rfft(x, axis=axis_of(x, last))
    else:
        y = ops.fft(ops.cast(x, dtype=call.dtype), axis=axis_of(x, last))
    for axis in others:
        y = ops.fft(y, axis=axis_of(x, axis))
    return _scaled(y, extents, normalization, NONE)


@aten("_fft_c2r")
def _complex_to_real(call: Call, x: Value, dim: Sequence[int], normalization: int, last_dim_size: Dim) -> Value:
    *others, last = dim
    for axis in others:
        x = ops.ifft(x, axis=axis_of(x, axis))
    y = ops.irfft(x, axis=axis_of(x, last), n=last_dim_size)
    return _scaled(y, [y.dims[axis_of(y, axis)] for axis in dim], normalization, BY_LENGTH)


def _scaled(x: Value, extents: Sequence[Dim], wanted: int, done: int) -> Value:
    """``x``, divided by a power of the length already, divided as torch wants it."""
    power = (wanted - done) / 2
    return x if power == 0 else ops.mul(x, _power(dims.size(extents), -power, x.type.dtype))


def _power(length: Dim, exponent: float, dtype: DType) -> Value:
    if isinstance(length, int):
        return literal(length**exponent, dtype)
    real = ops.pow(dim_value(length, PARTS.get(dtype.name, dtype)), exponent)
    return ops.cast(real, dtype=dtype) if dtype.is_complex else real
