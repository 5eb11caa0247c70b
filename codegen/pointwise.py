"""Pointwise bodies: one pass over the output space, the innermost axis in vector lanes."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from coilc.ir import dims as d
from coilc.ir.dims import Dim, Dims

from .kernel import Kernel
from .loops import Span, for_each_task, lane_count, vector_loop, whole_axis
from .reader import index
from .scalar import Expr

CHUNK = 4096  # elements of the innermost axis that one task works on


def emit_pointwise(k: Kernel) -> None:
    """Write every output; their dims are equal."""
    dims = k.body.results[0].dims
    *outer, inner = dims or (1,)
    width = lane_count(k, vectors=2)
    if outer and isinstance(inner, int) and inner < width:  # lanes over the whole output instead
        _emit(k, (), d.size(dims), width, lambda _, position: k.reader.unravel(position, dims))
    else:
        _emit(k, tuple(outer), inner, width, lambda rest, j: [*rest, j][: len(dims)])


def _emit(k: Kernel, outer: Dims, inner: Dim, width: int, indices_of: Callable[[list[Expr], Expr], list[Expr]]) -> None:
    """A task is one chunk of the inner axis at one place of the outer ones."""
    chunks = 1 if isinstance(inner, int) and inner <= CHUNK else (inner + (CHUNK - 1)) // CHUNK

    def task(p: Expr) -> None:
        *rest, chunk = k.reader.unravel(p, (*outer, chunks))
        vector_loop(_chunk(k, inner, chunk, chunks), width, lambda j: _store(k, indices_of(rest, j)))

    for_each_task(k, d.size((*outer, chunks)), d.size((*outer, inner)), task)


def _chunk(k: Kernel, inner: Dim, chunk: Expr, chunks: Dim) -> Span:
    if chunks == 1:
        return whole_axis(k, inner)
    start = chunk * index(CHUNK)
    return Span(inner, start, tirx.min(start + index(CHUNK), k.extent(inner)))


def _store(k: Kernel, indices: list[Expr]) -> None:
    for output, value in enumerate(k.body.results):
        k.store(output, indices, k.reader.read(value, indices))
