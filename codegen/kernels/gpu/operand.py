"""Operands that lie in memory as they are read, though perhaps transposed or cut out, which vector loads and copies can take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import DType, Value
from coilc.ir import dims as d
from coilc.ir.dims import Dim, Dims

from ...scalar import Expr, allocate, decode, storage_dtype
from ..anchor import Anchor
from ..loops import i64

VECTOR_BYTES = 16  # of the widest access to memory; operands begin at multiples of it


@dataclass(frozen=True)
class Strided:
    """An operand whose element at ``i`` is that of an input of the kernel at ``base + sum(i * strides)``.

    Attributes:
        source: the input.
        dims: of the operand.
    """

    source: Value
    dims: Dims
    base: Dim
    strides: tuple[Dim, ...]

    @property
    def dtype(self) -> DType:
        """What the elements are in memory; the operand may be their widening."""
        return self.source.type.dtype

    def offset(self, k: Anchor, indices: Sequence[Expr]) -> Expr:
        """Where an element is, counted in elements."""
        total = k.extent(self.base)
        for i, stride in zip(indices, self.strides, strict=True):
            if stride != 0:
                total = total + i * k.extent(stride)
        return total

    def vector(self, axis: int) -> int:
        """How many neighbours along an axis one access takes: all that fit it, or 1."""
        width = VECTOR_BYTES * 8 // self.dtype.bits
        others = [stride for i, stride in enumerate(self.strides) if i != axis % len(self.strides)]
        aligned = all(x % width == 0 for x in (self.base, self.dims[axis], *others))
        return width if self.strides[axis] == 1 and aligned else 1


def strided(value: Value) -> Strided | None:
    """The operand as it lies in memory, or None where something is computed on the way, other than a widening to f32."""
    if value.op.name == "input":
        return Strided(value, value.dims, 0, dense(value.dims))
    if value.op.name not in _VIEWS or (value.op.name == "cast" and not _widens(value)):
        return None
    x = strided(value.node.inputs[0])
    return x and _VIEWS[value.op.name](value, x)


def dense(dims: Dims) -> tuple[Dim, ...]:
    """The strides of a tensor without gaps."""
    return tuple(d.size(dims[axis + 1 :]) for axis in range(len(dims)))


def _widens(value: Value) -> bool:
    return value.type.dtype.name == "f32" and value.node.inputs[0].type.dtype.name in ("bf16", "f16")


def _cast(value: Value, x: Strided) -> Strided:
    return x


def _transpose(value: Value, x: Strided) -> Strided:
    return Strided(x.source, value.dims, x.base, tuple(x.strides[axis] for axis in value.node.attrs["perm"]))


def _slice(value: Value, x: Strided) -> Strided:
    starts, steps = value.node.attrs["starts"], value.node.attrs["steps"]
    base = sum((start * stride for start, stride in zip(starts, x.strides, strict=True)), x.base)
    return Strided(x.source, value.dims, base, tuple(a * b for a, b in zip(steps, x.strides, strict=True)))


def _broadcast(value: Value, x: Strided) -> Strided:
    new = value.type.rank - len(x.dims)
    kept = (0 if dim == 1 else stride for dim, stride in zip(x.dims, x.strides, strict=True))
    return Strided(x.source, value.dims, x.base, (*[0] * new, *kept))


def _reshape(value: Value, x: Strided) -> Strided | None:
    """Axes that are cut or joined must follow one another in memory without gaps."""
    strides: list[Dim] = []
    for here, there in d.matching_groups(value.dims, x.dims):
        joined = [(dim, stride) for dim, stride in zip(x.dims[there], x.strides[there], strict=True) if dim != 1]
        if any(outer != inner * dim for (_, outer), (dim, inner) in pairwise(joined)):
            return None
        innermost = joined[-1][1] if joined else 0
        strides += [stride * innermost for stride in dense(value.dims[here])]
    return Strided(x.source, value.dims, x.base, tuple(strides))


_VIEWS = {"cast": _cast, "transpose": _transpose, "slice": _slice, "broadcast": _broadcast, "reshape": _reshape}


class Vectors:
    """Reads of neighbours along an axis of an operand: one access where that is possible, else one element.

    Attributes:
        width: how many.
    """

    def __init__(self, k: Anchor, operand: int, axis: int) -> None:
        self.k, self.operand, self.axis = k, operand, axis
        self.memory = strided(k.operands[operand])
        self.width = self.memory.vector(axis) if self.memory else 1

    def load(self, indices: Sequence[Expr]) -> tirx.Buffer:
        """The neighbours from this index on, into registers, as they are in memory."""
        if self.width == 1 or self.memory is None:
            held = allocate((1,), self.k.compute_dtype(self.operand))
            T.buffer_store(held, self.k.read(self.operand, *indices), [0])
            return held
        source = self.k.kernel.reader.buffers[self.memory.source]
        held = allocate((self.width,), storage_dtype(self.memory.dtype))
        at = self.memory.offset(self.k, indices)
        with T.vectorized(i64(0), i64(self.width)) as lane:
            T.buffer_store(held, source[at + lane], [lane])
        return held

    def element(self, held: tirx.Buffer, i: int) -> Expr:
        """One of what was loaded, in the operand's compute type."""
        return held[i] if self.width == 1 or self.memory is None else decode(held[i], self.memory.dtype)
