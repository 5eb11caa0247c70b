"""Group the nodes of a graph into kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from coilc.ir import Graph, Module, Node, Value, ops

from .build_bodies import Group, Schedule
from .cost_model import Machine
from .grow_regions import Uses, grow_regions
from .merge_siblings import merge_siblings
from .place_pointwise import place_pointwise
from .rewrite import on, rewrite_module
from .weights_in_bodies import hide_weights_from_bodies

ONE_CORE = Machine()


def fuse_groups(module: Module, machine: Machine = ONE_CORE) -> Module:
    """Put every computation into a ``fused`` group that becomes one kernel.

    Before::

        v0: f32[B, 4] = matmul(x, w)
        v1: f32[B, 4] = sigmoid(v0)

    After::

        def matmul_sigmoid_0(x0: f32[B, 4], x1: f32[4, 4]):
            v0: f32[B, 4] = matmul(x0, x1)
            v1: f32[B, 4] = sigmoid(v0)
            return {"y0": v1}
        v0: f32[B, 4] = fused(x, w, body=matmul_sigmoid_0)

    Heavy nodes grow downstream while there is a single exit (``grow_regions``); what lies between them is computed where it
    is read unless that repeats real work (``place_pointwise``); then bodies are built in canonical form (``build_bodies``).
    Equal recurrences share a kernel where ``machine`` gains from it (``merge_siblings``).

    Needs: core ops and claimed composites. Guarantees: ``verify.scheduled``.
    """
    return constants_to_weights(module).map(lambda graph: Schedule(graph, group(graph, machine)).build())


def group(graph: Graph, machine: Machine = ONE_CORE) -> list[Group]:
    """Which nodes share a kernel."""
    uses = Uses(graph)
    owner = merge_siblings(graph, uses, machine)
    grow_regions(uses, owner)
    place_pointwise(uses, owner)
    return [Group(tuple(region.nodes)) for region in dict.fromkeys(owner.values())]


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
        return ops.weight(name=name, type=node.types[0])

    rewritten = hide_weights_from_bodies(rewrite_module(module, constant_to_weight))
    weights: Mapping[str, np.ndarray] = {**module.weights, **arrays}
    return replace(rewritten, weights=weights)
