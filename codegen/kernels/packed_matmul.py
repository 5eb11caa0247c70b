"""Matrix product with a weight packed in column panels.

A task is one tile of columns for a block of rows small enough that its activations stay in L2 across tasks. Sums pass
through a small buffer: the epilogue is then a plain loop, compiled once for all tile heights.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from ..scalar import Expr, bind
from .anchor import Anchor
from .loops import ceildiv, each_column, i64, lanes, local, parallel, serial, unravel, when
from .tile import Product, Tile

X, W = range(2)
ROW_BLOCK = 256
WORTH_A_COPY = 32  # rows, from which on a panel that has to be converted is first


def emit_packed_matmul(k: Anchor) -> None:
    """Write the body of the kernel: x[..., M, K] @ w[P, K, panel] -> y[..., M, N] with its epilogue."""
    leading, inner, columns = k.dims(X)[:-1], k.dims(X)[-1], k.node.types[0].dims[-1]
    tile = Tile.of(k.target, k.compute_dtype(X), widest=k.fixed(k.dims(W)[2]))
    rows = k.extent(d.size(leading))
    extents = [ceildiv(rows, ROW_BLOCK), ceildiv(k.extent(columns), tile.width)]
    with parallel(k, extents[0] * extents[1], 2 * d.size((*leading, inner, columns))) as task:
        row_block, column_block = unravel(task, extents)
        block = _Block(k, tile, row_block * i64(ROW_BLOCK), column_block)
        count = bind(tirx.min(rows - block.first, i64(ROW_BLOCK)))
        if not k.is_computed(W):
            return block.stream(i64(0), count)
        whole = bind(tirx.Select(count >= i64(WORTH_A_COPY), count - tirx.truncmod(count, i64(tile.rows)), i64(0)))
        with when(whole > i64(0)):
            block.widen(whole)
        block.stream(whole, count)


@dataclass(frozen=True)
class _Block:
    """The rows from ``first`` on times one tile of columns."""

    k: Anchor
    tile: Tile
    first: Expr
    column_block: Expr

    def stream(self, start: Expr, count: Expr) -> None:
        """Rows from ``start`` up to ``count``: the panel is read for every tile of them."""
        tile = self.tile
        out = local((tile.rows, tile.width), tile.dtype)
        with serial(ceildiv(count - start, tile.rows)) as step:
            row = start + step * i64(tile.rows)
            product = Product(
                left=lambda i, n: self._left(row + i, n),
                right=self._right,
                write=lambda i, j, value: T.buffer_store(out, value, [i, j]),
                stage=self.k.is_computed(X),
            )
            height = tirx.min(count - row, i64(tile.rows))
            tile.multiply(height, self.k.extent(self.k.dims(X)[-1]), product)
            self._store(out, row, height)

    def widen(self, count: Expr) -> None:
        """Whole tiles of rows: the panel is converted once for all, in parts that stay in L1 meanwhile."""

        def copy(right: tirx.Buffer, start: Expr, depth: Expr) -> None:
            with serial(depth) as n, lanes(self.tile.width) as j:
                T.buffer_store(right, self._right(start + n, j), [n, j])

        inner, stage = self.k.extent(self.k.dims(X)[-1]), self.k.is_computed(X)
        sums = self.tile.multiply_blocks(ROW_BLOCK, count, inner, self._left, copy, stage=stage, whole=True)
        self._store(sums, i64(0), count)

    def _left(self, row: Expr, inner: Expr) -> Expr:
        extents = [self.k.extent(dim) for dim in self.k.dims(X)[:-1]]
        return self.k.read(X, *unravel(self.first + row, extents), inner)

    def _right(self, inner: Expr, lane: Expr) -> Expr:
        parts = self.k.fixed(self.k.dims(W)[2]) // self.tile.width
        panel, part = unravel(self.column_block, [i64(0), i64(parts)])
        return self.k.read(W, panel, inner, part * i64(self.tile.width) + lane)

    def _store(self, sums: tirx.Buffer, row: Expr, count: Expr) -> None:
        """The epilogue of the valid rows and columns; the zero columns that fill up the last panel are left out."""
        k, width = self.k, self.tile.width
        extents, columns = [k.extent(dim) for dim in k.dims(X)[:-1]], k.node.types[0].dims[-1]
        first = self.column_block * i64(width)
        with serial(count) as i:
            at = unravel(self.first + row + i, extents)
            each_column(columns, k.extent(columns), first, width, lambda c: k.store(0, [*at, c], sums[i, c - first]))
