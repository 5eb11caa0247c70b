"""Multiply a chain of three matrices in the order that costs least: linear attention without its [L, L] matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from coilc.ir import Dim, Graph, Module, Node, OpDef, Value, dims, ops

from .match import both_orders, unspread
from .rewrite import Rule, on, rewrite_graph
from .trace import Declined, no

Ranges = Mapping[str, tuple[int, "int | None"]]
LONG = 512  # what an extent that may vary is taken for; a sequence that is worth compiling for is at least this long


def reassociate_products(module: Module) -> Module:
    """Compute ``(q k) v`` as ``q (k v)`` where that takes fewer operations, also if rows of ``q k`` are scaled between.

    Before::

        v0: f32[B, L, L] = matmul(q, k)
        v1: f32[B, L, 1] = sum(v0, axes=(2,), keepdims=True)
        v2: f32[B, L, L] = broadcast(v1, dims=(B, L, L))
        v3: f32[B, L, L] = div(v0, v2)
        v4: f32[B, L, 8] = matmul(v3, v)

    After::

        v0: f32[B, 8, 8] = matmul(k, v)
        v1: f32[B, L, 8] = matmul(q, v0)
        v2: f32[B, 8, 1] = sum(k, axes=(2,), keepdims=True)
        v3: f32[B, L, 1] = matmul(q, v2)
        v4: f32[B, L, 8] = broadcast(v3, dims=(B, L, 8))
        v5: f32[B, L, 8] = div(v1, v4)

    Needs: attention recognised. Guarantees: equal up to the order of sums.
    """
    return module.map(lambda graph: rewrite_graph(graph, *_rules(graph)))


def _rules(graph: Graph) -> tuple[Rule, ...]:
    @on("matmul")
    def product_of_product(node: Node) -> Value | Declined | None:
        """(q k) v = q (k v) where that takes fewer operations; factors of whole rows are applied to the result"""
        left, v = node.inputs
        scaled = without_row_factors(left)
        if scaled is None:
            return None
        (q, k), factors = scaled
        if reason := why_not(q, k, v.dims[-1], graph.ranges):
            return no(reason)
        return with_row_factors(ops.matmul(q, ops.matmul(k, v)), factors)

    @on("sum", "mean")
    def row_sums_of_product(node: Node) -> Value | Declined | None:
        """The row sums of q k are q times the row sums of k"""
        scaled = without_row_factors(node.inputs[0])
        if scaled is None or node.attrs["axes"] != (node.inputs[0].type.rank - 1,):
            return None
        (q, k), factors = scaled
        if reason := why_not(q, k, 1, graph.ranges):
            return no(reason)
        total = with_row_factors(ops.matmul(q, node.op(k, axes=node.attrs["axes"], keepdims=True)), factors)
        return total if node.attrs["keepdims"] else ops.reshape(total, dims=node.types[0].dims)

    return product_of_product, row_sums_of_product


RowFactors = list[tuple[OpDef, Value]]


def without_row_factors(value: Value) -> tuple[tuple[Value, Value], RowFactors] | None:
    """The operands of a product, and what its rows are multiplied and divided by, outermost first."""
    factors: RowFactors = []
    while value.op is not ops.matmul:
        found = next(scalings(value), None)
        if found is None:
            return None
        value, factor = found
        factors.append(factor)
    q, k = value.node.inputs
    return (q, k), factors


def scalings(value: Value) -> Iterator[tuple[Value, tuple[OpDef, Value]]]:
    """Ways to see ``value`` as another one of which every row is scaled as a whole."""
    if value.op not in (ops.mul, ops.div):
        return
    x, y = value.node.inputs
    for rest, factor in both_orders(value.node) if value.op is ops.mul else ((x, y),):
        inner = unspread(factor)
        if inner is not factor and inner.dims[-1:] in ((), (1,)):
            yield rest, (value.op, inner)


def with_row_factors(value: Value, factors: RowFactors) -> Value:
    for op, factor in reversed(factors):
        value = op(value, ops.broadcast(factor, dims=value.dims))
    return value


def why_not(q: Value, k: Value, columns: Dim, ranges: Ranges) -> str:
    """Why ``(q k) v`` is to stay, for a ``v`` of so many columns; empty if ``q (k v)`` is cheaper."""
    (rows, inner), length = q.dims[-2:], k.dims[-1]
    pairs, summary = (
        operations(terms, ranges)
        for terms in (
            ((rows, inner, length), (rows, length, columns)),
            ((inner, length, columns), (rows, inner, columns)),
        )
    )
    if summary < pairs:
        return ""
    return f"(q k) v takes {pairs} multiplications per sample and q (k v) takes {summary}, with {LONG} for what varies"


def operations(terms: tuple[tuple[Dim, ...], ...], ranges: Ranges) -> int:
    """Multiplications of products of these extents."""
    total: Dim = 0
    for extents in terms:
        total = total + dims.size(extents)
    return dims.evaluate(total, {s: _usual(ranges.get(s, (1, None))) for s in dims.symbols(total)})


def _usual(limits: tuple[int, int | None]) -> int:
    low, high = limits
    return max(low, LONG if high is None else min(LONG, high))
