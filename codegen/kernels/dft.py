"""Fourier transforms of a known length: neighbouring sequences in lanes, all stages in scratch memory.

Stockham's form: a stage of radix r takes elements a whole r-th apart, and leaves its results side by side, so that the last
stage leaves all of them in order and nothing is ever permuted. With sequences in lanes there are no shuffles, and a root
is one number for all lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d
from coilc.ir.ops.fourier import smooth_factors

from ..scalar import Expr
from .anchor import Anchor
from .loops import Blocks, i64, lanes, local, parallel, product, serial, unravel

X, ROOTS, BEFORE, AFTER = range(4)
RE, IM = range(2)

Complex = tuple[tirx.Buffer, tirx.Buffer]


def emit_dft(k: Anchor) -> None:
    """Write the body of the kernel: y[outer, parts, n, inner]."""
    outer, _, n, inner = k.dims(X)
    blocks = Blocks(inner, k.target.lanes(32))
    extents = [k.extent(outer), i64(blocks.count(k.extent(inner)))]
    with parallel(k, product(extents), d.size((10, *k.dims(X)))) as task:
        o, block = unravel(task, extents)
        _Sequences(k, o, blocks.start(block), k.fixed(n), blocks.width).emit()


@dataclass(frozen=True)
class _Sequences:
    """The transforms of ``width`` neighbouring sequences from ``first`` on."""

    k: Anchor
    o: Expr
    first: Expr
    n: int
    width: int

    @property
    def dtype(self) -> str:
        return self.k.compute_dtype(X)

    def emit(self) -> None:
        here, there = (local((2, self.n, self.width), self.dtype) for _ in range(2))
        self.load(here)
        done, factors = 1, smooth_factors(self.n)
        assert factors is not None, self.n
        for radix in factors:
            self.stage(here, there, radix, done)
            here, there, done = there, here, done * radix
        self.store(here)

    def table(self, which: int, place: Expr) -> tuple[Expr, Expr]:
        return self.k.read(which, RE, place), self.k.read(which, IM, place)

    def vector(self) -> tirx.Buffer:
        return local((self.width,), self.dtype)

    def load(self, to: tirx.Buffer) -> None:
        whole = self.k.dims(X)[1] == 2
        with serial(self.n) as j:
            (c, s), x = self.table(BEFORE, j), [self.vector() for _ in range(1 + whole)]
            for part, vector in enumerate(x):
                with lanes(self.width) as lane:
                    T.buffer_store(vector, self.k.read(X, self.o, part, j, self.first + lane), [lane])
            with lanes(self.width) as lane:
                T.buffer_store(to, x[RE][lane] * c - x[IM][lane] * s if whole else x[RE][lane] * c, [RE, j, lane])
            with lanes(self.width) as lane:
                T.buffer_store(to, x[RE][lane] * s + x[IM][lane] * c if whole else x[RE][lane] * s, [IM, j, lane])

    def store(self, of: tirx.Buffer) -> None:
        with serial(self.n) as j:
            c, s = self.table(AFTER, j)
            with lanes(self.width) as lane:
                re = of[RE, j, lane] * c - of[IM, j, lane] * s
                self.k.store(0, [self.o, RE, j, self.first + lane], re)
            if self.k.node.attrs["parts"] == 2:
                with lanes(self.width) as lane:
                    im = of[RE, j, lane] * s + of[IM, j, lane] * c
                    self.k.store(0, [self.o, IM, j, self.first + lane], im)

    def stage(self, source: tirx.Buffer, target: tirx.Buffer, radix: int, done: int) -> None:
        """From [radix, m, done] to [m, radix, done]: transforms of size ``radix``, then a root each."""
        m = self.n // (done * radix)
        with serial(m) as j, serial(done) as q:
            inputs = [self.fetched(source, (i64(i * m) + j) * i64(done) + q) for i in range(radix)]
            for i, value in enumerate(self.transformed(inputs)):
                place = (j * i64(radix) + i64(i)) * i64(done) + q
                root = self.table(ROOTS, j * i64(i * done)) if i and m > 1 else None
                self.put(target, place, value, root)

    def fetched(self, source: tirx.Buffer, place: Expr) -> Complex:
        pair = self.vector(), self.vector()
        for part, vector in enumerate(pair):
            with lanes(self.width) as lane:
                T.buffer_store(vector, source[part, place, lane], [lane])
        return pair

    def put(self, target: tirx.Buffer, place: Expr, value: Complex, root: tuple[Expr, Expr] | None) -> None:
        re, im = value
        with lanes(self.width) as lane:
            T.buffer_store(target, re[lane] * root[0] - im[lane] * root[1] if root else re[lane], [RE, place, lane])
        with lanes(self.width) as lane:
            T.buffer_store(target, re[lane] * root[1] + im[lane] * root[0] if root else im[lane], [IM, place, lane])

    # --- transforms of a few elements ---------------------------------------------------------------------------------

    def transformed(self, x: Sequence[Complex]) -> list[Complex]:
        """The transform of as many elements as a radix."""
        match len(x):
            case 2:
                return [self.sum(x[0], x[1]), self.sum(x[0], x[1], -1)]
            case 4:
                even, odd = self.sum(x[0], x[2]), self.sum(x[1], x[3])
                apart, turned = self.sum(x[0], x[2], -1), self.quarter(self.sum(x[1], x[3], -1))
                return [
                    self.sum(even, odd),
                    self.sum(apart, turned),
                    self.sum(even, odd, -1),
                    self.sum(apart, turned, -1),
                ]
        return [self.combined(x, i) for i in range(len(x))]

    def sum(self, x: Complex, y: Complex, sign: int = 1) -> Complex:
        pair = self.vector(), self.vector()
        for part, vector in enumerate(pair):
            with lanes(self.width) as lane:
                a, b = x[part][lane], y[part][lane]
                T.buffer_store(vector, a + b if sign > 0 else a - b, [lane])
        return pair

    def quarter(self, x: Complex) -> Complex:
        """``x`` times the root of order 4, which is i or -i."""
        pair, i = (self.vector(), self.vector()), self.k.read(ROOTS, IM, self.n // 4)
        with lanes(self.width) as lane:
            T.buffer_store(pair[RE], -i * x[IM][lane], [lane])
        with lanes(self.width) as lane:
            T.buffer_store(pair[IM], i * x[RE][lane], [lane])
        return pair

    def combined(self, x: Sequence[Complex], row: int) -> Complex:
        """One element of the transform, by definition."""
        re, im = self.vector(), self.vector()
        with lanes(self.width) as lane:
            T.buffer_store(re, x[0][RE][lane], [lane])
        with lanes(self.width) as lane:
            T.buffer_store(im, x[0][IM][lane], [lane])
        for i in range(1, len(x)):
            c, s = self.table(ROOTS, i64(i * row % len(x) * (self.n // len(x))))
            with lanes(self.width) as lane:
                T.buffer_store(re, re[lane] + x[i][RE][lane] * c - x[i][IM][lane] * s, [lane])
            with lanes(self.width) as lane:
                T.buffer_store(im, im[lane] + x[i][RE][lane] * s + x[i][IM][lane] * c, [lane])
        return re, im
