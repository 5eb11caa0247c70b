"""Matrix products of 16-bit floats by the tensor cores of any GPU since Ampere (``mma.sync``), into fp32 sums.

Any size, layout and prologue: what comes from memory as it is comes in vectors, anything else is computed element by element
and rounded. The parts of the next step are on their way into registers while those of this one, in shared memory, are
multiplied; they lie there as they do in memory, and ``ldmatrix`` transposes them if needed.

Source: PTX ISA 9.0, "Matrix Fragments for mma.m16n8k16" and "ldmatrix".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import Node, Value

from ...scalar import Expr, encode, select, storage_dtype
from ...threads import WARP, wait_for_block
from ..anchor import Anchor
from ..loops import ceildiv, i64, local, unrolled
from ..matmul import X, Y, inner_is_contiguous
from .blocks import grouped_tiles, through_halves
from .operand import Strided, strided
from .staged import pitch, stage, store_staged

DEPTH, VECTOR, THREADS = 32, 8, 256
PADDING = 8  # elements between lines in shared memory: the eight that ldmatrix reads at once lie in different banks
NAMES = {"bf16": "bf16", "f16": "f16"}  # PTX's of what the cores multiply


@dataclass(frozen=True)
class Tile:
    """The square part of the result that a block computes; its eight warps are two rows of four."""

    side: int

    @property
    def own(self) -> tuple[int, int]:
        """Rows and columns of a warp."""
        return self.side // 2, self.side // 4


LARGE, SMALL = Tile(128), Tile(64)


def narrow(value: Value) -> Value:
    """What the cores multiply: the operand without a widening, which they do themselves, before or after it is moved."""
    if value.op.name == "cast" and value.type.dtype.name == "f32":
        return value.node.inputs[0]
    if value.op.name not in ("transpose", "slice", "reshape", "broadcast"):
        return value
    (x,) = value.node.inputs
    return value if narrow(x) is x else Value(Node.make(value.op, (narrow(x),), value.node.attrs))


def is_narrow(k: Anchor) -> bool:
    """Whether both operands are 16-bit floats of one type."""
    left, right = (narrow(k.operands[i]).type.dtype for i in (X, Y))
    return left == right and left.name in NAMES


class Part:
    """An operand's part of a step: in memory, in registers, and in shared memory."""

    def __init__(self, k: Anchor, operand: int, tile: Tile) -> None:
        self.k, self.operand, self.tile = k, operand, tile
        self.value = narrow(k.operands[operand])
        self.along_inner = inner_is_contiguous(self.value) == (operand == Y)
        self.memory: Strided | None = strided(self.value)
        axis = -1 if self.along_inner == (operand == X) else -2
        self.in_vectors = self.memory is not None and self.memory.vector(axis) == VECTOR
        self.dtype = storage_dtype(self.value.type.dtype)
        self.shape = (tile.side, DEPTH + PADDING) if self.along_inner else (DEPTH, tile.side + PADDING)
        self.held = [local((VECTOR,), self.dtype) for _ in range(tile.side * DEPTH // VECTOR // THREADS)]

    def place(self, thread: Expr, i: int) -> tuple[Expr, Expr]:
        """Line and inner index of the i-th vector of a thread."""
        vector, per_row = thread + i64(i * THREADS), (DEPTH if self.along_inner else self.tile.side) // VECTOR
        slow, fast = tirx.truncdiv(vector, i64(per_row)), tirx.truncmod(vector, i64(per_row)) * i64(VECTOR)
        return (slow, fast) if self.along_inner else (fast, slow)

    def fetch(self, at: Sequence[Expr], first: Expr, start: Expr, thread: Expr) -> None:
        """Ask for the thread's vectors; behind the end of the inner dimension they are zero."""
        inner = self.k.extent(self.k.dims(X)[-1])
        for i, held in enumerate(self.held):
            line, n = self.place(thread, i)
            if not self.in_vectors:
                self._compute(held, at, first + line, start + n)
                continue
            with T.If(start + n < inner):
                with T.Then():
                    self._load(held, at, first + line, start + n)
                with T.Else(), unrolled(VECTOR) as v:
                    T.buffer_store(held, tirx.const(0, self.dtype), [v])

    def _lines(self) -> Expr:
        return self.k.extent(self.k.dims(X)[-2] if self.operand == X else self.k.dims(Y)[-1])

    def _index(self, at: Sequence[Expr], line: Expr, n: Expr) -> list[Expr]:
        return [*at, line, n] if self.operand == X else [*at, n, line]

    def _load(self, held: tirx.Buffer, at: Sequence[Expr], line: Expr, n: Expr) -> None:
        assert self.memory is not None
        line = tirx.min(line, self._lines() - i64(1 if self.along_inner else VECTOR))
        source = self.k.kernel.reader.buffers[self.memory.source]
        place = self.memory.offset(self.k, self._index(at, line, n))
        with T.vectorized(i64(0), i64(VECTOR)) as lane:
            T.buffer_store(held, source[place + lane], [lane])

    def _compute(self, held: tirx.Buffer, at: Sequence[Expr], line: Expr, n: Expr) -> None:
        inner = self.k.extent(self.k.dims(X)[-1])
        for v in range(VECTOR):
            m, j = (line, n + i64(v)) if self.along_inner else (line + i64(v), n)
            index = self._index(at, tirx.min(m, self._lines() - i64(1)), tirx.min(j, inner - i64(1)))
            element = encode(self.k.kernel.reader.read(self.value, index), self.value.type.dtype)
            T.buffer_store(held, select(j < inner, element, tirx.const(0, self.dtype)), [v])

    def put(self, to: tirx.Buffer, half: Expr, thread: Expr) -> None:
        """What was fetched, into this half of shared memory."""
        for i, held in enumerate(self.held):
            line, n = self.place(thread, i)
            row, column = (line, n) if self.along_inner else (n, line)
            with T.vectorized(i64(0), i64(VECTOR)) as lane:
                T.buffer_store(to, held[lane], [half, row, column + lane])

    def fragments(self, shared: tirx.Buffer, half: Expr, line: Expr, n: Expr, lane: Expr) -> tirx.Buffer:
        """16 lines x 16 inner elements as the instructions take them: four registers."""
        registers = local((4,), "uint32")
        low, middle, high = (tirx.truncmod(tirx.truncdiv(lane, i64(x)), i64(y)) for x, y in ((1, 8), (8, 2), (16, 2)))
        # The four matrices: in the left operand's registers lines come first, in the right one's the inner elements.
        by_line, by_inner = (middle, high) if self.operand == X else (high, middle)
        if self.along_inner:
            place = [half, line + by_line * i64(8) + low, n + by_inner * i64(8)]
        else:
            place = [half, n + by_inner * i64(8) + low, line + by_line * i64(8)]
        transpose = "" if self.along_inner else ".trans"
        instruction = T.ptx[f"ldmatrix.sync.aligned.m8n8.x4{transpose}.shared.b16"]
        T.evaluate(instruction(*(registers[i] for i in range(4)), shared.ptr_to(place)))
        return registers


def emit_mma(k: Anchor, tile: Tile) -> None:
    """Write one launch of x[..., M, K] @ y[..., K, N]."""
    *batch, rows, _ = map(k.extent, k.dims(X))
    extents = [*batch, ceildiv(rows, tile.side), ceildiv(k.extent(k.dims(Y)[-1]), tile.side)]
    with grouped_tiles(extents, THREADS) as ((*at, row, column), thread):
        _Block(k, tile, at, (row * i64(tile.side), column * i64(tile.side)), thread).emit()


class _Block:
    """The code of one block."""

    def __init__(self, k: Anchor, tile: Tile, at: Sequence[Expr], first: Sequence[Expr], thread: Expr) -> None:
        self.k, self.tile, self.at, self.first, self.thread = k, tile, at, first, thread
        self.parts = [Part(k, operand, tile) for operand in (X, Y)]
        sizes = [2 * part.shape[0] * part.shape[1] for part in self.parts]
        memory = T.alloc_buffer(
            (max(2 * sum(sizes), tile.side * pitch(tile.side) * 4),), "uint8", scope="shared.dyn", align=128
        )
        self.shared = [
            T.decl_buffer((2, *part.shape), part.dtype, data=memory.data, elem_offset=start, scope="shared.dyn")
            for part, start in zip(self.parts, (0, sizes[0]), strict=True)
        ]
        shape = (tile.side, pitch(tile.side))
        self.staged = T.decl_buffer(shape, "float32", data=memory.data, elem_offset=0, scope="shared.dyn")
        self.lane, warp = tirx.truncmod(thread, i64(WARP)), tirx.truncdiv(thread, i64(WARP))
        place = tirx.truncdiv(warp, i64(4)), tirx.truncmod(warp, i64(4))
        self.mine = [i * i64(own) for i, own in zip(place, tile.own, strict=True)]
        self.sums = local((tile.own[0] * tile.own[1] // WARP,), "float32")

    def emit(self) -> None:
        with unrolled(self.tile.own[0] * self.tile.own[1] // WARP) as i:
            T.buffer_store(self.sums, tirx.const(0, "float32"), [i])
        through_halves(self.k, DEPTH, self._fetch, self._add_products, self._put)
        rows, columns = self.tile.own
        for i in range(rows // 16):
            start = i * columns // 2
            stage(self.staged, self.sums, start, self.mine[0] + i64(16 * i), self.mine[1], columns, self.lane)
        wait_for_block()
        store_staged(self.k, self.staged, self.tile.side, self.at, self.first, self.thread, THREADS)

    def _fetch(self, start: Expr) -> None:
        for part, first in zip(self.parts, self.first, strict=True):
            part.fetch(self.at, first, start, self.thread)

    def _put(self, half: Expr) -> None:
        for part, shared in zip(self.parts, self.shared, strict=True):
            part.put(shared, half, self.thread)

    def _add_products(self, half: Expr) -> None:
        name = NAMES[self.parts[X].value.type.dtype.name]
        instruction = T.ptx[f"mma.sync.aligned.m16n8k16.row.col.f32.{name}.{name}.f32"]
        rows, columns = self.tile.own
        for n in range(0, DEPTH, 16):
            left, right = (
                [part.fragments(shared, half, mine + i64(16 * i), i64(n), self.lane) for i in range(own // 16)]
                for part, shared, mine, own in zip(self.parts, self.shared, self.mine, self.tile.own, strict=True)
            )
            for i in range(rows // 16):
                for j in range(columns // 8):
                    sums = [self.sums[(i * (columns // 8) + j) * 4 + r] for r in range(4)]
                    a, b = [left[i][r] for r in range(4)], [right[j // 2][j % 2 * 2 + r] for r in range(2)]
                    T.evaluate(instruction(*sums, *a, *b, *sums))
