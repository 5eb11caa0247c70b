"""Pooling: lanes along the last axis of the result, the window in serial loops."""

from __future__ import annotations

from functools import partial, reduce

from tvm import tirx

from coilc.ir import dims as d
from coilc.ir import ops

from ..accumulate import STEPS
from ..loops import for_each_task, vector_loop, whole_axis
from ..scalar import Expr, bind
from .anchor import Anchor
from .loops import i64


def emit_pool(k: Anchor) -> None:
    """Write the body of the kernel: the largest element or the sum of each window of the trailing axes."""
    *outer, last = k.node.types[0].dims
    width = k.target.vector_bits // 32
    task_dims = (*outer, 1)

    def task(p: Expr) -> None:
        row = k.kernel.reader.unravel(p, task_dims)[:-1]
        vector_loop(whole_axis(k.kernel, last), width, lambda j: _element(k, [*row, j]))

    for_each_task(k.kernel, d.size(outer), d.size((*outer, last)) * d.size(k.node.attrs["window"]), task)


def _element(k: Anchor, at: list[Expr]) -> None:
    """The window is unrolled: an accumulator in memory would not be one per lane."""
    neutral, step = STEPS[ops.max if k.node.attrs["kind"] == "max" else ops.sum]
    dtype = k.node.types[0].dtype
    total = tirx.const(neutral(dtype), k.compute_dtype(0))
    fill, lead = total, len(at) - len(k.node.attrs["window"])
    padded = [lead + axis for axis, ends in enumerate(k.node.attrs["padding"]) if any(ends)]
    for tap in _taps(k.node.attrs["window"]):
        place, inside = _source(k, at, tap)
        element = k.kernel.reader.unless_empty(k.operands[0], padded, partial(k.read, 0, *place))
        total = bind(step(total, element if inside is None else bind(tirx.Select(inside, element, fill))))
    k.store(0, at, total)


def _taps(window: tuple[int, ...]) -> list[tuple[int, ...]]:
    taps: list[tuple[int, ...]] = [()]
    for extent in window:
        taps = [(*tap, i) for tap in taps for i in range(extent)]
    return taps


def _source(k: Anchor, at: list[Expr], tap: tuple[int, ...]) -> tuple[list[Expr], Expr | None]:
    """Where x is read, clamped into it, and whether it is inside (``None``: always)."""
    lead = len(at) - len(tap)
    places, tests = list(at[:lead]), []
    for axis, offset in enumerate(tap):
        low, high = k.node.attrs["padding"][axis]
        shift = offset * k.node.attrs["dilation"][axis] - low
        place = at[lead + axis] * i64(k.node.attrs["strides"][axis]) + i64(shift)
        extent = k.extent(k.dims(0)[lead + axis])
        if low > 0 or high > 0:
            place = bind(place)
            tests += [place >= i64(0), place < extent]
            place = bind(tirx.max(tirx.min(place, extent - i64(1)), i64(0)))
        places.append(place)
    return places, reduce(tirx.And, tests) if tests else None
