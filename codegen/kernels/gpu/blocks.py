"""Idioms of kernels whose threads work together: launches of blocks, and walks through the memory that a block shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from ...loops import grid
from ...scalar import Expr
from ...threads import wait_for_block
from ..anchor import Anchor
from ..loops import ceildiv, i64, product, serial, when
from ..matmul import X


@contextmanager
def blocks(
    extents: Sequence[Expr | int], threads: int, *, exclusive: bool = False
) -> Iterator[tuple[list[Expr], Expr]]:
    """A kernel with a block per point of a grid: the point's indices and the thread of the block, in int64.

    The last axis is that of neighbouring blocks. ``exclusive`` is that of ``grid``.
    """
    with grid(product(extents), threads, exclusive=exclusive) as (block, thread):
        yield _unravel(block, extents), T.Bind(thread)


def _unravel(number: Expr, extents: Sequence[Expr | int]) -> list[Expr]:
    """The indices of a point of a grid; the points of every grid fit 31 bits, so that the division is a short one."""
    rest, place = T.Cast("int32", number), []
    for extent in reversed(extents[1:]):
        size = T.Cast("int32", i64(extent))
        place.append(T.Bind(T.Cast("int64", tirx.truncmod(rest, size))))
        rest = tirx.truncdiv(rest, size)
    return [T.Bind(T.Cast("int64", rest)), *reversed(place)]


def through_halves(
    k: Anchor, depth: int, fetch: Callable[[Expr], None], add: Callable[[Expr], None], put: Callable[[Expr], None]
) -> None:
    """The walk of a product along its inner dimension, ``depth`` elements a step, through two halves of shared memory.

    While the products of one half are added, what comes next is fetched into registers, to be put into the other half.

    Args:
        fetch: given where a step begins; what lies behind the end is zero.
        add, put: given the half.
    """

    def walk() -> None:
        fetch(i64(0))
        put(i64(0))
        wait_for_block()
        with serial(ceildiv(inner, depth)) as step:
            fetch((step + i64(1)) * i64(depth))
            add(tirx.bitwise_and(step, i64(1)))
            put(tirx.bitwise_and(step + i64(1), i64(1)))
            wait_for_block()

    inner = k.extent(k.dims(X)[-1])
    if d.bounds(k.dims(X)[-1], {})[0] > 0:
        walk()
    else:
        with when(inner > i64(0)):
            walk()


@contextmanager
def grouped_tiles(extents: Sequence[Expr | int], threads: int) -> Iterator[tuple[list[Expr], Expr]]:
    """A kernel with a block per tile: the place of ``tile_at``, and the thread of the block."""
    with grid(product(extents), threads, exclusive=True) as (block, thread):
        yield tile_at(block, extents), T.Bind(thread)


def tile_at(number: Expr, extents: Sequence[Expr | int]) -> list[Expr]:
    """Where a tile is among [..., rows of tiles, columns of tiles], counted so that neighbours in time share both operands.

    They are counted through a few rows of tiles, column by column, before the next rows.
    """
    *batch, rows, columns = extents
    *at, place = _unravel(number, [*batch, i64(rows) * i64(columns)])
    tile, all_rows, all_columns = (T.Cast("int32", i64(x)) for x in (place, rows, columns))
    strip = T.Bind(tirx.truncdiv(tile, all_columns * 8) * 8)
    height = T.Bind(tirx.min(all_rows - strip, tirx.const(8, "int32")))
    rest = T.Bind(tile - strip * all_columns)
    row, column = strip + tirx.truncmod(rest, height), tirx.truncdiv(rest, height)
    return [*at, T.Bind(T.Cast("int64", row)), T.Bind(T.Cast("int64", column))]
