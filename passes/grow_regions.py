"""Regions: heavy nodes with what follows them. The first half of fusion; ``place_pointwise`` is the second.

A region grows from one heavy node (a reduction or an anchor) downstream through elementwise nodes while everything it
computes leaves through a single value. Such a region can never wait for itself: whatever depends on it depends on its
exit, and whatever it reads does not.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from coilc.ir import Dims, Graph, Node, ops
from coilc.ir.opdef import ELEMENTWISE, MOVEMENT, REDUCTION, STRUCTURAL

from .independent_axes import LOOPS, carries_in_results
from .trace import record_refusal

Kind = Literal["pointwise", "row", "reduce", "anchor"]

# Their kernels build the result in the memory of the output, element by element in no fixed order. So may a scan.
BUILT_IN_PLACE = frozenset({"sort", "scatter", "index_put", "update_slice"})
LONGEST_TAIL = 256  # nodes a region may absorb before it reaches a single exit again


@dataclass(eq=False)
class Region:
    """A future kernel.

    Attributes:
        kind: the form of its body.
        space: dims of the values that it computes element by element; for rows, of the whole rows.
        rows: dims of its values per row; equal to ``space`` unless ``kind`` is "row".
        nodes: what it owns.
        free: how many nodes that nobody owns its body computes too.
        parts: for siblings (``merge_siblings``), the one of them that a node follows.
    """

    kind: Kind
    space: Dims
    rows: Dims
    nodes: list[Node] = field(default_factory=list)
    free: int = 0
    parts: dict[Node, Node] = field(default_factory=dict)


def is_elementwise(node: Node) -> bool:
    return ELEMENTWISE in node.op.traits


def is_movement(node: Node) -> bool:
    return MOVEMENT in node.op.traits


def is_heavy(node: Node) -> bool:
    """Reductions and anchors: everything that is not computed anew wherever it is read."""
    return not node.op.traits & {ELEMENTWISE, MOVEMENT, STRUCTURAL}


class Uses:
    """Who reads what in one graph."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: Sequence[Node] = graph.nodes
        self.position: Mapping[Node, int] = {node: i for i, node in enumerate(graph.nodes)}
        self.results = {v.node for v in graph.results}
        self.tail_results = {v.node for v in graph.results if v.index == tail_of(v.node)}
        self.readers: dict[Node, list[tuple[Node, int]]] = {node: [] for node in graph.nodes}
        self.tail_readers: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
        for node in graph.nodes:
            for index, value in enumerate(node.inputs):
                self.readers[value.node].append((node, index))
                if value.index == tail_of(value.node):
                    self.tail_readers[value.node].append(node)


def tail_of(node: Node) -> int:
    """The result that is followed in the node's kernel: of a loop the first stacked output, if it has one."""
    carries = node.attrs["carries"] if node.op is ops.scan else 0
    return carries if carries < len(node.types) else 0


def grow_regions(uses: Uses, owner: dict[Node, Region]) -> None:
    """One region for each heavy node and what follows it; regions over the same rows that feed one another merge.

    ``owner`` comes with the regions of siblings and leaves complete. Siblings grow one by one, each to an exit of its own.
    """
    for node in uses.nodes:
        if is_heavy(node) and (node not in owner or node in owner[node].parts):
            region = owner.get(node) or seed_region(node)
            members = grow(region, node, uses, owner)
            if region.parts:
                region.parts.update(dict.fromkeys(members, node))
            region.nodes = sorted({*region.nodes, *members}, key=uses.position.__getitem__)
            owner.update(dict.fromkeys(members, region))
    merge_rows(owner, uses)


def seed_region(node: Node) -> Region:
    if REDUCTION not in node.op.traits:
        dims = node.types[tail_of(node)].dims
        return Region("anchor", dims, dims)
    space, rows = node.inputs[0].dims, node.types[0].dims
    first = min(node.attrs["axes"], default=len(space))
    trailing = sorted(node.attrs["axes"]) == list(range(first, len(space)))
    if trailing and node.attrs["keepdims"]:
        return Region("row", space, rows)
    return Region("reduce", rows, rows)


def grow(region: Region, seed: Node, uses: Uses, owner: Mapping[Node, Region]) -> list[Node]:
    """The longest extension of ``seed`` downstream that has a single exit."""
    if seed.op.name in BUILT_IN_PLACE or (seed.op in LOOPS and carries_in_results(seed)):
        return [seed]
    members, best, seen = [seed], 1, {seed}
    queue = [(uses.position[n], n) for n in uses.tail_readers[seed]]
    queue = list(dict(queue).items())
    heapq.heapify(queue)
    open_exits = OpenExits(uses)
    open_exits.add(seed)
    while queue and seed not in uses.tail_results and len(members) - best <= LONGEST_TAIL:
        _, node = heapq.heappop(queue)
        reason = refusal(region, node, seen, owner) or waits_for(node, seed, seen, uses, owner)
        if reason:
            if not is_heavy(node):
                record_refusal("fuse_epilogue", node, reason)
            break
        members.append(node)
        seen.add(node)
        open_exits.add(node)
        if open_exits.count == 1:
            best = len(members)
        if node in uses.results:
            break
        for reader in uses.tail_readers[node]:
            entry = (uses.position[reader], reader)
            if reader not in seen and entry not in queue:
                heapq.heappush(queue, entry)
    return members[:best]


class OpenExits:
    """Counts the members of a growing region that something outside still reads."""

    def __init__(self, uses: Uses) -> None:
        self.uses = uses
        self.unread: dict[Node, int] = {}
        self.count = 0

    def add(self, node: Node) -> None:
        """A new member: it closes reads of older members and is open itself."""
        for value in set(node.inputs):
            if value.node in self.unread and value.index == tail_of(value.node):
                self.unread[value.node] -= sum(1 for v in node.inputs if v == value)
                self.count -= self.unread[value.node] == 0
        self.unread[node] = len(self.uses.tail_readers[node]) + (node in self.uses.tail_results)
        self.count += 1  # a member that nothing reads yet is the exit


def refusal(region: Region, node: Node, members: set[Node], owner: Mapping[Node, Region]) -> str:
    """Why ``node`` cannot follow in the region; empty if it can."""
    if node in owner:
        return "it already belongs to another kernel"
    dims = node.types[0].dims
    if is_elementwise(node):
        return "" if dims in (region.space, region.rows) else f"its dims differ from the kernel's {list(region.space)}"
    if region.kind == "row":
        same = node.inputs and node.inputs[0].dims == (region.rows if node.op.name == "broadcast" else region.space)
        if node.op.name == "broadcast" and same and dims == region.space:
            return ""
        if REDUCTION in node.op.traits and same and dims == region.rows:
            return ""
    return f"'{node.op.name}' cannot follow inside a kernel of kind '{region.kind}'"


def waits_for(node: Node, seed: Node, members: set[Node], uses: Uses, owner: Mapping[Node, Region]) -> str:
    """Why an operand of ``node`` would make the kernel wait for itself: only further results and siblings of ``seed`` can."""
    seeds = owner[seed].nodes if seed in owner else [seed]
    if len(seeds) == 1 and (len(seed.types) == 1 or len(uses.readers[seed]) == len(uses.tail_readers[seed])):
        return ""
    outside = [v.node for v in node.inputs if v.node not in members]
    found = depends(outside, lambda n: n in seeds, min(map(uses.position.__getitem__, seeds)), uses, owner)
    return "an operand needs another result of the same kernel" if found else ""


def depends(
    start: Sequence[Node], target: Callable[[Node], bool], after: int, uses: Uses, owner: Mapping[Node, Region]
) -> bool:
    """Whether computing ``start`` waits for a node that ``target`` accepts, kernels counted as a whole.

    ``after`` is a position that everything on such a path lies beyond.
    """
    seen: set[Node] = set()
    stack = list(start)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        mates = owner[node].nodes if node in owner else [node]
        seen.update(mates)
        if any(map(target, mates)):
            return True
        if max(uses.position[m] for m in mates) > after:
            stack.extend(v.node for m in mates for v in m.inputs)
    return False


def merge_rows(owner: dict[Node, Region], uses: Uses) -> None:
    """Merge a row region into the row region that alone reads it, when both run over the same rows."""
    for region in list(dict.fromkeys(owner.values())):
        readers = set(regions_reading(region, owner, uses))
        if region.kind != "row" or len(readers) != 1:
            continue
        (reader,) = readers
        if reader is not None and reader.kind == "row" and (reader.space, reader.rows) == (region.space, region.rows):
            reader.nodes = sorted([*reader.nodes, *region.nodes], key=uses.position.__getitem__)
            owner.update(dict.fromkeys(region.nodes, reader))


def regions_reading(region: Region, owner: Mapping[Node, Region], uses: Uses) -> Iterator[Region | None]:
    """The regions that read ``region``; ``None`` stands for nodes that no region owns, and for graph outputs."""
    for node in region.nodes:
        if node in uses.results:
            yield None
        for reader, _ in uses.readers[node]:
            if owner.get(reader) is not region:
                yield owner.get(reader)
