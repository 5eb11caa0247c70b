"""Causal depthwise convolution over time: channels in lanes, taps unrolled, parallel over blocks of time and channels.

The first K - 1 steps read the state (or zero) for inputs before the sequence; they have a loop of their own, so that the
long loop is free of conditions.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from ..math import opaque, silu
from .anchor import Anchor
from .loops import Blocks, Expr, ceildiv, i64, lanes, local, parallel, serial, unravel, unrolled, when

X, W = range(2)
TIME_BLOCK = 16  # rows of a few vectors each: more would leave every page of memory after one cache line or two
VECTORS_PER_BLOCK = 4  # with the usual four taps, weights and bias stay in registers
VECTORS_WITHOUT_MEMORY_OPERANDS = 2  # where the constants of silu take registers too
UNROLLED_TAPS = 8


def emit_causal_conv1d(k: Anchor) -> None:
    """Write the body of the kernel: y[B, L, D] and, if used, the next state[B, K-1, D]."""
    batch, length, channels = k.dims(X)
    before = k.fixed(k.dims(W)[0]) - 1  # how many steps of input a step looks back
    vectors = VECTORS_PER_BLOCK if k.target.memory_operands else VECTORS_WITHOUT_MEMORY_OPERANDS
    blocks = Blocks(channels, vectors * k.target.lanes(32))
    extents = [k.extent(batch), ceildiv(k.extent(length), TIME_BLOCK), i64(blocks.count(k.extent(channels)))]
    work = d.size((batch, length, channels, 2 * before + 2))
    with parallel(k, extents[0] * extents[1] * extents[2], work) as task:
        b, time, block = unravel(task, extents)
        channel, width = blocks.start(block), blocks.width
        start = time * i64(TIME_BLOCK)
        stop = tirx.min(start + i64(TIME_BLOCK), k.extent(length))
        with serial(tirx.min(stop, i64(before)), start) as t:
            _step(k, b, t, channel, width, head=True)
        with serial(stop, tirx.max(start, i64(before))) as t:
            _step(k, b, t, channel, width, head=False)
        if 1 in k.outputs_of:
            with when(time == i64(0)), serial(before) as i:
                store_state(k, b, i, channel, width)


def _step(k: Anchor, b: Expr, t: Expr, channel: Expr, width: int, *, head: bool) -> None:
    """One output vector: bias + sum of taps, activation, epilogue."""
    dtype, taps = k.compute_dtype(X), k.fixed(k.dims(W)[0])
    y = local((width,), dtype)
    with lanes(width) as j:
        T.buffer_store(y, k.read("bias", channel + j) if k.has("bias") else tirx.const(0, dtype), [j])

    def add_tap(tap: Expr, read: Callable[[Expr], Expr]) -> None:
        with lanes(width) as j:
            T.buffer_store(y, y[j] + k.read(W, tap, channel + j) * read(channel + j), [j])

    with (unrolled if taps <= UNROLLED_TAPS else serial)(taps) as tap:
        source = t + tap - i64(taps - 1)
        if head:
            with T.If(source >= i64(0)):
                with T.Then():
                    add_tap(tap, lambda c: k.read(X, b, source, c))
                with T.Else():
                    add_tap(tap, lambda c: _before(k, b, t + tap, c))
        else:
            add_tap(tap, lambda c: k.read(X, b, source, c))
    with lanes(width) as j:
        T.buffer_store(y, silu(y[j]) if k.node.attrs["activation"] == "silu" else y[j], [j])
    with lanes(width) as j:
        k.store(0, [b, t, channel + j], y[j])


def _before(k: Anchor, b: Expr, i: Expr, channel: Expr) -> Expr:
    """An input before the sequence; zero, which an infinite weight makes NaN, unless there is a state."""
    return k.read("state", b, i, channel) if k.has("state") else opaque(tirx.const(0, k.compute_dtype(X)))


def store_state(k: Anchor, b: Expr, i: Expr, channel: Expr, width: int) -> None:
    """The last K - 1 inputs, counting the old state as inputs before the sequence."""
    length = k.extent(k.dims(X)[1])
    source = length + i - i64(k.fixed(k.dims(W)[0]) - 1)
    with T.If(source >= i64(0)):
        with T.Then(), lanes(width) as j:
            k.store(1, [b, i, channel + j], k.read(X, b, source, channel + j))
        with T.Else(), lanes(width) as j:
            k.store(1, [b, i, channel + j], _before(k, b, length + i, channel + j))
