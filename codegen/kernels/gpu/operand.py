"""Operands that lie in memory as they are read, though perhaps transposed or cut out, which vector loads and copies can take."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import DType, Value
from coilc.ir import dims as d
from coilc.ir.dims import Dim, Dims

from ...scalar import Expr, allocate, decode, encode, storage_dtype
from ..anchor import Anchor
from ..loops import i64, when

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

    def transposed(self) -> Strided:
        """The same memory with the last two axes exchanged."""
        *dims, m, n = self.dims
        *strides, by_m, by_n = self.strides
        return Strided(self.source, (*dims, n, m), self.base, (*strides, by_n, by_m))

    def offset(self, k: Anchor, indices: Sequence[Expr]) -> Expr:
        """Where an element is, counted in elements."""
        total = k.extent(self.base)
        for i, stride in zip(indices, self.strides, strict=True):
            if stride != 0:
                total = total + i * k.extent(stride)
        return total

    def vector(self, axis: int, most: int = VECTOR_BYTES) -> int:
        """How many neighbours along an axis one access takes: all that fit it, at most so many, or 1."""
        width = min(VECTOR_BYTES * 8 // self.dtype.bits, most)
        return width if self.aligned(axis, width) else 1

    def aligned(self, axis: int, width: int) -> bool:
        """Whether an axis is made of so many neighbours at a time, which begin at multiples of it in memory."""
        others = [stride for i, stride in enumerate(self.strides) if i != axis % len(self.strides)]
        return self.strides[axis] == 1 and all(x % width == 0 for x in (self.base, self.dims[axis], *others))


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
        width: how many, at most ``most``.
    """

    def __init__(self, k: Anchor, operand: int, axis: int, most: int = VECTOR_BYTES) -> None:
        self.k, self.operand, self.axis = k, operand, axis
        self.memory = strided(k.operands[operand])
        self.width = self.memory.vector(axis, most) if self.memory else 1

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


Group = tuple[Sequence[Expr], Sequence[Expr]]  # where neighbouring elements of a result begin, and what they are


def store_vectors(k: Anchor, groups: Sequence[Group], inside: Sequence[int] = ()) -> None:
    """Write what is computed from elements of the first result, those of them that lie inside.

    All that is read in vectors is under way before anything is written, which might be the same memory.

    Args:
        groups: neighbouring elements, as many in each.
        inside: the axes, of -2 for rows and -1 for columns, along which all of them are known to lie inside.
    """
    dims, width = k.node.types[0].dims, len(groups[0][1])

    def where(at: Sequence[Expr]) -> AbstractContextManager[object]:
        conditions = [at[axis] < k.extent(dims[axis]) for axis in (-2, -1) if axis not in inside]
        return when(tirx.all(*conditions)) if conditions else nullcontext()

    if -1 not in inside and dims[-1] % width != 0:
        for (*lead, column), values in groups:
            for i, value in enumerate(values):
                place = [*lead, column + i64(i)]
                with where(place):
                    k.store(0, place, value)
        return
    beside = _beside(k, width)
    held = [[allocate((width,), storage_dtype(memory.dtype)) for _, memory in beside] for _ in groups]
    for (at, _), buffers in zip(groups, held, strict=True):
        with where(at):
            for (_, memory), buffer in zip(beside, buffers, strict=True):
                _load_beside(k, memory, at, buffer)
    for (at, values), buffers in zip(groups, held, strict=True):
        with where(at):
            _store_whole(k, at, values, [(v, m, b) for (v, m), b in zip(beside, buffers, strict=True)])


def _store_whole(
    k: Anchor, at: Sequence[Expr], values: Sequence[Expr], beside: Sequence[tuple[Value, Strided, tirx.Buffer]]
) -> None:
    *lead, column = at
    result, reader, width = k.node.results[0], k.kernel.reader, len(values)
    for position in k.outputs_of[0]:
        output, buffer = k.kernel.body.results[position], k.kernel.outputs[position]
        held = allocate((width,), storage_dtype(output.type.dtype))
        for i in range(width):
            known = {result: values[i]} | {value: decode(loaded[i], m.dtype) for value, m, loaded in beside}
            element = reader.read(output, [*lead, column + i64(i)], known)
            T.buffer_store(held, encode(element, output.type.dtype), [i])
        for start, part in _pieces(width, output.type.dtype):
            with T.vectorized(i64(0), i64(part)) as lane:
                T.buffer_store(buffer, held[i64(start) + lane], [*lead, column + i64(start) + lane])


def _beside(k: Anchor, width: int) -> list[tuple[Value, Strided]]:
    """What the epilogue reads from memory at the indices of the result, and as vectors: biases, residuals, gates."""
    found: dict[Value, Strided] = {}
    pending = [k.kernel.body.results[position] for position in k.outputs_of[0]]
    while pending:
        value = pending.pop()
        memory = strided(value) if value.dims == k.node.types[0].dims and value.node is not k.node else None
        if memory and memory.aligned(-1, width):
            found[value] = memory
        elif value.node is not k.node and value.op.name != "input":
            pending += value.node.inputs
    return list(found.items())


def _load_beside(k: Anchor, memory: Strided, at: Sequence[Expr], held: tirx.Buffer) -> None:
    source, place = k.kernel.reader.buffers[memory.source], memory.offset(k, at)
    for start, part in _pieces(int(held.shape[0]), memory.dtype):
        with T.vectorized(i64(0), i64(part)) as lane:
            T.buffer_store(held, source[place + i64(start) + lane], [i64(start) + lane])


def _pieces(width: int, dtype: DType) -> list[tuple[int, int]]:
    """Neighbours as (start, count) of accesses."""
    part = min(width, VECTOR_BYTES * 8 // dtype.bits)
    return [(start, part) for start in range(0, width, part)]
