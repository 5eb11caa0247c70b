"""Scalars in TIR: how each element type is stored and computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeAlias

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx.script.builder.frame import ForFrame, LaunchThreadFrame, WhileFrame

from coilc.ir import Dim, DType, Graph
from coilc.ir import dims as d

if TYPE_CHECKING:
    from .target import Target

Expr: TypeAlias = "tvm.ir.Expr"

_STORED: Mapping[str, str] = {"f16": "float16", "bf16": "uint16", "f32": "float32", "f64": "float64", "bool": "uint8",
           "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "u8": "uint8"}  # fmt: skip
_COMPUTED: Mapping[str, str] = {**_STORED, "f16": "float32", "bf16": "float32", "bool": "bool"}


def storage_dtype(dtype: DType) -> str:
    """TIR's name for an element in memory: bf16 is its bits, bool one byte."""
    return _STORED[dtype.name]


def compute_dtype(dtype: DType) -> str:
    """TIR's name for an element in a register: half precision is computed in fp32."""
    return _COMPUTED[dtype.name]


def dtype_name(x: Expr) -> str:
    return str(x.ty.dtype)


def const(value: float, like: Expr) -> Expr:
    """A constant of the type of ``like``."""
    return tirx.const(value, dtype_name(like))


def constant(value: bool | float, dtype: DType) -> Expr:
    """A constant of an IR type, in its compute type."""
    name = compute_dtype(dtype)
    if name == "bool":
        return T.bool(bool(value))
    return tirx.const(float(value) if dtype.is_float else int(value), name)


# --- whose code is being written ----------------------------------------------------------------------------------------

_target: ContextVar[Target | None] = ContextVar("target", default=None)
_ranges: ContextVar[Mapping[str, tuple[int, int | None]]] = ContextVar("ranges", default={})  # noqa: B039


@contextmanager
def code_of(body: Graph, target: Target) -> Iterator[None]:
    """What is written inside is the body's, and runs on the target: a processor, or a device, whose threads are scalar."""
    tokens = _target.set(target), _ranges.set(body.ranges)
    try:
        yield
    finally:
        _target.reset(tokens[0])
        _ranges.reset(tokens[1])


def launched_early() -> bool:
    """Whether kernels of the device are launched before the one ahead of them has ended (``loops.grid``)."""
    target = _target.get()
    return target is not None and target.device is not None and target.device.early_launch


def may_be_empty(extent: Dim) -> bool:
    """Whether an axis can have no elements, for the ranges of the symbols that the body knows."""
    return d.bounds(extent, _ranges.get())[0] < 1


def on_device() -> bool:
    """Whether scalar threads of a device run the code being written."""
    target = _target.get()
    return target is not None and target.device is not None


def processor_has(feature: str) -> bool:
    """Whether the code being written is a processor's that can do this, in the words of /proc/cpuinfo."""
    target = _target.get()
    return target is not None and target.device is None and feature in target.features


def allocate(shape: Sequence[int], dtype: str) -> tirx.Buffer:
    """Memory of the thread that runs the code: registers when every index is constant, else its stack.

    On a processor the scope is "global", because TVM takes every "local" buffer from the workspace; above 1 KB it takes
    these too.
    """
    return T.alloc_buffer(tuple(shape), dtype, scope="local" if on_device() else "global")


_open_vectors: list[tuple[Expr, int]] = []  # the lane variables and widths of the vector loops being written
_by_lane: list[tirx.Var] = []  # what is bound inside them to values that differ from lane to lane


@contextmanager
def vector(width: int) -> Iterator[Expr]:
    """A loop over vector lanes, ``for lane in range(width)``; the width is a power of two. Device threads write it out."""
    if width == 1:
        yield tirx.IntImm("int64", 0)
        return
    if on_device():
        with T.unroll(tirx.IntImm("int64", 0), tirx.IntImm("int64", width)) as lane:
            yield lane
        return
    with T.vectorized(tirx.IntImm("int64", 0), tirx.IntImm("int64", width)) as lane:
        _open_vectors.append((lane, width))
        known = len(_by_lane)
        try:
            yield lane
        finally:
            _open_vectors.pop()
            del _by_lane[known:]


def inside_loop() -> bool:
    """Whether the code being written is inside a loop: parallel loops must not nest."""
    return any(isinstance(frame, ForFrame | WhileFrame | LaunchThreadFrame) for frame in IRBuilder.current().frames)


def bind(x: Expr) -> Expr:
    """Evaluate an expression once in the open statement frame, so that uses share it.

    TVM's analyzer inlines a ``let`` into every use, which takes time exponential in the depth of the arithmetic. A load is
    opaque to it, so a value goes through a local of one element per lane, which LLVM keeps in a register. Integers, which
    may be indices, stay visible: a vector access must be recognised as contiguous.
    """
    if isinstance(x, tirx.Var | tirx.IntImm | tirx.FloatImm):
        return x
    dtype = dtype_name(x)
    if dtype.startswith("int") or "x" in dtype:
        variable = T.Bind(x)
        if _differs_by_lane(x):
            _by_lane.append(variable)
        return variable
    return _through_memory(x, _open_vectors)


def bind_looked_up(x: Expr) -> Expr:
    """``bind`` for an index that was read from a table, of which no vector access is contiguous."""
    return _through_memory(x, _open_vectors if _differs_by_lane(x) else ())


def _through_memory(x: Expr, vectors: Sequence[tuple[Expr, int]]) -> Expr:
    lane, width = vectors[-1] if vectors else (0, 1)
    local = allocate((width,), dtype_name(x))
    T.buffer_store(local, x, [lane])
    return local[lane]


def _differs_by_lane(x: Expr) -> bool:
    if not _open_vectors:
        return False
    lanes = (_open_vectors[-1][0], *_by_lane)
    return any(variable.same_as(lane) for variable in tirx.analysis.undefined_vars(x) for lane in lanes)


def guarded(condition: Expr, x: Callable[[], Expr], otherwise: Expr) -> Expr:
    """``x()``, which is evaluated only where the condition holds, else the constant ``otherwise``."""
    lane, width = _open_vectors[-1] if _open_vectors else (0, 1)
    local = allocate((width,), dtype_name(otherwise))
    T.buffer_store(local, otherwise, [lane])
    with T.If(condition), T.Then():
        T.buffer_store(local, x(), [lane])
    return local[lane]


def select(condition: Expr, x: Expr, y: Expr) -> Expr:
    """x where the condition holds, else y; both are evaluated."""
    return tirx.Select(condition, x, y)


_DEVICE_NAMES = {"roundeven": "rint"}  # where C's name differs from LLVM's


def intrinsic(name: str, *operands: Expr, dtype: str = "") -> Expr:
    """An LLVM intrinsic; on a device, the function of C's library with that name. ``dtype``: if not the first operand's."""
    dtype = dtype or dtype_name(operands[0])
    if on_device():
        suffix = "f" if dtype == "float32" else ""
        return tirx.call_pure_extern(dtype, _DEVICE_NAMES.get(name, name) + suffix, *operands)
    return T.call_llvm_pure_intrin(dtype, T.llvm_lookup_intrinsic_id(f"llvm.{name}"), *operands)


_DEVICE_REINTERPRET = {
    ("float32", "int32"): "__float_as_int", ("float32", "uint32"): "__float_as_uint", ("int32", "float32"): "__int_as_float",
    ("uint32", "float32"): "__uint_as_float", ("float64", "int64"): "__double_as_longlong",
    ("int64", "float64"): "__longlong_as_double",
}  # fmt: skip


def reinterpret(dtype: str, x: Expr) -> Expr:
    """The same bits as another type of the same width."""
    if on_device():  # TVM's own form takes the address of the value, which may have none
        return tirx.call_pure_extern(dtype, _DEVICE_REINTERPRET[dtype_name(x), dtype], x)
    return T.reinterpret(dtype, x)


def prefetch(buffer: tirx.Buffer, place: Expr) -> None:
    """Start loading the cache line of an element; it may lie outside the buffer."""
    read, near, data = (tirx.const(flag, "int32") for flag in (0, 3, 1))
    address, name = T.address_of(buffer[place]), T.llvm_lookup_intrinsic_id("llvm.prefetch")
    T.evaluate(T.call_llvm_intrin("void", name, address, read, near, data))


def is_nan(x: Expr) -> Expr:
    """By the bits: the simplifier folds ``x != x``."""
    kind, low, infinity = (
        ("int64", 2**63 - 1, 0x7FF0000000000000) if dtype_name(x) == "float64" else ("int32", 2**31 - 1, 0x7F800000)
    )
    return tirx.bitwise_and(reinterpret(kind, x), tirx.const(low, kind)) > tirx.const(infinity, kind)


# --- memory -----------------------------------------------------------------------------------------------------------


def decode(x: Expr, dtype: DType) -> Expr:
    """From storage to the compute type."""
    if dtype.name == "bf16":
        return reinterpret("float32", tirx.shift_left(T.Cast("uint32", x), tirx.const(16, "uint32")))
    if dtype.name == "bool":
        return T.Cast("bool", x)
    return T.Cast("float32", x) if dtype.name == "f16" else x


def encode(x: Expr, dtype: DType) -> Expr:
    """From the compute type to storage; half precision rounds to nearest even."""
    if dtype.name == "bf16" and on_device():
        return T.cuda.func_call("coil_to_bf16", x, source_code=_DEVICE_TO_BF16, return_type="uint16")
    if dtype.name == "bf16":
        return _round_to_bf16(bind(x))
    stored = storage_dtype(dtype)
    return x if dtype_name(x) == stored else T.Cast(stored, x)


_DEVICE_TO_BF16 = """
#include <cuda_bf16.h>
static __forceinline__ __device__ unsigned short coil_to_bf16(float x) {
    __nv_bfloat16 y = __float2bfloat16_rn(x);
    return reinterpret_cast<unsigned short &>(y);
}
"""  # one instruction


def _round_to_bf16(x: Expr) -> Expr:
    raw, sixteen = bind(reinterpret("uint32", x)), tirx.const(16, "uint32")
    odd = tirx.bitwise_and(tirx.shift_right(raw, sixteen), tirx.const(1, "uint32"))
    rounded = tirx.shift_right(raw + (odd + tirx.const(0x7FFF, "uint32")), sixteen)
    return T.Cast("uint16", select(is_nan(x), tirx.const(0x7FC0, "uint32"), rounded))


def convert(x: Expr, source: DType, to: DType) -> Expr:
    """The ``cast`` op between compute types; rounding to half precision is left to the store."""
    if to.name == "bool":
        return tirx.Not(tirx.EQ(x, const(0, x))) if source.name != "bool" else x
    target = compute_dtype(to)
    return x if dtype_name(x) == target else T.Cast(target, x)
