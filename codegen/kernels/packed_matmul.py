"""Matrix product with a weight packed in column panels.

A task is one tile of columns for a block of rows small enough that its activations stay in L2 across tasks. Sums pass
through a small buffer: the epilogue is then a plain loop, compiled once for all tile heights.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from ..scalar import Expr
from .anchor import Anchor
from .loops import ceildiv, each_column, i64, local, parallel, serial, unravel
from .tile import Product, Tile

X, W = range(2)
ROW_BLOCK = 256


def emit_packed_matmul(k: Anchor) -> None:
    """Write the body of the kernel: x[..., M, K] @ w[P, K, panel] -> y[..., M, N] with its epilogue."""
    leading, inner, columns = k.dims(X)[:-1], k.dims(X)[-1], k.node.types[0].dims[-1]
    tile = Tile.of(k.target, k.compute_dtype(X), widest=k.fixed(k.dims(W)[2]))
    rows = k.extent(d.size(leading))
    extents = [ceildiv(rows, ROW_BLOCK), ceildiv(k.extent(columns), tile.width)]
    with parallel(k, extents[0] * extents[1], 2 * d.size((*leading, inner, columns))) as task:
        row_block, column_block = unravel(task, extents)
        out = local((tile.rows, tile.width), tile.dtype)
        first = row_block * i64(ROW_BLOCK)
        with serial(ceildiv(tirx.min(rows - first, i64(ROW_BLOCK)), tile.rows)) as step:
            row = first + step * i64(tile.rows)
            count = tirx.min(rows - row, i64(tile.rows))
            _multiply(k, tile, out, row, count, column_block)
            _store(k, tile, out, row, count, column_block)


def _multiply(k: Anchor, tile: Tile, out: tirx.Buffer, row: Expr, rows: Expr, column_block: Expr) -> None:
    extents = [k.extent(dim) for dim in k.dims(X)[:-1]]
    panel, part = unravel(column_block, [i64(0), i64(k.fixed(k.dims(W)[2]) // tile.width)])
    product = Product(
        left=lambda i, inner: k.read(X, *unravel(row + i, extents), inner),
        right=lambda inner, j: k.read(W, panel, inner, part * i64(tile.width) + j),
        write=lambda i, j, value: T.buffer_store(out, value, [i, j]),
        stage=k.is_computed(X),
    )
    tile.multiply(rows, k.extent(k.dims(X)[-1]), product)


def _store(k: Anchor, tile: Tile, out: tirx.Buffer, row: Expr, rows: Expr, column_block: Expr) -> None:
    """The epilogue of the valid rows and columns; the zero columns that fill up the last panel are left out."""
    extents = [k.extent(dim) for dim in k.dims(X)[:-1]]
    columns = k.node.types[0].dims[-1]
    first = column_block * i64(tile.width)
    with serial(rows) as i:
        at = unravel(row + i, extents)
        each_column(columns, k.extent(columns), first, tile.width, lambda c: k.store(0, [*at, c], out[i, c - first]))
