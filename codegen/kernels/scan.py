"""The general scan: a serial loop over time around any body.

Where every element of the carries evolves by itself, elements are in lanes, carries in registers and blocks of elements
run in parallel. Other bodies run as the kernels of one step, one after another (``step.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx

from coilc.ir import Graph, Value
from coilc.ir import dims as d
from coilc.ir.opdef import ELEMENTWISE

from ..reader import MOVES, Indices, Reader, View, store_element
from ..scalar import Expr, decode, storage_dtype
from .anchor import Anchor
from .loops import Blocks, i64, lanes, local, parallel, product, serial, unravel
from .step import emit_step_by_step

VECTORS_PER_BLOCK = 2
VECTORS_OF_SHORT_BODIES = 4  # where loads and stores take longer than the step
SHORT = 8  # elementwise nodes


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

    def reader(self, t: Expr, carried: Mapping[Value, View]) -> Reader:
        """Evaluates the body at step ``t``: slices and constants come from the operands, the rest from ``carried``."""
        views: dict[Value, View] = dict(carried)
        last = self.carries + self.k.node.attrs["sequences"]
        for i, value in enumerate(self.body.inputs[self.carries :], self.carries):
            views[value] = self._slice(i, t) if i < last else self._constant(i)
        return Reader(self.body, {}, self.k.kernel.reader.dims, views)

    def _slice(self, operand: int, t: Expr) -> View:
        return lambda indices: self.k.read(operand, *self.stacked(t, indices))

    def _constant(self, operand: int) -> View:
        return lambda indices: self.k.read(operand, *indices)


def emit_scan(k: Anchor) -> None:
    """Write the body of the kernel: the last carries, then the stacked outputs."""
    loop = Loop(k)
    if evolves_by_element(loop.body, loop.carries):
        _emit_by_element(loop)
    else:
        emit_step_by_step(k)


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
    short = sum(ELEMENTWISE in node.op.traits for node in loop.body.nodes) <= SHORT
    blocks = Blocks(inner, (VECTORS_OF_SHORT_BODIES if short else VECTORS_PER_BLOCK) * k.target.lanes(bits))
    extents = [*(k.extent(dim) for dim in outer), i64(blocks.count(k.extent(inner)))]
    with parallel(k, product(extents), d.size((*space, loop.length, len(loop.body.nodes)))) as task:
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
