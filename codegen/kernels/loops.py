"""Loop and lane idioms that the kernel templates share. Every index is an int64 expression."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d
from coilc.ir.dims import Dim
from coilc.passes.independent_axes import part_in_lanes

from ..loops import launch
from ..scalar import Expr, allocate, inside_loop, on_device, vector
from ..tir_passes import ONE_LAUNCH, WORTH_IT

if TYPE_CHECKING:
    from .anchor import Anchor

PARALLEL_FLOPS = 1 << 16  # below this a parallel launch (about a microsecond) costs more than it saves


def i64(value: Expr | int) -> Expr:
    """An int64 expression; loop variables and dims already are."""
    return T.int64(value) if isinstance(value, int) else value


def serial(extent: Expr | int, start: Expr | int = 0) -> Any:
    """``for i in range(start, extent)``."""
    return T.serial(i64(start), i64(extent))


def unrolled(extent: int) -> Any:
    """A loop that the compiler writes out; its variable is a constant in every copy."""
    return T.unroll(i64(0), i64(extent))


def lanes(width: int) -> Any:
    """A loop over vector lanes; ``width`` is a power of two (other widths compile to scalar code)."""
    return vector(width)


def parallel(k: Anchor, extent: Expr | int, work: Dim) -> Any:
    """A loop over independent tasks that do ``work`` operations in all: on the thread pool if that is worth a launch.

    Where it depends on a symbol, ``codegen/tir_passes.py`` makes two loops of this one; it makes one loop of those of
    several anchors. Inside another loop it is serial. On a device every task is a thread.
    """
    if on_device() and not inside_loop():
        return launch(i64(extent))
    work = k.launched * work
    low, high = d.bounds(work, {})
    extent = i64(extent)
    alone = k.launched == 1 and isinstance(extent, tirx.IntImm) and int(extent) <= 1
    if inside_loop() or alone or (high is not None and high < PARALLEL_FLOPS):
        return serial(extent)
    notes = {} if low >= PARALLEL_FLOPS else {WORTH_IT: k.extent(work) >= i64(PARALLEL_FLOPS)}
    if k.launched > 1:
        notes[ONE_LAUNCH] = i64(k.launched)
    return T.parallel(i64(0), extent, annotations=notes)


local = allocate  # task-local storage: registers when every index is constant, else the stack, or scratch from 1 KB on


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    """``if condition:``."""
    with T.If(condition), T.Then():
        yield


def unravel(index: Expr, extents: Sequence[Expr | int]) -> list[Expr]:
    """Row-major multi-index of a flat index; the leading extent is not needed."""
    indices: list[Expr] = []
    for extent in reversed(extents[1:]):
        indices.append(tirx.truncmod(index, i64(extent)))
        index = tirx.truncdiv(index, i64(extent))
    return [index, *reversed(indices)] if extents else []


def ceildiv(extent: Expr | int, block: int) -> Expr | int:
    """``extent / block`` rounded up, for a non-negative extent."""
    if isinstance(extent, int):
        return -(-extent // block)
    return tirx.truncdiv(extent + i64(block - 1), i64(block))


class Blocks:
    """A static extent cut into equal power-of-two vectors.

    The last block is moved back so that it ends at the extent: it overlaps its neighbour instead of needing a tail,
    which is sound because both compute the same values. On a device they are single elements.
    """

    def __init__(self, extent: Dim, widest: int) -> None:
        self.extent = extent
        self.width = part_in_lanes(extent, widest) if isinstance(extent, int) and not on_device() else 1

    def count(self, extent: Expr) -> Expr | int:
        return ceildiv(self.extent, self.width) if isinstance(self.extent, int) else extent

    def start(self, block: Expr) -> Expr:
        """First element of a block."""
        if not isinstance(self.extent, int) or self.extent % self.width == 0:
            return block * i64(self.width)
        return tirx.min(block * i64(self.width), i64(self.extent - self.width))


def each_column(extent: Dim, columns: Expr, first: Expr, width: int, body: Callable[[Expr], None]) -> None:
    """Run ``body(column)`` in vectors for the columns from ``first`` on, at most ``width`` and never past ``extent``.

    ``columns`` is the extent as an expression. A tail is done in narrower vectors, or one by one if the extent is symbolic.
    """

    def vector(offset: int, size: int) -> None:
        with lanes(size) as j:
            body(first + i64(offset) + j)

    tail = extent % width if isinstance(extent, int) else None
    if tail == 0:
        return vector(0, width)
    with T.If(first + i64(width) <= columns):
        with T.Then():
            vector(0, width)
        with T.Else():
            if tail is None:
                with serial(columns, start=first) as column:
                    body(column)
            else:
                for offset, size in powers_of_two(tail):
                    vector(offset, size)


def powers_of_two(extent: int) -> Iterator[tuple[int, int]]:
    """A static extent as (offset, width) of power-of-two vectors, widest first."""
    offset = 0
    while extent:
        width = 1 << (extent.bit_length() - 1)
        yield offset, width
        offset, extent = offset + width, extent - width


def product(extents: Sequence[Expr | int]) -> Expr:
    """Number of tasks of a nest."""
    return reduce(lambda a, b: a * b, map(i64, extents), i64(1))
