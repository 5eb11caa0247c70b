"""Matrix product of integers, with weights that ``quantize_panels`` laid out: exact sums per group, then scaled in f32.

A task is one panel of columns for a block of rows. The rows of a tile are copied to local memory first, so that four of their
bytes are one load; a step multiplies them with four rows of the panel, whose bytes lie together for every column.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from ..dot import dot, has_dot, wants_unsigned
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
    tallest = _most_rows(k)
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
                    _Rows(k, height, row, count, place, out).emit()
                height //= 2
            _store(k, out, row, count, place)


def _most_rows(k: Anchor) -> int:
    """Rows of a tile; unpacking takes registers where arithmetic has no operands in memory."""
    rows = Tile.of(k.target, "float32").rows
    return rows if k.target.memory_operands else rows // _parts(k)


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
        """Columns at a time: as many as there are registers for, some of which products and unpacking may take."""
        target = self.k.target
        sums = 2 * Tile.of(target, "float32").rows if has_dot(target) else _most_rows(self.k)
        return min(max(sums // self.height, 1) * self.lanes, int(self.out.shape[1]))

    def emit(self) -> None:
        xs = self._copy()
        with serial(int(self.out.shape[1]) // self.width) as part:
            column = part * i64(self.width)
            self._clear(column)
            with serial(self.k.fixed(self.k.dims(SCALE)[1])) as group:
                self._add_group(xs, group, column)

    def _copy(self) -> list[tirx.Buffer]:
        """The rows as bytes next to each other, unsigned if the target wants that."""
        k, inner = self.k, self.k.fixed(self.k.dims(X)[-1])
        extents = [k.extent(dim) for dim in k.dims(X)[:-1]]
        rows = []
        for i in range(self.height):
            to = local((inner,), "int8")
            at = unravel(self.row + tirx.min(i64(i), self.count - i64(1)), extents)

            def copy(j: Expr, at: list[Expr] = at, to: tirx.Buffer = to) -> None:
                x = k.read(X, *at, j)
                T.buffer_store(to, x + tirx.const(SIGN, "int8") if wants_unsigned(k.target) else x, [j])

            with serial(ceildiv(inner, 64)) as step:
                each_column(inner, i64(inner), step * i64(64), 64, copy)
            rows.append(to)
        return rows

    def _clear(self, column: Expr) -> None:
        for i in range(self.height):
            with lanes(self.width) as j:
                T.buffer_store(self.out, tirx.const(0, "float32"), [i64(i), column + j])

    def _add_group(self, xs: list[tirx.Buffer], group: Expr, column: Expr) -> None:
        """out += scale * (the integer sums of one group)."""
        k = self.k
        sums = [local((self.width,), "int32") for _ in range(self.height)]
        extra = local((self.width,), "int32")  # what unsigned factors add
        for total in (*sums, extra):
            with lanes(self.width) as j:
                T.buffer_store(total, tirx.const(0, "int32"), [j])
        fours = k.fixed(k.dims(W)[1]) // k.fixed(k.dims(SCALE)[1])
        with serial(fours) as step:
            four = group * i64(fours) + step
            if self.height <= 2:
                k.prefetch(W, AHEAD, 4 * self.width, self.place, four, column, i64(0))
            self._add_products(xs, four, column, sums, extra)
        for i, total in enumerate(sums):
            with lanes(self.width) as j:
                exact = total[j] - extra[j] if wants_unsigned(k.target) else total[j]
                scaled = T.Cast("float32", exact) * k.read(SCALE, self.place, group, column + j)
                T.buffer_store(self.out, self.out[i64(i), column + j] + scaled, [i64(i), column + j])

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


def _span(first: Expr, size: int) -> Expr:
    return tirx.Ramp(first, tirx.IntImm("int64", 1), size) if size > 1 else first
