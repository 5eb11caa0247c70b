"""Elements on their way from memory into registers: loaded now, decoded when they are needed."""

from __future__ import annotations

from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T

from coilc.ir import Value

from ...reader import Reader
from ...scalar import Expr, decode, dtype_name, storage_dtype
from ..anchor import Anchor
from ..loops import i64, local

MOVED = frozenset({"reshape", "slice", "transpose", "broadcast", "flip"})  # only other indices of the same memory


class Registers:
    """``count`` fp32 numbers of one operand of this thread.

    An operand that is in memory, perhaps cast, is kept as it is there: nothing waits for a load before its decoding.
    """

    def __init__(self, k: Anchor, operand: int | str, count: int) -> None:
        source = k.operands[operand]
        while source.op.name == "cast":
            (source,) = source.node.inputs
        self.k, self.operand, self.source = k, operand, source if _is_memory(source, k.kernel.reader) else None
        self.buffer = local((count,), "float32" if self.source is None else storage_dtype(source.type.dtype))

    def load(self, place: int, *indices: Expr) -> None:
        """Start loading an element."""
        if self.source is None:
            element = self.k.read(self.operand, *indices, dtype="float32")
        else:
            reader = self.k.kernel.reader
            element = _Undecoded(reader.body, reader.buffers, reader.dims).read(self.source, indices)
        T.buffer_store(self.buffer, element, [i64(place)])

    @property
    def is_bf16(self) -> bool:
        """Whether the elements are kept as the bits of bf16."""
        return self.source is not None and self.source.type.dtype.name == "bf16"

    def raw(self, place: int) -> Expr:
        """An element as it is kept."""
        return self.buffer[i64(place)]

    def __getitem__(self, place: int) -> Expr:
        element = self.raw(place)
        element = element if self.source is None else decode(element, self.source.type.dtype)
        return element if dtype_name(element) == "float32" else T.Cast("float32", element)


class _Undecoded(Reader):
    """Reads elements as they are in memory."""

    def load(self, value: Value, indices: Sequence[Expr]) -> Expr:
        buffer = self.buffers[value]
        place = [self.offset(indices, value.dims)] if len(buffer.shape) == 1 else list(indices)
        return buffer[place[0] if len(place) == 1 else tuple(place)]


def _is_memory(value: Value, reader: Reader) -> bool:
    while value not in reader.buffers and value.op.name in MOVED:
        (value,) = value.node.inputs
    return value in reader.buffers
