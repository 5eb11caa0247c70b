"""Idioms of kernels whose threads work together: launches of blocks, and the memory that a block shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...loops import grid
from ...scalar import Expr, dtype_name
from ..loops import i64, product

WARP = 32  # threads that run in step


@contextmanager
def blocks(
    extents: Sequence[Expr | int], threads: int, *, exclusive: bool = False
) -> Iterator[tuple[list[Expr], Expr]]:
    """A kernel with a block per point of a grid: the point's indices and the thread of the block, in int64.

    The last axis is that of neighbouring blocks. Their number, like that of every launch, fits 31 bits, so that the division
    of a block's number is a short one. ``exclusive`` is that of ``grid``.
    """
    with grid(product(extents), threads, exclusive=exclusive) as (block, thread):
        rest, place = T.Cast("int32", block), []
        for extent in reversed(extents[1:]):
            size = T.Cast("int32", i64(extent))
            place.append(T.Bind(T.Cast("int64", tirx.truncmod(rest, size))))
            rest = tirx.truncdiv(rest, size)
        yield [T.Bind(T.Cast("int64", rest)), *reversed(place)], T.Bind(thread)


def shared(shape: Sequence[int], dtype: str) -> tirx.Buffer:
    """Memory of the block."""
    return T.alloc_buffer(tuple(shape), dtype, scope="shared")


def wait_for_block() -> None:
    """Until all threads of the block are here, and what they wrote to its memory can be read."""
    T.evaluate(T.tvm_storage_sync("shared"))


def from_lane(x: Expr, offset: int) -> Expr:
    """What the thread of this warp has whose number differs in the bit ``offset``; all threads of the warp are here."""
    everyone, distance = tirx.const(2**32 - 1, "uint32"), tirx.const(offset, "int32")
    return tirx.call_extern(dtype_name(x), "__shfl_xor_sync", everyone, x, distance)


@contextmanager
def grouped_tiles(extents: Sequence[Expr | int], threads: int) -> Iterator[tuple[list[Expr], Expr]]:
    """``blocks`` over [..., rows of tiles, columns of tiles], so that those that run at a time share both operands.

    They are counted through a few rows of tiles, column by column, before the next rows.
    """
    *batch, rows, columns = extents
    with blocks([*batch, i64(rows) * i64(columns)], threads, exclusive=True) as ((*at, place), thread):
        tile, all_rows, all_columns = (T.Cast("int32", i64(x)) for x in (place, rows, columns))
        strip = T.Bind(tirx.truncdiv(tile, all_columns * 8) * 8)
        height = T.Bind(tirx.min(all_rows - strip, tirx.const(8, "int32")))
        rest = T.Bind(tile - strip * all_columns)
        row, column = strip + tirx.truncmod(rest, height), tirx.truncdiv(rest, height)
        yield [*at, T.Bind(T.Cast("int64", row)), T.Bind(T.Cast("int64", column))], thread
