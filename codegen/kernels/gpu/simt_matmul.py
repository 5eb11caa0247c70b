"""Matrix products by the ordinary arithmetic units: any type, size and layout, prologues on both operands.

A block computes a tile of the result. It walks along the inner dimension in steps: the parts of both operands for the next
step are on their way into registers while those of this one, in shared memory, are multiplied. Sums return through shared
memory too, so that neighbouring threads write neighbouring columns and the epilogue is compiled once per strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...loops import launch_next
from ...scalar import Expr, select
from ...threads import shared, wait_for_block
from ..anchor import Anchor
from ..loops import ceildiv, i64, local, serial, unrolled, when
from ..matmul import X, Y, inner_is_contiguous
from .blocks import blocks, through_halves

PADDING = 4  # elements between rows in shared memory, so that columns lie in different banks


@dataclass(frozen=True)
class Tile:
    """The part of the result that a block computes, and the part of it that each of the 256 threads computes."""

    side: int
    depth: int

    @property
    def own(self) -> int:
        """Rows, and columns, of a thread: in runs of four or less, which are one access to shared memory."""
        return self.side // 16

    def place(self, thread: Expr, i: Expr) -> Expr:
        """Where in the tile the i-th row (column) of the thread with this row (column) number lies."""
        run = min(4, self.own)
        return tirx.truncdiv(i, i64(run)) * i64(16 * run) + thread * i64(run) + tirx.truncmod(i, i64(run))


LARGE, SMALL = Tile(128, 16), Tile(64, 16)
THREADS = 256


def grid(k: Anchor, tile: Tile) -> list[Expr | int]:
    """How many blocks there are along each axis; those that are neighbours share columns of the right operand."""
    *batch, rows, _ = k.dims(X)
    return [*map(k.extent, batch), *(ceildiv(k.extent(extent), tile.side) for extent in (k.dims(Y)[-1], rows))]


def emit_simt(k: Anchor, tile: Tile) -> None:
    """Write one launch of x[..., M, K] @ y[..., K, N]."""
    with blocks(grid(k, tile), THREADS, exclusive=True) as ((*at, column_block, row_block), thread):
        _Block(k, tile, at, row_block * i64(tile.side), column_block * i64(tile.side), thread).emit()


class _Block:
    """The code of one block."""

    def __init__(self, k: Anchor, tile: Tile, at: Sequence[Expr], row: Expr, column: Expr, thread: Expr) -> None:
        self.k, self.tile, self.at, self.row, self.column, self.thread = k, tile, at, row, column, thread
        self.dtype = k.compute_dtype(X)
        self.mine = tirx.truncdiv(thread, i64(16)), tirx.truncmod(thread, i64(16))
        self.sums = local((tile.own, tile.own), self.dtype)
        self.parts = [shared((2, tile.depth, tile.side + PADDING), self.dtype) for _ in (X, Y)]
        self.next = [local((tile.side * tile.depth // THREADS,), self.dtype) for _ in (X, Y)]
        self.strip = shared((16, tile.side), self.dtype)

    def emit(self) -> None:
        with unrolled(self.tile.own) as i, unrolled(self.tile.own) as j:
            T.buffer_store(self.sums, tirx.const(0, self.dtype), [i, j])
        through_halves(self.k, self.tile.depth, self._fetch, self._add_products, self._put)
        self._store()

    def _fetch(self, start: Expr) -> None:
        """The thread's elements of both operands for the step that begins at ``start``, into registers."""
        k, columns = self.k, self.k.extent(self.k.dims(Y)[-1])
        rows, inner = map(k.extent, k.dims(X)[-2:])

        def left(line: Expr, n: Expr) -> Expr:
            return k.read(X, *self.at, tirx.min(self.row + line, rows - i64(1)), n)

        def right(line: Expr, n: Expr) -> Expr:
            return k.read(Y, *self.at, n, tirx.min(self.column + line, columns - i64(1)))

        for operand, read in ((X, left), (Y, right)):
            for i in range(self.tile.side * self.tile.depth // THREADS):
                n, line = self._element(operand, i)
                known = read(line, tirx.min(start + n, inner - i64(1)))
                T.buffer_store(self.next[operand], select(start + n < inner, known, tirx.const(0, self.dtype)), [i])

    def _element(self, operand: int, i: int) -> tuple[Expr, Expr]:
        """Inner index and line of the thread's i-th element: neighbouring threads read neighbours in memory."""
        element = self.thread + i64(i * THREADS)
        along_inner = (
            inner_is_contiguous(self.k.operands[Y]) if operand == Y else not inner_is_contiguous(self.k.operands[X])
        )
        fast = i64(self.tile.depth if along_inner else self.tile.side)
        quotient, rest = tirx.truncdiv(element, fast), tirx.truncmod(element, fast)
        return (rest, quotient) if along_inner else (quotient, rest)

    def _put(self, half: Expr) -> None:
        """What was fetched, into this half of shared memory."""
        for operand in (X, Y):
            for i in range(self.tile.side * self.tile.depth // THREADS):
                n, line = self._element(operand, i)
                T.buffer_store(self.parts[operand], self.next[operand][i], [half, n, line])

    def _add_products(self, half: Expr) -> None:
        """sums += left^T @ right for the step in this half of shared memory."""
        own = [local((self.tile.own,), self.dtype) for _ in (X, Y)]
        with serial(self.tile.depth) as n:
            for operand in (X, Y):
                with unrolled(self.tile.own) as i:
                    line = self.tile.place(self.mine[operand], i)
                    T.buffer_store(own[operand], self.parts[operand][half, n, line], [i])
            with unrolled(self.tile.own) as i, unrolled(self.tile.own) as j:
                T.buffer_store(self.sums, self.sums[i, j] + own[X][i] * own[Y][j], [i, j])

    def _store(self) -> None:
        """The epilogue, a strip of one row of every thread at a time."""
        launch_next()
        for i in range(self.tile.own):
            with unrolled(self.tile.own) as j:
                T.buffer_store(self.strip, self.sums[i, j], [self.mine[X], self.tile.place(self.mine[Y], j)])
            wait_for_block()
            with serial(16 * self.tile.side // THREADS) as part:
                element = part * i64(THREADS) + self.thread
                line, column = tirx.truncdiv(element, i64(self.tile.side)), tirx.truncmod(element, i64(self.tile.side))
                at = [*self.at, self.row + self.tile.place(line, i64(i)), self.column + column]
                self._store_element(at, line, column)
            wait_for_block()

    def _store_element(self, at: Sequence[Expr], line: Expr, column: Expr) -> None:
        rows, columns = map(self.k.extent, self.k.node.types[0].dims[-2:])
        with when(tirx.all(at[-2] < rows, at[-1] < columns)):
            self.k.store(0, at, self.strip[line, column])
