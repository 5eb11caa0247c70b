"""Pointwise bodies: one pass over the output space, the innermost axis in vector lanes."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from coilc.ir import Graph
from coilc.ir import dims as d
from coilc.ir.dims import Dim

from .kernel import Kernel
from .loops import for_each_task, lane_count, vector_loop
from .reader import index
from .scalar import Expr

CHUNK = 4096  # elements of the innermost axis that one task works on


def emit_pointwise(k: Kernel) -> None:
    """Write every output; their dims are equal."""
    dims = k.body.results[0].dims
    *outer, inner = dims or (1,)
    lanes = lane_count(k, vectors=2)
    short = isinstance(inner, int) and inner < lanes
    if short and outer:
        _flat(k, lanes)
        return
    chunks = 1 if isinstance(inner, int) and inner <= CHUNK else (inner + (CHUNK - 1)) // CHUNK

    def task(p: Expr) -> None:
        *rest, chunk = k.reader.unravel(p, (*outer, chunks))
        if chunks == 1:
            vector_loop(k, inner, lanes, lambda j: _store(k, (*rest, j)[: len(dims)]), overlap=True)
        else:
            _chunk(k, chunk, inner, lanes, lambda j: _store(k, (*rest, j)))

    for_each_task(k, d.size((*outer, chunks)), d.size(dims), task)


def _chunk(k: Kernel, chunk: Expr, inner: Dim, lanes: int, body: Callable[[Expr], None]) -> None:
    """One block of the innermost axis; the last one may be short."""
    start = chunk * index(CHUNK)
    stop = tirx.min(start + index(CHUNK), k.extent(inner))
    vector_loop(k, inner, lanes, body, overlap=True, part=(start, stop))


def _flat(k: Kernel, lanes: int) -> None:
    """Lanes over the whole output when its innermost axis is shorter than a vector."""
    dims = k.body.results[0].dims
    size = d.size(dims)
    chunks = 1 if isinstance(size, int) and size <= CHUNK else (size + (CHUNK - 1)) // CHUNK

    def element(position: Expr) -> None:
        _store(k, tuple(k.reader.unravel(position, dims)))

    def task(chunk: Expr) -> None:
        if chunks == 1:
            vector_loop(k, size, lanes, element, overlap=True)
        else:
            _chunk(k, chunk, size, lanes, element)

    for_each_task(k, chunks, size, task)


def _store(k: Kernel, indices: tuple[Expr, ...]) -> None:
    for output, value in enumerate(k.body.results):
        k.store(output, indices, k.reader.read(value, indices))


def is_pointwise(body: Graph) -> bool:
    """Whether every op moves elements or works element by element, and all results have one shape."""
    return len({value.dims for value in body.results}) == 1
