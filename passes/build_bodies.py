"""Turn a grouping into a scheduled graph: one ``fused`` node per group, its body in canonical form.

The grouping says which nodes each group *owns*. Nodes that nobody owns are free: every group that needs one computes it
inside its own body. Canonical means: inputs ``x0, x1, ...`` in the order in which the body first reads them, outputs
``y0, y1, ...`` in graph order; so equal layers have one body, which becomes one kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx

from coilc.ir import Graph, Location, Node, Value, VerifyError, at, ops
from coilc.ir.core import topological_order
from coilc.ir.opdef import ELEMENTWISE, MOVEMENT, REDUCTION, STRUCTURAL, OpDef

from .independent_axes import LOOPS, carries_in_results
from .plan_memory import root


@dataclass(frozen=True, eq=False)
class Group:
    """Nodes that become one kernel, in graph order."""

    nodes: tuple[Node, ...]


class Schedule:
    """Builds the scheduled form of ``graph`` under ``groups``."""

    def __init__(self, graph: Graph, groups: Sequence[Group]) -> None:
        self.graph, self.groups = graph, groups
        self.owner = {node: group for group in groups for node in group.nodes}
        self.reads = {group: tuple(self.external_reads(group)) for group in groups}
        self.outputs = self.values_read_elsewhere()
        self.built: dict[Value, Value] = {}

    def build(self) -> Graph:
        """The scheduled graph.

        Raises:
            VerifyError: the groups wait for one another in a circle.
        """
        for group in self.order():
            self.emit(group)
        return self.graph.with_results(self.separate_outputs())

    # --- what flows between groups ---------------------------------------------------------------------------------

    def is_external(self, node: Node, group: Group) -> bool:
        """Whether ``group`` reads the results of ``node`` from memory: they are stored, or alias something stored."""
        if node.op.name in ("input", "weight"):
            return True
        if node in self.owner:
            return self.owner[node] is not group
        return node.op.name == "reshape" and self.is_external(stored(node, self.owner), group)

    def inside(self, group: Group) -> Iterator[Node]:
        """The nodes of the body, operands first."""
        leaves = {}

        def is_leaf(node: Node) -> bool:
            leaves[node] = self.is_external(node, group)
            return leaves[node]

        return (node for node in topological_order(group.nodes, is_leaf) if not leaves[node])

    def external_reads(self, group: Group) -> Iterator[Value]:
        """Stored values that the body reads, in the order of first use."""
        seen = set()
        for node in self.inside(group):
            for value in node.inputs:
                if value not in seen and self.is_external(value.node, group):
                    seen.add(value)
                    yield value

    def values_read_elsewhere(self) -> Mapping[Group, tuple[Value, ...]]:
        read = {self.base(v) for reads in self.reads.values() for v in reads}
        read |= {self.base(v) for v in self.graph.results}
        read |= {Value(node, i) for node in self.owner if node.op in LOOPS for i in carries_in_results(node)}
        owned = {group: [v for node in group.nodes for v in node.results if v in read] for group in self.groups}
        return {group: tuple(values) for group, values in owned.items()}

    def base(self, value: Value) -> Value:
        """The stored value behind reshapes that nobody owns."""
        while value.op.name == "reshape" and value.node not in self.owner:
            (value,) = value.node.inputs
        return value

    def order(self) -> list[Group]:
        position = {group: i for i, group in enumerate(self.groups)}
        links: nx.DiGraph[Group] = nx.DiGraph()
        links.add_nodes_from(self.groups)
        for group, reads in self.reads.items():
            producers = {self.owner[b.node] for b in map(self.base, reads) if b.node in self.owner}
            links.add_edges_from((producer, group) for producer in producers)
        try:
            return list(nx.lexicographical_topological_sort(links, key=lambda group: position[group]))
        except nx.NetworkXUnfeasible:
            circle = [group.nodes[-1].op.name for group, _ in nx.find_cycle(links)]
            raise VerifyError(f"fused groups wait for one another: {' -> '.join(circle)}") from None

    # --- building --------------------------------------------------------------------------------------------------

    def emit(self, group: Group) -> None:
        outputs, reads = self.outputs[group], self.reads[group]
        if not outputs:
            return
        body = canonical_body(self.inside(group), reads, outputs)
        operands = tuple(self.top(v) for v in reads)
        with at(joint_location(outputs)):
            results = ops.fused.node(*operands, body=body).results
        self.built.update(zip(outputs, results, strict=True))

    def top(self, value: Value) -> Value:
        """The scheduled form of a stored value; aliases become ``reshape`` nodes between the groups."""
        if value.op.name in ("input", "weight"):
            return value
        if value not in self.built:
            (operand,) = value.node.inputs
            with at(value.location):
                self.built[value] = ops.reshape(self.top(operand), dims=value.dims)
        return self.built[value]

    def separate_outputs(self) -> Iterator[Value]:
        """Give every graph output memory of its own: inputs, weights and repeated outputs are copied."""
        taken: set[Value] = set()
        for value in self.graph.results:
            result = self.top(value)
            while root(result).op.name != "fused" or root(result) in taken:
                result = copied(result)
            taken.add(root(result))
            yield result


def stored(node: Node, owner: Mapping[Node, Group]) -> Node:
    """The first node behind ``node`` that is not a free reshape."""
    while node.op.name == "reshape" and node not in owner:
        node = node.inputs[0].node
    return node


def canonical_body(inside: Iterator[Node], reads: Sequence[Value], outputs: Sequence[Value]) -> Graph:
    """The body that computes ``outputs`` from ``reads`` through the nodes of ``inside``."""
    with at(None):
        inputs = tuple(ops.input_(name=f"x{i}", type=v.type) for i, v in enumerate(reads))
    mapping = dict(zip(reads, inputs, strict=True))
    names = []
    for node in inside:
        with at(node.location):
            rebuilt = Node.make(node.op, tuple(mapping[v] for v in node.inputs), node.attrs)
        mapping.update(zip(node.results, rebuilt.results, strict=True))
        names.append(node.op)
    named = tuple((f"y{i}", mapping[v]) for i, v in enumerate(outputs))
    return Graph(body_name(names), inputs, named)


def body_name(found: Sequence[OpDef]) -> str:
    """A readable name: heavy ops first, then arithmetic, movement only when there is nothing else; siblings in plural."""
    ranked = sorted(dict.fromkeys(found), key=weight_in_name)
    several = {op for op in found if found.count(op) > 1 and weight_in_name(op) == 0 and REDUCTION not in op.traits}
    names = {op: f"{op.name}s" if op in several else op.name for op in ranked}
    telling = [name for op, name in names.items() if weight_in_name(op) < 2] or list(names.values())
    return "_".join(telling[:4]).rstrip("0123456789_") or "group"


def weight_in_name(op: OpDef) -> int:
    return 2 if op.traits & {MOVEMENT, STRUCTURAL} else 1 if ELEMENTWISE in op.traits else 0


def joint_location(outputs: Sequence[Value]) -> Location | None:
    """The first output's location; ``source`` lists the model's name of every output, comma-separated."""
    place = outputs[0].location
    sources = [v.location.source if v.location and v.index == 0 else "" for v in outputs]
    return replace(place, source=",".join(sources) if any(sources) else "") if place else None


def copied(value: Value) -> Value:
    """A group that copies ``value`` into memory of its own. Equal nodes are one node, so a second copy copies the first."""
    with at(value.location):
        mark = ops.reshape.node(ops.input_(name="x0", type=value.type), dims=value.dims)
        body = Graph("copy", (mark.inputs[0],), (("y0", mark.results[0]),))
        return ops.fused(value, body=body)
