"""The register tile of a matrix product: rows x lanes sums kept in registers along the inner dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from math import gcd

from tvm import DataType, tirx
from tvm.script.ir_builder import tirx as T

from ..scalar import Expr
from ..target import Target
from .loops import i64, lanes, local, serial, when

Read = Callable[[Expr, Expr], Expr]
Write = Callable[[Expr, Expr, Expr], None]


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

    def multiply(self, rows: Expr, inner: Expr, left: Read, right: Read, write: Write) -> None:
        """``write(i, j, sum over k of left(i, k) * right(k, j))`` for the first ``rows`` rows and every lane.

        A short tile is rounded up to a power of two by repeating its last row, so that ``right`` is read once; the
        rows in excess are written too.
        """
        with T.If(rows == i64(self.rows)):
            with T.Then():
                self._multiply(self.rows, inner, left, right, write)
            with T.Else():
                height = self.rows
                while height:
                    with when(tirx.all(rows <= i64(height), rows > i64(height // 2))):
                        self._multiply(height, inner, lambda i, k: left(tirx.min(i, rows - i64(1)), k), right, write)
                    height //= 2

    def _multiply(self, height: int, inner: Expr, left: Read, right: Read, write: Write) -> None:
        """A low tile keeps several partial sums per element: enough independent multiply-adds to hide their latency."""
        parts = max(1, self.rows // (2 * height))
        sums = [[local((self.width,), self.dtype) for _ in range(height)] for _ in range(parts)]

        def add(part: int, k: Expr) -> None:
            for i, row in enumerate(sums[part]):
                with lanes(self.width) as j:
                    T.buffer_store(row, row[j] + left(i64(i), k) * right(k, j), [j])

        for row in chain(*sums):
            with lanes(self.width) as j:
                T.buffer_store(row, tirx.const(0, self.dtype), [j])
        whole = tirx.truncdiv(inner, i64(parts))
        with serial(whole) as k:
            for part in range(parts):
                add(part, k * i64(parts) + i64(part))
        if parts > 1:
            with serial(inner, start=whole * i64(parts)) as k:
                add(0, k)
        for i, rows in enumerate(zip(*sums, strict=True)):
            with lanes(self.width) as j:
                write(i64(i), j, sum((row[j] for row in rows[1:]), rows[0][j]))
