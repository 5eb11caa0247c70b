"""The table from ATen ops to IR builders, and what its rows share: calls, promotion, numbers that are dimensions.

A row is a function ``f(call, *args, **kwargs)`` whose parameters are those of the ATen schema: tensors arrive as
``Value``, symbolic integers as ``Dim``, dtypes as ``DType``, everything else as it is. ``call`` knows the result types
that torch computed, so a row never repeats a shape rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from coilc.ir import OPS, Dim, Dims, DType, OpDef, SymDim, TensorType, UnsupportedError, Value, dims, literal, ops
from coilc.ir.opdef import ELEMENTWISE
from coilc.ir.types import DTYPES

from .symbols import Symbols

Scalar: TypeAlias = "bool | int | float | complex | SymDim"
Operand: TypeAlias = "Value | Scalar"
Row: TypeAlias = Callable[..., Any]

TABLE: dict[str, Row] = {}

_NAMES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64", "int8": "i8", "int16": "i16",
          "int32": "i32", "int64": "i64", "uint8": "u8", "bool": "bool", "complex64": "c64", "complex128": "c128"}  # fmt: skip
FROM_TORCH: Mapping[torch.dtype, DType] = {getattr(torch, name): DTYPES[ours] for name, ours in _NAMES.items()}
TO_TORCH: Mapping[DType, torch.dtype] = {ours: theirs for theirs, ours in FROM_TORCH.items()}


@dataclass(frozen=True)
class Call:
    """One ATen call: its name and result types. ``type`` is the only or the first result."""

    name: str
    types: tuple[TensorType, ...]
    symbols: Symbols = field(repr=False)

    @property
    def type(self) -> TensorType:
        return self.types[0]

    @property
    def dims(self) -> Dims:
        return self.types[0].dims

    @property
    def dtype(self) -> DType:
        return self.types[0].dtype

    def unsupported(self, why: str) -> UnsupportedError:
        return UnsupportedError(why, ())


def aten(*names: str) -> Callable[[Row], Row]:
    """Register a row under ATen names; a name without overload is the ``default`` one."""

    def register(row: Row) -> Row:
        for name in names:
            full = f"aten.{name}" if "." in name else f"aten.{name}.default"
            if full in TABLE:
                raise ValueError(f"{full} has two rows")
            TABLE[full] = row
        return row

    return register


# --- operands ---------------------------------------------------------------------------------------------------------


def dtype_from(dtype: torch.dtype) -> DType:
    """The IR's element type.

    Raises:
        UnsupportedError: the IR has no such type.
    """
    if dtype not in FROM_TORCH:
        raise UnsupportedError(f"element type {str(dtype).removeprefix('torch.')} is not supported", ())
    return FROM_TORCH[dtype]


def cast(x: Value, dtype: DType) -> Value:
    """``x`` in another element type, as torch converts: real to complex adds a zero part, complex to real drops one."""
    if x.type.dtype == dtype:
        return x
    if x.type.dtype.is_complex and not dtype.is_complex:
        return cast(ops.real(x), dtype)
    return ops.cast(x, dtype=dtype)


def dim_value(dim: Dim, dtype: DType) -> Value:
    """A dimension as a scalar tensor."""
    return literal(dim, dtype) if isinstance(dim, int) else ops.extent(dim=dim, dtype=dtype)


def tensor(x: Operand, dtype: DType) -> Value:
    """An operand as a value of ``dtype``."""
    if isinstance(x, Value):
        return cast(x, dtype)
    return dim_value(x, dtype) if isinstance(x, SymDim) else literal(x, dtype)


def promoted(*operands: Operand) -> DType:
    """torch's result type: dimensioned tensors outrank zero-dim ones, which outrank numbers, within a kind."""
    samples = [_sample(x) for x in operands]
    result: Any = samples[0]
    for item in samples[1:]:
        result = _Typed(torch.result_type(_plain(result), _plain(item)), _rank(result, item))
    return dtype_from(result.dtype if isinstance(result, _Typed | torch.Tensor) else torch.result_type(result, result))


@dataclass(frozen=True)
class _Typed:
    dtype: torch.dtype
    rank: int


def _sample(x: Operand) -> Any:
    if isinstance(x, Value):
        return _Typed(TO_TORCH[x.type.dtype], x.type.rank)
    return 1 if isinstance(x, SymDim) else x


def _plain(x: Any) -> Any:
    return torch.empty((1,) * min(x.rank, 1), dtype=x.dtype, device="meta") if isinstance(x, _Typed) else x


def _rank(*items: Any) -> int:
    return max(x.rank if isinstance(x, _Typed) else 0 for x in items)


def broadcast(x: Value, to: Dims) -> Value:
    return x if x.dims == tuple(to) else ops.broadcast(x, dims=tuple(to))


def reshape(x: Value, to: Sequence[Dim]) -> Value:
    return x if x.dims == tuple(to) else ops.reshape(x, dims=tuple(to))


def transpose(x: Value, perm: Sequence[int]) -> Value:
    return x if list(perm) == list(range(x.type.rank)) else ops.transpose(x, perm=tuple(perm))


def axis_of(x: Value, axis: int) -> int:
    """A non-negative axis; torch lets a scalar have one axis."""
    return axis % max(x.type.rank, 1)


def full(call: Call, fill: Operand) -> Value:
    """A tensor of the call's result type that holds one number everywhere."""
    return broadcast(tensor(fill, call.dtype), call.dims)


def slice_axis(x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> Value:
    """``x[..., start:stop:step, ...]``; the bounds are inside the axis."""
    if start == 0 and stop == x.dims[axis] and step == 1:
        return x
    starts = tuple(start if i == axis else 0 for i in range(x.type.rank))
    stops = tuple(stop if i == axis else extent for i, extent in enumerate(x.dims))
    return ops.slice(x, starts=starts, stops=stops, steps=tuple(step if i == axis else 1 for i in range(x.type.rank)))


def concat(xs: Sequence[Value], axis: int) -> Value:
    return xs[0] if len(xs) == 1 else ops.concat(*xs, axis=axis)


# --- elementwise ops, straight from the registry ----------------------------------------------------------------------


def _in_result_dtype(op: OpDef) -> Row:
    return lambda call, *xs: op(*(tensor(x, call.dtype) for x in xs))


def _in_operand_dtype(op: OpDef) -> Row:
    return lambda call, *xs: op(*(tensor(x, promoted(*xs)) for x in xs))


def _in_bool(op: OpDef) -> Row:
    return lambda call, *xs: op(*(truth(x) for x in xs))


def truth(x: Operand) -> Value:
    """``x != 0``."""
    if not isinstance(x, Value):
        return literal(bool(x), DTYPES["bool"])
    return x if x.type.dtype.kind == "bool" else cast(x, DTYPES["bool"])


_BY_OPERANDS = ("abs", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "real", "imag")
_BY_TRUTH = ("logical_and", "logical_or", "logical_xor", "logical_not")


def register_elementwise() -> None:
    """Give every elementwise op of the registry that names its ATen twins a row; rows written by hand win."""
    for op in OPS.values():
        if ELEMENTWISE not in op.traits or op.attributes:
            continue
        rule = _in_operand_dtype if op.name in _BY_OPERANDS else _in_bool if op.name in _BY_TRUTH else _in_result_dtype
        for alias in op.aliases.get("aten", ()):
            TABLE.setdefault(alias, rule(op))


def product(extents: Sequence[Dim]) -> Dim:
    return dims.size(extents)
