"""Lay out the weights of matrix products for the target's kernel."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from coilc.ir import DTYPES, Dim, Module, Node, Value, ops
from coilc.ir.dims import size

from .quantize_weights import take_quantized_rows, taken
from .rewrite import on, rewrite_module
from .trace import Declined, no
from .weights_in_bodies import hide_weights_from_bodies, is_constant, show_weights_in_bodies


def pack_weights(module: Module, panel: int, claims: Collection[str]) -> Module:
    """Turn products with a weight into ``packed_matmul`` over panels of ``panel`` columns, if the target claims it.

    Before::

        v0: f32[64, 32] = weight(name="w", type=f32[64, 32])
        v1: f32[B, L, 64] = linear(x, v0)

    After (folding then stores the panels in the artifact)::

        v0: f32[64, 32] = weight(name="w", type=f32[64, 32])
        v1: f32[32, 64] = transpose(v0, perm=(1, 0))
        v2: f32[2, 32, 32] = pack_panels(v1, panel=32)
        v3: f32[B, L, 64] = packed_matmul(x, v2, columns=64)

    Needs: nothing. Guarantees: f32 products with a weight on the right are packed, in bodies of loops too.
    """
    if "packed_matmul" not in claims:
        return module

    @on("linear")
    def linear_by_panels(node: Node) -> Value | Declined | None:
        x, w, *bias = node.inputs
        if reason := why_not_packed(w):
            return no(reason)
        product = packed(x, ops.transpose(w, perm=(1, 0)), panel)
        return ops.add(product, *bias) if bias else product

    @on("matmul")
    def matmul_by_panels(node: Node) -> Value | Declined | None:
        x, w = node.inputs
        w = shared_over_batch(w)
        if reason := why_not_packed(w):
            return no(reason)
        return packed(x, w, panel)

    rules = (einsum_of_rows, weight_on_the_right, matmul_of_rows, linear_by_panels, matmul_by_panels, rows_of_product)
    packed_everywhere = rewrite_module(show_weights_in_bodies(module), *rules)
    return hide_weights_from_bodies(packed_everywhere)


def share_tied_weights(module: Module) -> Module:
    """Look rows up in the panels where a table is also packed for a product (tied embeddings), so that it is stored once.

    Before::

        v0: f32[40, 6] = weight(name="w", type=f32[40, 6])
        v1: f32[B, 6] = take(v0, ids, axis=0)
        v2: f32[6, 40] = transpose(v0, perm=(1, 0))
        v3: f32[2, 6, 32] = pack_panels(v2, panel=32)

    After, where ``places`` are those of row i, column k: (i // 32, k, i % 32); as addresses these are shifts::

        v4: f32[384] = reshape(v3, dims=(384,))
        v1: f32[B, 6] = take(v4, places, axis=0)

    Needs: weights packed, perhaps quantised. Guarantees: nothing else changes.
    """
    nodes = [node for graph in module.entries.values() for node in graph.nodes]
    packing = [node for node in nodes if node.op in (ops.pack_panels, ops.quantize_panels)]
    panels = {inner: node for node in packing if (inner := transposed_weight(node.inputs[0])) is not None}

    @on("take")
    def rows_from_panels(node: Node) -> Value | None:
        table, rows = node.inputs
        if node.attrs["axis"] != 0 or table not in panels:
            return None
        return take_rows(panels[table].results, rows, table.dims[0])

    return rewrite_module(module, rows_from_panels)


def transposed_weight(value: Value) -> Value | None:
    """The table behind a transposed weight."""
    inner = value.node.inputs[0] if value.op is ops.transpose else None
    return inner if inner is not None and inner.op is ops.weight else None


def take_rows(packed: Sequence[Value], rows: Value, count: Dim) -> Value | None:
    """``table[rows]`` read from the table's panels."""
    panel = packed[0].dims[2]
    if not isinstance(panel, int) or panel & (panel - 1):
        return None
    rows = ops.cast(ops.reshape(rows, dims=(*rows.dims, 1)), dtype=DTYPES["i64"])
    rows = ops.where(ops.lt(rows, 0), ops.add(rows, ops.dim_value(count, rows.type.dtype)), rows)
    place, column = ops.shift_right(rows, panel.bit_length() - 1), ops.bitwise_and(rows, panel - 1)
    if len(packed) == 2:
        return take_quantized_rows(packed[0], packed[1], place, column)
    inner = packed[0].dims[1]
    assert isinstance(inner, int)
    steps = ops.mul(ops.iota(dims=(inner,), axis=0, dtype=DTYPES["i64"]), panel)
    return taken(packed[0], ops.add(ops.mul(place, inner * panel), column), steps)


def why_not_packed(w: Value) -> str:
    """Why ``w`` cannot be laid out at compile time; empty if it can."""
    if not is_constant(w):
        return "the right operand is computed by the model, not a weight"
    if w.type.rank != 2:
        return f"the right operand has rank {w.type.rank}"
    return "" if w.type.dtype.name == "f32" else f"panels hold f32, the weight is {w.type.dtype}"


def shared_over_batch(w: Value) -> Value:
    """The matrix behind a right operand that was broadcast over batch dims."""
    matrix = w.node.inputs[0] if w.op is ops.broadcast else w
    if matrix.op is ops.reshape and matrix.node.inputs[0].dims == w.dims[-2:]:
        (matrix,) = matrix.node.inputs
    return matrix if matrix.dims == w.dims[-2:] else w


def packed(x: Value, w: Value, panel: int) -> Value:
    """The product over panels; narrow weights get narrower panels."""
    columns = w.dims[1]
    assert isinstance(columns, int)
    width = panel if columns > panel // 2 else max(panel // 2, 1)
    return ops.packed_matmul(x, ops.pack_panels(w, panel=width), columns=columns)


@on("matmul")
def weight_on_the_right(node: Node) -> Value | None:
    """W @ x = (x' @ W')' when W is a weight and x is not"""
    w, x = node.inputs
    if not is_constant(shared_over_batch(w)) or is_constant(shared_over_batch(x)):
        return None
    swap = (*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2)
    product = ops.matmul(ops.transpose(x, perm=swap), ops.transpose(w, perm=swap))
    return ops.transpose(product, perm=swap)


@on("matmul")
def matmul_of_rows(node: Node) -> Value | None:
    """A right operand that is transposed after being broadcast: broadcast it last, so that it is seen to be shared"""
    x, w = node.inputs
    if w.op is not ops.transpose or (inner := w.node.inputs[0]).op is not ops.broadcast:
        return None
    matrix, rank = inner.node.inputs[0], w.type.rank
    if matrix.type.rank != 2 or w.node.attrs["perm"] != (*range(rank - 2), rank - 1, rank - 2):
        return None
    return ops.matmul(x, ops.broadcast(ops.transpose(matrix, perm=(1, 0)), dims=w.dims))


@on("einsum")
def einsum_of_rows(node: Node) -> Value | None:
    """An einsum that takes the last axis of x through a weight to new last axes is linear: bld,kcd->blkc"""
    given, result = node.attrs["equation"].split("->")
    pairs = tuple(zip(node.inputs, given.split(","), strict=True))
    for (x, rows), (w, term) in (pairs, pairs[::-1]) if len(pairs) == 2 else ():
        new = result[len(rows) - 1 :]
        if is_constant(w) and rows[:-1] + new == result and sorted(term) == sorted(new + rows[-1]):
            turned = ops.transpose(w, perm=tuple(map(term.index, new + rows[-1])))
            matrix = ops.reshape(turned, dims=(size(turned.dims[:-1]), turned.dims[-1]))
            product: Value = ops.reshape(ops.linear(x, matrix), dims=node.types[0].dims)
            return product
    return None


@on("reshape")
def rows_of_product(node: Node) -> Value | None:
    """reshape(reshape(x) @ w) = x @ w when the reshapes only fold and unfold the rows"""
    (product,) = node.inputs
    if product.op is not ops.packed_matmul:
        return None
    rows, w = product.node.inputs
    x = rows.node.inputs[0] if rows.op is ops.reshape else rows
    fits = x.type.rank > 0 and x.dims[-1] == rows.dims[-1] and (*x.dims[:-1], product.dims[-1]) == node.types[0].dims
    return ops.packed_matmul(x, w, columns=product.node.attrs["columns"]) if fits else None
