"""Running sums and products: serial along the axis, lanes along the innermost one when that is another."""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d
from coilc.ir import ops

from ..accumulate import STEPS
from ..loops import Span, blocks, for_each_task, lanes, whole_axis
from ..scalar import Expr, bind
from .anchor import Anchor
from .loops import i64, local, serial


def emit_cumulative(k: Anchor) -> None:
    """Write the body of the kernel; the result has the operand's dims."""
    x, axis = k.dims(0), k.node.attrs["axis"]
    outer, inner = x[:axis], x[axis + 1 :]
    *middle, last = inner or (1,)
    width = 1 if not inner else k.target.vector_bits // 32
    while isinstance(last, int) and width > max(last, 1):
        width //= 2
    count = (last + (width - 1)) // width

    def task(p: Expr) -> None:
        *place, i = k.kernel.reader.unravel(p, (*outer, *middle, count))
        before, between = place[: len(outer)], place[len(outer) :]

        def run(start: Expr, width: int) -> None:
            _run(k, before, between, start, width)

        if count == 1:
            blocks(whole_axis(k.kernel, last), width, run, overlap=True)
        else:
            start = i * i64(width)
            stop = tirx.min(start + i64(width), k.extent(last))
            blocks(Span(last, start, stop), width, run, overlap=True)

    for_each_task(k.kernel, d.size((*outer, *middle, count)), d.size(x), task)


def _run(k: Anchor, before: list[Expr], between: list[Expr], start: Expr, width: int) -> None:
    """``width`` neighbouring sequences."""
    axis, dims = k.node.attrs["axis"], k.dims(0)
    neutral, step = STEPS[ops.sum if k.node.op is ops.cumsum else ops.prod]
    dtype = k.compute_dtype(0)
    total = local((width,), dtype)
    lanes(width, lambda lane: T.buffer_store(total, tirx.const(neutral(k.node.types[0].dtype), dtype), [lane]))
    with serial(k.extent(dims[axis])) as i:
        at = bind(k.extent(dims[axis]) - i64(1) - i) if k.node.attrs["reverse"] else i

        def element(lane: Expr) -> None:
            place = [*before, at, *between, start + lane][: len(dims)]
            T.buffer_store(total, step(total[lane], k.read(0, *place)), [lane])
            k.store(0, place, total[lane])

        lanes(width, element)
