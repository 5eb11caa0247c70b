"""Matrix products of 16-bit floats by Hopper's tensor cores: bulk tensor copies feed a ring in shared memory, warpgroups
multiply out of it (``wgmma``) into fp32 sums.

One warp, of which one thread is enough, asks for the parts of both operands and waits for room; every other 128 threads are a
warpgroup with 64 rows of the tile. An operand may have its inner axis or the other one contiguous. Copies fill with zeros what
lies outside, and stores are masked, so that any size is right. The sums return through shared memory: the epilogue is compiled
once, on neighbouring columns, which it writes in vectors.

Sources: PTX ISA 9.0, "Asynchronous warpgroup level matrix instructions" (layouts, descriptors) and "cp.async.bulk.tensor".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...scalar import Expr
from ...threads import WARP
from ..anchor import Anchor
from ..loops import ceildiv, i64, local, serial, unrolled, when
from ..matmul import X, Y
from .blocks import grouped_tiles
from .operand import Strided
from .staged import pitch, stage, store_staged

DEPTH, GROUP = 64, 128  # inner elements of a step, 128 bytes; threads of a warpgroup
VECTOR = 8  # elements of 16 bytes, at multiples of which copies begin
TYPES = {"bf16": ("bf16", 9), "f16": ("f16", 6)}  # PTX's name, and the driver's number, of an element
COPY = "cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"


@dataclass(frozen=True)
class Tile:
    """The part of the result that a block computes, and how many steps its ring has room for."""

    rows: int
    columns: int
    stages: int

    @property
    def warpgroups(self) -> int:
        return self.rows // 64

    @property
    def threads(self) -> int:
        return self.warpgroups * GROUP + WARP

    @property
    def stage_bytes(self) -> int:
        return (self.rows + self.columns) * DEPTH * 2


TILES = Tile(128, 256, 4), Tile(64, 256, 5), Tile(64, 64, 8)  # for many rows, for some, for at most 64


@dataclass(frozen=True)
class Copied:
    """An operand as bulk copies take it to shared memory.

    Attributes:
        memory: where it lies, with the axes batch..., M or N, K.
        lines: how many of its rows (columns, on the right) a tile has.
    """

    k: Anchor
    memory: Strided
    lines: int

    @property
    def along_inner(self) -> bool:
        """Whether neighbours along the inner dimension are neighbours in memory."""
        return self.memory.strides[-1] == 1

    def describe(self) -> tirx.Var:
        """On the host: the map of the tensor, from which the device copies."""
        k, memory, axes = self.k, self.memory, copied_axes(self.memory)
        buffer = k.kernel.reader.buffers[memory.source]
        data = T.handle_add_byte_offset(buffer.data, k.extent(memory.base) * i64(2))
        box = [i64(DEPTH), self.copied_lines() if self.along_inner else i64(DEPTH), *(i64(1) for _ in axes[2:])]
        sizes = [tirx.max(k.extent(memory.dims[a]), i64(1)) for a in axes]
        strides = [k.extent(memory.strides[a]) * i64(2) for a in axes[1:]]
        found = T.Bind(T.tvm_stack_alloca("tensormap", 1), var=T.handle("tensormap"))
        number = i64(TYPES[memory.dtype.name][1])
        T.evaluate(T.call_packed("coil_tensor_map", found, number, i64(len(box)), data, *sizes, *strides, *box))
        return found

    def copied_lines(self) -> Expr:
        """Lines that are copied for a tile: no more than there are, since what lies outside takes time too.

        The others are what was there before, and so are the sums that come of them, which nobody stores.
        """
        if not self.along_inner:
            return i64(self.lines)
        return tirx.max(tirx.min(i64(self.lines), self.k.extent(self.memory.dims[-2])), i64(1))

    def copy(self, tensor: tirx.Var, to: tirx.Buffer, at: Sequence[Expr], line: Expr, inner: Expr, full: Expr) -> None:
        """Ask for the part at these lines and inner indices; ``to`` has its bytes, ``full`` is told of them."""
        place, axes = [*at, line, inner], copied_axes(self.memory)
        instruction = T.ptx[COPY.format(rank=len(axes))]
        for part in range(1 if self.along_inner else self.lines // DEPTH):
            place[len(at)] = line + i64(part * DEPTH)
            coordinates = [T.Cast("int32", place[a]) for a in axes]
            address = to.ptr_to([part * DEPTH * DEPTH])
            T.evaluate(instruction(address, T.address_of(tensor), *coordinates, full))

    def descriptor(self, part: Expr) -> Expr:
        """The 64-bit description of a matrix in shared memory whose lines from here on an instruction reads."""
        held = local((1,), "uint64")
        leading = 1 if self.along_inner else DEPTH * DEPTH * 2 // 16
        T.evaluate(T.cuda.wgmma.encode_matrix_descriptor(T.address_of(held[0]), part, leading, 64, 3))
        return held[0]

    @property
    def advance(self) -> int:
        """From one instruction's 16 inner elements to the next ones', in the descriptor's units of 16 bytes."""
        return 2 if self.along_inner else 16 * DEPTH * 2 // 16


def fits(memory: Strided | None) -> bool:
    """Whether bulk copies can take an operand [..., lines, inner]: unit stride along one of them, all others aligned."""
    if memory is None or memory.dtype.name not in TYPES or len(memory.dims) > 5 or 1 not in memory.strides[-2:]:
        return False
    _, *others = copied_axes(memory)
    return all(x % VECTOR == 0 for x in (memory.base, *(memory.strides[axis] for axis in others)))


def copied_axes(memory: Strided) -> list[int]:
    """Axes of the tensor as the copies see it, innermost first; an operand may be the same for a whole axis."""
    last = len(memory.dims) - 1
    inner = [last, last - 1] if memory.strides[-1] == 1 else [last - 1, last]
    return inner + [a for a in reversed(range(last - 1)) if memory.dims[a] != 1 and memory.strides[a] != 0]


def emit_wgmma(k: Anchor, left: Strided, right: Strided, tile: Tile) -> None:
    """Write one launch of left[..., M, K] @ right[..., N, K]^T."""
    *batch, rows, inner = map(k.extent, k.dims(X))
    columns = k.extent(k.dims(Y)[-1])
    copied = Copied(k, left, tile.rows), Copied(k, right, tile.columns)
    maps = [operand.describe() for operand in copied]
    extents = [*batch, ceildiv(rows, tile.rows), ceildiv(columns, tile.columns)]
    with grouped_tiles(extents, tile.threads) as ((*at, row, column), thread):
        first = row * i64(tile.rows), column * i64(tile.columns)
        _Block(k, tile, copied, at, first, thread, ceildiv(inner, DEPTH)).emit(maps)


class _Block:
    """The code of one block."""

    def __init__(
        self,
        k: Anchor,
        tile: Tile,
        copied: Sequence[Copied],
        at: Sequence[Expr],
        first: Sequence[Expr],
        thread: Expr,
        steps: Expr,
    ) -> None:
        self.k, self.tile, self.copied, self.at, self.first, self.thread, self.steps = (
            k,
            tile,
            copied,
            at,
            first,
            thread,
            steps,
        )
        ring = max(tile.stages * tile.stage_bytes, tile.rows * pitch(tile.columns) * 4)
        self.memory = T.alloc_buffer((ring + 16 * tile.stages,), "uint8", scope="shared.dyn", align=1024)
        self.full, self.empty = (self._view((tile.stages,), "uint64", ring // 8 + tile.stages * i) for i in range(2))

    def _view(self, shape: Sequence[int], dtype: str, start: Expr | int) -> tirx.Buffer:
        """Part of the block's memory, from this element on."""
        return T.decl_buffer(shape, dtype, data=self.memory.data, elem_offset=start, scope="shared.dyn")

    def emit(self, maps: Sequence[tirx.Var]) -> None:
        tile = self.tile
        with when(tirx.EQ(self.thread, i64(0))):
            with serial(tile.stages) as stage:
                T.evaluate(T.ptx.mbarrier.init.shared.b64(self.full.ptr_to([stage]), T.uint32(1)))
                T.evaluate(T.ptx.mbarrier.init.shared.b64(self.empty.ptr_to([stage]), T.uint32(tile.warpgroups)))
        T.evaluate(T.ptx.fence.proxy.async_.shared__cta())
        T.evaluate(T.cuda.cta_sync())
        with T.If(self.thread >= i64(tile.warpgroups * GROUP)):
            with T.Then(), when(tirx.EQ(self.thread, i64(tile.warpgroups * GROUP))):
                self._fill(maps)
            with T.Else():
                self._store(self._multiply())

    def _fill(self, maps: Sequence[tirx.Var]) -> None:
        """Ask for one step after another, each as soon as its place in the ring is empty."""
        stages = i64(self.tile.stages)
        lines = self.copied[0].copied_lines() + self.copied[1].copied_lines()
        size = T.Bind(T.Cast("uint32", lines * i64(DEPTH * 2)))
        with serial(self.steps) as step:
            stage, turn = tirx.truncmod(step, stages), T.Cast("int32", tirx.truncdiv(step, stages))
            T.evaluate(T.cuda.mbarrier_wait(self.empty.ptr_to([stage]), tirx.bitwise_and(turn + 1, 1)))
            full = self.full.ptr_to([stage])
            T.evaluate(T.ptx.mbarrier.arrive.expect_tx.shared.b64(full, size))
            for operand, copied in enumerate(self.copied):
                to = self._part(operand, stage)
                copied.copy(maps[operand], to, self.at, self.first[operand], step * i64(DEPTH), full)

    def _part(self, operand: int, stage: Expr) -> tirx.Buffer:
        """An operand's part of a step."""
        start = stage * i64(self.tile.stage_bytes // 2) + i64(operand * self.tile.rows * DEPTH)
        return self._view((self.copied[operand].lines * DEPTH,), "uint16", start)

    def _multiply(self) -> tirx.Buffer:
        """The sums of this thread."""
        tile, stages = self.tile, i64(self.tile.stages)
        sums = local((tile.columns // 2,), "float32")
        with unrolled(tile.columns // 2) as i:
            T.buffer_store(sums, tirx.const(0, "float32"), [i])
        group = tirx.truncdiv(self.thread, i64(GROUP))
        with serial(self.steps) as step:
            stage, turn = tirx.truncmod(step, stages), T.Cast("int32", tirx.truncdiv(step, stages))
            T.evaluate(T.cuda.mbarrier_wait(self.full.ptr_to([stage]), tirx.bitwise_and(turn, 1)))
            T.evaluate(T.ptx.wgmma.fence.sync.aligned())
            self._issue(sums, stage, group)
            T.evaluate(T.ptx.wgmma.commit_group.sync.aligned())
            T.evaluate(T.ptx.wgmma.wait_group.sync.aligned(1))
            with when(tirx.all(step > i64(0), tirx.EQ(tirx.truncmod(self.thread, i64(GROUP)), i64(0)))):
                before = tirx.truncmod(step + stages - i64(1), stages)
                T.evaluate(T.ptx.mbarrier.arrive.shared.b64(self.empty.ptr_to([before])))
        T.evaluate(T.ptx.wgmma.wait_group.sync.aligned(0))
        return sums

    def _issue(self, sums: tirx.Buffer, stage: Expr, group: Expr) -> None:
        """The products of a step: four instructions, of 16 inner elements each."""
        name = TYPES[self.copied[0].memory.dtype.name][0]
        instruction = T.ptx[f"wgmma.mma_async.sync.aligned.m64n{self.tile.columns}k16.f32.{name}.{name}"]
        mine = [group * i64(64 * DEPTH), i64(0)]
        descriptors = [c.descriptor(self._part(i, stage).ptr_to([mine[i]])) for i, c in enumerate(self.copied)]
        transposed = [0 if c.along_inner else 1 for c in self.copied]
        held = [sums[i] for i in range(self.tile.columns // 2)]
        for part in range(DEPTH // 16):
            at = [d + T.uint64(part * c.advance) for d, c in zip(descriptors, self.copied, strict=True)]
            T.evaluate(instruction(*held, *at, T.ptx.pred(1), 1, 1, *transposed))

    def _store(self, sums: tirx.Buffer) -> None:
        """Sums to shared memory, row by row; then the epilogue."""
        tile, thread = self.tile, self.thread
        staged = self._view((tile.rows, pitch(tile.columns)), "float32", 0)
        T.evaluate(T.ptx.barrier.cta.sync(1, tile.warpgroups * GROUP))
        lane, warp = tirx.truncmod(thread, i64(WARP)), tirx.truncdiv(thread, i64(WARP))
        stage(staged, sums, 0, warp * i64(16), i64(0), tile.columns, lane)
        T.evaluate(T.ptx.barrier.cta.sync(1, tile.warpgroups * GROUP))
        store_staged(self.k, staged, tile.columns, self.at, self.first, thread, tile.warpgroups * GROUP)
