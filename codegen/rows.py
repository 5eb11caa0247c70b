"""Row bodies: reductions over the trailing axes of one space, and everything pointwise around them.

A task is one row. Each reduction is a loop over the row that recomputes what it reads from the inputs, which are in
cache, or in registers where threads of a device share a row that is not too long; results per row stay in registers. An
expensive value that later loops need again, such as the exponential of a softmax, is kept in the output's own row until the
last loop overwrites it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import Graph, Value
from coilc.ir import dims as d
from coilc.ir.dims import Dims
from coilc.ir.opdef import ELEMENTWISE, REDUCTION

from .accumulate import Accumulator
from .kernel import Kernel
from .loops import blocks, lane_count, lanes, whole_axis
from .reader import index
from .scalar import Expr, allocate, compute_dtype
from .team import Team, first_of, for_each_row
from .threads import WARP, wait_for_block

EXPENSIVE = frozenset({"exp", "exp2", "softplus", "log", "log1p", "expm1", "sin", "cos", "tan", "atan", "tanh", "erf", "sigmoid", "pow", "atan2", "div"})  # fmt: skip


HELD = 32  # elements of a row and what belongs to it that a thread of a team has in registers


@dataclass(frozen=True)
class Rows:
    """The structure of a row body."""

    body: Graph

    @cached_property
    def reductions(self) -> tuple[Value, ...]:
        return tuple(node.results[0] for node in self.body.nodes if REDUCTION in node.op.traits)

    @cached_property
    def space(self) -> Dims:
        """Dims of everything that is not per row."""
        return self.reductions[0].node.inputs[0].dims

    @cached_property
    def split(self) -> int:
        """The first reduced axis."""
        return min(self.reductions[0].node.attrs["axes"])

    @property
    def outer(self) -> Dims:
        return self.space[: self.split]

    @property
    def inner(self) -> Dims:
        return self.space[self.split :]

    @cached_property
    def needs(self) -> dict[Value, frozenset[Value]]:
        """For each value, the reductions that it is computed from, itself included."""
        found: dict[Value, frozenset[Value]] = {}
        for node in self.body.nodes:
            own = frozenset(node.results if REDUCTION in node.op.traits else ())
            found.update(dict.fromkeys(node.results, own.union(*(found[v] for v in node.inputs))))
        return found

    @cached_property
    def stages(self) -> tuple[tuple[Value, ...], ...]:
        """Reductions that can share a loop, in the order of the loops."""
        depth: dict[Value, int] = {}
        for value in self.reductions:
            depth[value] = 1 + max((depth[v] for v in self.needs[value] if v is not value and v in depth), default=0)
        return tuple(
            tuple(v for v in self.reductions if depth[v] == stage) for stage in range(1, max(depth.values()) + 1)
        )

    def is_per_row(self, value: Value) -> bool:
        """Whether a value is one number per row, worth keeping in a register."""
        rank = len(self.space)
        return (
            value.type.rank == rank
            and value.dims[: self.split] == self.outer
            and all(dim == 1 for dim in value.dims[self.split :])
            and value.op.name not in ("constant", "broadcast", "input")
        )

    @cached_property
    def kept(self) -> dict[Value, int]:
        """Values to store once and read again, and the output whose memory holds them until the last loop.

        The first stage that needs such a value computes it, so it must not be needed at other indices.
        """
        free = [
            i
            for i, v in enumerate(self.body.results)
            if v.dims == self.space and v.type.dtype.name == "f32" and v.type.rank > 1
        ]
        found: dict[Value, int] = {}
        for stage in self.stages:
            for reduction in stage:
                for value in self.read_in_place(reduction.node.inputs[0]):
                    if free and value not in found and self._pays(value, stage):
                        found[value] = free.pop()
        return found

    def _pays(self, value: Value, stage: tuple[Value, ...]) -> bool:
        later = [v.node.inputs[0] for s in self.stages if s is not stage for v in s] + list(self.body.results)
        used_again = any(value in self.read_in_place(root) for root in later)
        return value.op.name in EXPENSIVE and value.type.dtype.name == "f32" and used_again

    @cached_property
    def sources(self) -> tuple[Value, ...]:
        """What the elements of a row are computed from, at their own indices and before any reduction."""
        roots = [v.node.inputs[0] for v in self.reductions] + list(self.body.results)
        found = dict.fromkeys(value for root in roots for value in self.read_in_place(root))
        return tuple(v for v in found if ELEMENTWISE not in v.op.traits and not self.needs[v])

    def read_in_place(self, root: Value) -> Iterator[Value]:
        """Values that ``root`` reads at its own indices."""
        pending, seen = [root], set()
        while pending:
            value = pending.pop()
            if value in seen or value.dims != self.space:
                continue
            seen.add(value)
            yield value
            if ELEMENTWISE in value.op.traits:
                pending.extend(value.node.inputs)


def is_row(body: Graph) -> bool:
    """Whether all reductions are over the same trailing axes of one space, with ``keepdims``."""
    reductions = [node for node in body.nodes if REDUCTION in node.op.traits]
    shapes = {node.inputs[0].dims for node in reductions}
    axes = {tuple(sorted(node.attrs["axes"])) for node in reductions}
    if len(shapes) != 1 or len(axes) != 1 or not all(node.attrs["keepdims"] for node in reductions):
        return False
    rank, reduced = len(next(iter(shapes))), next(iter(axes))
    return reduced == tuple(range(rank - len(reduced), rank)) and all(v.type.rank == rank for v in body.results)


def emit_rows(k: Kernel) -> None:
    """One task per row; on a device, one team of threads."""
    rows = Rows(k.body)
    row = lambda p, team: _Row(k, rows, p, team).emit()
    for_each_row(k, d.size(rows.outer), d.size(rows.inner), d.size(rows.space), row)


class _Row:
    """The code of one row."""

    def __init__(self, k: Kernel, rows: Rows, p: Expr, team: Team | None) -> None:
        self.k, self.rows, self.team = k, rows, team
        self.place = k.reader.unravel(p, rows.outer)
        self.held: dict[Value, tirx.Buffer] = {}  # by the number of the thread's element
        self.width = lane_count(k, vectors=4)
        inner = rows.inner[-1]
        while isinstance(inner, int) and self.width > max(inner, 1):
            self.width //= 2

    def emit(self) -> None:
        self.k.reader.fixed.clear()
        for value in self.rows.kept:
            self.k.reader.buffers.pop(value, None)
        self._hold()
        for stage in self.rows.stages:
            self._reduce(stage)
        self._write()

    def _hold(self) -> None:
        """Load what a thread needs of its row before any of it is used or stored; what is used last is asked for first."""
        length, sources = d.size(self.rows.inner), self.rows.sources
        if self.team is None or not isinstance(length, int):
            return
        own = -(-length // self.team.size)
        if not 0 < own * len(sources) <= HELD:
            return
        held = {value: allocate((own,), compute_dtype(value.type.dtype)) for value in sources}
        soon = {v for x in self.rows.stages[0] for v in self.rows.read_in_place(x.node.inputs[0])}
        for values in ([v for v in sources if v not in soon], [v for v in sources if v in soon]):
            self._load(self.team, length, {v: held[v] for v in values})
        self.held = held

    def _load(self, team: Team, length: int, into: Mapping[Value, tirx.Buffer]) -> None:
        """All elements of a thread; those of a block come here together, and no load moves past that."""

        def element(n: Expr, position: Expr) -> None:
            indices = [*self.place, *self.k.reader.unravel(position, self.rows.inner)]
            for value, buffer in into.items():
                T.buffer_store(buffer, self.k.reader.read(value, indices), [n])

        team.each_written_out(length, element)
        if into and team.size > WARP:
            wait_for_block()

    def _reduce(self, stage: tuple[Value, ...]) -> None:
        """One loop over the row for all reductions of a stage."""
        self._name_row_values()
        totals = [Accumulator.open(v.op, v.type.dtype, self.width) for v in stage]
        keep = [v for v in self.rows.kept if v not in self.k.reader.buffers and self._is_first(v, stage)]

        def element(indices: list[Expr], lane: Expr) -> None:
            for value in keep:
                self.k.store(self.rows.kept[value], indices, self.k.reader.read(value, indices))
            for value, total in zip(stage, totals, strict=True):
                total.add(lane, self.k.reader.read(value.node.inputs[0], indices))

        self._over_row(element)
        for value, total in zip(stage, totals, strict=True):
            self.k.reader.fixed[value] = total.total(self.team)
        for value in keep:
            self.k.reader.buffers[value] = self.k.outputs[self.rows.kept[value]]

    def _is_first(self, value: Value, stage: tuple[Value, ...]) -> bool:
        return any(value in self.rows.read_in_place(v.node.inputs[0]) for v in stage)

    def _over_row(self, element: Callable[[list[Expr], Expr], None], *, overlap: bool = False) -> None:
        """Run ``element(indices, lane)``: in vectors, inside serial loops over all but the innermost axis; or for a thread."""
        if self.team is not None:
            return self._over_part(self.team, element)
        *middle, last = self.rows.inner

        def nest(rest: list[Expr]) -> None:
            if len(rest) < len(middle):
                with T.serial(index(0), self.k.extent(middle[len(rest)])) as i:
                    nest([*rest, i])
            else:
                place = [*self.place, *rest]
                block = lambda start, width: lanes(width, lambda lane: element([*place, start + lane], lane))
                blocks(whole_axis(self.k, last), self.width, block, overlap=overlap)

        nest([])

    def _over_part(self, team: Team, element: Callable[[list[Expr], Expr], None]) -> None:
        """This thread's elements; what they are computed from may be in registers."""
        length = d.size(self.rows.inner)

        def at(n: Expr, position: Expr) -> None:
            indices = [*self.place, *self.k.reader.unravel(position, self.rows.inner)]
            for value, buffer in self.held.items():
                self.k.reader.remember(value, indices, buffer[n])
            element(indices, index(0))

        if self.held and isinstance(length, int):
            team.each_written_out(length, at)
        else:
            team.each(self.k.extent(length), lambda position: at(index(0), position))

    def _name_row_values(self) -> None:
        """Evaluate once per row, outside the loop, what is one number per row."""
        known = self.k.reader.fixed.keys()
        for node in self.rows.body.nodes:
            for value in node.results:
                if self.rows.is_per_row(value) and self.rows.needs[value] <= known:
                    self.k.reader.read(value, self._row_indices())

    def _row_indices(self) -> list[Expr]:
        return [*self.place, *(index(0) for _ in self.rows.inner)]

    def _write(self) -> None:
        self._name_row_values()
        whole = [i for i, v in enumerate(self.k.body.results) if v.dims == self.rows.space]
        per_row = [(i, v) for i, v in enumerate(self.k.body.results) if i not in whole]
        if per_row:
            with first_of(self.team):
                for i, value in per_row:
                    self.k.store(i, self._row_indices(), self.k.reader.read(value, self._row_indices()))
        # Rewriting an element is harmless unless its old content, a kept value, is needed for that.
        overlap = not self.rows.kept

        def element(indices: list[Expr], _: Expr) -> None:
            values = [(i, self.k.reader.read(self.k.body.results[i], indices)) for i in whole]
            for i, value in values:
                self.k.store(i, indices, value)

        if whole:
            self._over_row(element, overlap=overlap)
