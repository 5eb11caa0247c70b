"""The register tile of a matrix product: rows x lanes sums kept in registers along the inner dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import gcd

from tvm import DataType, tirx
from tvm.script.ir_builder import tirx as T

from ..scalar import Expr, bind
from ..target import Target
from .loops import ceildiv, i64, lanes, local, serial, when

RUN = 128  # terms summed in registers before they are added to the totals
INNER_BLOCK = 256  # rows of the right operand in local memory
STRETCHES = 4  # of the inner dimension that a low tile walks side by side; the addresses of more leave the registers

Read = Callable[[Expr, Expr], Expr]
Write = Callable[[Expr, Expr, Expr], None]
Copy = Callable[[tirx.Buffer, Expr, Expr], None]


@dataclass(frozen=True)
class Product:
    """What a tile computes: ``write(i, j, sum over k of left(i, k) * right(k, j))``.

    Attributes:
        stage: reading ``left`` takes more than a load; a run of it is copied to local memory first, in vectors.
    """

    left: Read
    right: Read
    write: Write
    stage: bool = False


@dataclass(frozen=True)
class Tile:
    """Height and width of the sums of one micro-kernel, and how to compute them."""

    rows: int
    width: int
    dtype: str

    @staticmethod
    def of(target: Target, dtype: str, widest: int = 64) -> Tile:
        """Two vectors wide, so that one broadcast feeds two multiply-adds; 8 rows, or 4 with only 16 registers (AVX2).

        The width divides ``widest``, a power of two.
        """
        width = 2 * target.vector_bits // DataType(dtype).bits
        return Tile(8 if target.registers >= 32 else 4, gcd(width, widest), dtype)

    def multiply(self, rows: Expr, inner: Expr, product: Product) -> None:
        """``product`` for its first ``rows`` rows and every lane, over ``inner`` terms.

        A short tile is rounded up to a power of two by repeating its last row, so that ``right`` is read once; the
        rows in excess are written too.
        """
        repeating = replace(product, left=lambda i, k: product.left(tirx.min(i, rows - i64(1)), k))
        with T.If(rows == i64(self.rows)):
            with T.Then():
                self._multiply(self.rows, inner, product)
            with T.Else():
                height = self.rows
                while height:
                    with when(tirx.all(rows <= i64(height), rows > i64(height // 2))):
                        self._multiply(height, inner, repeating)
                    height //= 2

    def multiply_blocks(
        self, rows: int, count: Expr, inner: Expr, left: Read, copy: Copy, *, stage: bool, whole: bool = False
    ) -> tirx.Buffer:
        """The sums [rows, width] over k of left(i, k) * right(k, j), for ``count`` rows, of which there are at most ``rows``.

        ``copy(right, start, depth)`` puts ``depth`` rows of the right operand, from ``start`` on, into local memory,
        [INNER_BLOCK, width], where all rows of the left one find them. Rows past the count get sums that nobody reads;
        ``whole`` promises that there are none in the last tile.
        """
        sums = local((rows, self.width), self.dtype)
        right = local((INNER_BLOCK, self.width), self.dtype)
        with serial(count) as i, lanes(self.width) as j:
            T.buffer_store(sums, tirx.const(0, self.dtype), [i, j])
        with serial(ceildiv(inner, INNER_BLOCK)) as block:
            start = block * i64(INNER_BLOCK)
            depth = tirx.min(inner - start, i64(INNER_BLOCK))
            copy(right, start, depth)
            with serial(ceildiv(count, self.rows)) as step:
                row = step * i64(self.rows)
                part = Product(
                    left=lambda i, n: left(row + i, start + n),
                    right=lambda n, j: right[n, j],
                    write=lambda i, j, value: T.buffer_store(sums, sums[row + i, j] + value, [row + i, j]),
                    stage=stage,
                )
                height = i64(self.rows)
                self.multiply(height if whole else tirx.min(count - row, height), depth, part)
        return sums

    def _multiply(self, height: int, inner: Expr, product: Product) -> None:
        """Sums over short runs of the inner dimension are added to totals: one long fp32 sum loses twice as much.

        A low tile walks several stretches of the inner dimension side by side, each with its own sums: that hides the
        latency of multiply-adds, and memory is read faster from several places at once.
        """
        parts = min(self.rows // height, STRETCHES)
        steps = RUN // parts
        totals, *sums = ([local((self.width,), self.dtype) for _ in range(height)] for _ in range(parts + 1))
        staged = [local((RUN,), self.dtype) for _ in range(height)] if product.stage else []
        stretch = tirx.truncdiv(inner, i64(parts))

        def add(part: int, k: Expr, kept: Expr | None = None) -> None:
            for i, row in enumerate(sums[part]):
                x = product.left(i64(i), k) if kept is None else staged[i][kept]
                with lanes(self.width) as j:
                    T.buffer_store(row, row[j] + x * product.right(k, j), [j])

        def flush() -> None:
            for total, *rows in zip(totals, *sums, strict=True):
                with lanes(self.width) as j:
                    T.buffer_store(total, sum((row[j] for row in rows), total[j]), [j])
            self._clear(chain(*sums))

        self._clear(chain(totals, *sums))
        with serial(ceildiv(stretch, steps)) as run:
            places = [i64(part) * stretch + run * i64(steps) for part in range(parts)]
            count = tirx.min(stretch - run * i64(steps), i64(steps))
            for part, first in enumerate(places):
                self._copy(staged, part * steps, product.left, first, count)
            with serial(count) as k:
                for part, first in enumerate(places):
                    add(part, first + k, i64(part * steps) + k if staged else None)
            flush()
        if parts > 1:
            with serial(inner, start=i64(parts) * stretch) as k:
                add(0, k)
            flush()
        for i, total in enumerate(totals):
            with lanes(self.width) as j:
                product.write(i64(i), j, total[j])

    def _copy(self, rows: Sequence[tirx.Buffer], to: int, left: Read, first: Expr, count: Expr) -> None:
        """``left`` at the ``count`` columns from ``first`` on, from place ``to`` of the rows on."""
        whole = tirx.truncdiv(count, i64(self.width))
        for i, row in enumerate(rows):
            with serial(whole) as step, lanes(self.width) as j:
                k = step * i64(self.width) + j
                T.buffer_store(row, left(i64(i), first + k), [i64(to) + k])
            with serial(count, start=whole * i64(self.width)) as k:
                T.buffer_store(row, left(i64(i), first + k), [i64(to) + k])

    def _clear(self, rows: Iterable[tirx.Buffer]) -> None:
        for row in rows:
            with lanes(self.width) as j:
                T.buffer_store(row, tirx.const(0, self.dtype), [j])

    def dot(self, inner: Expr, left: Callable[[Expr], Expr], right: Callable[[Expr], Expr]) -> Expr:
        """The sum over k of left(k) * right(k), k in lanes."""
        parts, total = local((self.width,), self.dtype), local((1,), self.dtype)
        whole = tirx.truncdiv(inner, i64(self.width))
        with lanes(self.width) as j:
            T.buffer_store(parts, tirx.const(0, self.dtype), [j])
        with serial(whole) as step, lanes(self.width) as j:
            k = step * i64(self.width) + j
            T.buffer_store(parts, parts[j] + left(k) * right(k), [j])
        T.buffer_store(total, _sum(parts, self.width), [0])
        with serial(inner, start=whole * i64(self.width)) as k:
            T.buffer_store(total, total[0] + left(k) * right(k), [0])
        return total[0]


def _sum(buffer: tirx.Buffer, width: int) -> Expr:
    """The sum of a local buffer of power-of-two size, by halves; LLVM's own float reduction is strictly sequential."""
    if width == 1:
        return buffer[0]
    dtype = str(buffer.dtype)
    vector = buffer[tirx.Ramp(tirx.IntImm("int32", 0), tirx.IntImm("int32", 1), width)]
    while width > 2:
        width //= 2
        half = f"{dtype}x{width}"
        vector = bind(T.vectorlow(half, vector) + T.vectorhigh(half, vector))
    return tirx.Shuffle([vector], [tirx.IntImm("int32", 0)]) + tirx.Shuffle([vector], [tirx.IntImm("int32", 1)])
