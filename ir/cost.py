"""What a node costs: floating-point operations and bytes moved, as dimensions."""

from __future__ import annotations

from . import dims as d
from .core import Graph, Node, topological_order
from .opdef import ELEMENTWISE, REDUCTION


def node_flops(node: Node) -> d.Dim:
    """Floating-point operations of one node.

    The op's own count if it declares one; else one per result element for elementwise ops, one per operand element for
    reductions, the sum over the decomposition for composites, and nothing for movement.
    """
    op = node.op
    if op.flops is not None:
        return op.flops(*(v.type for v in node.inputs), **node.attrs)
    if op.decompose is not None:
        return _decomposed_flops(node)
    if ELEMENTWISE in op.traits:
        return node.types[0].size
    return node.inputs[0].type.size if REDUCTION in op.traits else 0


def node_bytes(node: Node) -> d.Dim:
    """Bytes that a kernel for this node alone would read and write."""
    zero: d.Dim = 0
    return sum((t.bytes for t in (*(v.type for v in node.inputs), *node.types)), zero)


def graph_flops(graph: Graph) -> d.Dim:
    """Floating-point operations of every node of a graph, bodies included."""
    zero: d.Dim = 0
    return sum(map(node_flops, graph.nodes), zero)


def _decomposed_flops(node: Node) -> d.Dim:
    assert node.op.decompose is not None
    results = node.op.decompose(*node.inputs, **node.attrs)
    values = results if isinstance(results, tuple) else (results,)
    operands = {v.node for v in node.inputs}
    inner = topological_order((v.node for v in values), lambda n: n in operands)
    zero: d.Dim = 0
    return sum((node_flops(n) for n in inner if n not in operands), zero)
