"""Scans over a matrix of state, one pass over its rows for a step or for several.

Lanes are columns. A row is loaded once, taken through the steps of the pass, added into the sums over the rows while it is
in registers, and written back; so a readout or the product that a delta rule removes costs no pass of its own. Where a step
needs a sum before it may change any row, the pass that writes the rows for step t also makes that sum for step t + 1.
``passes/state_sweeps.py`` says which bodies are of this form.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import DType, Value, ops
from coilc.ir.opdef import MOVEMENT
from coilc.passes.state_sweeps import Place, Sweep

from ..accumulate import Accumulator, register_dtype
from ..reader import Indices, Reader, View, store_element
from ..rows import EXPENSIVE
from ..scalar import Expr, decode, encode, storage_dtype
from .anchor import AHEAD
from .loops import Blocks, i64, lanes, local, serial, when
from .part import Part

STEPS_PER_PASS = 4
VECTORS_PER_BLOCK = 2

Sums = Mapping[Value, Accumulator]


@dataclass(frozen=True)
class Moment:
    """One step inside a pass: what its values are, and the sums that the pass makes for it."""

    t: Expr
    views: dict[Value, View]
    sums: Sums


class Passes:
    """The code of one task.

    Args:
        dims: for each symbol, an int64 expression.
    """

    def __init__(self, part: Part, sweep: Sweep, dims: Mapping[str, Expr]) -> None:
        self.part, self.k, self.sweep, self.dims = part, part.k, sweep, dims
        self.states = [
            local((sweep.rows, sweep.lanes), storage_dtype(v.type.dtype)) for v in sweep.states
        ]  # of the size of the nearest cache at most
        self.once: dict[Value, View] = {}

    def emit(self) -> None:
        """Write the loop over time and what comes before and after it."""
        self._load_states()
        self._compute_once()
        if self.sweep.stages == 1:
            self._several_steps_per_pass()
        else:
            self._passes_per_step()
        self._store_states()

    # --- the loops over time ------------------------------------------------------------------------------------------

    def _several_steps_per_pass(self) -> None:
        length, steps = self._length(), self._steps_per_pass()
        memory = [self._memory(self.sweep.early) for _ in range(steps)]
        whole = tirx.truncdiv(length, i64(steps))
        with serial(whole) as block:
            self._advance([self._time(block * i64(steps) + i64(i)) for i in range(steps)], memory)
        if steps > 1:
            with serial(length, start=whole * i64(steps)) as step:
                self._advance([self._time(step)], memory)

    def _steps_per_pass(self) -> int:
        """As many as leave their vectors in registers; one if the work on an element outweighs its load and store."""
        sweep = self.sweep
        if any(v.op.name in EXPENSIVE for v, place in sweep.places.items() if None not in place):
            return 1
        vectors = sum(None is row and None is not lane for row, lane in map(sweep.places.__getitem__, sweep.early))
        per_step = (vectors + len(sweep.reductions)) * self._vectors()
        steps = STEPS_PER_PASS
        while steps > 1 and steps * per_step > self.k.target.registers - 8:
            steps //= 2
        return steps

    def _vectors(self) -> int:
        return max(1, self.sweep.lanes // self.k.target.lanes(32))

    def _advance(self, times: Sequence[Expr], memory: Sequence[Mapping[Value, tirx.Buffer]]) -> None:
        """Some steps in one pass over the state."""
        moments = []
        for t, buffers in zip(times, memory, strict=False):
            self._prefetch(t)
            views = self._slices(t)
            self._compute(buffers, views)
            moments.append(Moment(t, views, self._open(self.sweep.reductions)))
        self._pass(moments)
        for moment in moments:
            self._store_outputs(moment)

    def _passes_per_step(self) -> None:
        sweep = self.sweep
        first = [v for v in sweep.reductions if sweep.depth[v] == 1]
        ahead = self._memory(v for v in sweep.early if sweep.depth[v] < 0 and v in sweep.needs(first))
        later = [v for v in sweep.reductions if sweep.depth[v] > 1]
        needed = sweep.needs(later) | sweep.needs_of_results()
        memory = self._memory(v for v in sweep.early if v in needed)
        sums, length = self._open(first), self._length()
        with when(length > i64(0)):
            self._sum(self._ahead(self._time(i64(0)), ahead, sums))
        now = self._open(first)
        with serial(length) as step:
            self._prefetch(self._time(step))
            for v in first:
                _move(now[v], sums[v])
            moment = Moment(self._time(step), self._slices(self._time(step)), now)
            self._add_views(moment, now)
            self._compute({v: b for v, b in memory.items() if sweep.depth[v] <= 1}, moment.views)
            for stage in range(2, sweep.stages):
                made = self._open([v for v in later if sweep.depth[v] == stage])
                self._sum(Moment(moment.t, moment.views, made))
                self._add_views(moment, made)
                self._compute({v: b for v, b in memory.items() if sweep.depth[v] == stage}, moment.views)
            last = self._open([v for v in later if sweep.depth[v] == sweep.stages])
            following = self._time(tirx.min(step + i64(1), length - i64(1)))
            self._pass([Moment(moment.t, moment.views, last)], self._ahead(following, ahead, sums))
            self._store_outputs(Moment(moment.t, moment.views, last))

    def _ahead(self, t: Expr, memory: Mapping[Value, tirx.Buffer], sums: Sums) -> Moment:
        """A step of which only the first sums are made."""
        views = self._slices(t)
        self._compute(memory, views)
        return Moment(t, views, sums)

    def _length(self) -> Expr:
        attrs = self.k.node.attrs
        return self.k.extent(self.k.dims(attrs["carries"])[attrs["axis"]])

    def _time(self, step: Expr) -> Expr:
        return self._length() - i64(1) - step if self.k.node.attrs["reverse"] else step

    # --- passes -------------------------------------------------------------------------------------------------------

    def _pass(self, moments: Sequence[Moment], ahead: Moment | None = None) -> None:
        """Take every row through some steps, then add it into the sums of the step after them."""
        sweep, width = self.sweep, self.sweep.lanes
        with serial(sweep.rows) as n:
            row = [local((width,), str(state.dtype)) for state in self.states]
            with lanes(width) as j:
                for kept, state in zip(row, self.states, strict=True):
                    T.buffer_store(kept, state[n, j], [j])
            for moment in moments:
                with lanes(width) as j:
                    after = self._step(moment, row, n, j)
                    if ahead is not None and moment is moments[-1]:
                        views = {v: _constant(x) for v, x in zip(sweep.states, after, strict=True)}
                        self._add(ahead, self._reader({**ahead.views, **views}), n, j)
            with lanes(width) as j:
                for kept, state in zip(row, self.states, strict=True):
                    T.buffer_store(state, kept[j], [n, j])

    def _step(self, moment: Moment, row: Sequence[tirx.Buffer], n: Expr, j: Expr) -> list[Expr]:
        """One step of one row; the new elements as later steps see them."""
        sweep, part = self.sweep, self.part
        old = {v: _constant(decode(b[j], v.type.dtype)) for v, b in zip(sweep.states, row, strict=True)}
        reader = self._reader({**moment.views, **old})
        results = [(i, v, self._at(v, n, j)) for i, v in enumerate(sweep.body.results) if self._is_matrix(v)]
        after = [(i, v, at, reader.read(v, at)) for i, v, at in results]
        self._add(moment, reader, n, j)
        seen = []
        for i, value, at, element in after:
            if i < len(row):
                stored = encode(element, value.type.dtype)
                T.buffer_store(row[i], stored, [j])
                seen.append(decode(row[i][j], value.type.dtype))
            else:
                part.store(i, moment.t, at, element)
        return seen

    def _sum(self, moment: Moment) -> None:
        """A pass that only reads."""
        with serial(self.sweep.rows) as n, lanes(self.sweep.lanes) as j:
            states = zip(self.sweep.states, self.states, strict=True)
            old = {v: _constant(decode(b[n, j], v.type.dtype)) for v, b in states}
            self._add(moment, self._reader({**moment.views, **old}), n, j)

    def _add(self, moment: Moment, reader: Reader, n: Expr, j: Expr) -> None:
        """Add a row into the sums of a step."""
        elements = []
        for reduction in moment.sums:
            factors = [reader.read(v, _index(v, place, n, j)) for v, place in self.sweep.summed(reduction)]
            elements.append(factors[0] if len(factors) == 1 else factors[0] * factors[1])
        for total, element in zip(moment.sums.values(), elements, strict=True):
            total.add(j, element)

    def _store_outputs(self, moment: Moment) -> None:
        """Write what a step gives besides the state and is no matrix."""
        self._add_views(moment, moment.sums)
        reader, sweep = self._reader(moment.views), self.sweep
        for i, value in enumerate(sweep.body.results):
            if i >= len(self.states) and not self._is_matrix(value):
                with self._each(False, sweep.places[value][1] is not None) as (n, j):
                    at = self._at(value, n, j)
                    self.part.store(i, moment.t, at, reader.read(value, at))

    # --- values -------------------------------------------------------------------------------------------------------

    def _reader(self, views: Mapping[Value, View]) -> Reader:
        return Reader(self.sweep.body, {}, self.dims, views)

    def _slices(self, t: Expr) -> dict[Value, View]:
        """The operands at step ``t``, and what is computed once."""
        carries, last = self.part.carries, self.part.carries + self.k.node.attrs["sequences"]
        inputs = enumerate(self.sweep.body.inputs[carries:], carries)
        return {v: self.part.operand(i, t if i < last else None) for i, v in inputs} | self.once

    def _prefetch(self, t: Expr) -> None:
        """Start loading the vectors of a later step."""
        later = t + i64(-AHEAD if self.k.node.attrs["reverse"] else AHEAD)
        last = self.part.carries + self.k.node.attrs["sequences"]
        for i, value in enumerate(self.sweep.body.inputs[self.part.carries : last], self.part.carries):
            row, lane = self.sweep.places.get(value, (None, None))
            if lane is not None and row is None:
                self.part.prefetch_row(i, later, self.sweep.lanes, partial(_index, value, (None, lane), i64(0)))

    def _compute_once(self) -> None:
        """What no step changes."""
        sweep, views = self.sweep, self._slices(i64(0))
        values = [v for v in (*sweep.early, *sweep.fixed) if sweep.depth[v] < 0 and v not in sweep.moving]
        memory = self._memory(values)
        self._compute(memory, views)
        self.once = {v: views[v] for v in memory}

    def _memory(self, values: Iterable[Value]) -> dict[Value, tirx.Buffer]:
        return {
            v: local(self._shape(self.sweep.places[v]), register_dtype(v.type.dtype))
            for v in values
            if v not in self.once and not self._is_in_memory(v)
        }

    def _is_in_memory(self, value: Value) -> bool:
        """Whether the numbers of rows are read where they are: one of them serves a whole vector."""
        row, lane = self.sweep.places[value]
        while MOVEMENT in value.op.traits:
            (value, *others) = value.node.inputs
            if others:
                return False
        if row is None or lane is not None or value not in self.sweep.body.inputs:
            return False
        return self.k.operands[self.sweep.body.inputs.index(value)] in self.k.kernel.reader.buffers

    def _compute(self, memory: Mapping[Value, tirx.Buffer], views: dict[Value, View]) -> None:
        """Fill memory with values, from which on they are read there; those of one form in one loop."""
        forms: dict[tuple[bool, bool], list[Value]] = {}
        for value in memory:
            row, lane = self.sweep.places[value]
            forms.setdefault((row is not None, lane is not None), []).append(value)
        for form in sorted(forms):
            with self._each(*form) as (n, j):
                reader = self._reader(dict(views))
                for value in forms[form]:
                    at = self._at(value, n, j)
                    element = T.Cast(str(memory[value].dtype), reader.read(value, at))
                    T.buffer_store(memory[value], element, _inner(at, self.sweep.places[value]))
            for value in forms[form]:
                views[value] = partial(_load, memory[value], self.sweep.places[value], value.type.dtype)

    def _shape(self, place: Place) -> tuple[int, ...]:
        extents = (self.sweep.rows, self.sweep.lanes)
        return tuple(n for n, axis in zip(extents, place, strict=True) if axis is not None) or (1,)

    @contextmanager
    def _each(self, rows: bool, lane: bool) -> Iterator[tuple[Expr, Expr]]:
        """Loops over the rows, the lanes, or both."""
        if lane:
            with serial(self.sweep.rows if rows else 1) as n, lanes(self.sweep.lanes) as j:
                yield n, j
        elif rows:
            blocks = Blocks(self.sweep.rows, VECTORS_PER_BLOCK * self.k.target.lanes(32))
            with serial(blocks.count(i64(self.sweep.rows))) as block, lanes(blocks.width) as i:
                yield blocks.start(block) + i, i64(0)
        else:
            with serial(1) as n:
                yield n, n

    def _open(self, reductions: Iterable[Value]) -> dict[Value, Accumulator]:
        found = {}
        for value in reductions:
            op = ops.sum if value.op is ops.matmul else value.op
            found[value] = Accumulator.open(op, value.type.dtype, self.sweep.lanes)
        return found

    def _add_views(self, moment: Moment, sums: Sums) -> None:
        for value, total in sums.items():
            moment.views[value] = partial(_lane, total, self.sweep.places[value])

    def _at(self, value: Value, n: Expr, j: Expr) -> list[Expr]:
        return _index(value, self.sweep.places[value], n, j)

    def _is_matrix(self, value: Value) -> bool:
        return None not in self.sweep.places[value]

    # --- the states ---------------------------------------------------------------------------------------------------

    def _load_states(self) -> None:
        for i, (value, state) in enumerate(zip(self.sweep.states, self.states, strict=True)):
            with serial(self.sweep.rows) as n, lanes(self.sweep.lanes) as j:
                store_element(state, [n, j], self.part.operand(i)(self._at(value, n, j)), value.type.dtype)

    def _store_states(self) -> None:
        for i, (value, state) in enumerate(zip(self.sweep.states, self.states, strict=True)):
            with serial(self.sweep.rows) as n, lanes(self.sweep.lanes) as j:
                self.part.store(i, None, self._at(value, n, j), decode(state[n, j], value.type.dtype))


def _index(value: Value, place: Place, n: Expr, j: Expr) -> list[Expr]:
    """The index of a value's element in row ``n`` and lane ``j``."""
    return [n if a == place[0] else j if a == place[1] else i64(0) for a in range(value.type.rank)]


def _inner(indices: Indices, place: Place) -> list[Expr]:
    return [indices[axis] for axis in place if axis is not None] or [i64(0)]


def _load(buffer: tirx.Buffer, place: Place, dtype: DType, indices: Indices) -> Expr:
    at = _inner(indices, place)
    element = buffer[at[0] if len(at) == 1 else tuple(at)]
    return T.Cast("bool", element) if dtype.kind == "bool" else element


def _lane(total: Accumulator, place: Place, indices: Indices) -> Expr:
    (lane,) = _inner(indices, place)
    return total.lane(lane)


def _constant(element: Expr) -> View:
    return lambda _: element


def _move(to: Accumulator, source: Accumulator) -> None:
    """Take over the sums of another accumulator, which starts again."""
    with lanes(to.width) as j:
        T.buffer_store(to.buffer, source.buffer[j], [j])
    source.clear()
