"""Element types and tensor types, ``f32[B, L, 1536]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np

from . import dims as d

Kind = Literal["float", "int", "uint", "bool", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """An element type; ``bits`` is its storage width."""

    name: str
    kind: Kind
    bits: int
    numpy: np.dtype

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_complex(self) -> bool:
        return self.kind == "complex"

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


f16 = DType("f16", "float", 16, np.dtype(np.float16))
bf16 = DType("bf16", "float", 16, np.dtype(ml_dtypes.bfloat16))
f32 = DType("f32", "float", 32, np.dtype(np.float32))
f64 = DType("f64", "float", 64, np.dtype(np.float64))
i8 = DType("i8", "int", 8, np.dtype(np.int8))
i16 = DType("i16", "int", 16, np.dtype(np.int16))
i32 = DType("i32", "int", 32, np.dtype(np.int32))
i64 = DType("i64", "int", 64, np.dtype(np.int64))
u8 = DType("u8", "uint", 8, np.dtype(np.uint8))
bool_ = DType("bool", "bool", 8, np.dtype(np.bool_))
c64 = DType("c64", "complex", 64, np.dtype(np.complex64))
c128 = DType("c128", "complex", 128, np.dtype(np.complex128))

DTYPES: Mapping[str, DType] = {t.name: t for t in (f16, bf16, f32, f64, i8, i16, i32, i64, u8, bool_, c64, c128)}
_BY_NUMPY: Mapping[np.dtype, DType] = {t.numpy: t for t in DTYPES.values()}


def dtype_of(array: np.ndarray) -> DType:
    """The element type of a NumPy array.

    Raises:
        KeyError: NumPy types that the IR lacks (uint32, object, ...).
    """
    return _BY_NUMPY[array.dtype]


@dataclass(frozen=True, slots=True)
class TensorType:
    """A dense row-major tensor: element type and dimensions."""

    dtype: DType
    dims: d.Dims

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def size(self) -> d.Dim:
        """Number of elements."""
        return d.size(self.dims)

    @property
    def bytes(self) -> d.Dim:
        return self.size * self.dtype.bytes

    def with_dims(self, dims: d.Dims) -> TensorType:
        return TensorType(self.dtype, tuple(dims))

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.dims)

    def substitute(self, bindings: Mapping[str, d.Dim]) -> TensorType:
        return self.with_dims(tuple(d.substitute(dim, bindings) for dim in self.dims))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.dims)) or '()'}]"

    __repr__ = __str__


def type_of(array: np.ndarray) -> TensorType:
    """The type of a concrete array."""
    return TensorType(dtype_of(array), tuple(array.shape))
