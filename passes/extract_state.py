"""Derive ``prefill`` and ``step`` from a graph over a whole sequence: what remembers becomes a state."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from coilc.ir import Graph, InputError, Location, Module, Node, UnsupportedError, Value, at
from coilc.ir.core import topological_order
from coilc.ir.opdef import ELEMENTWISE, STRUCTURAL

from . import causal_attention  # noqa: F401  its rules
from .causal_rules import RULES, pointwise
from .fold_constants import WeightTable, with_final_names
from .keep_caches import growing, keep_caches
from .realise_kernels import realise_kernels
from .shorten_sequences import shorten_sequences
from .simplify import simplify
from .timeline import Mixes, Timed, Timeline, rebuilt

PREFILL, STEP = "prefill", "step"
DERIVED = (PREFILL, STEP)
CONTEXT = 4096  # elements that a cache has room for, unless the length has a lower limit


def extract_state(
    module: Module,
    entries: Collection[str] = DERIVED,
    *,
    source: str = "main",
    time: str = "L",
    context: int | None = None,
) -> Module:
    """Add entries that take a sequence piece by piece, and drop those that ``entries`` does not name.

    Before::

        def main(x: f32[B, L, 4], *, B: dim[1:8], L: dim[1:64]):
            v0: f32[2, 4] = weight(name="w", type=f32[2, 4])
            v1, v2 = causal_conv1d(x, v0, optional=(), activation="none")
            return {"y": v1}

    After, besides ``main`` (``step`` is ``prefill`` with ``L = 1``)::

        def prefill(x: f32[B, L, 4], conv: f32[B, 1, 4] = "conv", *, B: dim[1:8], L: dim[1:64]):
            v0: f32[2, 4] = weight(name="w", type=f32[2, 4])
            v1, v2 = causal_conv1d(x, v0, conv, optional=("state",), activation="none")
            return {"y": v1, "conv": v2}

    A graph that has states of its own keeps them, and no others are looked for; those that grow become caches
    (``keep_caches``), and inputs and outputs like any others in ``source``.

    Args:
        entries: names of the entries to keep; ``prefill`` and ``step`` are derived unless the module has them. None: all.
        source: the entry over whole sequences.
        time: the symbol that counts its elements; a graph of known length gets one if it can (``shorten_sequences``).
        context: how many elements a sequence may have where attention keeps them all; by default as many as ``time`` may
            be, and not more than ``CONTEXT``.

    Needs: structure recognised, no fused groups. Guarantees: chunks of any lengths, one after another from states of
    zeros, give what the whole sequence gives, up to rounding.

    Raises:
        InputError: there is no such entry or symbol.
        UnsupportedError: listing every op that needs more than the past.
    """
    entries = entries or tuple(module.entries)
    wanted = [name for name in entries if name in DERIVED and name not in module.entries]
    found = {name: replace(graph, states=()) if growing(graph) else graph for name, graph in module.entries.items()}
    if wanted:
        table = WeightTable(module.weights)
        found |= _derived(table, wanted, _entry(module, source), time, context)
        module = replace(module, weights=table.arrays)
    missing = [name for name in entries if name not in found]
    if missing:
        raise InputError(f"the program has no entry '{missing[0]}'; it has {', '.join(module.entries)}")
    return with_final_names(replace(module, entries={name: found[name] for name in entries}))


def _entry(module: Module, source: str) -> Graph:
    if source not in module.entries:
        raise InputError(f"{PREFILL} and {STEP} are derived from the entry '{source}', which the program does not have")
    return module.entries[source]


def _derived(
    table: WeightTable, wanted: Collection[str], graph: Graph, time: str, context: int | None
) -> Mapping[str, Graph]:
    """``prefill`` and ``step``; a graph that has states already continues from them at whatever length it takes."""
    if caches := growing(graph):
        longest = [graph.ranges[how.symbol][1] for how in caches.values()]
        graph = keep_caches(graph, context or min(CONTEXT, *(n for n in longest if n is not None)))
    if time not in graph.ranges and graph.states and PREFILL not in wanted:
        return {STEP: replace(graph, name=STEP)}
    if time not in graph.ranges:
        graph = _of_any_length(graph, time)
    if not graph.states:
        graph = chunked(realise_kernels(graph, table), time, context)
    prefill = replace(graph, name=PREFILL)
    step = simplify(Module({STEP: replace(prefill, name=STEP).substitute({time: 1})}, table.arrays))
    return {PREFILL: prefill, STEP: step.entries[STEP]}


def _of_any_length(graph: Graph, time: str) -> Graph:
    missing = (
        f"{PREFILL} and {STEP} need a dynamic length: entry '{graph.name}' has no symbol '{time}'; export the model "
        f"with dynamic_shapes that call the time axis '{time}'"
    )
    if graph.states:
        raise InputError(f"{missing}, or ask for '{STEP}' alone, which is what '{graph.name}' does")
    try:
        return shorten_sequences(graph, time)
    except UnsupportedError as reason:
        raise InputError(f"{missing}. Its known length does not do: {reason}") from None


def chunked(graph: Graph, time: str, context: int | None = None) -> Graph:
    """The graph over a chunk of its sequences, with states."""
    names = [v.node.attrs["name"] for v in graph.inputs] + [name for name, _ in graph.outputs]
    longest = graph.ranges[time][1]
    room = context or (CONTEXT if longest is None else min(CONTEXT, longest))
    walk = _Walk(Timeline(time, {*names, *graph.ranges}, room))
    outputs = [(name, walk.output(name, value)) for name, value in graph.outputs]
    if walk.refused:
        raise UnsupportedError(
            f"'{graph.name}' cannot run piece by piece, because not every op looks at the past alone:", walk.refused,
            f"Compile it without {PREFILL} and {STEP}, or make these lines causal.",
        )  # fmt: skip
    states = walk.line.states
    symbols = tuple((name, (1, high) if name == time else (low, high)) for name, (low, high) in graph.symbols)
    return Graph(
        PREFILL,
        (*graph.inputs, *(s.before for s in states)),
        (*outputs, *((s.name, s.after) for s in states)),
        symbols,
        tuple((s.before.node.attrs["name"], s.name) for s in states),
    )


class _Walk:
    """Values of the full sequence as they run over time, found operands first."""

    def __init__(self, line: Timeline) -> None:
        self.line = line
        self.known: dict[Value, Timed | None] = {}  # None: refused, or computed from what was
        self.refused: list[tuple[str, Location | None]] = []

    def output(self, name: str, value: Value) -> Value:
        timed = self.visit([value])[0]
        if timed is not None and timed.axis is not None and (timed.history or timed.excess):
            self.refused.append((f"output '{name}' is not one element per time", value.location))
        return value if timed is None else timed.value

    def visit(self, values: Sequence[Value]) -> list[Timed | None]:
        """How values run over time; everything they need is visited first."""
        done = {v.node for v in self.known}
        for node in topological_order([v.node for v in values], done.__contains__):
            if node.results[0] not in self.known:
                self.known.update(zip(node.results, self.node(node), strict=True))
        return [self.known[v] for v in values]

    def node(self, node: Node) -> Sequence[Timed | None]:
        operands = [self.known[v] for v in node.inputs]
        if any(o is None for o in operands):
            return [None] * len(node.types)
        try:
            with at(node.location):
                return self.checked(node, self.follow(node, [o for o in operands if o is not None]))
        except Mixes as reason:
            self.refused.append((f"{node.op.name} {reason}", node.location))
            return [None] * len(node.types)

    def follow(self, node: Node, operands: Sequence[Timed]) -> Sequence[Timed | None]:
        """The rule of the op, of its class, or of its definition."""
        if STRUCTURAL in node.op.traits:
            return [self.given(node)]
        if node.op.name in RULES:
            return RULES[node.op.name](self.line, node, operands)
        if ELEMENTWISE in node.op.traits:
            return pointwise(self.line, node, operands)
        if all(o.steady for o in operands) and not self.mentions_time(node):
            return [Timed(v) for v in rebuilt(node, [o.value for o in operands])]
        if node.op.decompose is None:
            raise Mixes("has no rule for time")
        return self.defined(node, operands)

    def given(self, node: Node) -> Timed:
        axes = [a for a, dim in enumerate(node.types[0].dims) if self.line.runs(dim)]
        if not axes:
            return Timed(Value(node))
        if len(axes) > 1 or self.line.beyond(node.types[0].dims[axes[0]]) != 0:
            raise Mixes(f"'{node.attrs.get('name')}' does not have one element per time")
        return Timed(Value(node), axes[0])

    def mentions_time(self, node: Node) -> bool:
        return node.op.name == "extent" or any(self.line.runs(dim) for t in node.types for dim in t.dims)

    def defined(self, node: Node, operands: Sequence[Timed]) -> Sequence[Timed | None]:
        """A composite is what its definition is, and stays whole if that remembers nothing."""
        assert node.op.decompose is not None
        count = len(self.line.states)
        parts = node.op.decompose(*node.inputs, **node.attrs)
        results = self.visit(parts if isinstance(parts, tuple) else (parts,))
        if len(self.line.states) > count or any(r is None or r.history or r.excess for r in results):
            return results
        whole = rebuilt(node, [o.value for o in operands])
        return [r and r.over(v, r.axis) for r, v in zip(results, whole, strict=True)]

    def checked(self, node: Node, results: Sequence[Timed | None]) -> Sequence[Timed | None]:
        """No axis but the one that is time depends on the length."""
        for type_, timed in zip(node.types, results, strict=True):
            axes = [a for a, dim in enumerate(type_.dims) if self.line.runs(dim)]
            if timed is not None and axes != ([] if timed.axis is None else [timed.axis]):
                raise Mixes("has another extent that depends on the length")
        return results
