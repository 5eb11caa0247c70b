"""The plan: what an artifact does when it runs, as data. A list of kernel calls over caller memory, weights and an arena.

A scheduled entry (``verify.scheduled``) holds only inputs, weights, constants, ``reshape`` (an alias) and ``fused``
groups. Every fused node becomes one call; equal bodies share one kernel; every value gets a home.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from coilc.ir import CoilError, Dim, Graph, Location, Module, Node, SymDim, TensorType, Value, dims, ops
from coilc.ir.core import symbols_in
from coilc.ir.opdef import IN_PLACE
from coilc.passes.plan_memory import MemoryPlan, plan_memory, root

from .requirements import requirements

COPY = ""  # the kernel name of a call that copies its first argument to its second
UNBOUNDED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Ref:
    """Where a tensor lives: an input or output of the caller, a weight, a slot of the arena."""

    kind: Literal["input", "output", "weight", "slot"]
    index: int


@dataclass(frozen=True, slots=True)
class Result:
    """One tensor that a call writes. ``location.source``, when set, names the imported value that it equals."""

    type: TensorType
    location: Location | None


@dataclass(frozen=True, slots=True)
class Call:
    """One kernel call. The kernel receives ``args`` as pointers, results last, then ``dims`` as integers."""

    kernel: str
    args: tuple[Ref, ...]
    dims: tuple[Dim, ...]
    results: tuple[Result, ...]

    @property
    def first_result(self) -> int:
        return len(self.args) - len(self.results)


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named dim with its inclusive range, found from ``extent = scale*symbol + offset`` of one input axis."""

    name: str
    low: int
    high: int
    input: int
    axis: int
    scale: int = 1
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """What a call adds to states that keep everything: ``elements``, from place ``states[clock]`` of ``capacity`` on."""

    clock: int
    capacity: Dim
    elements: Dim


@dataclass(frozen=True, slots=True)
class EntryPlan:
    """One entry: its signature, its arena (bytes per slot, the largest of several expressions) and its calls.

    ``states`` pairs the number of an input with that of the output that takes its place in the next call. ``kept`` are
    those states, by number, that only grow: they are written in place, and what is there stays. ``room`` is theirs.
    ``required`` dims must not be negative in a run.
    """

    name: str
    symbols: tuple[Symbol, ...]
    inputs: tuple[tuple[str, TensorType], ...]
    outputs: tuple[tuple[str, TensorType], ...]
    slots: tuple[tuple[Dim, ...], ...]
    calls: tuple[Call, ...]
    states: tuple[tuple[int, int], ...] = ()
    kept: frozenset[int] = frozenset()
    room: Room | None = None
    required: tuple[Dim, ...] = ()

    def rows(self, number: int) -> int:
        """Of a state: 1 if it has a row per sequence of the batch, 0 if it is one for all, -1 if neither."""
        shape = self.state_types[number][1].dims
        names = list(dims.symbols(shape))
        if not names:
            return 0
        return 1 if len(names) == 1 and shape[0] == dims.symbol(names[0]) else -1

    @property
    def state_types(self) -> tuple[tuple[str, TensorType], ...]:
        """Name and type of every state; the name is the output's."""
        return tuple((self.outputs[output][0], self.inputs[input][1]) for input, output in self.states)


@dataclass(frozen=True, slots=True)
class Plan:
    """All entries over one table of weights (large constants included) and one set of kernels by name."""

    entries: tuple[EntryPlan, ...]
    weights: Mapping[str, np.ndarray]
    kernels: Mapping[str, Graph]


def make_plan(module: Module, declared: Module | None = None) -> Plan:
    """Plan every entry of a scheduled module.

    Args:
        declared: the program as the user knows it, by default the same. Its inputs and outputs name the same bytes,
            possibly under another type: complex tensors are pairs of real numbers after the passes.

    Raises:
        CoilError: a symbol that no input axis determines, entries with different states.
    """
    names = _stored_names(module)
    arrays = {name: _stored_array(module, node) for node, name in names.items()}
    weights = dict(sorted(arrays.items()))
    index = {name: i for i, name in enumerate(weights)}
    homes = {node: Ref("weight", index[name]) for node, name in names.items()}
    kernels: dict[Graph, str] = {}
    seen = (declared or module).entries
    entries = tuple(
        _Entry(seen.get(name, graph), graph, homes, kernels).plan(name) for name, graph in module.entries.items()
    )
    _agree_on_states(entries)
    return Plan(entries, weights, {name: body for body, name in kernels.items()})


def _agree_on_states(entries: Sequence[EntryPlan]) -> None:
    """States pass from entry to entry, so all entries that have any have the same."""
    known = [entry for entry in entries if entry.states]
    for entry in known[1:]:
        if entry.state_types != known[0].state_types:
            raise CoilError(f"entries '{known[0].name}' and '{entry.name}' have different states")


def in_place(body: Graph) -> Mapping[int, int]:
    """Results of a kernel that start as an operand: number of the result to number of the operand."""
    inputs = {value: i for i, value in enumerate(body.inputs)}
    return {
        i: inputs[root(value.node.inputs[0])] for i, value in enumerate(body.results) if IN_PLACE in value.op.traits
    }


def kernel_symbols(body: Graph) -> tuple[str, ...]:
    """The symbols that a kernel takes as integers, in order: those in its body, sorted."""
    return tuple(sorted({s for node in body.nodes for s in symbols_in((*node.types, *node.attrs.values()))}))


def with_ranges(body: Graph, graph: Graph) -> Graph:
    """The body with what its kernel must know of the symbols: which of them can be 0."""
    ranges = graph.ranges
    return replace(body, symbols=tuple((s, (int(ranges[s][0] > 0), None)) for s in kernel_symbols(body)))


def _stored_names(module: Module) -> dict[Node, str]:
    """What an artifact keeps: weights that an entry uses, and constants outside kernels, which get a name here."""
    nodes = dict.fromkeys(node for graph in module.entries.values() for node in graph.nodes)
    constants = (node for node in nodes if node.op.name == "constant")
    named = {node: node.attrs["name"] for node in nodes if node.op.name == "weight"}
    return named | {node: f"coilc.constant.{i}" for i, node in enumerate(constants)}


def _stored_array(module: Module, node: Node) -> np.ndarray:
    return module.weights[node.attrs["name"]] if node.op.name == "weight" else node.attrs["value"].value


def _kernel_name(body: Graph, number: int) -> str:
    """A C identifier for profiles and error messages: a number, and what the body does."""
    return f"k{number}_{re.sub(r'[^0-9A-Za-z_]', '_', body.name)}"


class _Entry:
    def __init__(self, declared: Graph, graph: Graph, stored: Mapping[Node, Ref], kernels: dict[Graph, str]) -> None:
        self.declared, self.graph, self.stored, self.kernels = declared, graph, stored, kernels
        self.memory: MemoryPlan = plan_memory(graph)
        self.homes: dict[Value, Ref] = {}

    def plan(self, name: str) -> EntryPlan:
        self._place_caller_values()
        calls = [
            c for node in self.graph.nodes if node.op.name == "fused" for c in (*self._kept(node), self._call(node))
        ]
        inputs = tuple((v.node.attrs["name"], v.type) for v in self.declared.inputs)
        outputs = tuple((output, v.type) for output, v in self.declared.outputs)
        symbols = solve_symbols(name, self.graph, inputs)
        calls += self._copies()
        states = self._states()
        appends = {s: node for s, link in enumerate(states) if (node := self._append(*link))}
        room = self._room(states, next(iter(appends.values()))) if appends else None
        required = requirements(self.graph)
        return EntryPlan(
            name, symbols, inputs, outputs, self.memory.slots, tuple(calls), states, frozenset(appends), room, required
        )

    def _append(self, before: int, after: int) -> Node | None:
        """The group that turns a state into its successor, if it writes an update into it and nothing else."""
        value = root(self.graph.outputs[after][1])
        body: Graph | None = value.node.attrs.get("body")
        operand = in_place(body).get(value.index) if body else None
        if body is None or operand is None or body.results[value.index].op is not ops.update_slice:
            return None
        return value.node if root(value.node.inputs[operand]) == self.graph.inputs[before] else None

    def _room(self, states: Sequence[tuple[int, int]], node: Node) -> Room | None:
        """Where the update goes, when that is a state too."""
        body: Graph = node.attrs["body"]
        update = next(n for n in body.nodes if n.op is ops.update_slice)
        axis = update.attrs["axis"]
        clock = (
            root(node.inputs[body.inputs.index(root(update.inputs[2]))]) if update.inputs[2] in body.inputs else None
        )
        places = {self.graph.inputs[before]: number for number, (before, _) in enumerate(states)}
        if clock not in places:
            return None
        return Room(places[clock], update.inputs[0].dims[axis], update.inputs[1].dims[axis])

    def _states(self) -> tuple[tuple[int, int], ...]:
        inputs = [v.node.attrs["name"] for v in self.declared.inputs]
        outputs = [name for name, _ in self.declared.outputs]
        return tuple((inputs.index(before), outputs.index(after)) for before, after in self.graph.states)

    def _place_caller_values(self) -> None:
        self.homes.update((v, Ref("input", i)) for i, v in enumerate(self.graph.inputs))
        for i, (_, value) in enumerate(self.graph.outputs):
            if root(value).op.name == "fused":
                self.homes.setdefault(root(value), Ref("output", i))

    def _home(self, value: Value) -> Ref:
        value = root(value)
        if value in self.homes:
            return self.homes[value]
        return self.stored.get(value.node) or Ref("slot", self.memory.placement[value])

    def _call(self, node: Node) -> Call:
        body = with_ranges(node.attrs["body"], self.graph)
        kernel = self.kernels.setdefault(body, _kernel_name(body, len(self.kernels)))
        args = (*map(self._home, node.inputs), *map(self._home, node.results))
        results = tuple(Result(v.type, _location(v)) for v in node.results)
        return Call(kernel, args, tuple(map(dims.symbol, kernel_symbols(body))), results)

    def _kept(self, node: Node) -> Iterator[Call]:
        """A kernel that writes in place finds its operand where its result will be; nothing is copied onto itself."""
        for result, operand in in_place(node.attrs["body"]).items():
            value = node.results[result]
            yield Call(
                COPY,
                (self._home(node.inputs[operand]), self._home(value)),
                (value.type.bytes,),
                (Result(value.type, None),),
            )

    def _copies(self) -> Iterator[Call]:
        """Outputs that are an input, a weight, or another output's value."""
        for i, (_, value) in enumerate(self.graph.outputs):
            here = Ref("output", i)
            if self._home(value) != here:
                result = Result(value.type, value.location)
                yield Call(COPY, (self._home(value), here), (value.type.bytes,), (result,))


def _location(value: Value) -> Location | None:
    """The group's location with the name of this result only: ``source`` lists all of them, comma-separated."""
    place = value.location
    if place is None:
        return None
    sources = place.source.split(",")
    return replace(place, source=sources[value.index] if value.index < len(sources) else "")


def solve_symbols(entry: str, graph: Graph, inputs: Sequence[tuple[str, TensorType]]) -> tuple[Symbol, ...]:
    """Find for every symbol that the graph uses an input axis that determines it.

    Raises:
        CoilError: naming the symbol, when no axis is ``scale*symbol + offset``.
    """
    used = {s for node in graph.nodes for s in symbols_in((*node.types, *node.attrs.values()))}
    return tuple(_solve(entry, name, graph, inputs) for name, _ in graph.symbols if name in used)


def _solve(entry: str, name: str, graph: Graph, inputs: Sequence[tuple[str, TensorType]]) -> Symbol:
    low, high = graph.ranges[name]
    given = len(inputs) - len(graph.states)
    candidates = (
        (i >= given, scale != 1, offset != 0, i, axis, scale, offset)
        for i, (_, type_) in enumerate(inputs)
        for axis, dim in enumerate(type_.dims)
        for scale, offset in _affine(dim, name)
    )
    best = min(candidates, default=None)  # states last: in a session nobody gives them
    if best is None:
        raise CoilError(f"entry '{entry}': no input axis has the extent '{name}', so its value could never be known")
    return Symbol(name, low, UNBOUNDED if high is None else high, *best[3:])


def _affine(dim: Dim, name: str) -> Iterator[tuple[int, int]]:
    """``(scale, offset)`` when ``dim == scale*name + offset`` with a positive scale."""
    if isinstance(dim, SymDim) and set(dims.symbols(dim)) == {name}:
        offset = dims.evaluate(dim, {name: 0})
        scale = dims.evaluate(dim, {name: 1}) - offset
        if scale > 0 and dim == scale * dims.symbol(name) + offset:
            yield scale, offset
