"""Stable sorting along an axis, one sequence per task.

A short sequence is sorted by counting, for every element, those that come before it: quadratic, but in vectors. A long
one is sorted in place, as a heap of indices whose ties are broken by the index, or of values when only they are wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from ..loops import blocks, for_each_task, lanes, vector_loop, whole_axis
from ..scalar import Expr, bind, decode, dtype_name, is_nan
from .anchor import Anchor
from .loops import i64, local, serial, when

COUNTED = 250  # longest sequence that is sorted by counting; its ranks fit on the stack


def emit_sort(k: Anchor) -> None:
    """Write the body of the kernel: the values in order, and where each came from."""
    x, axis = k.dims(0), k.node.attrs["axis"]
    outer, inner, length = x[:axis], x[axis + 1 :], x[axis]

    def task(p: Expr) -> None:
        place = k.kernel.reader.unravel(p, (*outer, *inner))
        before, after = place[: len(outer)], place[len(outer) :]
        sequence = Sequence(k, before, after)
        if isinstance(length, int) and length <= COUNTED:
            _sort_by_counting(sequence, length)
        else:
            _sort_as_heap(sequence, k.extent(length))

    for_each_task(k.kernel, d.size((*outer, *inner)), d.size(x) * 8, task)


@dataclass(frozen=True)
class Sequence:
    """One sequence along the axis."""

    k: Anchor
    before: list[Expr]
    after: list[Expr]

    def place(self, i: Expr) -> list[Expr]:
        return [*self.before, i, *self.after]

    def key(self, i: Expr) -> Expr:
        value = self.k.read(0, *self.place(i))
        return T.Cast("int8", value) if dtype_name(value) == "bool" else value

    def precedes(self, x: Expr, y: Expr) -> Expr:
        """Whether key x comes strictly before y; NaN is largest."""
        if self.k.node.attrs["descending"]:
            x, y = y, x
        if not dtype_name(x).startswith("float"):
            return x < y
        return tirx.Or(x < y, tirx.And(is_nan(y), tirx.Not(is_nan(x))))

    def store(self, rank: Expr, source: Expr) -> None:
        if 0 in self.k.outputs_of:
            self.k.store(0, self.place(rank), self.k.read(0, *self.place(source)))
        if 1 in self.k.outputs_of:
            self.k.store(1, self.place(rank), source)


def _sort_by_counting(s: Sequence, length: int) -> None:
    ranks = local((length,), "int32")
    span = whole_axis(s.k.kernel, length)
    width = s.k.target.vector_bits // 32
    vector_loop(span, width, lambda i: T.buffer_store(ranks, tirx.const(0, "int32"), [i]))
    with serial(length) as j:
        other = bind(s.key(j))

        def count(i: Expr) -> Expr:
            mine = bind(s.key(i))
            tie = tirx.And(tirx.Not(s.precedes(mine, other)), j < i)
            return T.Cast("int32", tirx.Or(s.precedes(other, mine), tie))

        # A vector that overlaps its neighbour would count twice.
        blocks(span, width, lambda start, w: lanes(w, lambda lane: _increase(ranks, start + lane, count)))
    with serial(length) as i:
        s.store(bind(T.Cast("int64", ranks[i])), i)


def _increase(ranks: tirx.Buffer, i: Expr, count: Callable[[Expr], Expr]) -> None:
    T.buffer_store(ranks, ranks[i] + count(i), [i])


def _sort_as_heap(s: Sequence, length: Expr) -> None:
    """Heap sort of the indices, or of the values when the indices are not wanted."""
    s.k.require_no_epilogue()
    heap = _IndexHeap(s) if 1 in s.k.outputs_of else _ValueHeap(s)
    with serial(length) as i:
        heap.write(i, heap.initial(i))
    half = tirx.truncdiv(length, i64(2))
    with serial(half) as i:
        root = bind(half - i64(1) - i)
        _sift(heap, root, length, bind(heap.item(root)))
    with serial(length - i64(1)) as i:
        end = bind(length - i64(1) - i)
        item = bind(heap.item(end))
        heap.write(end, bind(heap.item(i64(0))))
        _sift(heap, i64(0), end, item)
    if 1 in s.k.outputs_of and 0 in s.k.outputs_of:
        with serial(length) as i:
            s.k.store(0, s.place(i), s.k.read(0, *s.place(bind(heap.item(i)))))


def _sift(heap: _IndexHeap | _ValueHeap, root: Expr, end: Expr, item: Expr) -> None:
    """Put ``item`` below ``root``, moving up the larger child at each step; the heap ends before ``end``."""
    hole, child = local((1,), "int64"), local((1,), "int64")
    zero = i64(0)
    T.buffer_store(hole, root, [zero])
    T.buffer_store(child, root * i64(2) + i64(1), [zero])
    with T.While(child[zero] < end):
        with (
            when(child[zero] + i64(1) < end),
            when(heap.precedes(heap.item(child[zero]), heap.item(child[zero] + i64(1)))),
        ):
            T.buffer_store(child, child[zero] + i64(1), [zero])
        with T.If(heap.precedes(item, heap.item(child[zero]))):
            with T.Then():
                heap.write(hole[zero], heap.item(child[zero]))
                T.buffer_store(hole, child[zero], [zero])
                T.buffer_store(child, child[zero] * i64(2) + i64(1), [zero])
            with T.Else():
                T.buffer_store(child, end, [zero])
    heap.write(hole[zero], item)


@dataclass(frozen=True)
class _IndexHeap:
    """Items are indices, in the memory of the second result."""

    s: Sequence

    @property
    def buffer(self) -> tirx.Buffer:
        return self.s.k.kernel.outputs[self.s.k.outputs_of[1][0]]

    def initial(self, i: Expr) -> Expr:
        return i

    def item(self, i: Expr) -> Expr:
        return self.buffer[tuple(self.s.place(i))]

    def write(self, i: Expr, item: Expr) -> None:
        T.buffer_store(self.buffer, item, self.s.place(i))

    def precedes(self, x: Expr, y: Expr) -> Expr:
        x, y = bind(x), bind(y)
        mine, other = bind(self.s.key(x)), bind(self.s.key(y))
        tie = tirx.And(tirx.Not(self.s.precedes(other, mine)), x < y)
        return tirx.Or(self.s.precedes(mine, other), tie)


@dataclass(frozen=True)
class _ValueHeap:
    """Items are values, in the memory of the first result, which has no epilogue."""

    s: Sequence

    @property
    def position(self) -> int:
        return self.s.k.outputs_of[0][0]

    def initial(self, i: Expr) -> Expr:
        return self.s.k.read(0, *self.s.place(i))

    def item(self, i: Expr) -> Expr:
        stored = self.s.k.kernel.outputs[self.position][tuple(self.s.place(i))]
        return decode(stored, self.s.k.node.types[0].dtype)

    def write(self, i: Expr, item: Expr) -> None:
        self.s.k.kernel.store(self.position, self.s.place(i), item)

    def precedes(self, x: Expr, y: Expr) -> Expr:
        return self.s.precedes(bind(x), bind(y))
