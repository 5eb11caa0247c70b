"""What the dims of a run must fulfil so that nothing outside of a tensor is read: the runtime checks it at every bind."""

from __future__ import annotations

from collections.abc import Iterator

from coilc.ir import Dim, Graph, Node, ops
from coilc.ir import dims as d


def requirements(graph: Graph) -> tuple[Dim, ...]:
    """Dims that must not be negative, of all nodes and of those in bodies, where the symbols' ranges do not settle it.

    An op is well-typed when some sizes fit it. Those that do not, such as the slice ``1:3`` of an axis ``L`` at
    ``L = 2``, are refused at run time: here ``L - 3``.
    """
    needed = dict.fromkeys(dim for node in _all_nodes(graph) for dim in _needs(node))
    return tuple(dim for dim in needed if d.bounds(dim, graph.ranges)[0] < 0)


def _all_nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        yield node
        for value in node.attrs.values():
            for body in value if isinstance(value, tuple) else (value,):
                if isinstance(body, Graph):
                    yield from _all_nodes(body)


def _needs(node: Node) -> Iterator[Dim]:
    for type_ in node.types:
        yield from type_.dims
    if node.op is ops.slice:
        yield from node.attrs["starts"]
        stops = zip(node.inputs[0].dims, node.attrs["stops"], strict=True)
        yield from (extent - stop for extent, stop in stops)
    if node.op is ops.topk:
        yield node.inputs[0].dims[node.attrs["axis"]] - node.attrs["k"]
