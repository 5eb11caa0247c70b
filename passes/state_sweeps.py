"""Scan bodies that pass over a matrix of state row by row: what one pass computes, and what is computed once before it.

The state is ``[rows, lanes]``. Every element evolves by itself, and sums over the rows (readouts, what a delta rule removes)
are vectors over the lanes. ``Sweep`` finds these parts in a body, however it is written; ``codegen/kernels/sweep.py`` makes
loops of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from coilc.ir import Graph, Node, Value, ops
from coilc.ir.opdef import ELEMENTWISE, MOVEMENT, REDUCTION, STRUCTURAL

from .independent_axes import Classes, Cut, links, narrowed

Place = tuple[int | None, int | None]  # which axis of a value follows the rows, and which one the lanes

NARROWEST, WIDEST = 8, 64  # lanes that are worth a pass, and that stay in registers


@lru_cache(maxsize=256)
def sweep_of(scan: Node, lanes: int = WIDEST) -> Sweep | None:
    """The passes of a task of a scan, over at most so many lanes."""
    body: Graph = scan.attrs["body"]
    inside, cuts, _ = narrowed(body, scan.attrs["carries"], lanes=lanes)
    sweep = Sweep(inside, scan.attrs["carries"], cuts)
    sweep.moving.update(inside.inputs[sweep.carries : sweep.carries + scan.attrs["sequences"]])
    sweep.shared.update(i for i, v in enumerate(body.inputs) if not all(cut.axes[v] for cut in cuts))
    try:
        sweep.find()
    except _NotASweep:
        return None
    return sweep


class _NotASweep(Exception):
    """The body does something else."""


@dataclass
class Sweep:
    """A scan body of one task as passes over its state.

    Attributes:
        cuts: what the task is a part of.
        places: for each value that a pass reads or computes, where its rows and lanes are.
        depth: how many reductions over the rows come before a value, one after another.
        reductions: those that are made of the state, in order.
        early: values that are computed before a pass: vectors over rows or lanes, and numbers.
        fixed: matrices that no step changes.
        moving: values that differ from step to step because the sequences do.
        shared: inputs of which several tasks read an element.
    """

    body: Graph
    carries: int
    cuts: Sequence[Cut]
    places: dict[Value, Place] = field(default_factory=dict)
    depth: dict[Value, int] = field(default_factory=dict)
    reductions: list[Value] = field(default_factory=list)
    early: dict[Value, None] = field(default_factory=dict)
    fixed: dict[Value, None] = field(default_factory=dict)
    moving: set[Value] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)

    @property
    def states(self) -> tuple[Value, ...]:
        return self.body.inputs[: self.carries]

    @property
    def rows(self) -> int:
        return self._extents()[0]

    @property
    def lanes(self) -> int:
        return self._extents()[1]

    @property
    def stages(self) -> int:
        """Passes that a step needs: each sums over the rows what the ones before it have summed."""
        last = max(self.depth[v] for v in self.body.results[: self.carries])
        return max(last + 1, *(self.depth[v] for v in self.reductions), 1)

    def summed(self, reduction: Value) -> tuple[tuple[Value, Place], ...]:
        """The operands of a reduction (of a product of two, if it is a ``matmul``) and where their rows and lanes are."""
        node = reduction.node
        if node.op is ops.matmul:
            x, w = node.inputs
            return (x, (x.type.rank - 1, None)), (w, (w.type.rank - 2, w.type.rank - 1))
        (x,) = node.inputs
        rows = [a for a in node.attrs["axes"] if x.dims[a] != 1]
        lanes = [a for a, dim in enumerate(x.dims) if dim != 1 and a not in rows]
        if len(rows) != 1 or len(lanes) != 1:
            raise _NotASweep
        return ((x, (rows[0], lanes[0])),)

    def reads_often(self, index: int) -> bool:
        """Whether an element of a sequence is read by several tasks or passes, so that work on it would be repeated.

        What tasks repeat for a single number of a step is little beside their part of the state.
        """
        row, lane = self.places.get(self.body.inputs[index], (0, None))
        if row is None and lane is None:
            return False
        return index in self.shared or (row is not None and self.stages > 1)

    def needs(self, reductions: list[Value]) -> set[Value]:
        """Values that these reductions, and no others before them, are computed from."""
        return self._below([v for r in reductions for v, _ in self.summed(r)])

    def needs_of_results(self) -> set[Value]:
        return self._below(list(self.body.results))

    # --- finding ------------------------------------------------------------------------------------------------------

    def _extents(self) -> tuple[int, int]:
        rows, lanes = (dim for dim in self.states[0].dims if dim != 1)
        assert isinstance(rows, int)
        assert isinstance(lanes, int)
        return rows, lanes

    def find(self) -> None:
        """Find the parts.

        Raises:
            _NotASweep: the body has another form.
        """
        self._check_states()
        for node in self.body.nodes:
            self._order(node)
            if any(v in self.moving for v in node.inputs):
                self.moving.update(node.results)
        if not self.reductions:
            raise _NotASweep
        for value, place in self._output_places().items():
            self._place(value, place)
        for reduction in self.reductions:
            self._place(reduction, self._reduced_place(reduction))
            for value, place in self.summed(reduction):
                if None in place:
                    self.early[value] = None
                self._place(value, place)
        self.fixed = dict.fromkeys(self._fixed())
        self.early = {v: None for node in self.body.nodes for v in node.results if v in self.early}

    def _check_states(self) -> None:
        shapes = {v.dims for v in self.states}
        if len(shapes) != 1:
            raise _NotASweep
        (dims,) = shapes
        inner = [dim for dim in dims if dim != 1]
        if len(inner) != 2 or not all(isinstance(dim, int) for dim in inner) or dims[-1] == 1:
            raise _NotASweep
        lanes = inner[-1]
        assert isinstance(lanes, int)
        if not NARROWEST <= lanes <= WIDEST or lanes & (lanes - 1):
            raise _NotASweep

    def _order(self, node: Node) -> None:
        """The depth of a node's results; what is made of the state may only be summed over the rows."""
        depth = max((self.depth[v] for v in node.inputs), default=-1)
        if node.op is ops.input_:
            depth = 0 if node.results[0] in self.states else -1
        if depth >= 0 and (REDUCTION in node.op.traits or node.op is ops.matmul):
            depth += 1
            self.reductions.append(node.results[0])
        self.depth.update(dict.fromkeys(node.results, depth))

    def _output_places(self) -> dict[Value, Place]:
        classes = Classes.of(self.body, self.carries)
        state = self.states[0]
        rows, lanes = (classes.find(((), state, a)) for a, dim in enumerate(state.dims) if dim != 1)
        found: dict[Value, Place] = {}
        for value in (*self.states, *self.body.results):
            axes = {a for a, dim in enumerate(value.dims) if dim != 1}
            row, lane = (axes & {*classes.axes(value, root)} for root in (rows, lanes))
            if row & lane or row | lane != axes or len(row) > 1 or len(lane) > 1 or (row and not lane):
                raise _NotASweep
            found[value] = next(iter(row), None), next(iter(lane), None)
        return found

    def _place(self, value: Value, place: Place) -> None:
        """Walk from a value to what it is computed from; every value is read at one place."""
        pending = [(value, place)]
        while pending:
            value, place = pending.pop()
            if value in self.places:
                if self.places[value] != place:
                    raise _NotASweep
                continue
            if self._size(place) != value.type.size:
                raise _NotASweep
            self.places[value] = place
            if value.op is ops.input_ or value in self.reductions:
                continue
            for operand, there in self._operands(value, place):
                if place[0] is not None and place[1] is not None and None in there:
                    self._before(operand)
                pending.append((operand, there))

    def _size(self, place: Place) -> int:
        rows, lanes = self._extents()
        return (1 if place[0] is None else rows) * (1 if place[1] is None else lanes)

    def _before(self, value: Value) -> None:
        if value.op is not ops.constant:
            self.early[value] = None

    def _operands(self, value: Value, place: Place) -> list[tuple[Value, Place]]:
        """What an element of a value is computed from."""
        node = value.node
        if ELEMENTWISE in node.op.traits:
            return [(v, place) for v in node.inputs]
        if node.op in (ops.broadcast, ops.reshape, ops.transpose):
            (x,) = node.inputs
            back = {there: axis for _, axis, _, there in links(node) if x.dims[axis] != 1}
            there = tuple(None if axis is None else back.get(axis) for axis in place)
            return [(x, (there[0], there[1]))]
        if self.depth[value] < 0 and self._is_evaluated(node):
            return []
        raise _NotASweep

    def _is_evaluated(self, node: Node) -> bool:
        """Whether the reader of a kernel knows an op; what is below it is checked too."""
        known = ELEMENTWISE in node.op.traits or MOVEMENT in node.op.traits or STRUCTURAL in node.op.traits
        return known and all(self._is_evaluated(v.node) for v in node.inputs)

    def _reduced_place(self, reduction: Value) -> Place:
        node, lanes = reduction.node, self.summed(reduction)[-1][1][1]
        if lanes is None or node.op is ops.matmul or node.attrs["keepdims"]:
            return None, lanes
        return None, lanes - sum(axis < lanes for axis in node.attrs["axes"])

    def _fixed(self) -> Iterator[Value]:
        """The outermost matrices that depend on no step."""
        for node in self.body.nodes:
            for value in node.inputs:
                steps = self.depth[node.results[0]] >= 0 or node.results[0] in self.moving
                still = self.depth[value] < 0 and value not in self.moving
                if steps and still and self._is_matrix(value):
                    yield value

    def _is_matrix(self, value: Value) -> bool:
        """Whether a value is one that is computed element by element, not one that is repeated."""
        if None in self.places.get(value, (None,)):
            return False
        return value.op is not ops.broadcast or value.node.inputs[0].type.size == value.type.size

    def _below(self, roots: list[Value]) -> set[Value]:
        """What these are computed from, down to reductions."""
        pending, seen = list(roots), set[Value]()
        while pending:
            value = pending.pop()
            if value not in seen:
                seen.add(value)
                pending += () if value in self.reductions else value.node.inputs
        return seen
