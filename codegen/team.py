"""Teams: threads of a device that work on one row together.

The threads of a team take neighbouring elements, so that their accesses are one; what each of them has combined is then
combined over the team, in an order that does not depend on time. A team of up to 32 threads is part of a warp, and a larger
one is a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T
from tvm.tirx.script.builder.frame import ForFrame

from coilc.ir.dims import Dim

from .kernel import Kernel
from .loops import BLOCK, for_each_task, grid
from .reader import index
from .scalar import Expr, allocate, bind, dtype_name, inside_loop, on_device
from .threads import EVERYONE, WARP, from_lane, shared, wait_for_block

LARGEST = 1024
ELEMENTS = 4  # of a long row that one thread takes, unless that asks for more than the largest team
SHORT = 512  # elements; a warp takes a row that has fewer

Combine = Callable[[list[Expr], list[Expr]], list[Expr]]


@dataclass(frozen=True)
class Team:
    """Some threads, of which the one that runs the code is number ``lane``; ``size`` is a power of two.

    Attributes:
        thread: its number in the block.
    """

    size: int
    lane: Expr
    thread: Expr

    def each(self, extent: Expr, body: Callable[[Expr], None]) -> None:
        """Run ``body(i)`` for the elements of this thread out of 0 <= i < extent."""
        self._walk(extent, lambda _, i: body(i), T.serial)

    def each_written_out(self, extent: int, body: Callable[[Expr, Expr], None]) -> None:
        """Run ``body(n, i)`` for the elements of this thread out of 0 <= i < extent, of which i is number n, a constant."""
        self._walk(index(extent), body, T.unroll)

    def _walk(self, extent: Expr, body: Callable[[Expr, Expr], None], loop: Callable[..., ForFrame]) -> None:
        whole = tirx.truncdiv(extent, index(self.size))
        with loop(index(0), whole) as n:
            body(n, n * index(self.size) + self.lane)
        if isinstance(extent, tirx.IntImm) and int(extent) % self.size == 0:
            return
        last = bind(whole * index(self.size) + self.lane)
        with T.If(last < extent), T.Then():
            body(whole, last)

    def combine(self, parts: list[Expr], step: Combine) -> list[Expr]:
        """What the threads have, combined by a commutative ``step``; every one gets the same."""
        parts = self._butterfly(parts, step, min(self.size, WARP))
        if self.size <= WARP:
            return parts
        warps, lane = self.size // WARP, bind(tirx.truncmod(self.thread, index(WARP)))
        memory = [shared((warps,), _carried(dtype_name(x))) for x in parts]
        with T.If(tirx.EQ(lane, index(0))), T.Then():
            for buffer, x in zip(memory, parts, strict=True):
                T.buffer_store(buffer, T.Cast(str(buffer.dtype), x), [tirx.truncdiv(self.thread, index(WARP))])
        wait_for_block()
        mine = bind(tirx.truncmod(lane, index(warps)))
        loaded = [_named(T.Cast(dtype_name(x), buffer[mine])) for buffer, x in zip(memory, parts, strict=True)]
        return self._butterfly(loaded, step, warps)

    def _butterfly(self, parts: list[Expr], step: Combine, size: int) -> list[Expr]:
        offset = size // 2
        while offset:
            others = [self._from(x, offset) for x in parts]
            parts = [_named(x) for x in step(parts, others)]
            offset //= 2
        return parts

    def _from(self, x: Expr, offset: int) -> Expr:
        """The value that the thread has whose number differs in the bit ``offset``."""
        dtype = dtype_name(x)
        carried = T.Cast(_carried(dtype), x) if _carried(dtype) != dtype else x
        moved = _named(from_lane(carried, offset, self._mask()))
        return moved if _carried(dtype) == dtype else T.Cast(dtype, moved)

    def _mask(self) -> Expr:
        """The lanes of the warp that are in this team: other teams of the warp may have ended."""
        if self.size >= WARP:
            return tirx.const(EVERYONE, "uint32")
        first = tirx.truncmod(self.thread, index(WARP)) - self.lane
        return tirx.shift_left(tirx.const(2**self.size - 1, "uint32"), T.Cast("uint32", first))


def _carried(dtype: str) -> str:
    """The type in which a value of type ``dtype`` goes from thread to thread."""
    return "int32" if dtype in ("bool", "int8", "uint8", "int16", "uint16") else dtype


def _named(x: Expr) -> Expr:
    """The value in a variable of its own, whatever its type: exchanges must happen once, and where they are written."""
    local = allocate((1,), dtype_name(x))
    T.buffer_store(local, x, [0])
    return local[0]


@contextmanager
def first_of(team: Team | None) -> Iterator[None]:
    """Code that one thread of the team runs."""
    if team is None or team.size == 1:
        yield
        return
    with T.If(tirx.EQ(team.lane, index(0))), T.Then():
        yield


def for_each_row(k: Kernel, count: Dim, length: Dim, work: Dim, body: Callable[[Expr, Team | None], None]) -> None:
    """Run ``body(row, team)`` for 0 <= row < count, where a row has ``length`` elements.

    On a device a team works on a row; where its size depends on a symbol the kernel is written twice. Elsewhere, and inside
    loops, there is no team and ``work`` decides whether the rows go to several threads.
    """
    if not on_device() or inside_loop():
        for_each_task(k, count, work, lambda row: body(row, None))
    elif isinstance(length, int):
        _launch_rows(k, count, team_size(length), body)
    else:
        with T.If(k.extent(length) <= index(SHORT)):
            with T.Then():
                _launch_rows(k, count, WARP, body)
            with T.Else():
                _launch_rows(k, count, LARGEST // 2, body)


def team_size(length: int) -> int:
    """How many threads take a row: no more than it has elements."""
    wanted = min(length // ELEMENTS if length >= SHORT else WARP, length, LARGEST)
    return 1 << max(wanted, 1).bit_length() - 1


def _launch_rows(k: Kernel, count: Dim, size: int, body: Callable[[Expr, Team | None], None]) -> None:
    with launch_teams(k.extent(count), size) as (row, team):
        body(row, team)


@contextmanager
def launch_teams(tasks: Expr, size: int, *, together: bool = False) -> Iterator[tuple[Expr, Team]]:
    """A kernel of a device with ``size`` threads per task; ``together`` means that they are a block, however few."""
    block_size = size if size > WARP or together else BLOCK
    per_block = index(block_size // size)
    with grid(tirx.truncdiv(tasks + per_block - index(1), per_block), block_size) as (block, thread):
        if block_size == size:
            yield block, Team(size, thread, thread)
            return
        task = T.Bind(block * per_block + tirx.truncdiv(thread, index(size)))
        with T.If(task < tasks), T.Then():
            yield task, Team(size, T.Bind(tirx.truncmod(thread, index(size))), thread)
