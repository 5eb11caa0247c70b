"""Equal recurrences that do not wait for one another run in one launch: directions, groups, routes with weights of their own.

Such *siblings* are anchors of one region, and their kernel runs the tasks of all side by side. No operand is stacked and
every sibling keeps its own prologue and epilogue. What reads two of them becomes a kernel after theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

from coilc.ir import Graph, Node, ops
from coilc.ir import dims as d
from coilc.ir.cost import node_bytes, node_flops

from .choose_algorithms import measured, representative
from .cost_model import Machine, Work, cycles
from .grow_regions import Region, Uses, depends, is_elementwise, is_heavy, seed_region
from .trace import record_refusal

GAIN = 1.1  # how many times fewer cycles the model must promise before siblings are merged
TIME_BLOCK = 16  # steps of a convolution that are one task
MERGED = frozenset({
    ops.causal_conv1d, ops.gated_delta_rule, ops.gated_linear_attention, ops.generalized_delta_rule, ops.linear_scan,
    ops.scan, ops.selective_scan,
})  # fmt: skip


def merge_siblings(graph: Graph, uses: Uses, machine: Machine) -> dict[Node, Region]:
    """A region for every set of siblings that gain from one launch, by node; alone in it are the siblings themselves.

    They gain when one alone leaves cores idle, or takes no longer than a launch.
    """
    owner: dict[Node, Region] = {}
    if machine.cores == 1:
        return owner
    for nodes in independent_sets(uses):
        reason = why_apart(graph, nodes, uses, owner, machine)
        if reason:
            for node in nodes:
                record_refusal("merge_siblings", node, reason)
        else:
            region = seed_region(nodes[0])
            region.nodes, region.parts = list(nodes), {node: node for node in nodes}
            owner.update(dict.fromkeys(nodes, region))
    return owner


def why_apart(graph: Graph, nodes: Sequence[Node], uses: Uses, owner: Mapping[Node, Region], machine: Machine) -> str:
    """Why a set keeps a launch for each; empty if it does not."""
    gain = gain_of_merging(graph, nodes, uses, machine)
    if gain < GAIN:
        cost = f"{len(nodes)} in one launch would take {1 / gain:.2g} of the cycles that they take one by one"
        return f"{cost}, on {machine.cores} cores by the model"
    if any(waits_for_one(node, nodes, uses, owner) for node in nodes):
        return "other recurrences in one launch wait for one of them, and another waits for these"
    return ""


def independent_sets(uses: Uses) -> list[list[Node]]:
    """Sets of two or more equal nodes none of which waits for another."""
    found: list[list[Node]] = []
    latest: dict[object, list[Node]] = {}
    for node in uses.nodes:
        if node.op in MERGED:
            alike = latest.get(likeness(node))
            if alike is None or waits_for_one(node, alike, uses, {}):
                alike = latest[likeness(node)] = []
                found.append(alike)
            alike.append(node)
    return [nodes for nodes in found if len(nodes) > 1]


def likeness(node: Node) -> object:
    """What siblings have in common: everything but the direction."""
    attrs = tuple((name, value) for name, value in node.attrs.items() if name != "reverse")
    return node.op.name, tuple(v.type for v in node.inputs), node.types, attrs


def waits_for_one(node: Node, nodes: Sequence[Node], uses: Uses, owner: Mapping[Node, Region]) -> bool:
    """Whether a node waits for one of several, with kernels in ``owner`` counted as a whole."""
    first = min(map(uses.position.__getitem__, nodes))
    return depends([v.node for v in node.inputs], lambda n: n in nodes, first, uses, owner)


# --- whether it pays --------------------------------------------------------------------------------------------------


def gain_of_merging(graph: Graph, nodes: Sequence[Node], uses: Uses, m: Machine) -> float:
    """How many times fewer cycles one launch takes than one for each."""
    sizes = representative(graph, nodes[0])
    one = work_of(nodes[0], sizes, m)
    count = len(nodes)
    merged = [Work(count * one.tasks, one.steps, one.instructions, count * one.bytes)]
    if meet(nodes, uses):
        size = d.evaluate(nodes[0].types[0].bytes, sizes)
        merged.append(
            Work(m.cores, 1, 0, 2 * size)
        )  # the last epilogue stored no result of its own, and read none back
    return count * cycles([one], m) / cycles(merged, m)


def work_of(node: Node, sizes: Mapping[str, int], m: Machine) -> Work:
    """The kernel of one recurrence, step by step."""
    if (shape := measured(node, sizes)) is not None:
        (work,) = shape.sequential(m)
        return work
    tasks, length = tasks_of(node, sizes, m), d.evaluate(steps_of(node), sizes)
    operations = d.evaluate(node_flops(node), sizes) / m.lanes
    return Work(tasks, length, operations / tasks / length, d.evaluate(node_bytes(node), sizes))


def tasks_of(node: Node, sizes: Mapping[str, int], m: Machine) -> int:
    """Tasks of an op that the cost model knows nothing else of."""
    if node.op is ops.scan:
        outer = [d.evaluate(dim, sizes) for dim in node.types[0].dims]
        together = any(map(is_heavy, node.attrs["body"].nodes))  # what mixes is one task
        return outer[0] if together and outer else ceil(d.evaluate(node.types[0].size, sizes) / (2 * m.lanes))
    batch, length, *_, channels = (d.evaluate(dim, sizes) for dim in node.types[0].dims)
    if node.op is ops.causal_conv1d:
        return batch * ceil(length / TIME_BLOCK) * ceil(channels / (4 * m.lanes))
    heads = d.evaluate(node.types[0].dims[2], sizes)
    return batch * heads * ceil(channels / (2 * m.lanes))


def steps_of(node: Node) -> d.Dim:
    """Steps of one task, one after another."""
    if node.op is ops.causal_conv1d:
        return TIME_BLOCK
    operand = node.inputs[node.attrs["carries"]] if node.op is ops.scan else node.inputs[0]
    return operand.dims[node.attrs.get("axis", 1)]


def meet(nodes: Sequence[Node], uses: Uses) -> bool:
    """Whether a node reads two of them, perhaps after arithmetic or movement: it would have been one's epilogue."""
    seen: dict[Node, Node] = {}
    for node in nodes:
        stack = list(uses.tail_readers[node])
        while stack:
            reader = stack.pop()
            if is_heavy(reader) or seen.get(reader) is node:
                continue
            if reader in seen and is_elementwise(reader):
                return True
            seen[reader] = node
            stack += uses.tail_readers[reader]
    return False
