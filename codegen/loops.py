"""Loops that the lowerings share: tasks over threads, and vectors with a tail. Every index is an int64 expression."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d
from coilc.ir.dims import Dim

from .ahead import ask_for_inputs
from .kernel import Kernel
from .reader import index
from .scalar import Expr, inside_loop, launched_early, on_device, vector

BLOCK = 128  # threads of a device that start together, where nothing asks for more
PARALLEL_WORK = 16384  # elements; a launch takes about a microsecond, in which one core does as many simple ones


def for_each_task(k: Kernel, count: Dim, work: Dim, body: Callable[[Expr], None]) -> None:
    """Run ``body`` for 0 <= task < count, over threads when ``work`` elements are worth it.

    Where that depends on a symbol the loop is written twice. Inside another loop it is serial. On a device every task is a
    thread.
    """
    extent = k.extent(count)
    if on_device() and not inside_loop():
        with launch(extent) as task:
            body(task)
        return
    if count == 1:
        body(index(0))
        return
    low, high = d.bounds(work, {})
    if inside_loop() or (high is not None and high < PARALLEL_WORK):
        _loop(T.serial, extent, body)
    elif low >= PARALLEL_WORK:
        _loop(T.parallel, extent, body)
    else:
        with T.If(k.extent(work) >= index(PARALLEL_WORK)):
            with T.Then():
                _loop(T.parallel, extent, body)
            with T.Else():
                _loop(T.serial, extent, body)


@contextmanager
def grid(blocks: Expr, threads: int, *, exclusive: bool = False) -> Iterator[tuple[Expr, Expr]]:
    """A kernel of a device: its blocks, and the threads of each.

    Where the device can, every kernel lets the next one be launched at once, and waits for the one ahead to end before it
    touches memory: what a launch takes is hidden (CUDA C++ Programming Guide, "Programmatic Dependent Launch"). Only hints
    stand before the wait. A kernel that wants its multiprocessors to itself, ``exclusive``, gives none, and calls
    ``launch_next`` late: blocks that wait take room.
    """
    with T.launch_thread("blockIdx.x", blocks) as block, T.launch_thread("threadIdx.x", index(threads)) as thread:
        if launched_early():
            if not exclusive:
                launch_next()
                ask_for_inputs(block * index(threads) + thread)
            T.evaluate(tirx.call_extern("int32", "cudaGridDependencySynchronize"))
        yield block, thread


def launch_next() -> None:
    """The next kernel may be launched, once all blocks have come here; it still waits for this one to end."""
    if launched_early():
        T.evaluate(tirx.call_extern("int32", "cudaTriggerProgrammaticLaunchCompletion"))


@contextmanager
def launch(tasks: Expr) -> Iterator[Expr]:
    """A kernel of a device with one thread per task."""
    with grid(tirx.truncdiv(tasks + index(BLOCK - 1), index(BLOCK)), BLOCK) as (block, thread):
        task = T.Bind(block * index(BLOCK) + thread)
        with T.If(task < tasks), T.Then():
            yield task


@contextmanager
def alone() -> Iterator[None]:
    """Code that one thread runs, outside of all loops over tasks."""
    if not on_device() or inside_loop():
        yield
        return
    with launch(index(1)):
        yield


def _loop(kind: Callable[..., object], extent: Expr, body: Callable[[Expr], None]) -> None:
    with kind(index(0), extent) as i:  # type: ignore[attr-defined]
        body(i)


def lane_count(k: Kernel, vectors: int) -> int:
    """Lanes of a vector loop: several registers of the widest type that the body computes with; a device has none."""
    if on_device():
        return 1
    wide = any(type_.dtype.bits == 64 for node in k.body.nodes if node.inputs for type_ in node.types)
    return vectors * k.target.lanes(64 if wide else 32)


def lanes(width: int, body: Callable[[Expr], None]) -> None:
    """Run ``body`` for 0 <= lane < width as vector code; ``width`` is a power of two."""
    with vector(width) as lane:
        body(lane)


@dataclass(frozen=True)
class Span:
    """The part ``start <= j < stop`` of an axis; a bound is a multiple of the vector width or the extent itself."""

    extent: Dim
    start: Expr
    stop: Expr
    whole: bool = False


def whole_axis(k: Kernel, extent: Dim) -> Span:
    return Span(extent, index(0), k.extent(extent), whole=True)


Block = Callable[[Expr, int], None]


def blocks(span: Span, width: int, body: Block, *, overlap: bool = False) -> None:
    """Run ``body(start, width)`` over a span: full vectors, then a tail.

    Args:
        overlap: computing an element twice is harmless, so that the last vector may start early and end at the extent.
            Otherwise the tail is made of narrower vectors, or of single elements where the extent is a symbol.
    """
    known = span.extent if isinstance(span.extent, int) and span.whole else None
    if known == 0:
        return
    if known is None or known >= 2 * width:
        with T.serial(index(0), tirx.truncdiv(span.stop - span.start, index(width))) as i:
            body(span.start + i * index(width), width)
    elif known >= width:
        body(span.start, width)
    if span.extent % width == 0:
        return
    if isinstance(span.extent, int):
        _static_tail(span, span.extent, width, body, overlap)
    else:
        _dynamic_tail(span, width, body, overlap)


def _static_tail(span: Span, extent: int, width: int, body: Block, overlap: bool) -> None:
    if span.whole:
        _tail_of(extent, width, body, overlap)
        return
    with T.If(tirx.EQ(span.stop, index(extent))), T.Then():
        _tail_of(extent, width, body, overlap)


def _tail_of(extent: int, width: int, body: Block, overlap: bool) -> None:
    if overlap and extent >= width:
        body(index(extent - width), width)
        return
    done = extent - extent % width
    while extent - done >= 4:
        narrow = 1 << (extent - done).bit_length() - 1
        body(index(done), narrow)
        done += narrow
    if done < extent:
        with T.serial(index(done), index(extent)) as j:
            body(j, 1)


def _dynamic_tail(span: Span, width: int, body: Block, overlap: bool) -> None:
    done = span.start + tirx.truncdiv(span.stop - span.start, index(width)) * index(width)

    def singles() -> None:
        with T.serial(done, span.stop) as j:
            body(j, 1)

    if not overlap:
        singles()
        return
    with T.If(done < span.stop), T.Then(), T.If(span.stop >= index(width)):
        with T.Then():
            body(span.stop - index(width), width)
        with T.Else():
            singles()


def vector_loop(span: Span, width: int, body: Callable[[Expr], None]) -> None:
    """Run ``body(j)`` for every j of the span, in vectors; elements may be computed twice."""
    blocks(span, width, lambda start, w: lanes(w, lambda lane: body(start + lane)), overlap=True)
