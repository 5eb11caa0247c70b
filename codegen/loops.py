"""Loops that the lowerings share: tasks over threads, and vectors with a tail. Every index is an int64 expression."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d
from coilc.ir.dims import Dim

from .kernel import Kernel
from .reader import index
from .scalar import Expr

PARALLEL_WORK = 16384  # elements; a launch takes about a microsecond, in which one core does as many simple ones


def for_each_task(k: Kernel, count: Dim, work: Dim, body: Callable[[Expr], None]) -> None:
    """Run ``body`` for 0 <= task < count, over threads when ``work`` elements are worth it.

    Where that depends on a symbol the loop is written twice.
    """
    if count == 1:
        body(index(0))
        return
    extent = k.extent(count)
    low, high = d.bounds(work, {})
    if high is not None and high < PARALLEL_WORK:
        _loop(T.serial, extent, body)
    elif low >= PARALLEL_WORK:
        _loop(T.parallel, extent, body)
    else:
        with T.If(k.extent(work) >= index(PARALLEL_WORK)):
            with T.Then():
                _loop(T.parallel, extent, body)
            with T.Else():
                _loop(T.serial, extent, body)


def _loop(kind: Callable[..., object], extent: Expr, body: Callable[[Expr], None]) -> None:
    with kind(index(0), extent) as i:  # type: ignore[attr-defined]
        body(i)


def lane_count(k: Kernel, vectors: int) -> int:
    """Lanes of a vector loop: several registers of the widest type that the body computes with."""
    wide = any(type_.dtype.bits == 64 for node in k.body.nodes if node.inputs for type_ in node.types)
    return vectors * k.target.lanes(64 if wide else 32)


def vector_loop(
    k: Kernel,
    extent: Dim,
    lanes: int,
    body: Callable[[Expr], None],
    *,
    overlap: bool = False,
    part: tuple[Expr, Expr] | None = None,
    tail: Callable[[Expr], None] | None = None,
) -> None:
    """Run ``body(j)`` for 0 <= j < extent, ``lanes`` at a time.

    Args:
        overlap: computing an element twice is harmless, so that a last full vector can end at the extent.
        part: cover only start <= j < stop; a start is a multiple of ``lanes``, a stop too or the extent.
        tail: what to do for a single element that no vector covers, when that is not ``body``.
    """
    start, stop = part or (index(0), k.extent(extent))
    length = extent if part is None and isinstance(extent, int) else None
    if length is None or length >= 2 * lanes:
        with T.serial(index(0), tirx.floordiv(stop - start, index(lanes))) as i:
            _vector(start + i * index(lanes), lanes, body)
    elif length >= lanes:
        _vector(start, lanes, body)
    if extent % lanes == 0:
        return
    if isinstance(extent, int):
        _static_tail(k, extent, lanes, body, overlap, part, tail or body)
    else:
        _dynamic_tail(k, extent, lanes, body, overlap, (start, stop), tail or body)


def _vector(start: Expr, lanes: int, body: Callable[[Expr], None]) -> None:
    if lanes == 1:
        body(start)
        return
    with T.vectorized(index(0), index(lanes)) as j:
        body(start + j)


def _static_tail(
    k: Kernel,
    extent: int,
    lanes: int,
    body: Callable[[Expr], None],
    overlap: bool,
    part: tuple[Expr, Expr] | None,
    tail: Callable[[Expr], None],
) -> None:
    def write() -> None:
        if overlap and extent >= lanes:
            _vector(index(extent - lanes), lanes, body)
            return
        done, width = extent - extent % lanes, lanes // 2
        while done < extent:
            if width >= 4 and extent - done >= width:
                _vector(index(done), width, body)
                done += width
            elif width >= 4:
                width //= 2
            else:
                with T.serial(index(done), index(extent)) as j:
                    tail(j)
                done = extent

    if part is None:
        write()
        return
    with T.If(part[1] == index(extent)), T.Then():
        write()


def _dynamic_tail(
    k: Kernel,
    extent: Dim,
    lanes: int,
    body: Callable[[Expr], None],
    overlap: bool,
    part: tuple[Expr, Expr],
    tail: Callable[[Expr], None],
) -> None:
    start, stop = part
    done = start + tirx.floordiv(stop - start, index(lanes)) * index(lanes)

    def scalars() -> None:
        with T.serial(done, stop) as j:
            tail(j)

    if not overlap:
        scalars()
        return
    with T.If(done < stop), T.Then(), T.If(stop >= index(lanes)):
        with T.Then():
            _vector(stop - index(lanes), lanes, body)
        with T.Else():
            scalars()
