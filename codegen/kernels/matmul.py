"""Product of two activations, [..., M, K] @ [..., K, N], any of the dims symbolic.

With many rows, a task copies a block of the right operand (read through its prologue, often a transpose) into local memory
in the order the register tile wants and uses it for a block of rows. With few rows that copy would dominate: the right
operand is then read in place, along its columns, or along the inner dimension when that is the contiguous one.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import Value
from coilc.ir import dims as d

from ..scalar import Expr
from .anchor import Anchor
from .loops import ceildiv, each_column, i64, lanes, local, parallel, product, serial, unravel
from .tile import Product, Tile

X, Y = range(2)
ROW_BLOCK = 128
FEW_ROWS = 4


def emit_matmul(k: Anchor) -> None:
    """Write the body of the kernel: x[..., M, K] @ y[..., K, N] with its epilogue."""
    rows = k.dims(X)[-2]
    if isinstance(rows, int):
        return _few_rows(k) if rows <= FEW_ROWS else _many_rows(k)
    with T.If(k.extent(rows) <= i64(FEW_ROWS)):
        with T.Then():
            _few_rows(k)
        with T.Else():
            _many_rows(k)


def _many_rows(k: Anchor) -> None:
    """Sums of a block of rows and one tile of columns, the inner dimension in blocks that are copied first."""
    *batch, rows, inner = (k.extent(dim) for dim in k.dims(X))
    columns = k.dims(Y)[-1]
    tile = Tile.of(k.target, k.compute_dtype(X))
    extents = [*batch, ceildiv(k.extent(columns), tile.width), ceildiv(rows, ROW_BLOCK)]
    with parallel(k, product(extents), _work(k)) as task:
        *at, column_block, row_block = unravel(task, extents)
        first, column = row_block * i64(ROW_BLOCK), column_block * i64(tile.width)
        count = tirx.min(rows - first, i64(ROW_BLOCK))
        sums = tile.multiply_blocks(
            ROW_BLOCK,
            count,
            inner,
            lambda i, n: k.read(X, *at, first + i, n),
            lambda right, start, depth: _copy_right(k, right, at, start, depth, column, tile.width),
            stage=k.is_computed(X),
        )
        with serial(count) as i:
            each_column(
                columns,
                k.extent(columns),
                column,
                tile.width,
                lambda c: k.store(0, [*at, first + i, c], sums[i, c - column]),
            )


def _copy_right(
    k: Anchor, right: tirx.Buffer, at: Sequence[Expr], start: Expr, depth: Expr, column: Expr, width: int
) -> None:
    """right[i, j] = y[..., start + i, column + j]; columns past the end are zero."""
    columns = k.extent(k.dims(Y)[-1])
    with serial(depth) as i, lanes(width) as j:
        T.buffer_store(right, tirx.const(0, k.compute_dtype(Y)), [i, j])
    if inner_is_contiguous(k.operands[Y]):
        with serial(tirx.min(columns - column, i64(width))) as j, serial(depth) as i:
            T.buffer_store(right, k.read(Y, *at, start + i, column + j), [i, j])
    else:
        with serial(depth) as i:
            each_column(
                k.dims(Y)[-1],
                columns,
                column,
                width,
                lambda c: T.buffer_store(right, k.read(Y, *at, start + i, c), [i, c - column]),
            )


def _few_rows(k: Anchor) -> None:
    """The right operand is read in place; a task is one tile of columns."""
    *batch, rows, _ = (k.extent(dim) for dim in k.dims(X))
    columns = k.dims(Y)[-1]
    tile = Tile.of(k.target, k.compute_dtype(X))
    extents = [*batch, ceildiv(k.extent(columns), tile.width)]
    with parallel(k, product(extents), _work(k)) as task:
        *at, block = unravel(task, extents)
        column = block * i64(tile.width)
        sums = local((FEW_ROWS, tile.width), tile.dtype)
        if inner_is_contiguous(k.operands[Y]):
            _dot_products(k, tile, sums, at, column)
        else:
            _products_in_place(k, tile, sums, at, column)
        with serial(rows) as i:
            each_column(
                columns, k.extent(columns), column, tile.width, lambda c: k.store(0, [*at, i, c], sums[i, c - column])
            )


def _products_in_place(k: Anchor, tile: Tile, sums: tirx.Buffer, at: Sequence[Expr], column: Expr) -> None:
    """One low tile; the last tile of columns repeats the last column instead of reading past it."""
    rows, inner = (k.extent(dim) for dim in k.dims(X)[-2:])
    columns = k.extent(k.dims(Y)[-1])

    def multiply(clamp: bool) -> None:
        product = Product(
            left=lambda i, n: k.read(X, *at, i, n),
            right=lambda n, j: k.read(Y, *at, n, tirx.min(column + j, columns - i64(1)) if clamp else column + j),
            write=lambda i, j, value: T.buffer_store(sums, value, [i, j]),
            stage=k.is_computed(X),
        )
        Tile(FEW_ROWS, tile.width, tile.dtype).multiply(rows, inner, product)

    with T.If(column + i64(tile.width) <= columns):
        with T.Then():
            multiply(clamp=False)
        with T.Else():
            multiply(clamp=True)


def _dot_products(k: Anchor, tile: Tile, sums: tirx.Buffer, at: Sequence[Expr], column: Expr) -> None:
    """Lanes along the inner dimension."""
    rows, inner = (k.extent(dim) for dim in k.dims(X)[-2:])
    with serial(tirx.min(k.extent(k.dims(Y)[-1]) - column, i64(tile.width))) as j, serial(rows) as i:
        total = tile.dot(inner, lambda n: k.read(X, *at, i, n), lambda n: k.read(Y, *at, n, column + j))
        T.buffer_store(sums, total, [i, j])


def inner_is_contiguous(value: Value) -> bool:
    """Whether neighbours along the last axis but one, not the last, are neighbours in memory."""
    axis = value.type.rank - 1
    while value.op.name in ("transpose", "cast"):
        if value.op.name == "transpose":
            axis = value.node.attrs["perm"][axis]
        (value,) = value.node.inputs
    return axis != value.type.rank - 1


def _work(k: Anchor) -> d.Dim:
    return 2 * d.size((*k.dims(X), k.dims(Y)[-1]))
