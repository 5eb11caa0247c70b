"""A product with a matrix that is identities, diagonals and outer products added up, without that matrix.

``S (I - beta k k^T)`` is ``S - beta (S k) k^T``: what the delta rule's papers write with a matrix is a sum over the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coilc.ir import Node, Value, literal, ops

from .classify_factors import Factor, factors_of, product
from .match import both_orders, scalar, unspread

Known = Mapping[Value, Value]  # inputs of a loop's body to what the loop is given for them


@dataclass(frozen=True)
class _Term:
    """A product of factors along the axes of a matrix [..., N, M]; ``diagonal``: times the identity."""

    factors: tuple[Factor, ...]
    diagonal: bool = False


def split_product(node: Node, *, left: bool, known: Known) -> Value | None:
    """``matrix @ y``, or ``x @ matrix`` unless ``left``, as products of vectors, if its matrix is a sum of such.

    Args:
        node: a matmul; which operand is the matrix follows from ``left``.
        known: what may be looked up to find identities.
    """
    matrix, other = node.inputs if left else node.inputs[::-1]
    terms = _terms(matrix, known)
    if terms is None or matrix.dims[:-2] != other.dims[:-2]:
        return None
    total: Value | None = None
    for term in terms:
        part = _applied(matrix, other, term, left)
        total = part if total is None else ops.add(total, part)
    return total


def _applied(matrix: Value, other: Value, term: _Term, left: bool) -> Value:
    """One term's product with ``other``: its vectors are columns on the left, rows on the right."""
    rank = matrix.type.rank
    row, column = rank - 2, rank - 1
    inner, outer = (column, row) if left else (row, column)

    def vector(factors: tuple[Factor, ...], axis: int) -> Value:
        ends: list[tuple[int, ...]] = [(axis,), ()] if left else [(), (axis,)]
        return product(factors, [*((i,) for i in range(rank - 2)), *ends], dict(enumerate(matrix.dims)), like=other)

    if term.diagonal:
        along = tuple(Factor(f.value, tuple(outer if a == inner else a for a in f.axes)) for f in term.factors)
        return ops.mul(other, vector(along, outer)) if along else other
    read = tuple(f for f in term.factors if inner in f.support)
    written = tuple(f for f in term.factors if inner not in f.support)
    held = ops.sum(ops.mul(other, vector(read, inner)), axes=(row if left else column,), keepdims=True)
    return ops.mul(held, vector(written, outer))


def _terms(matrix: Value, known: Known) -> tuple[_Term, ...] | None:
    """The matrix as a sum, or ``None`` if some part of it is no outer product."""
    node = matrix.node
    if _is_identity(matrix, known):
        return (_Term((), True),)
    match node.op.name:
        case "add" | "sub":
            parts = [_terms(x, known) for x in node.inputs]
            if parts[0] is None or parts[1] is None:
                return None
            sign = (Factor(literal(-1, matrix.type.dtype), ()),) if node.op is ops.sub else ()
            return (*parts[0], *_scaled(parts[1], sign))
        case "neg":
            inner = _terms(node.inputs[0], known)
            return inner and _scaled(inner, (Factor(literal(-1, matrix.type.dtype), ()),))
        case "where" if _is_identity(node.inputs[0], known) and scalar(node.inputs[2]) == 0:
            return (_Term(factors_of(node.inputs[1]), True),)
        case "mul":
            for x, y in both_orders(node):
                inner = _terms(y, known) if y.op in (ops.add, ops.sub) or _is_identity(y, known) else None
                if inner is not None and _is_outer(factors_of(x), matrix.type.rank):
                    return _scaled(inner, factors_of(x))
    whole = factors_of(matrix)
    return (_Term(whole),) if _is_outer(whole, matrix.type.rank) else None


def _scaled(terms: tuple[_Term, ...], factors: tuple[Factor, ...]) -> tuple[_Term, ...]:
    return tuple(_Term((*term.factors, *factors), term.diagonal) for term in terms)


def _is_outer(factors: tuple[Factor, ...], rank: int) -> bool:
    """Whether no factor depends on both the row and the column."""
    return not any({rank - 2, rank - 1} <= f.support for f in factors)


def _is_identity(value: Value, known: Known) -> bool:
    """A constant with ones (or true) on the diagonal alone, repeated over any leading axes."""
    value = unspread(known.get(value, value))
    if value.op is not ops.constant or value.type.rank < 2 or value.dims[-1] == 1:
        return False
    array = np.asarray(value.node.attrs["value"].value)
    if array.dtype.kind not in "fb" or array.shape[-1] != array.shape[-2]:
        return False
    return bool(np.all(array == np.eye(array.shape[-1])))
