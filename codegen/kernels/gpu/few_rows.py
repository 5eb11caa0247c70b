"""Matrix products with few rows, which take as long as reading the right operand takes.

Every element of it is read once, in vectors, by a thread that multiplies it with all rows. Threads of a block share its
columns and divide the inner dimension; what they have summed is added up in shared memory, always in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...scalar import Expr
from ...threads import WARP, from_lane, shared, wait_for_block, wait_for_warp
from ..anchor import Anchor
from ..loops import ceildiv, i64, local, serial, unrolled, when
from ..matmul import X, Y
from .blocks import blocks
from .operand import Vectors

AHEAD = 4  # steps along the inner dimension whose part of the right operand a thread asks for at a time

Ask = Callable[[Expr], Callable[[Expr], None]]  # loads at an inner index, and gives what adds the products there


def emit_few_rows(k: Anchor, most: int) -> None:
    """Write one launch of x[..., M, K] @ y[..., K, N] for at most so many rows."""
    along_columns, along_inner = Vectors(k, Y, -1), Vectors(k, Y, -2)
    if along_inner.width > 1:
        _DotProducts(k, most, along_inner, threads=256).emit()
    else:
        _Columns(k, most, along_columns, threads=1024 if most == 1 else 512).emit()


@dataclass
class _FewRows:
    """What both forms share; a block has ``threads`` threads."""

    k: Anchor
    most: int
    right: Vectors
    threads: int

    def __post_init__(self) -> None:
        *self.batch, self.rows, self.inner = map(self.k.extent, self.k.dims(X))
        self.columns = self.k.extent(self.k.dims(Y)[-1])
        self.dtype = self.k.compute_dtype(X)

    def zeros(self, size: int) -> tirx.Buffer:
        sums = local((self.most, size), self.dtype)
        with unrolled(self.most) as i, unrolled(size) as j:
            T.buffer_store(sums, tirx.const(0, self.dtype), [i, j])
        return sums

    def walk(self, start: Expr, stride: int, width: int, ask: Ask) -> None:
        """Add a thread's products: those of ``width`` inner indices from ``start`` on, and from every ``stride`` behind it.

        All lanes of a warp take the same steps, of which they ask for some before they use any. What lies behind the end
        is replaced by what can be loaded, and not used.
        """
        size, inner, last = stride * AHEAD, self.k.dims(Y)[-2], self.inner - i64(width)

        def steps(at: Sequence[Expr], cut: bool) -> None:
            """``cut``: the last one may lie behind the end."""
            *_, end = at
            exists = [n <= last if cut and n is end else None for n in at]
            products = [ask(n if test is None else tirx.min(n, last)) for n, test in zip(at, exists, strict=True)]
            wait_for_warp()
            for n, test, add in zip(at, exists, products, strict=True):
                with nullcontext() if test is None else when(test):
                    add(n)

        rounds = tirx.truncdiv(self.inner, i64(size))
        with serial(rounds) as step:
            steps([step * i64(size) + i64(u * stride) + start for u in range(AHEAD)], False)
        done = rounds * i64(size)
        if not isinstance(inner, int):
            with serial(ceildiv(self.inner - done, stride)) as step:
                steps([done + step * i64(stride) + start], True)
        elif inner % size:
            count = -(-(inner % size) // stride)
            steps([done + i64(u * stride) + start for u in range(count)], inner % stride > 0)

    def row(self, i: int) -> Expr:
        """Rows in excess repeat the last one."""
        return tirx.min(i64(i), self.rows - i64(1)) if i else i64(0)

    def finish(self, parts: tirx.Buffer, at: Sequence[Expr], first: Expr, thread: Expr) -> None:
        """Add up [part, row, column] over the parts, and the epilogue."""
        count, _, width = map(int, parts.shape)
        wait_for_block()
        with serial(ceildiv(self.most * width, self.threads)) as step:
            element = step * i64(self.threads) + thread
            row, column = tirx.truncdiv(element, i64(width)), first + tirx.truncmod(element, i64(width))
            with when(tirx.all(row < self.rows, row < i64(self.most), column < self.columns)):
                total = local((1,), self.dtype)
                T.buffer_store(total, tirx.const(0, self.dtype), [0])
                with serial(count) as part:
                    T.buffer_store(total, total[0] + parts[part, row, tirx.truncmod(element, i64(width))], [0])
                self.k.store(0, [*at, row, column], total[0])


class _Columns(_FewRows):
    """Neighbours along the columns are neighbours in memory: a thread has a vector of columns."""

    def lanes(self) -> int:
        """Threads side by side on a row of the right operand: as many as leave blocks to most of the multiprocessors."""
        columns, device = self.k.dims(Y)[-1], self.k.target.device
        assert device is not None
        if self.right.width == 1 or not isinstance(columns, int):
            return WARP if self.right.width == 1 else 4
        enough = 4 * columns // (3 * self.right.width * device.multiprocessors)
        return max(2, min(8, 1 << max(enough, 1).bit_length() - 1))

    def emit(self) -> None:
        lanes = self.lanes()
        width, groups = lanes * self.right.width, self.threads // lanes
        with blocks([*self.batch, ceildiv(self.columns, width)], self.threads) as ((*at, block), thread):
            first = block * i64(width)
            lane, group = tirx.truncmod(thread, i64(lanes)), tirx.truncdiv(thread, i64(lanes))
            column = tirx.min(first + lane * i64(self.right.width), self.columns - i64(self.right.width))
            sums = self.zeros(self.right.width)
            self.walk(group, groups, 1, lambda n: partial(self._add, sums, at, self.right.load([*at, n, column])))
            self._share(sums, at, first, thread, lanes)

    def _add(self, sums: tirx.Buffer, at: Sequence[Expr], values: tirx.Buffer, n: Expr) -> None:
        """Products with a vector of row ``n``."""
        for i in range(self.most):
            x = self.k.read(X, *at, self.row(i), n)
            for j in range(self.right.width):
                T.buffer_store(sums, sums[i, j] + x * self.right.element(values, j), [i, j])

    def _share(self, sums: tirx.Buffer, at: Sequence[Expr], first: Expr, thread: Expr, lanes: int) -> None:
        """Add up over the lanes of a warp that have the same columns, then over the warps."""
        width = self.right.width
        parts = shared((self.threads // WARP, self.most, lanes * width), self.dtype)
        offset = lanes
        while offset < WARP:
            with unrolled(self.most) as i, unrolled(width) as j:
                T.buffer_store(sums, sums[i, j] + from_lane(sums[i, j], offset), [i, j])
            offset *= 2
        lane = tirx.truncmod(thread, i64(WARP))
        with when(lane < i64(lanes)), unrolled(self.most) as i, unrolled(width) as j:
            T.buffer_store(parts, sums[i, j], [tirx.truncdiv(thread, i64(WARP)), i, lane * i64(width) + j])
        self.finish(parts, at, first, thread)


class _DotProducts(_FewRows):
    """Neighbours along the inner dimension are neighbours in memory, where the lanes of a warp are.

    A warp has some columns, or some warps share them and divide the inner dimension if there would be few blocks otherwise.
    """

    @cached_property
    def own(self) -> int:
        """Columns of a warp, whose loads are under way together: some where a column is one step of a warp."""
        columns, inner = self.k.dims(Y)[-1], self.k.dims(Y)[-2]
        short = isinstance(inner, int) and inner <= WARP * self.right.width
        many = isinstance(columns, int) and columns >= 4 * self.k.target.cores
        return 4 if self.most == 1 and short and many else 1

    def shared_by(self) -> int:
        """How many warps share columns: so many that every multiprocessor has four blocks, and all have work."""
        warps, columns, inner = self.threads // WARP, self.k.dims(Y)[-1], self.k.dims(Y)[-2]
        if not isinstance(columns, int) or not isinstance(inner, int):
            return 1
        wanted = -(-self.k.target.cores * warps * self.own // columns)
        most = max(1, min(warps, inner // (WARP * self.right.width)))
        return min(1 << (wanted - 1).bit_length(), 1 << most.bit_length() - 1)

    def emit(self) -> None:
        left, sharers = Vectors(self.k, X, -1, most=self.right.width), self.shared_by()
        width = self.threads // WARP // sharers * self.own
        with blocks([*self.batch, ceildiv(self.columns, width)], self.threads) as ((*at, block), thread):
            lane, warp = tirx.truncmod(thread, i64(WARP)), tirx.truncdiv(thread, i64(WARP))
            group, part = tirx.truncdiv(warp, i64(sharers)), tirx.truncmod(warp, i64(sharers))
            mine = [
                tirx.min(block * i64(width) + group * i64(self.own) + i64(j), self.columns - i64(1))
                for j in range(self.own)
            ]
            sums, stride = self.zeros(self.own), sharers * WARP * self.right.width
            start = (part * i64(WARP) + lane) * i64(self.right.width)
            load = lambda n: [self.right.load([*at, n, column]) for column in mine]
            self.walk(start, stride, self.right.width, lambda n: partial(self._add, sums, left, at, load(n)))
            self._share(sums, at, block * i64(width), thread, group, part, sharers)

    def _add(
        self, sums: tirx.Buffer, left: Vectors, at: Sequence[Expr], columns: Sequence[tirx.Buffer], n: Expr
    ) -> None:
        """Products with a vector of every column, at ``n`` and the inner indices behind it."""
        for i in range(self.most):
            for u in range(0, self.right.width, left.width):
                x = left.load([*at, self.row(i), n + i64(u)])
                for j, values in enumerate(columns):
                    for v in range(left.width):
                        product = left.element(x, v) * self.right.element(values, u + v)
                        T.buffer_store(sums, sums[i, j] + product, [i, j])

    def _share(
        self, sums: tirx.Buffer, at: Sequence[Expr], first: Expr, thread: Expr, group: Expr, part: Expr, sharers: int
    ) -> None:
        """Add up over the lanes of every warp, then over the warps that share a column."""
        parts = shared((sharers, self.most, self.threads // WARP // sharers * self.own), self.dtype)
        lane, offset = tirx.truncmod(thread, i64(WARP)), 1
        while offset < WARP:
            with unrolled(self.most) as i, unrolled(self.own) as j:
                T.buffer_store(sums, sums[i, j] + from_lane(sums[i, j], offset), [i, j])
            offset *= 2
        with when(tirx.EQ(lane, i64(0))), unrolled(self.most) as i, unrolled(self.own) as j:
            T.buffer_store(parts, sums[i, j], [part, i, group * i64(self.own) + j])
        self.finish(parts, at, first, thread)
