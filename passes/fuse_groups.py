"""Group the nodes of a graph into kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from coilc.ir import Graph, Module, Node, Value, ops

from .build_bodies import Group, Schedule
from .rewrite import on, rewrite_module


def fuse_groups(module: Module) -> Module:
    """Put every computation into a ``fused`` group that becomes one kernel.

    Needs: core ops and claimed composites. Guarantees: ``verify.scheduled``.
    """
    module = constants_to_weights(module)
    return module.map(lambda graph: Schedule(graph, list(one_group_per_node(graph))).build())


def one_group_per_node(graph: Graph) -> Iterator[Group]:
    """The trivial grouping: constants are free, reshapes alias, everything else is a kernel of its own."""
    results = {v.node for v in graph.results}
    for node in graph.nodes:
        if node.op.name not in ("input", "weight") and (node in results or node.op.name not in ("constant", "reshape")):
            yield Group((node,))


def constants_to_weights(module: Module) -> Module:
    """Move constant arrays of more than one element into the weight table; scalars stay inside the bodies."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[Node, str] = {}

    @on("constant")
    def constant_to_weight(node: Node) -> Value | None:
        array = node.attrs["value"].value
        if array.size == 1:
            return None
        name = names.setdefault(node, f"constant.{len(names)}")
        arrays[name] = array
        result: Value = ops.weight(name=name, type=node.types[0])
        return result

    rewritten = rewrite_module(module, constant_to_weight)
    weights: Mapping[str, np.ndarray] = {**module.weights, **arrays}
    return replace(rewritten, weights=weights)
