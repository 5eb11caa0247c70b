"""Reduce bodies: one reduction over any axes, pointwise before and after.

Lanes run over the innermost axis of the operand. If it is kept, a task owns a vector of results; if it is reduced, a task
owns one result, whose partial results are in lanes. On a device a team of threads then owns it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import Value
from coilc.ir import dims as d
from coilc.ir.dims import Dim, Dims
from coilc.ir.opdef import REDUCTION

from .accumulate import Accumulator
from .collapse import merge_value
from .kernel import Kernel
from .loops import Span, blocks, for_each_task, lane_count, lanes, whole_axis
from .reader import index
from .scalar import Expr, inside_loop, on_device
from .team import LARGEST, Team, first_of, for_each_row, launch_teams, team_size
from .threads import WARP, shared, wait_for_block


@dataclass(frozen=True)
class Reduction:
    """The reduction of a body, its reduced axes merged where they are adjacent.

    Attributes:
        value: its result.
        operand: what is reduced.
        axes: the reduced axes of ``operand``.
    """

    value: Value
    operand: Value
    axes: frozenset[int]

    @staticmethod
    def of(k: Kernel) -> Reduction:
        node = next(node for node in k.body.nodes if REDUCTION in node.op.traits)
        (operand,), axes = node.inputs, frozenset(node.attrs["axes"])
        for axis in sorted(axes, reverse=True):
            merged = merge_value(k.body, operand, axis, k.reader.views) if axis + 1 in axes else None
            if merged is not None:
                operand, axes = merged, frozenset(a - (a > axis) for a in axes)
        return Reduction(node.results[0], operand, axes)

    @property
    def kept(self) -> list[int]:
        return [axis for axis in range(self.operand.type.rank) if axis not in self.axes]

    @property
    def kept_dims(self) -> Dims:
        return tuple(self.operand.dims[axis] for axis in self.kept)

    @property
    def reduced_dims(self) -> Dims:
        return tuple(self.operand.dims[axis] for axis in sorted(self.axes))

    def source(self, kept: Sequence[Expr], reduced: Sequence[Expr]) -> list[Expr]:
        """The operand's index from those of its kept and of its reduced axes."""
        given, inner = iter(kept), iter(reduced)
        return [next(inner if axis in self.axes else given) for axis in range(self.operand.type.rank)]

    def result(self, kept: Sequence[Expr]) -> list[Expr]:
        """The index of the result from those of the kept axes."""
        node, given = self.value.node, iter(kept)
        if not node.attrs["keepdims"]:
            return list(kept)
        return [index(0) if a in node.attrs["axes"] else next(given) for a in range(node.inputs[0].type.rank)]


def emit_reduce(k: Kernel) -> None:
    """Write every output; their dims are those of the reduction's result."""
    r = Reduction.of(k)
    if r.operand.type.rank - 1 in r.axes:
        _one_result_per_task(k, r)
    elif on_device() and not inside_loop():
        _warp_of_results_per_block(k, r)
    else:
        _vector_of_results_per_task(k, r)


def _accumulate(k: Kernel, r: Reduction, body: Callable[[list[Expr]], None], depth: int) -> None:
    """Serial loops over the first ``depth`` reduced axes."""
    dims = r.reduced_dims

    def nest(at: list[Expr]) -> None:
        if len(at) == depth:
            body(at)
            return
        with T.serial(index(0), k.extent(dims[len(at)])) as i:
            nest([*at, i])

    nest([])


def _store(k: Kernel, r: Reduction, kept: list[Expr], element: Expr) -> None:
    place = r.result(kept)
    for output, value in enumerate(k.body.results):
        k.store(output, place, k.reader.read(value, place, {r.value: element}))


def _one_result_per_task(k: Kernel, r: Reduction) -> None:
    inner = r.operand.dims[-1]
    width = lane_count(k, vectors=4)
    while isinstance(inner, int) and width > inner:
        width //= 2

    def task(p: Expr, team: Team | None) -> None:
        kept = k.reader.unravel(p, r.kept_dims)
        total = Accumulator.open(r.value.op, r.value.type.dtype, width)

        def add(at: list[Expr], lane: Expr) -> None:
            total.add(lane, k.reader.read(r.operand, r.source(kept, at)))

        def along(at: list[Expr]) -> None:
            vector = lambda start, width: lanes(width, lambda lane: add([*at, start + lane], lane))
            blocks(whole_axis(k, inner), width, vector)

        if team is None:
            _accumulate(k, r, along, len(r.axes) - 1)
        else:
            first = index(0)
            team.each(k.extent(d.size(r.reduced_dims)), lambda i: add(k.reader.unravel(i, r.reduced_dims), first))
        found = total.total(team)
        with first_of(team):
            _store(k, r, kept, found)

    for_each_row(k, d.size(r.kept_dims), d.size(r.reduced_dims), r.operand.type.size, task)


def _warp_of_results_per_block(k: Kernel, r: Reduction) -> None:
    """The lanes of a warp have neighbouring results, and its warps different parts of what is reduced."""
    *outer, inner = r.kept_dims
    count = (inner + (WARP - 1)) // WARP
    reduced = d.size(r.reduced_dims)
    parts = min(team_size(reduced) if isinstance(reduced, int) else LARGEST, LARGEST // WARP)
    with launch_teams(k.extent(d.size((*outer, count))), parts * WARP, together=True) as (block, team):
        lane, part = (T.Bind(f(team.thread, index(WARP))) for f in (tirx.truncmod, tirx.truncdiv))
        *rest, i = k.reader.unravel(block, (*outer, count))
        column = T.Bind(i * index(WARP) + lane)
        place = [*rest, T.Bind(tirx.min(column, k.extent(inner) - index(1)))]
        total = Accumulator.open(r.value.op, r.value.type.dtype, 1)

        def add(i: Expr) -> None:
            total.add(index(0), k.reader.read(r.operand, r.source(place, k.reader.unravel(i, r.reduced_dims))))

        Team(parts, part, team.thread).each(k.extent(reduced), add)
        memory = shared((parts, WARP), str(total.buffer.dtype))
        T.buffer_store(memory, total.buffer[index(0)], [part, lane])
        wait_for_block()
        with T.If(tirx.all(tirx.EQ(part, index(0)), column < k.extent(inner))), T.Then():
            with T.serial(index(1), index(parts)) as other:
                total.merge(memory[other, lane])
            _store(k, r, place, total.total())


def _vector_of_results_per_task(k: Kernel, r: Reduction) -> None:
    *outer, inner = r.kept_dims
    width = lane_count(k, vectors=4)
    while isinstance(inner, int) and width > max(inner, 1):
        width //= 2
    count = _tasks(inner, width)

    def block(rest: list[Expr], start: Expr, width: int) -> None:
        total = Accumulator.open(r.value.op, r.value.type.dtype, width)

        def step(at: list[Expr]) -> None:
            lanes(width, lambda lane: total.add(lane, k.reader.read(r.operand, r.source([*rest, start + lane], at))))

        _accumulate(k, r, step, len(r.axes))
        lanes(width, lambda lane: _store(k, r, [*rest, start + lane], total.lane(lane)))

    def task(p: Expr) -> None:
        *rest, i = k.reader.unravel(p, (*outer, count))
        start = i * index(width)
        span = whole_axis(k, inner) if count == 1 else Span(inner, start, T.min(start + index(width), k.extent(inner)))
        blocks(span, width, lambda start, width: block(rest, start, width), overlap=True)

    for_each_task(k, d.size((*outer, count)), r.operand.type.size, task)


def _tasks(inner: Dim, width: int) -> Dim:
    return (inner + (width - 1)) // width
