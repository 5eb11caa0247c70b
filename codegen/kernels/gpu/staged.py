"""The end of a product by ``mma.sync``: sums go from registers to shared memory, and back as neighbouring columns.

The epilogue is then compiled once, and writes vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...loops import launch_next
from ...scalar import Expr
from ..anchor import Anchor
from ..loops import i64, serial, unrolled
from .operand import store_vectors

VECTOR = 8  # columns that a thread computes at a time


def pitch(columns: int) -> int:
    """From row to row of the sums in shared memory: the rows that a warp writes at once lie in different banks."""
    return columns + 8


def stage(staged: tirx.Buffer, sums: tirx.Buffer, start: int, row: Expr, column: Expr, width: int, lane: Expr) -> None:
    """The 16 x ``width`` sums that a warp has in its registers from ``start`` on, to this row and column.

    They lie as every instruction leaves them: for each 8 columns, two of row ``lane / 4`` and two of the row 8 below.
    """
    row, column = row + tirx.truncdiv(lane, i64(4)), column + tirx.truncmod(lane, i64(4)) * i64(2)
    with unrolled(width // 8) as i, unrolled(2) as half, unrolled(2) as j:
        value = sums[i64(start) + i * i64(4) + half * i64(2) + j]
        T.buffer_store(staged, value, [row + half * i64(8), column + i * i64(8) + j])


def store_staged(
    k: Anchor, staged: tirx.Buffer, columns: int, at: Sequence[Expr], first: Sequence[Expr], thread: Expr, threads: int
) -> None:
    """The epilogue of a tile by ``threads`` threads; the tile begins at the row and column ``first``."""
    launch_next()
    rows, per_row = int(staged.shape[0]), columns // VECTOR
    with serial(rows * per_row // threads) as step:
        piece = step * i64(threads) + thread
        line, start = tirx.truncdiv(piece, i64(per_row)), tirx.truncmod(piece, i64(per_row)) * i64(VECTOR)
        values = [staged[line, start + i64(v)] for v in range(VECTOR)]
        store_vectors(k, [([*at, first[0] + line, first[1] + start], values)])
