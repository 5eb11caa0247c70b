"""Causal depthwise convolution on a device: a thread has one channel and some steps, whose inputs it loads once.

Neighbouring threads have neighbouring channels. All loads of a thread are independent, so that many are under way at once.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...math import silu
from ...scalar import Expr, bind
from ..anchor import Anchor
from ..causal_conv1d import W, X, store_state
from ..loops import ceildiv, i64, local, serial, when
from . import fast
from .blocks import blocks

STEPS = 16  # of a thread
THREADS = 128
MOST_TAPS = 16  # whose weights stay in registers


def emit_causal_conv1d(k: Anchor) -> bool:
    """Write the body of the kernel: y[B, L, D] and, if used, the next state[B, K-1, D]."""
    batch, length, channels = k.dims(X)
    taps = k.fixed(k.dims(W)[0])
    if taps > MOST_TAPS:
        return False
    steps = min(STEPS, max(length, 1)) if isinstance(length, int) else STEPS
    extents = [k.extent(batch), ceildiv(k.extent(length), steps), ceildiv(k.extent(channels), THREADS)]
    with blocks(extents, THREADS) as ((b, part, block), thread):
        channel = T.Bind(block * i64(THREADS) + thread)
        with when(channel < k.extent(channels)):
            window = _convolve(k, b, T.Bind(part * i64(steps)), channel, steps)
            if 1 in k.outputs_of and length == steps:  # all of it is in registers
                for i in range(taps - 1):
                    k.store(1, [b, i, channel], window[steps + i])
            elif 1 in k.outputs_of:
                with when(tirx.EQ(part, i64(0))), serial(taps - 1) as i:
                    store_state(k, b, i, channel, 1)
    return True


def _convolve(k: Anchor, b: Expr, first: Expr, channel: Expr, steps: int) -> tirx.Buffer:
    """The steps from ``first`` on, those after the last one left out; gives their inputs and those before them."""
    dtype, taps, length = k.compute_dtype(X), k.fixed(k.dims(W)[0]), k.extent(k.dims(X)[1])
    window, weights = local((steps + taps - 1,), dtype), local((taps,), dtype)
    for i in range(taps):
        T.buffer_store(weights, k.read(W, i, channel), [i])
    for i in range(taps - 1):
        _load_before(k, window, i, b, T.Bind(first + i64(i - taps + 1)), channel)
    for i in range(steps):
        t = T.Bind(tirx.min(first + i64(i), length - i64(1)))
        T.buffer_store(window, k.read(X, b, t, channel), [i64(taps - 1 + i)])
    bias = local((1,), dtype)
    T.buffer_store(bias, k.read("bias", channel) if k.has("bias") else tirx.const(0, dtype), [0])
    for i in range(steps):
        y = bias[0]
        for tap in range(taps):
            y = bind(y + weights[tap] * window[i + tap])
        if k.node.attrs["activation"] == "silu":
            y = fast.silu(y) if dtype == "float32" else silu(y)
        with when(first + i64(i) < length):
            k.store(0, [b, first + i64(i), channel], y)
    return window


def _load_before(k: Anchor, window: tirx.Buffer, i: int, b: Expr, t: Expr, channel: Expr) -> None:
    """Input ``t`` into place ``i``; before the sequence that is the old state, or zero."""
    steps = k.fixed(k.dims(W)[0]) - 1
    with T.If(t >= i64(0)):
        with T.Then():
            T.buffer_store(window, k.read(X, b, t, channel), [i])
        with T.Else():
            old = k.read("state", b, t + i64(steps), channel) if k.has("state") else tirx.const(0, k.compute_dtype(X))
            T.buffer_store(window, old, [i])
