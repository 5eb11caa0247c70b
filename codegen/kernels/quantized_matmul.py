"""Matrix product of integers, with weights that ``quantize_panels`` laid out: exact sums per group, then scaled in f32.

A task is one panel of columns for a block of rows. The rows of a tile are copied to local memory first, so that the bytes of
a step are one load. A step multiplies them with four rows of the panel, whose bytes lie together for every column, or, where
there is an instruction for two rows by two columns, with eight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from ..dot import dot, dot_of_pairs, has_dot, has_dot_of_pairs, wants_unsigned
from ..scalar import Expr, bind
from .anchor import Anchor
from .loops import ceildiv, each_column, i64, lanes, local, parallel, serial, unravel, when
from .tile import Tile

X, W, SCALE = range(3)
ROW_BLOCK = 256
AHEAD = 8192  # bytes of a panel between what is read and what the memory is asked for
SIGN = -128  # added to a byte, modulo 256, it makes a signed one unsigned


def emit_quantized_matmul(k: Anchor) -> None:
    """Write the body of the kernel: x[..., M, K] @ w -> y[..., M, N] with its epilogue."""
    leading, inner, columns = k.dims(X)[:-1], k.dims(X)[-1], k.node.types[0].dims[-1]
    rows, panel = k.extent(d.size(leading)), k.fixed(k.dims(W)[2])
    tallest = _tallest(k)
    extents = [ceildiv(rows, ROW_BLOCK), k.extent(k.dims(W)[0])]
    with parallel(k, extents[0] * extents[1], d.size((*leading, inner, columns))) as task:
        row_block, place = unravel(task, extents)
        first = row_block * i64(ROW_BLOCK)
        with serial(ceildiv(tirx.min(rows - first, i64(ROW_BLOCK)), tallest)) as step:
            row = first + step * i64(tallest)
            count = bind(tirx.min(rows - row, i64(tallest)))
            out = local((tallest, panel), "float32")
            height = tallest
            while height:
                with when(tirx.all(count <= i64(height), count > i64(height // 2))):
                    tile = _Pairs if height > 1 and _in_pairs(k) else _Rows
                    tile(k, height, row, count, place, out).emit()
                height //= 2
            _store(k, out, row, count, place)


def _tallest(k: Anchor) -> int:
    """Rows of the highest tile, a power of two: no more than there can be."""
    most = d.bounds(d.size(k.dims(X)[:-1]), {})[1]
    return _most_rows(k) if most is None else min(_most_rows(k), 1 << max(most - 1, 0).bit_length())


def _most_rows(k: Anchor) -> int:
    """Rows of a tile; unpacking takes registers where arithmetic has no operands in memory."""
    rows = Tile.of(k.target, "float32").rows
    return rows if k.target.memory_operands or _in_pairs(k) else rows // _parts(k)


def _in_pairs(k: Anchor) -> bool:
    """Whether two rows are multiplied at a time, by steps of eight rows of the panel."""
    (_, groups, panel), inner = k.dims(SCALE), k.fixed(k.dims(X)[-1])
    return has_dot_of_pairs(k.target) and inner // k.fixed(groups) % 8 == 0 and k.fixed(panel) % 4 == 0


def _parts(k: Anchor) -> int:
    """How many times four rows a byte of a panel holds."""
    return 2 if k.operands[W].type.dtype.name == "u8" else 1


def _store(k: Anchor, out: tirx.Buffer, row: Expr, rows: Expr, place: Expr) -> None:
    """The epilogue of the valid rows and columns."""
    extents = [k.extent(dim) for dim in k.dims(X)[:-1]]
    columns, panel = k.node.types[0].dims[-1], int(out.shape[1])
    first = place * i64(panel)
    with serial(rows) as i:
        at = unravel(row + i, extents)
        each_column(columns, k.extent(columns), first, panel, lambda c: k.store(0, [*at, c], out[i, c - first]))


@dataclass(frozen=True)
class _Rows:
    """Up to ``height`` rows times one panel; rows past ``count`` repeat the last and are not stored."""

    k: Anchor
    height: int
    row: Expr
    count: Expr
    place: Expr
    out: tirx.Buffer

    @property
    def lanes(self) -> int:
        return min(self.k.target.lanes(32), int(self.out.shape[1]))

    @property
    def width(self) -> int:
        """Columns at a time: as many as there are registers for, some of which products and unpacking may take.

        Where a step is one instruction, sums take half of them, and bytes whose second half is still to be multiplied others.
        """
        target = self.k.target
        if has_dot(target):
            vectors = 5 * target.registers // 8 // (self.height + _parts(self.k) - 1)
        else:
            vectors = max(_most_rows(self.k) // self.height, 1)
        return min(2 ** (vectors.bit_length() - 1) * self.lanes, int(self.out.shape[1]))

    def emit(self) -> None:
        xs = self._copy()
        with serial(int(self.out.shape[1]) // self.width) as part:
            column = part * i64(self.width)
            for i in range(self.height):
                with lanes(self.width) as j:
                    T.buffer_store(self.out, tirx.const(0, "float32"), [i64(i), column + j])
            with serial(self.k.fixed(self.k.dims(SCALE)[1])) as group:
                self._add_group(xs, group, column)

    def _add_group(self, xs: list[tirx.Buffer], group: Expr, column: Expr) -> None:
        """out += scale * (the integer sums of one group)."""
        for i, total in enumerate(self._sums(xs, group, column)):
            with lanes(self.width) as j:
                scaled = T.Cast("float32", total[j]) * self.k.read(SCALE, self.place, group, column + j)
                T.buffer_store(self.out, self.out[i64(i), column + j] + scaled, [i64(i), column + j])

    def _steps(self, rows: int) -> int:
        """How many times so many rows of the panel a group has."""
        return self.k.fixed(self.k.dims(X)[-1]) // self.k.fixed(self.k.dims(SCALE)[1]) // rows

    def _at(self, i: int) -> list[Expr]:
        """The leading indices of a row."""
        extents = [self.k.extent(dim) for dim in self.k.dims(X)[:-1]]
        return unravel(self.row + tirx.min(i64(i), self.count - i64(1)), extents)

    def _copy(self) -> list[tirx.Buffer]:
        """The rows as bytes next to each other, unsigned if the target wants that."""
        k, inner = self.k, self.k.fixed(self.k.dims(X)[-1])
        rows = []
        for i in range(self.height):
            to, at = local((inner,), "int8"), self._at(i)

            def copy(j: Expr, at: list[Expr] = at, to: tirx.Buffer = to) -> None:
                x = k.read(X, *at, j)
                T.buffer_store(to, x + tirx.const(SIGN, "int8") if wants_unsigned(k.target) else x, [j])

            with serial(ceildiv(inner, 64)) as step:
                each_column(inner, i64(inner), step * i64(64), 64, copy)
            rows.append(to)
        return rows

    def _sums(self, xs: list[tirx.Buffer], group: Expr, column: Expr) -> list[tirx.Buffer]:
        """The integer sums of one group, a buffer for each row."""
        k = self.k
        sums = [_zeros(self.width) for _ in range(self.height)]
        extra = _zeros(self.width)  # what unsigned factors add
        fours = self._steps(4 * _parts(k))
        with serial(fours) as step:
            four = group * i64(fours) + step
            if self.height <= 2:
                k.prefetch(W, AHEAD, 4 * self.width, self.place, four, column, i64(0))
            self._add_products(xs, four, column, sums, extra)
        if wants_unsigned(k.target):
            for total in sums:
                with lanes(self.width) as j:
                    T.buffer_store(total, total[j] - extra[j], [j])
        return sums

    def _add_products(
        self, xs: list[tirx.Buffer], four: Expr, column: Expr, sums: list[tirx.Buffer], extra: tirx.Buffer
    ) -> None:
        """Sums of the four or eight rows that bytes of the panel hold."""
        size, target = self.lanes, self.k.target
        half = tirx.Broadcast(tirx.const(0x80808080 - 2**32, "int32"), size)
        for h in range(_parts(self.k)):
            quad = (four * i64(_parts(self.k)) + i64(h)) * i64(4)
            for v in range(self.width // size):
                span, w = _span(i64(v * size), size), bind(self._weights(four, column + i64(v * size), h))
                for x, total in zip(xs, sums, strict=True):
                    bytes_ = tirx.Broadcast(T.reinterpret("int32", x[_span(quad, 4)]), size)
                    T.buffer_store(total, dot(target, total[span], bytes_, w, size), [span])
                if wants_unsigned(target):
                    T.buffer_store(extra, dot(target, extra[span], half, w, size), [span])

    def _weights(self, four: Expr, column: Expr, half: int) -> Expr:
        """Signed bytes, four rows for each column."""
        k, count = self.k, 4 * self.lanes
        buffer = k.kernel.reader.memory_of(k.operands[W])
        assert buffer is not None, "quantised weights are read where they lie"
        stored = buffer[_span(k.kernel.reader.offset([self.place, four, column, i64(0)], k.dims(W)), count)]
        if _parts(self.k) == 1:
            return stored
        fifteen, shift, eight = (
            tirx.Broadcast(tirx.const(n, t), count) for n, t in ((15, "uint8"), (4, "uint8"), (8, "int8"))
        )
        bits = tirx.shift_right(stored, shift) if half else tirx.bitwise_and(stored, fifteen)
        return T.reinterpret(f"int8x{count}", bits) - eight


@dataclass(frozen=True)
class _Pairs(_Rows):
    """The same in pairs of rows: their bytes take turns in eights, and a vector of sums is two rows by two columns."""

    def _copy(self) -> list[tirx.Buffer]:
        inner = self.k.fixed(self.k.dims(X)[-1])
        size = gcd(inner, 16)
        pairs = []
        for i in range(0, self.height, 2):
            to, places = local((2 * inner,), "int8"), [self._at(i), self._at(i + 1)]
            with serial(inner // size) as step:
                rows = [local((size,), "int8") for _ in places]
                for row, at in zip(rows, places, strict=True):
                    with lanes(size) as j:
                        T.buffer_store(row, self.k.read(X, *at, step * i64(size) + j), [j])
                for part in range(0, size, 8):
                    both = _chosen([*map(_whole, rows)], [*range(part, part + 8), *range(size + part, size + part + 8)])
                    T.buffer_store(to, both, [_span((step * i64(size) + i64(part)) * i64(2), 16)])
            pairs.append(to)
        return pairs

    def _sums(self, xs: list[tirx.Buffer], group: Expr, column: Expr) -> list[tirx.Buffer]:
        sums = [[_zeros(4) for _ in range(self.width // 2)] for _ in xs]
        eights = self._steps(8)
        with serial(eights) as step:
            eight = group * i64(eights) + step
            if self.height <= 2:
                four = eight * i64(2 // _parts(self.k))
                self.k.prefetch(W, AHEAD, 8 * self.width // _parts(self.k), self.place, four, column, i64(0))
            for v in range(self.width // 4):
                for c, w in enumerate(self._columns(eight, column + i64(4 * v))):
                    for x, totals in zip(xs, sums, strict=True):
                        total, two = totals[2 * v + c], x[_span(eight * i64(16), 16)]
                        T.buffer_store(total, dot_of_pairs(_whole(total), two, w), [_span(i64(0), 4)])
        return [self._row(totals, i) for totals in sums for i in range(2)]

    def _columns(self, eight: Expr, column: Expr) -> list[Expr]:
        """Eight rows of four columns: two vectors of two columns."""
        parts = _parts(self.k)
        fours = [eight * i64(2 // parts) + i64(h // parts) for h in range(2)]
        halves = [bind(self._weights(four, column, h % parts)) for h, four in enumerate(fours)]
        return [
            bind(_chosen(halves, [16 * h + 8 * c + 4 * i + b for i in range(2) for h in range(2) for b in range(4)]))
            for c in range(2)
        ]

    def _row(self, totals: list[tirx.Buffer], i: int) -> tirx.Buffer:
        """The sums of one row of a pair."""
        row = local((self.width,), "int32")
        for v in range(self.width // 4):
            four = _chosen([*map(_whole, totals[2 * v : 2 * v + 2])], [2 * i, 2 * i + 1, 2 * i + 4, 2 * i + 5])
            T.buffer_store(row, four, [_span(i64(4 * v), 4)])
        return row


def _zeros(size: int) -> tirx.Buffer:
    buffer = local((size,), "int32")
    with lanes(size) as j:
        T.buffer_store(buffer, tirx.const(0, "int32"), [j])
    return buffer


def _span(first: Expr, size: int) -> Expr:
    return tirx.Ramp(first, tirx.IntImm("int64", 1), size) if size > 1 else first


def _whole(buffer: tirx.Buffer) -> Expr:
    return buffer[_span(i64(0), int(buffer.shape[0]))]


def _chosen(vectors: Sequence[Expr], places: Sequence[int]) -> Expr:
    """Elements of vectors by their places in all of them."""
    return tirx.Shuffle(list(vectors), [tirx.IntImm("int32", place) for place in places])
