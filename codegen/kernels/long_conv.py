"""Convolution of every channel with a kernel of any length: channels in lanes, a tile of steps in registers.

A tile of R steps takes J taps at a time: their R * J products need only R + J - 1 inputs and J taps, all in registers.
Taps that would read before the sequence or past the kernel's end are done one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from ..scalar import Expr
from .anchor import Anchor
from .loops import Blocks, ceildiv, i64, lanes, local, parallel, serial, unravel, when

X, K = range(2)
TILES_PER_TASK = 16


def emit_long_conv(k: Anchor) -> None:
    """Write the body of the kernel: y[B, L, D]."""
    batch, length, channels = k.dims(X)
    steps = 8 if k.target.registers >= 32 else 4
    blocks = Blocks(channels, k.target.lanes(32))
    rows = steps * TILES_PER_TASK
    extents = [k.extent(batch), i64(blocks.count(k.extent(channels))), ceildiv(k.extent(length), rows)]
    with parallel(k, extents[0] * extents[1] * extents[2], d.size((2, batch, length, channels, k.dims(K)[0]))) as task:
        b, block, part = unravel(task, extents)
        first = part * i64(rows)
        tiles = tirx.min(ceildiv(k.extent(length) - first, steps), i64(TILES_PER_TASK))
        with serial(tiles) as tile:
            _Tile(k, b, first + tile * i64(steps), blocks.start(block), blocks.width, steps).emit()


@dataclass(frozen=True)
class _Tile:
    """``steps`` outputs from ``t`` on, of ``width`` channels from ``channel`` on."""

    k: Anchor
    b: Expr
    t: Expr
    channel: Expr
    width: int
    steps: int

    def emit(self) -> None:
        k, dtype, taps = self.k, self.k.compute_dtype(X), self.steps
        sums = [local((self.width,), dtype) for _ in range(self.steps)]
        self.each(sums, lambda row, j: T.buffer_store(row, tirx.const(0, dtype), [j]))
        length, reach = self.length, k.extent(k.dims(K)[0])
        inside = tirx.min(reach, self.t + i64(1))  # taps that even the first step has inputs for
        whole = tirx.truncdiv(inside, i64(taps))
        full = tirx.Select(self.t + i64(self.steps) <= length, whole, i64(0))
        with serial(full) as run:
            self.taps_at_once(sums, run * i64(taps), taps)
        with serial(tirx.min(reach, self.t + i64(self.steps)), full * i64(taps)) as tap:
            self.one_tap(sums, lambda i: self.t + i64(i) - tap, lambda j: k.read(K, tap, self.channel + j))
        if k.has("future"):
            ahead = tirx.min(k.extent(k.dims("future")[0]), length - i64(1) - self.t)
            with serial(ahead) as tap:
                read = lambda j: k.read("future", tap, self.channel + j)
                self.one_tap(sums, lambda i: self.t + i64(i + 1) + tap, read)
        for i, row in enumerate(sums):
            with when(self.t + i64(i) < length), lanes(self.width) as j:
                k.store(0, [self.b, self.t + i64(i), self.channel + j], row[j])

    @property
    def length(self) -> Expr:
        return self.k.extent(self.k.dims(X)[1])

    def each(self, rows: list[tirx.Buffer], body: Callable[[tirx.Buffer, Expr], None]) -> None:
        for row in rows:
            with lanes(self.width) as j:
                body(row, j)

    def taps_at_once(self, sums: list[tirx.Buffer], first: Expr, count: int) -> None:
        """``count`` taps from ``first`` on; every input of every step exists."""
        k, dtype = self.k, self.k.compute_dtype(X)
        oldest = self.t - first - i64(count - 1)
        inputs = [local((self.width,), dtype) for _ in range(self.steps + count - 1)]
        for i, row in enumerate(inputs):
            with lanes(self.width) as j:
                T.buffer_store(row, k.read(X, self.b, oldest + i64(i), self.channel + j), [j])
        tap = local((self.width,), dtype)
        for n in range(count):
            with lanes(self.width) as j:
                T.buffer_store(tap, k.read(K, first + i64(n), self.channel + j), [j])
            for i, row in enumerate(sums):
                with lanes(self.width) as j:
                    T.buffer_store(row, row[j] + tap[j] * inputs[i + count - 1 - n][j], [j])

    def one_tap(self, sums: list[tirx.Buffer], source: Callable[[int], Expr], tap: Callable[[Expr], Expr]) -> None:
        """One tap of every step whose input is in the sequence."""
        for i, row in enumerate(sums):
            at = source(i)
            with when(tirx.all(at >= i64(0), at < self.length)), lanes(self.width) as j:
                T.buffer_store(row, row[j] + tap(j) * self.k.read(X, self.b, at, self.channel + j), [j])
