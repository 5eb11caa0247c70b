"""Depthwise convolution, channels innermost: channels in lanes, a task is one row of places and a block of channels.

Only the taps that fall inside of x are visited, so that neither edge needs masks nor the middle conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from ..scalar import Expr, bind
from .anchor import Anchor
from .loops import Blocks, i64, lanes, local, parallel, product, serial, unravel

X, W = range(2)
VECTORS_PER_BLOCK = 4  # sums stay in registers, and one tap's address serves all of them


def emit_depthwise_conv(k: Anchor) -> None:
    """Write the body of the kernel: x[B, *S, C], w[*K, C] -> y[B, *T, C]."""
    batch, *space, channels = k.node.types[0].dims
    blocks = Blocks(channels, VECTORS_PER_BLOCK * k.target.lanes(32))
    *outer, row = space
    extents = [k.extent(batch), *map(k.extent, outer), i64(blocks.count(k.extent(channels)))]
    work = d.size((batch, *space, *k.dims(W)))
    with parallel(k, product(extents), work) as task:
        b, *at, block = unravel(task, extents)
        with serial(k.extent(row)) as last:
            _place(k, b, [*at, last], blocks.start(block), blocks.width)


def _place(k: Anchor, b: Expr, at: Sequence[Expr], first: Expr, width: int) -> None:
    """``width`` channels from ``first`` on at one place of y."""
    dtype = k.compute_dtype(X)
    y = local((width,), dtype)
    with lanes(width) as j:
        T.buffer_store(y, tirx.const(0, dtype), [j])

    def add(taps: Sequence[Expr], places: Sequence[Expr]) -> None:
        with lanes(width) as j:
            x = k.read(X, b, *places, first + j)
            T.buffer_store(y, y[j] + x * k.read(W, *taps, first + j), [j])

    _over_taps(k, at, [], [], add)
    with lanes(width) as j:
        k.store(0, [b, *at, first + j], y[j])


def _over_taps(
    k: Anchor,
    at: Sequence[Expr],
    taps: list[Expr],
    places: list[Expr],
    body: Callable[[Sequence[Expr], Sequence[Expr]], None],
) -> None:
    """Run ``body(taps, places of x)`` for every tap of the window at ``at`` that lies inside of x."""
    axis = len(taps)
    if axis == len(at):
        return body(taps, places)
    extent, (low, _) = k.extent(k.dims(X)[1 + axis]), k.node.attrs["padding"][axis]
    step, count = k.node.attrs["dilation"][axis], k.fixed(k.dims(W)[axis])
    origin = bind(at[axis] * i64(k.node.attrs["strides"][axis]) - i64(low))
    start, stop = (tirx.truncdiv(tirx.max(n, i64(0)) + i64(step - 1), i64(step)) for n in (-origin, extent - origin))
    with serial(tirx.min(stop, i64(count)), start=start) as tap:
        _over_taps(k, at, [*taps, tap], [*places, bind(origin + tap * i64(step))], body)
