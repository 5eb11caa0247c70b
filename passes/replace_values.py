"""Replace values of a graph by others that may be made from values which are replaced themselves."""

from __future__ import annotations

from collections.abc import Mapping

from coilc.ir import Graph, Node, Value, at


def replace_values(graph: Graph, replacements: Mapping[Value, Value]) -> Graph:
    """Rebuild what the outputs need, with every value in ``replacements`` exchanged, in linear time.

    A replacement is rebuilt too, so it may be written with the graph's old values; it must not depend on the value that
    it replaces.
    """
    new: dict[Value, Value] = {v: v for v in graph.inputs if v not in replacements}
    stack = list(reversed(graph.results))
    while stack:
        value = stack[-1]
        needed = (replacements[value],) if value in replacements else value.node.inputs
        missing = [v for v in needed if v not in new]
        if value in new or not missing:
            stack.pop()
            if value not in new:
                new[value] = new[needed[0]] if value in replacements else _rebuilt(value, new)
        else:
            stack += missing
    return graph.with_results(new[v] for v in graph.results)


def _rebuilt(value: Value, new: Mapping[Value, Value]) -> Value:
    node = value.node
    inputs = tuple(new[v] for v in node.inputs)
    if inputs == node.inputs:
        return value
    with at(node.location):
        return Value(Node.make(node.op, inputs, node.attrs), value.index)
