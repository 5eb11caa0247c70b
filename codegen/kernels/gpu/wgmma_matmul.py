"""Matrix products of 16-bit floats by Hopper's tensor cores: bulk tensor copies feed a ring in shared memory, warpgroups
multiply out of it (``wgmma``) into fp32 sums.

A multiprocessor has one block, which computes one tile of the result after another. One thread behind the others asks for the
parts of both operands and waits for room in the ring, which goes on from tile to tile: the next one is being copied while this
one is stored. Every 128 threads before it are a warpgroup with 64 rows of the tile. An operand may have its inner axis or the
other one contiguous. Copies fill with zeros what lies outside, and stores are masked, so that any size is right. The epilogue
takes the sums from registers, where neighbouring threads exchange them for neighbouring columns, which it writes in vectors.

Sources: PTX ISA 9.0, "Asynchronous warpgroup level matrix instructions" (layouts, descriptors) and "cp.async.bulk.tensor".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir.opdef import ELEMENTWISE

from ...loops import grid, launch_next
from ...scalar import Expr, select
from ...threads import WARP, from_lane
from ..anchor import Anchor
from ..loops import ceildiv, i64, local, product, serial, unrolled, when
from ..matmul import X, Y
from .blocks import tile_at
from .operand import Strided, store_vectors

DEPTH, GROUP = 64, 128  # inner elements of a step, 128 bytes; threads of a warpgroup
REGISTERS = 40, 232  # of a thread that copies and of one that multiplies, out of 168 each for 384 threads
PART = 64  # sums of a thread whose epilogue is written out, where that of all would be long
SHORT = ("add", "sub", "mul", "neg", "cast")  # ops of one or two instructions
VECTOR = 8  # elements of 16 bytes, at multiples of which copies begin
TYPES = {"bf16": ("bf16", 9), "f16": ("f16", 6)}  # PTX's name, and the driver's number, of an element
_SETTLE = """
__forceinline__ __device__ void coil_settle(float* sum) { asm volatile("" : "+f"(*sum) :: "memory"); }
"""
COPY = "cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes"


@dataclass(frozen=True)
class Tile:
    """The part of the result that a block computes.

    Attributes:
        stages: how many steps its ring has room for.
        time: of a step where every multiprocessor takes one, relative to those of other tiles.
    """

    rows: int
    columns: int
    stages: int
    time: int

    @property
    def warpgroups(self) -> int:
        return self.rows // 64

    @property
    def multiplying(self) -> int:
        """Threads whose registers hold sums; they come first."""
        return self.warpgroups * GROUP

    @property
    def gives_registers(self) -> bool:
        """Whether the threads that copy leave most of theirs to many sums, for which a warpgroup of them is needed."""
        return self.warpgroups > 1 and self.columns > 128

    @property
    def threads(self) -> int:
        return self.multiplying + (GROUP if self.gives_registers else WARP)

    @property
    def stage_bytes(self) -> int:
        return (self.rows + self.columns) * DEPTH * 2


TILES = Tile(128, 256, 4, 10), Tile(128, 128, 7, 6), Tile(64, 128, 9, 4), Tile(64, 64, 8, 3)


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
    copied = Copied(k, left, tile.rows), Copied(k, right, tile.columns)
    maps = [operand.describe() for operand in copied]
    _Blocks(k, tile, copied).emit(maps)


class _Blocks:
    """The code of the blocks."""

    def __init__(self, k: Anchor, tile: Tile, copied: Sequence[Copied]) -> None:
        assert k.target.device is not None
        *batch, rows, inner = map(k.extent, k.dims(X))
        self.k, self.tile, self.copied, self.blocks = k, tile, copied, k.target.device.multiprocessors
        self.extents = [*batch, ceildiv(rows, tile.rows), ceildiv(k.extent(k.dims(Y)[-1]), tile.columns)]
        self.tiles, self.steps = product(self.extents), i64(ceildiv(inner, DEPTH))

    def emit(self, maps: Sequence[tirx.Var]) -> None:
        tile = self.tile
        with grid(tirx.min(self.tiles, i64(self.blocks)), tile.threads, exclusive=True) as (self.block, self.thread):
            self._allocate()
            with T.If(self.thread >= i64(tile.multiplying)):
                with T.Then():
                    if tile.gives_registers:
                        T.evaluate(T.ptx["setmaxnreg.dec.sync.aligned.u32"](REGISTERS[0]))
                    with when(tirx.EQ(self.thread, i64(tile.multiplying))):
                        self._fill(maps)
                with T.Else():
                    if tile.gives_registers:
                        T.evaluate(T.ptx["setmaxnreg.inc.sync.aligned.u32"](REGISTERS[1]))
                    self._compute()

    def _allocate(self) -> None:
        """The ring, and for each of its places the barriers that say that it is full, and that it is empty."""
        tile = self.tile
        ring = tile.stages * tile.stage_bytes
        self.memory = T.alloc_buffer((ring + 16 * tile.stages,), "uint8", scope="shared.dyn", align=1024)
        self.full, self.empty = (self._view((tile.stages,), "uint64", ring // 8 + tile.stages * i) for i in range(2))
        with when(tirx.EQ(self.thread, i64(0))):
            with serial(tile.stages) as stage:
                T.evaluate(T.ptx.mbarrier.init.shared.b64(self.full.ptr_to([stage]), T.uint32(1)))
                T.evaluate(T.ptx.mbarrier.init.shared.b64(self.empty.ptr_to([stage]), T.uint32(tile.warpgroups)))
        T.evaluate(T.ptx.fence.proxy.async_.shared__cta())
        T.evaluate(T.cuda.cta_sync())

    def _view(self, shape: Sequence[int], dtype: str, start: Expr | int) -> tirx.Buffer:
        """Part of the block's memory, from this element on."""
        return T.decl_buffer(shape, dtype, data=self.memory.data, elem_offset=start, scope="shared.dyn")

    @contextmanager
    def _each_tile(self) -> Iterator[tuple[Expr, Expr]]:
        """A loop over the tiles of the block: their numbers, and how many steps the ring has taken before."""
        with serial(ceildiv(self.tiles - self.block, self.blocks)) as i:
            yield T.Bind(self.block + i * i64(self.blocks)), T.Bind(i * self.steps)

    def _place(self, number: Expr) -> tuple[list[Expr], list[Expr]]:
        """Where a tile is: the indices of the batch, its first row and column."""
        *at, row, column = tile_at(number, self.extents)
        *at, row, column = _known([*at, row, column])
        return at, [row * i64(self.tile.rows), column * i64(self.tile.columns)]

    def _turn(self, number: Expr) -> tuple[Expr, Expr]:
        """A step's place in the ring, and whether the ring has gone round an odd number of times before, 0 or 1."""
        number, stages = T.Bind(T.Cast("uint32", number)), T.uint32(self.tile.stages)
        odd = T.Cast("int32", tirx.bitwise_and(tirx.truncdiv(number, stages), T.uint32(1)))
        return T.Bind(T.Cast("int64", tirx.truncmod(number, stages))), odd

    def _fill(self, maps: Sequence[tirx.Var]) -> None:
        """Ask for one step after another, each as soon as its place in the ring is empty."""
        lines = self.copied[0].copied_lines() + self.copied[1].copied_lines()
        size = T.Bind(T.Cast("uint32", lines * i64(DEPTH * 2)))
        with self._each_tile() as (tile, done):
            at, first = self._place(tile)
            with serial(self.steps) as step:
                stage, odd = self._turn(done + step)
                T.evaluate(T.cuda.mbarrier_wait(self.empty.ptr_to([stage]), tirx.bitwise_xor(odd, 1)))
                full = self.full.ptr_to([stage])
                T.evaluate(T.ptx.mbarrier.arrive.expect_tx.shared.b64(full, size))
                for operand, copied in enumerate(self.copied):
                    to = self._part(operand, stage)
                    copied.copy(maps[operand], to, at, first[operand], step * i64(DEPTH), full)

    def _part(self, operand: int, stage: Expr) -> tirx.Buffer:
        """An operand's part of a step."""
        start = stage * i64(self.tile.stage_bytes // 2) + i64(operand * self.tile.rows * DEPTH)
        return self._view((self.copied[operand].lines * DEPTH,), "uint16", start)

    def _compute(self) -> None:
        with self._each_tile() as (tile, done):
            sums = self._multiply(done)
            with when(tile + i64(self.blocks) >= self.tiles):
                launch_next()
            self._store(sums, *self._place(tile))

    def _multiply(self, done: Expr) -> tirx.Buffer:
        """The sums of this thread."""
        sums = local((self.tile.columns // 2,), "float32")
        with unrolled(self.tile.columns // 2) as i:
            T.buffer_store(sums, tirx.const(0, "float32"), [i])
        with serial(self.steps) as step:
            stage, odd = self._turn(done + step)
            T.evaluate(T.cuda.mbarrier_wait(self.full.ptr_to([stage]), odd))
            T.evaluate(T.ptx.wgmma.fence.sync.aligned())
            self._issue(sums, stage)
            T.evaluate(T.ptx.wgmma.commit_group.sync.aligned())
            T.evaluate(T.ptx.wgmma.wait_group.sync.aligned(1))
            with when(step > i64(0)):
                self._release_before(done + step)
        T.evaluate(T.ptx.wgmma.wait_group.sync.aligned(0))
        for i in range(self.tile.columns // 2):  # nothing that uses a sum may move ahead of the wait
            T.evaluate(T.cuda.func_call("coil_settle", T.address_of(sums[i]), source_code=_SETTLE))
        with when(self.steps > i64(0)):
            self._release_before(done + self.steps)
        return sums

    def _release_before(self, number: Expr) -> None:
        """This warpgroup is done with the place in the ring before that of a step."""
        stage, _ = self._turn(number + i64(self.tile.stages - 1))
        with when(tirx.EQ(tirx.truncmod(self.thread, i64(GROUP)), i64(0))):
            T.evaluate(T.ptx.mbarrier.arrive.shared.b64(self.empty.ptr_to([stage])))

    def _issue(self, sums: tirx.Buffer, stage: Expr) -> None:
        """The products of a step: four instructions, of 16 inner elements each."""
        name = TYPES[self.copied[0].memory.dtype.name][0]
        instruction = T.ptx[f"wgmma.mma_async.sync.aligned.m64n{self.tile.columns}k16.f32.{name}.{name}"]
        mine = [tirx.truncdiv(self.thread, i64(GROUP)) * i64(64 * DEPTH), i64(0)]
        descriptors = [c.descriptor(self._part(i, stage).ptr_to([mine[i]])) for i, c in enumerate(self.copied)]
        transposed = [0 if c.along_inner else 1 for c in self.copied]
        held = [sums[i] for i in range(self.tile.columns // 2)]
        for part in range(DEPTH // 16):
            at = [d + T.uint64(part * c.advance) for d, c in zip(descriptors, self.copied, strict=True)]
            T.evaluate(instruction(*held, *at, T.ptx.pred(1), 1, 1, *transposed))

    def _store(self, sums: tirx.Buffer, at: Sequence[Expr], first: Sequence[Expr]) -> None:
        """The epilogue, from registers; those of a part are taken from the first ones, where the others move up afterwards.

        Of every 8 columns a thread has two of the row ``lane / 4`` and two of the row 8 below. Two neighbours exchange theirs
        of every 16, so that each has four in a row: the even one of the first 8, the odd one of the others. What a part
        stores to a row is under way at the same time.
        """
        lane, warp = tirx.truncmod(self.thread, i64(WARP)), tirx.truncdiv(self.thread, i64(WARP))
        odd, pair = tirx.truncmod(lane, i64(2)), tirx.truncdiv(tirx.truncmod(lane, i64(4)), i64(2))
        row, fours = _known([warp * i64(16) + tirx.truncdiv(lane, i64(4)), odd * i64(2) + pair])
        row, column = first[0] + row, first[1] + fours * i64(4)
        rows, width = self.k.node.types[0].dims[-2:]
        inside = (-2, -1) if width % self.tile.columns == 0 else (-2,)
        count = self.tile.columns // 2
        part = count if self._is_short() else min(count, PART)
        with serial(count // part) as turn:
            for half in range(2):
                groups = [[i + start + half * 2 for i in (0, 1, 4, 5)] for start in range(0, part, 8)]
                for group in groups:
                    _exchange(sums, group, tirx.EQ(odd, i64(1)))
                with when(row + i64(half * 8) < self.k.extent(rows)):
                    starts = [column + turn * i64(part * 2) + i64(i * 16) for i in range(len(groups))]
                    places = [[*at, row + i64(half * 8), start] for start in starts]
                    values = [[sums[i] for i in group] for group in groups]
                    store_vectors(self.k, list(zip(places, values, strict=True)), inside)
            with unrolled(count - part) as i:
                T.buffer_store(sums, sums[i + i64(part)], [i])

    def _is_short(self) -> bool:
        """Whether little is computed from the sums."""
        return all(n.op.name in SHORT for n in self.k.kernel.body.nodes if ELEMENTWISE in n.op.traits)


def _exchange(sums: tirx.Buffer, group: Sequence[int], odd: Expr) -> None:
    """Two columns of the first 8 and two of the next become four that follow, by those of the neighbouring thread."""
    got, (first, second) = local((2,), "float32"), (group[:2], group[2:])
    for i in range(2):
        T.buffer_store(got, from_lane(select(odd, sums[first[i]], sums[second[i]]), 1), [i])
    for i in range(2):
        T.buffer_store(sums, select(odd, got[i], sums[first[i]]), [first[i]])
        T.buffer_store(sums, select(odd, sums[second[i]], got[i]), [second[i]])


def _known(indices: Sequence[Expr]) -> list[Expr]:
    """Indices in registers: the builder would write out at every use how they are computed."""
    held = local((len(indices),), "int32")
    for i, index in enumerate(indices):
        T.buffer_store(held, T.Cast("int32", index), [i])
    return [T.Cast("int64", held[i]) for i in range(len(indices))]
