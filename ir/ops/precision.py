"""Sixteen-bit floats are storage: composites that sum many terms compute in f32 and round once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core import Value
from ..types import DTYPES, DType, TensorType
from .elementwise import cast


def compute_dtype(*operands: TensorType) -> DType:
    """f64 when an operand is f64, else f32."""
    return DTYPES["f64" if any(t.dtype.name == "f64" for t in operands) else "f32"]


def in_f32(infer: Callable[..., Any], decompose: Callable[..., Any]) -> Callable[..., Any]:
    """A decomposition that casts its float operands to f32 (f64 if one is), and results to what ``infer`` says."""

    def widened(*values: Value, **attrs: Any) -> Any:
        types = infer(*(v.type for v in values), **attrs)
        dtype = compute_dtype(*(v.type for v in values))
        results = decompose(*(as_dtype(v, dtype) if v.type.dtype.is_float else v for v in values), **attrs)
        if isinstance(results, tuple):
            return tuple(as_dtype(v, t.dtype) for v, t in zip(results, types, strict=True))
        return as_dtype(results, types.dtype)

    return widened


def as_dtype(value: Value, dtype: DType) -> Value:
    """``cast`` unless the value has the dtype already."""
    return value if value.type.dtype == dtype else cast(value, dtype=dtype)
