"""Nodes, graphs and modules: immutable, hash-consed, typed. This file knows no op."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from . import dims as d
from .location import Location, at, current_location
from .types import TensorType, dtype_of, type_of

if TYPE_CHECKING:
    from .opdef import OpDef


class Array:
    """An immutable, hashable NumPy array used as an attribute (small constants; large ones are weights)."""

    __slots__ = ("_key", "value")

    def __init__(self, value: Any) -> None:
        self.value = np.array(value, order="C", copy=True)
        self.value.setflags(write=False)
        self._key = (dtype_of(self.value).name, self.value.shape, self.value.tobytes())

    @property
    def type(self) -> TensorType:
        return type_of(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Array) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        if not self.value.size:  # nested lists cannot show the dims of what is empty
            return f"array({self.type})"
        return f"array({self.type.dtype}, {self.value.tolist()})"


class Node:
    """One application of an op. Equal nodes are the same object (hash-consing), so common subexpressions never exist.

    ``types`` holds one type per result. The location is that of the first construction and plays no part in equality.
    """

    __slots__ = ("__weakref__", "attrs", "inputs", "location", "op", "types")
    op: OpDef
    inputs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    types: tuple[TensorType, ...]
    location: Location | None

    _interned: WeakValueDictionary[Hashable, Node] = WeakValueDictionary()

    @staticmethod
    def make(op: OpDef, inputs: tuple[Value, ...], attrs: Mapping[str, Any]) -> Node:
        """Build or find the node; types come from the op's inference, which raises ``TypeRuleError``."""
        key = (op.name, inputs, tuple((name, _attr_key(value)) for name, value in sorted(attrs.items())))
        node = Node._interned.get(key)
        if node is None:
            node = object.__new__(Node)
            node.op, node.inputs, node.attrs = op, inputs, dict(attrs)
            node.types = op.infer_types(tuple(v.type for v in inputs), attrs)
            node.location = current_location()
            Node._interned[key] = node
        return node

    @staticmethod
    def forget_all() -> None:
        """Share no node built so far with nodes built from now on.

        A frontend calls this when it starts, so that a model's nodes do not carry the locations of another model that
        happens to compute the same. Existing graphs stay valid.
        """
        Node._interned.clear()

    @property
    def results(self) -> tuple[Value, ...]:
        return tuple(Value(self, i) for i in range(len(self.types)))

    def __repr__(self) -> str:
        return f"<{self.op.name} {', '.join(map(str, self.types))}>"


def _attr_key(value: Any) -> Hashable:
    """Distinguish values that Python calls equal: ``1``, ``1.0``, ``True``; ``0.0`` and ``-0.0``; NaN is itself."""
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, tuple):
        return tuple(map(_attr_key, value))
    return (type(value).__name__, value)


@dataclass(frozen=True, slots=True)
class Value:
    """One result of a node."""

    node: Node
    index: int = 0

    @property
    def type(self) -> TensorType:
        return self.node.types[self.index]

    @property
    def dims(self) -> d.Dims:
        return self.type.dims

    @property
    def op(self) -> OpDef:
        return self.node.op

    @property
    def location(self) -> Location | None:
        return self.node.location

    def __repr__(self) -> str:
        return f"{self.node!r}" + (f".{self.index}" if self.index else "")


Range = tuple[int, int | None]


@dataclass(frozen=True)
class Graph:
    """A function: named inputs to named outputs.

    ``inputs`` are results of ``input`` nodes; ``symbols`` gives the inclusive range of every named dimension.
    A graph is also the body of a ``scan`` or of a fused group; there, symbols belong to the enclosing graph.

    ``states`` pairs an input with the output that takes its place in the next call; the output's name is the state's.
    Every state is zero at the start of a sequence, or empty if it grows from call to call (``states.growth``).
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[tuple[str, Value], ...]
    symbols: tuple[tuple[str, Range], ...] = ()
    states: tuple[tuple[str, str], ...] = ()

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Every node that an output needs, operands first. Inputs that nothing uses are included."""
        roots = [v.node for v in self.inputs] + [v.node for _, v in self.outputs]
        return tuple(topological_order(roots))

    @cached_property
    def uses(self) -> Mapping[Value, int]:
        """How many operands and outputs read each value."""
        count: dict[Value, int] = {}
        for value in [v for node in self.nodes for v in node.inputs] + [v for _, v in self.outputs]:
            count[value] = count.get(value, 0) + 1
        return count

    @property
    def ranges(self) -> Mapping[str, Range]:
        return dict(self.symbols)

    @property
    def results(self) -> tuple[Value, ...]:
        return tuple(value for _, value in self.outputs)

    @cached_property
    def _hash(self) -> int:
        return hash((self.name, self.inputs, self.outputs, self.symbols, self.states))

    def __hash__(self) -> int:
        return self._hash

    def with_results(self, results: Iterable[Value]) -> Graph:
        """The same graph computing other values under the same output names."""
        return replace(self, outputs=tuple((name, v) for (name, _), v in zip(self.outputs, results, strict=True)))

    def substitute(self, bindings: Mapping[str, d.Dim]) -> Graph:
        """The graph with symbols replaced everywhere, types, attributes and bodies included."""
        mapping: dict[Value, Value] = {}
        for node in self.nodes:
            attrs = {name: substitute_attr(value, bindings) for name, value in node.attrs.items()}
            with at(node.location):
                rebuilt = Node.make(node.op, tuple(mapping[v] for v in node.inputs), attrs)
            mapping.update(zip(node.results, rebuilt.results, strict=True))
        kept = tuple((name, limits) for name, limits in self.symbols if name not in bindings)
        outputs = tuple((name, mapping[v]) for name, v in self.outputs)
        return Graph(self.name, tuple(mapping[v] for v in self.inputs), outputs, kept, self.states)


def substitute_attr(value: Any, bindings: Mapping[str, d.Dim]) -> Any:
    """Replace symbols inside one attribute value."""
    if isinstance(value, d.SymDim):
        return d.substitute(value, bindings)
    if isinstance(value, tuple):
        return tuple(substitute_attr(item, bindings) for item in value)
    if isinstance(value, TensorType | Graph):
        return value.substitute(bindings)
    return value


def symbols_in(value: Any) -> Iterator[str]:
    """Symbols in a type or an attribute value; a body's are its own."""
    if isinstance(value, d.SymDim):
        yield from d.symbols(value)
    elif isinstance(value, TensorType):
        yield from d.symbols(value.dims)
    elif isinstance(value, tuple):
        for item in value:
            yield from symbols_in(item)


def topological_order(roots: Iterable[Node], leaves: Callable[[Node], bool] = lambda _: False) -> Iterator[Node]:
    """Nodes reachable from ``roots``, operands first, without descending below ``leaves`` (iterative)."""
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(node, False) for node in reversed(list(roots))]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if not leaves(node):
                stack.extend((v.node, False) for v in reversed(node.inputs))


@dataclass(frozen=True)
class Module:
    """Several entry graphs over one table of weights (arrays by name; entries refer to them with ``weight`` nodes)."""

    entries: Mapping[str, Graph]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)

    def map(self, transform: Callable[[Graph], Graph]) -> Module:
        """Apply a graph-to-graph function to every entry."""
        return replace(self, entries={name: transform(graph) for name, graph in self.entries.items()})
