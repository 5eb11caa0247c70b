"""Pointwise bodies: one pass over the output space, the innermost axis in vector lanes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import Graph, Value
from coilc.ir import dims as d
from coilc.ir.dims import Dim, Dims
from coilc.ir.opdef import ELEMENTWISE

from .edges import edge_of
from .kernel import Kernel
from .loops import Span, for_each_task, lane_count, vector_loop, whole_axis
from .reader import index
from .scalar import Expr, bind, on_device

CHUNK = 4096  # elements of the innermost axis that one task works on


def emit_pointwise(k: Kernel) -> None:
    """Write every output; their dims are equal."""
    dims = k.body.results[0].dims
    *outer, inner = dims or (1,)
    width = lane_count(k, vectors=2)
    across = transposed_axis(k.body)
    if on_device():
        for_each_task(k, d.size(dims), d.size(dims), lambda position: _store(k, k.reader.unravel(position, dims)))
    elif across is not None:
        _emit_tiles(k, across, width // 2)
    elif outer and isinstance(inner, int) and inner < width:  # lanes over the whole output instead
        _emit(k, (), d.size(dims), width, lambda _, position: k.reader.unravel(position, dims))
    else:
        _emit(k, tuple(outer), inner, width, lambda rest, j: [*rest, j][: len(dims)])


def _emit(k: Kernel, outer: Dims, inner: Dim, width: int, indices_of: Callable[[list[Expr], Expr], list[Expr]]) -> None:
    """A task is one chunk of the inner axis at one place of the outer ones."""
    chunks = 1 if isinstance(inner, int) and inner <= CHUNK else (inner + (CHUNK - 1)) // CHUNK

    def task(p: Expr) -> None:
        *rest, chunk = map(bind, k.reader.unravel(p, (*outer, chunks)))
        row = lambda: vector_loop(_chunk(k, inner, chunk, chunks), width, lambda j: _store(k, indices_of(rest, j)))
        _apart_from_edges(k, rest, row)

    for_each_task(k, d.size((*outer, chunks)), d.size((*outer, inner)), task)


def _apart_from_edges(k: Kernel, outer: list[Expr], row: Callable[[], None]) -> None:
    """Write a row twice if it would read padding in the first rows alone: for these, and without tests for all others."""
    for axis, i in enumerate(outer):
        edge, extent = edge_of(k.body, axis), k.body.results[0].dims[axis]
        if edge > 0 and not (isinstance(extent, int) and extent <= edge) and not on_device():
            with T.If(i >= index(edge)):
                with T.Then():
                    with k.reader.knowing(i, edge):
                        row()
                with T.Else():
                    row()
            return
    row()


def _emit_tiles(k: Kernel, across: int, width: int) -> None:
    """A task is a tile of ``width`` x ``width`` elements, so that each cache line that it touches is used whole."""
    dims = k.body.results[0].dims
    counts = [(dim + (width - 1)) // width if axis in (across, len(dims) - 1) else dim for axis, dim in enumerate(dims)]

    def task(p: Expr) -> None:
        *rest, block = k.reader.unravel(p, tuple(counts))
        first, start = rest[across] * index(width), block * index(width)
        span = Span(dims[-1], start, tirx.min(start + index(width), k.extent(dims[-1])))
        with T.serial(first, tirx.min(first + index(width), k.extent(dims[across]))) as i:
            place = [*rest[:across], i, *rest[across + 1 :]]
            vector_loop(span, width, lambda j: _store(k, [*place, j]))

    for_each_task(k, d.size(counts), d.size(dims), task)


def transposed_axis(body: Graph) -> int | None:
    """The axis of the results along which some input is contiguous that is strided along the last one."""
    last = body.results[0].type.rank - 1
    for value in body.results:
        for axes in _input_axes(value, tuple(range(value.type.rank))):
            if axes and axes[-1] is not None and axes[-1] != last and last in axes:
                return axes[-1]
    return None


Axes = tuple[int | None, ...]


def _input_axes(value: Value, axes: Axes) -> Iterator[Axes]:
    """For every input that ``value`` reads at its own indices: which axis of the result each of its axes follows."""
    pending, seen = [(value, axes)], set()
    while pending:
        entry = pending.pop()
        if entry in seen:
            continue
        seen.add(entry)
        value, axes = entry
        operands = value.node.inputs
        if value.op.name == "input" or (value.op.name == "reshape" and operands[0].op.name == "input"):
            yield axes
        elif value.op.name == "transpose":
            perm = value.node.attrs["perm"]
            pending.append((operands[0], tuple(axes[perm.index(a)] for a in range(len(perm)))))
        elif value.op.name == "broadcast":
            kept = axes[len(axes) - operands[0].type.rank :]
            pending.append(
                (operands[0], tuple(None if n == 1 else a for n, a in zip(operands[0].dims, kept, strict=True)))
            )
        elif ELEMENTWISE in value.op.traits or value.op.name in ("slice", "flip", "pad", "concat"):
            pending += [(operand, axes) for operand in operands]


def _chunk(k: Kernel, inner: Dim, chunk: Expr, chunks: Dim) -> Span:
    if chunks == 1:
        return whole_axis(k, inner)
    start = chunk * index(CHUNK)
    return Span(inner, start, tirx.min(start + index(CHUNK), k.extent(inner)))


def _store(k: Kernel, indices: list[Expr]) -> None:
    for output, value in enumerate(k.body.results):
        k.store(output, indices, k.reader.read(value, indices))
