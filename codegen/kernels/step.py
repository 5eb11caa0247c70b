"""Scans of any body: a step is a small program, scheduled like a model, whose kernels run one after another in the loop.

What flows between these kernels is in task-local memory, as are the carries. A task has one index of every symbolic dim
along which the body mixes nothing (``passes/schedule_steps.py``); what still has no static size is in results of the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import Graph, Node, UnsupportedError, Value
from coilc.ir import dims as d
from coilc.ir.cost import graph_flops
from coilc.passes.independent_axes import Cut
from coilc.passes.plan_memory import root
from coilc.passes.schedule_steps import Step, schedule_step
from coilc.passes.state_sweeps import sweep_of

from ..kernel import Kernel
from ..loops import vector_loop, whole_axis
from ..reader import Indices, Reader, View, store_element
from ..scalar import Expr, bind, storage_dtype
from .anchor import Anchor
from .loops import ceildiv, i64, local, parallel, product, serial, unravel
from .part import Part, Starts
from .sweep import Passes

ROWS = 8  # that a task takes through a product with a matrix that all rows share
VECTORS = 2  # registers per vector of a copy
VECTORS_OF_STATE = 4  # registers per row of a state that a task passes over


def emit_step_by_step(k: Anchor) -> None:
    """Write the body of the kernel: a task has one index of every dim that tasks have apart, or some rows of a product."""
    sweep = sweep_of(k.node, VECTORS_OF_STATE * k.target.lanes(32))
    if sweep is not None:
        with _tasks(k, sweep.cuts) as (part, dims):
            Passes(part, sweep, dims).emit()
        return None
    rows = d.symbol(f"rows{len(k.kernel.reader.dims)}")
    step = schedule_step(k.node, rows)
    block = next((cut for cut in step.cuts if cut.rows == rows), None)
    if block is None:
        return _emit(k, step)
    with T.If(k.extent(block.extent) > i64(1)):
        with T.Then():
            _emit(k, step, rows)
        with T.Else():
            _emit(k, schedule_step(k.node))


def _emit(k: Anchor, step: Step, rows: d.SymDim | None = None) -> None:
    """All tasks of one form of the step."""
    with _tasks(k, step.cuts, rows) as (part, dims):
        Steps(part, step, dims, {str(rows): (1, ROWS)}).emit()


@contextmanager
def _tasks(k: Anchor, cuts: Sequence[Cut], rows: d.SymDim | None = None) -> Iterator[tuple[Part, dict[str, Expr]]]:
    """The parallel loop over the parts of a scan, and the symbols that a part knows."""
    body: Graph = k.node.attrs["body"]
    extents = [ceildiv(k.extent(cut.extent), _rows(cut)) for cut in cuts] or [i64(1)]
    work = graph_flops(body) * k.dims(k.node.attrs["carries"])[k.node.attrs["axis"]]
    with parallel(k, product(extents), work) as task:
        indices = unravel(task, extents)
        parts = [(cut, _first(cut, i)) for cut, i in zip(cuts, indices, strict=False)]

        def starts(value: Value) -> Starts:
            return {axis: first for cut, first in parts for axis in cut.axes[value]}

        dims = dict(k.kernel.reader.dims)
        for cut, first in parts:
            if cut.rows == rows:
                dims[str(rows)] = bind(tirx.min(k.extent(cut.extent) - first, i64(ROWS)))
        yield Part(k, [starts(v) for v in body.inputs], [starts(v) for v in body.results]), dims


def _first(cut: Cut, i: Expr) -> Expr:
    """Where a part begins; the last one ends at the extent."""
    start, rows = i * i64(_rows(cut)), cut.rows
    if isinstance(rows, int) and isinstance(cut.extent, int) and cut.extent % rows:
        return tirx.min(start, i64(cut.extent - rows))
    return start


def _rows(cut: Cut) -> int:
    """How many indices of a dim a task has at most."""
    return cut.rows if isinstance(cut.rows, int) else ROWS


class Steps:
    """The code of one part: the carries, and in a serial loop the kernels of the step.

    Args:
        dims: for each symbol, an int64 expression, that of rows included.
        ranges: of the symbol of rows.
    """

    def __init__(self, part: Part, step: Step, dims: Mapping[str, Expr], ranges: Mapping[str, tuple[int, int]]) -> None:
        self.part, self.k, self.step, self.ranges = part, part.k, step, ranges
        self.inside = Kernel(step.graph, part.k.target, Reader(step.graph, {}, dims), ())

    def emit(self) -> None:
        """Write the loop."""
        step, dims, (memory, kept) = self.step, self.inside.reader.dims, self._allocate()
        with self._time() as t:
            reader = Reader(step.graph, {**memory, **kept, **self._buffers(t)}, dims, self._views(t))
            for node in step.calls:
                self._run(node, reader, kept)
            for i, value in enumerate(step.results[len(memory) :], len(memory)):
                self._for_each(value, partial(self._store, i, t, value, reader))
            self._advance(memory, kept)
        self._store_carries(memory)

    def _allocate(self) -> tuple[dict[Value, tirx.Buffer], dict[Value, tirx.Buffer]]:
        """Memory for the carries, which have their first values, and for what the kernels of a step write."""
        states = self.step.body.inputs[: self.part.carries]
        memory = {v: self._memory(v, i) for i, v in enumerate(states)}
        homes = {v: self.step.result_for(v, len(states)) for v in self.step.kept}
        kept = {v: self._memory(v, None) if i is None else memory[states[i]] for v, i in homes.items()}
        for i, value in enumerate(states):
            self._for_each(value, partial(self._load, i, value, memory[value]))
        return memory, kept

    def _advance(self, memory: Mapping[Value, tirx.Buffer], kept: Mapping[Value, tirx.Buffer]) -> None:
        """What the step made of the carries becomes the carries, unless it was written there."""
        for (value, state), after in zip(memory.items(), self.step.results, strict=False):
            made = kept[root(after)]
            if made is not state:
                self._copy(value, made, state)

    def _store_carries(self, memory: Mapping[Value, tirx.Buffer]) -> None:
        """Write the last carries; those without a local size live in the results."""
        reader = Reader(self.step.graph, memory, self.inside.reader.dims)
        for i, value in enumerate(memory):
            if self._local_size(value) is not None:
                self._for_each(value, partial(self._store, i, None, value, reader))

    # --- memory -------------------------------------------------------------------------------------------------------

    def _memory(self, value: Value, result: int | None) -> tirx.Buffer:
        """Flat memory for a value: local, or this part of a result of the scan.

        Raises:
            UnsupportedError: its size is not known, and no result has room for it.
        """
        size, dtype = self._local_size(value), storage_dtype(value.type.dtype)
        if size is not None:
            return local((max(size, 1),), dtype)
        if result is None:
            source = self.step.sources.get(value, value)
            where = [(f"{source.op.name}: {source.type}", source.location or self.k.node.location)]
            raise UnsupportedError(
                "a step of a scan keeps something whose size is not known, and no result has room for it:", where
            )
        (position,) = self.k.outputs_of[result]
        output, starts = self.k.kernel.outputs[position], self.part.results[result]
        first = [starts.get(axis, i64(0)) for axis in range(value.type.rank)]
        return T.decl_buffer([self.inside.extent(value.type.size)], dtype, data=T.address_of(output[tuple(first)]))

    def _local_size(self, value: Value) -> int | None:
        """Elements that a value has in a part at most, if that is known."""
        if set(d.symbols(value.type.size)) <= self.ranges.keys():
            return d.bounds(value.type.size, self.ranges)[1]
        return None

    def _buffers(self, t: Expr) -> dict[Value, tirx.Buffer]:
        """Constants, and slices at ``t``, of which this part is one piece of memory."""
        found: dict[Value, tirx.Buffer] = {}
        for i, value in enumerate(self.step.body.inputs[self.part.carries :], self.part.carries):
            buffer = self.k.kernel.reader.buffers.get(self.k.operands[i])
            if buffer is None or len(buffer.shape) != 1 or not self._is_dense(i, value):
                continue
            starts = self.part.operands[i]
            if self._moves(i) or starts:
                first = [starts.get(axis, i64(0)) for axis in range(value.type.rank)]
                place = self.part.stacked(t, first) if self._moves(i) else first
                element = buffer[self.k.kernel.reader.offset(place, self.k.dims(i))]
                size = [self.inside.extent(value.type.size)]
                buffer = T.decl_buffer(size, str(buffer.dtype), data=T.address_of(element))
            found[value] = buffer
        return found

    def _is_dense(self, operand: int, value: Value) -> bool:
        """Whether nothing is left out between the first and the last element of this part of an operand."""
        dims, cut = list(value.dims), dict.fromkeys(self.part.operands[operand])
        if self._moves(operand):
            axis = self.k.node.attrs["axis"]
            dims.insert(axis, 1)
            cut = {axis: None, **{a + (a >= axis): None for a in cut}}
        last = max(cut, default=0)
        return all(dim == 1 for dim in dims[:last])

    def _views(self, t: Expr) -> dict[Value, View]:
        """Slices at ``t``, and constants."""
        inputs = enumerate(self.step.body.inputs[self.part.carries :], self.part.carries)
        return {v: self.part.operand(i, t if self._moves(i) else None) for i, v in inputs}

    def _moves(self, operand: int) -> bool:
        carries = self.part.carries
        return carries <= operand < carries + self.k.node.attrs["sequences"]

    def _shaped(self, buffer: tirx.Buffer, value: Value) -> tirx.Buffer:
        dims = [self.inside.extent(dim) for dim in value.dims] or [i64(1)]
        return T.decl_buffer(dims, str(buffer.dtype), data=buffer.data)

    # --- code ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def _time(self) -> Iterator[Expr]:
        """The serial loop; yields the position in time."""
        attrs = self.k.node.attrs
        length = self.k.extent(self.k.dims(attrs["carries"])[attrs["axis"]])
        with serial(length) as step:
            yield length - i64(1) - step if attrs["reverse"] else step

    def _run(self, node: Node, reader: Reader, kept: Mapping[Value, tirx.Buffer]) -> None:
        """One kernel of the step."""
        from ..lower import choose  # lowering knows every kind of kernel, this one included

        given = list(zip(node.attrs["body"].inputs, node.inputs, strict=True))
        buffers = {x: buffer for x, v in given if (buffer := reader.memory_of(v)) is not None}
        views = {x: partial(reader.read, v) for x, v in given if x not in buffers}
        body, emit = choose(node.attrs["body"], views)
        inputs = Reader(body, buffers, reader.dims, views)
        outputs = [self._shaped(kept[v], y) for v, y in zip(node.results, body.results, strict=True)]
        emit(Kernel(body, self.k.target, inputs, outputs))

    def _for_each(self, value: Value, body: Callable[[list[Expr]], None]) -> None:
        """Run ``body`` for every index of a value, innermost in vectors."""
        *outer, inner = value.dims or (1,)
        with ExitStack() as stack:
            at = [stack.enter_context(serial(self.inside.extent(dim))) for dim in outer]
            self._in_vectors(value, inner, lambda j: body([*at, j][: value.type.rank]))

    def _in_vectors(self, value: Value, extent: d.Dim, body: Callable[[Expr], None]) -> None:
        width = VECTORS * self.k.target.lanes(max(32, value.type.dtype.bits))
        while isinstance(extent, int) and width > max(extent, 1):
            width //= 2
        vector_loop(whole_axis(self.inside, extent), width, body)

    def _load(self, i: int, value: Value, state: tirx.Buffer, at: Indices) -> None:
        """One element of a carry's first value."""
        place = self.inside.reader.offset(at, value.dims)
        store_element(state, [place], self.part.operand(i)(at), value.type.dtype)

    def _store(self, i: int, t: Expr | None, value: Value, reader: Reader, at: Indices) -> None:
        """One element of a result of the scan."""
        self.part.store(i, t, at, reader.read(value, at))

    def _copy(self, value: Value, source: tirx.Buffer, to: tirx.Buffer) -> None:
        self._in_vectors(value, value.type.size, lambda j: T.buffer_store(to, source[j], [j]))
