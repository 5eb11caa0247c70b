"""The general scan: a serial loop over time around any body.

Where every element of the carries evolves by itself, elements are in lanes, carries in registers and blocks of elements
run in parallel. Other bodies run op by op: matrix products and reductions are written to local memory, everything
pointwise is read through them, and one task works on one index of each symbolic dim, along which ops must not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import Graph, Node, SymDim, UnsupportedError, Value
from coilc.ir import dims as d
from coilc.ir.opdef import ELEMENTWISE, REDUCTION

from ..accumulate import Accumulator
from ..reader import MOVES, Indices, Reader, store_element
from ..scalar import Expr, compute_dtype, decode, storage_dtype
from .anchor import Anchor
from .follow import follow_dim
from .loops import Blocks, i64, lanes, local, parallel, product, serial, unravel

VECTORS_PER_BLOCK = 2
VECTORS_PER_SUM = 4  # independent sums of a matrix product, to hide the latency of the multiply-add

View = Callable[[Indices], Expr]


@dataclass(frozen=True)
class Loop:
    """A scan node: its body and which inputs and results are what."""

    k: Anchor

    @property
    def body(self) -> Graph:
        return self.k.node.attrs["body"]

    @property
    def carries(self) -> int:
        return self.k.node.attrs["carries"]

    @property
    def length(self) -> d.Dim:
        return self.k.dims(self.carries)[self.k.node.attrs["axis"]]

    @contextmanager
    def steps(self) -> Iterator[Expr]:
        """The serial loop; yields the position in time."""
        length = self.k.extent(self.length)
        with serial(length) as step:
            yield length - i64(1) - step if self.k.node.attrs["reverse"] else step

    def stacked(self, t: Expr, indices: Indices) -> list[Expr]:
        """The index into a sequence of an index into its slice at ``t``."""
        axis = self.k.node.attrs["axis"]
        return [*indices[:axis], t, *indices[axis:]]

    def reader(self, t: Expr, carried: Mapping[Value, View]) -> StepReader:
        """Evaluates the body at step ``t``: slices and constants come from the operands, the rest from ``carried``."""
        views: dict[Value, View] = dict(carried)
        last = self.carries + self.k.node.attrs["sequences"]
        for i, value in enumerate(self.body.inputs[self.carries :], self.carries):
            views[value] = self._slice(i, t) if i < last else self._constant(i)
        return StepReader(self.body, views, self.k.kernel.reader.dims)

    def _slice(self, operand: int, t: Expr) -> View:
        return lambda indices: self.k.read(operand, *self.stacked(t, indices))

    def _constant(self, operand: int) -> View:
        return lambda indices: self.k.read(operand, *indices)


class StepReader(Reader):
    """Reads some values through functions of their index instead of from a buffer."""

    def __init__(self, body: Graph, views: dict[Value, View], dims: Mapping[str, Expr]) -> None:
        super().__init__(body, {}, dims)
        self.views = views

    def _evaluate(self, value: Value, indices: Indices) -> Expr:
        return self.views[value](indices) if value in self.views else super()._evaluate(value, indices)


def emit_scan(k: Anchor) -> None:
    """Write the body of the kernel: the last carries, then the stacked outputs."""
    loop = Loop(k)
    if evolves_by_element(loop.body, loop.carries):
        _emit_by_element(loop)
    else:
        _emit_by_op(loop)


def evolves_by_element(body: Graph, carries: int) -> bool:
    """Whether no element of a carry ever meets another one, and all results have one shape."""
    space = body.results[0].dims
    if any(v.dims != space for v in (*body.inputs[:carries], *body.results)):
        return False
    carried = set(body.inputs[:carries])
    for node in body.nodes:
        meets = any(v in carried for v in node.inputs)
        if ELEMENTWISE in node.op.traits:
            carried.update(node.results if meets else ())
        elif node.op.name != "input" and (meets or node.op.name not in MOVES):
            return False
    return True


def _emit_by_element(loop: Loop) -> None:
    k, space = loop.k, loop.body.results[0].dims
    *outer, inner = space or (1,)
    bits = max(32, *(type_.dtype.bits for node in loop.body.nodes for type_ in node.types))
    blocks = Blocks(inner, VECTORS_PER_BLOCK * k.target.lanes(bits))
    extents = [*(k.extent(dim) for dim in outer), i64(blocks.count(k.extent(inner)))]
    with parallel(product(extents), d.size((*space, loop.length, len(loop.body.nodes)))) as task:
        *at, block = unravel(task, extents)
        first = blocks.start(block)
        _run_block(loop, blocks.width, lambda j: [*at, first + j][: len(space)])


def _run_block(loop: Loop, width: int, place: Callable[[Expr], list[Expr]]) -> None:
    """All steps of one vector of elements; ``place`` is the index of a lane's element."""
    k, types = loop.k, [v.type.dtype for v in loop.body.results]
    carried = loop.body.inputs[: loop.carries]
    states = [local((width,), storage_dtype(v.type.dtype)) for v in carried]
    with lanes(width) as j:
        for i, state in enumerate(states):
            store_element(state, [j], k.read(i, *place(j)), types[i])
    with loop.steps() as t, lanes(width) as j:
        views = {v: _lane(state, j, v) for v, state in zip(carried, states, strict=True)}
        reader = loop.reader(t, views)
        after = [reader.read(value, place(j)) for value in loop.body.results]
        for i in range(loop.carries, len(after)):
            k.store(i, loop.stacked(t, place(j)), after[i])
        for i, state in enumerate(states):
            store_element(state, [j], after[i], types[i])
    with lanes(width) as j:
        for i, (value, state) in enumerate(zip(carried, states, strict=True)):
            k.store(i, place(j), _lane(state, j, value)([]))


def _lane(state: tirx.Buffer, j: Expr, value: Value) -> View:
    return lambda _: decode(state[j], value.type.dtype)


# --- op by op ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One index of each symbolic dim: where values are kept, and loops over the rest of their elements.

    Attributes:
        followed: for each symbolic dim, the axis that follows it in each value, and this task's index.
    """

    loop: Loop
    followed: Sequence[tuple[Mapping[Value, int], Expr]]

    def fixed(self, value: Value) -> dict[int, Expr]:
        """The axes of a value on which this task has one index."""
        return {axes[value]: index for axes, index in self.followed if value in axes}

    def memory(self, value: Value) -> tirx.Buffer:
        """Local memory for this task's part of a value."""
        extents = [dim for axis, dim in enumerate(value.dims) if axis not in self.fixed(value)]
        size = d.size(extents)
        if not isinstance(size, int):
            where = [(f"{value.op.name}: {value.type}", value.location or self.loop.k.node.location)]
            raise UnsupportedError(
                "a scan body mixes elements along a symbolic dim, so that a step's memory is unknown:", where
            )
        return local((max(size, 1),), storage_dtype(value.type.dtype))

    def view(self, value: Value, buffer: tirx.Buffer) -> View:
        """Reads from ``memory``."""
        return lambda indices: decode(buffer[self.position(value, indices)], value.type.dtype)

    def position(self, value: Value, indices: Indices) -> Expr:
        position, fixed = i64(0), self.fixed(value)
        for axis, (index, dim) in enumerate(zip(indices, value.dims, strict=True)):
            if axis not in fixed:
                position = position * self.loop.k.extent(dim) + index
        return position

    @contextmanager
    def vectors(self, value: Value) -> Iterator[tuple[Callable[[Expr], list[Expr]], int]]:
        """Loops over this task's elements of a value; yields the index of a lane, and how many lanes."""
        fixed, rank = self.fixed(value), value.type.rank
        with ExitStack() as stack:
            at = [fixed.get(axis) for axis in range(rank)]
            for axis in range(rank - 1):
                if at[axis] is None:
                    at[axis] = stack.enter_context(serial(self.loop.k.extent(value.dims[axis])))
            if not rank or at[-1] is not None:
                yield lambda j: list(at), 1
                return
            blocks = Blocks(value.dims[-1], VECTORS_PER_SUM * self.loop.k.target.lanes(max(32, value.type.dtype.bits)))
            block = stack.enter_context(serial(blocks.count(self.loop.k.extent(value.dims[-1]))))
            yield lambda j: [*at[:-1], blocks.start(block) + j], blocks.width

    def fill(self, value: Value, buffer: tirx.Buffer, read: Callable[[list[Expr]], Expr]) -> None:
        """Write every element to ``memory``."""
        with self.vectors(value) as (place, width), lanes(width) as j:
            store_element(buffer, [self.position(value, place(j))], read(place(j)), value.type.dtype)


def _emit_by_op(loop: Loop) -> None:
    k = loop.k
    named = {dim: None for v in loop.body.inputs[: loop.carries] for dim in v.dims if isinstance(dim, SymDim)}
    found = {dim: follow_dim(loop.body, dim, loop.carries) for dim in named}
    followed = {dim: axes for dim, axes in found.items() if axes is not None}
    extents = [k.extent(dim) for dim in followed] or [i64(1)]
    with parallel(product(extents)) as task:
        indices = unravel(task, extents)
        _run_task(Task(loop, tuple(zip(followed.values(), indices, strict=False))))


def _run_task(task: Task) -> None:
    loop, k = task.loop, task.loop.k
    carried = loop.body.inputs[: loop.carries]
    states = [task.memory(v) for v in carried]
    after = [task.memory(v) for v in carried]
    kept = {v: task.memory(v) for v in values_to_keep(loop.body)}
    for i, (value, state) in enumerate(zip(carried, states, strict=True)):
        task.fill(value, state, partial(_initial, k, i))
    with loop.steps() as t:
        reader = loop.reader(t, {v: task.view(v, state) for v, state in zip(carried, states, strict=True)})
        for value, buffer in kept.items():
            _compute(task, reader, value, buffer)
            reader.views[value] = task.view(value, buffer)
        for i, (value, buffer) in enumerate(zip(carried, after, strict=True)):
            task.fill(value, buffer, partial(reader.read, loop.body.results[i]))
        for i, value in enumerate(loop.body.results[loop.carries :], loop.carries):
            with task.vectors(value) as (place, width), lanes(width) as j:
                k.store(i, loop.stacked(t, place(j)), reader.read(value, place(j)))
        for value, state, buffer in zip(carried, states, after, strict=True):
            task.fill(value, state, task.view(value, buffer))
    for i, (value, state) in enumerate(zip(carried, states, strict=True)):
        with task.vectors(value) as (place, width), lanes(width) as j:
            k.store(i, place(j), task.view(value, state)(place(j)))


def _initial(k: Anchor, operand: int, indices: Indices) -> Expr:
    return k.read(operand, *indices)


def values_to_keep(body: Graph) -> list[Value]:
    """Values that are computed once per step and kept: results of matrix products and reductions, and their operands
    when those are computed, since every element is read many times."""
    kept: dict[Value, None] = {}
    for node in body.nodes:
        if node.op.name == "matmul":
            kept |= dict.fromkeys(v for v in node.inputs if ELEMENTWISE in v.op.traits)
        if node.op.name == "matmul" or REDUCTION in node.op.traits:
            kept[node.results[0]] = None
        elif node.inputs and ELEMENTWISE not in node.op.traits and node.op.name not in MOVES:
            raise UnsupportedError("this op inside a scan body has no kernel:", [(node.op.name, node.location)])
    return list(kept)


def _compute(task: Task, reader: StepReader, value: Value, buffer: tirx.Buffer) -> None:
    if value.op.name == "matmul":
        _multiply(task, reader, value, buffer)
    elif REDUCTION in value.op.traits:
        _reduce(task, reader, value, buffer)
    else:
        task.fill(value, buffer, lambda at: reader.read(value, at))


def _multiply(task: Task, reader: StepReader, value: Value, buffer: tirx.Buffer) -> None:
    """Columns in lanes, the inner dimension serial."""
    x, y = value.node.inputs
    dtype = compute_dtype(value.type.dtype)
    with task.vectors(value) as (place, width):
        total = local((width,), dtype)
        with lanes(width) as j:
            T.buffer_store(total, tirx.const(0, dtype), [j])
        with serial(task.loop.k.extent(x.dims[-1])) as inner, lanes(width) as j:
            *batch, row, column = place(j)
            step = reader.read(x, [*batch, row, inner]) * reader.read(y, [*batch, inner, column])
            T.buffer_store(total, total[j] + step, [j])
        with lanes(width) as j:
            store_element(buffer, [task.position(value, place(j))], total[j], value.type.dtype)


def _reduce(task: Task, reader: StepReader, value: Value, buffer: tirx.Buffer) -> None:
    """Kept elements in lanes, reduced axes serial."""
    (x,), node = value.node.inputs, value.node
    axes = [axis % x.type.rank for axis in node.attrs["axes"]]
    with task.vectors(value) as (place, width):
        total = Accumulator.open(node.op, value.type.dtype, width)
        with ExitStack() as stack:
            reduced = {a: stack.enter_context(serial(task.loop.k.extent(x.dims[a]))) for a in axes}
            with lanes(width) as j:
                total.add(j, reader.read(x, _operand_index(node, place(j), reduced)))
        with lanes(width) as j:
            store_element(buffer, [task.position(value, place(j))], total.lane(j), value.type.dtype)


def _operand_index(node: Node, kept: Sequence[Expr], reduced: Mapping[int, Expr]) -> list[Expr]:
    """The operand's index from the result's and those of the reduced axes."""
    if node.attrs["keepdims"]:
        return [reduced.get(axis, index) for axis, index in enumerate(kept)]
    rest = iter(kept)
    return [reduced[axis] if axis in reduced else next(rest) for axis in range(node.inputs[0].type.rank)]
