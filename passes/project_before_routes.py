"""Projections commute with routes: each token is projected by itself, wherever in the sequence it stands."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from coilc.ir import Dims, Node, Value, dims, ops

from .match import transposed
from .rewrite import Rule, on
from .trace import Declined, no


class Tables(Protocol):
    """What is known of index tables, and how a new one becomes a ``take``."""

    def array(self, value: Value) -> np.ndarray | None: ...

    def take(self, x: Value, table: np.ndarray, axis: int) -> Value: ...


def projection_rules(tables: Tables) -> tuple[Rule, ...]:
    """The rules, which need to see the tables."""

    @on("linear")
    def linear_of_route(node: Node) -> Value | Declined | None:
        """linear(x[table]) = linear(x)[table] when the table visits no fewer tokens than there are"""
        x, *weights = node.inputs
        if x.op is not ops.take or (table := tables.array(x.node.inputs[1])) is None:
            return None
        axis = x.node.attrs["axis"]
        source = x.node.inputs[0]
        if axis == source.type.rank - 1:
            return None
        if fewer(table, source.dims[axis]):
            return no("the route visits fewer tokens than there are")
        result: Value = ops.take(ops.linear(source, *weights), x.node.inputs[1], axis=axis)
        return result

    @on("einsum")
    def einsum_of_route(node: Node) -> Value | Declined | None:
        """The product of routed tokens with a matrix, or one matrix per route, is that product, routed"""
        given, result = node.attrs["equation"].split("->")
        pairs = tuple(zip(node.inputs, given.split(","), strict=True))
        if len(pairs) != 2:
            return None
        for (x, term), (w, other) in (pairs, pairs[::-1]):
            routed = routed_operand(tables, x, term)
            if routed is not None and set(routed.route) <= set(result) and set(term) <= set(other) | set(result):
                return projected(tables, routed, w, other, result)
        return None

    return linear_of_route, einsum_of_route


def routed_operand(tables: Tables, x: Value, term: str) -> Routed | None:
    """An operand that is a ``take`` by a known table, perhaps transposed; ``term`` names its axes."""
    while x.op is ops.transpose:
        perm = x.node.attrs["perm"]
        term = "".join(term[perm.index(axis)] for axis in range(len(perm)))
        (x,) = x.node.inputs
    if x.op is not ops.take or (table := tables.array(x.node.inputs[1])) is None or not table.ndim:
        return None
    axis = x.node.attrs["axis"]
    return Routed(x.node.inputs[0], axis, table, term[:axis], term[axis : axis + table.ndim], term[axis + table.ndim :])


def projected(tables: Tables, x: Routed, w: Value, term: str, result: str) -> Value | Declined | None:
    """The product with ``w`` for every token of the source, then the route."""
    groups = "".join(c for c in x.route if c in term)  # each of these has a matrix of its own
    aligned = x.keeps(groups)
    table = x.table if aligned else x.table * x.count(groups) + x.index(groups)
    if fewer(table, x.tokens if aligned else x.tokens * x.count(groups)):
        return no("the routes visit fewer tokens than there are, and each has a matrix of its own")
    inner = "".join(c for c in x.after if c in result) + "".join(c for c in term if c in result and c not in groups)
    before = "".join(c for c in x.before if c in result)
    token = next(c for c in string.ascii_letters if c not in x.before + x.route + x.after + term + result)
    if set(inner) & set(before) or len(set(inner)) < len(inner):
        return None
    axes = x.before + token + (groups if aligned else "") + x.after
    equation = f"{axes},{term}->{before}{token}{groups}{inner}"
    product: Value = ops.einsum(x.split(groups) if aligned else x.source, w, equation=equation)
    at = len(before)
    merged = (
        *product.dims[:at],
        dims.size(product.dims[at : at + 1 + len(groups)]),
        *product.dims[at + 1 + len(groups) :],
    )
    moved = tables.take(ops.reshape(product, dims=merged), table, at)
    return transposed(moved, tuple((before + x.route + inner).index(c) for c in result))


@dataclass(frozen=True, eq=False)
class Routed:
    """``take(source, table, axis)`` with a letter for each axis of the result: before, along and after the table."""

    source: Value
    axis: int
    table: np.ndarray
    before: str
    route: str
    after: str

    @property
    def tokens(self) -> int:
        extent = self.source.dims[self.axis]
        assert isinstance(extent, int), "a known table indexes a known extent"
        return extent

    def extents(self, letters: str) -> tuple[int, ...]:
        return tuple(self.table.shape[self.route.index(c)] for c in letters)

    def count(self, letters: str) -> int:
        return int(np.prod(self.extents(letters), dtype=np.int64))

    def index(self, letters: str) -> np.ndarray:
        """For each entry of the table, its row-major position along some of the table's axes."""
        places = [np.indices(self.table.shape)[self.route.index(c)] for c in letters]
        return np.ravel_multi_index(places, self.extents(letters)) if places else np.zeros_like(self.table)

    def keeps(self, letters: str) -> bool:
        """Whether the source has these axes of the table itself, innermost in its tokens, so that they stay in place."""
        count = self.count(letters)
        return count > 1 and self.tokens % count == 0 and np.array_equal(self.table % count, self.index(letters))

    def split(self, letters: str) -> Value:
        """The source with those axes apart from its tokens."""
        extents = (self.tokens // self.count(letters), *self.extents(letters))
        split: Dims = (*self.source.dims[: self.axis], *extents, *self.source.dims[self.axis + 1 :])
        result: Value = ops.reshape(self.source, dims=split)
        return result


def fewer(table: np.ndarray, tokens: object) -> bool:
    """Whether a projection after the route is less work than before it."""
    return not isinstance(tokens, int) or table.size < tokens
