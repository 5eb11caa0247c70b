"""Decide for every elementwise and movement node who computes it. The second half of fusion.

Nodes are visited consumers first, so the kernels that need a node are known. A node is either *free* (each of these
kernels computes it where it reads it), or *owned* by one kernel that stores it: an existing one that walks over the same
elements anyway, or a new one. Movement is always free where the reader allows it; arithmetic is free for a single
reader, and for several only when it is cheap; heavy work is never repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from coilc.ir import Node, Value, ops

from .grow_regions import Region, Uses, depends, is_elementwise, is_heavy, is_movement
from .state_sweeps import sweep_of
from .trace import record_refusal

Prologue = Literal["none", "movement", "pointwise"]  # what a reader computes on the way to an operand

CHEAP = frozenset({
    "cast", "neg", "abs", "add", "sub", "mul", "maximum", "minimum", "where", "eq", "ne", "lt", "le", "gt", "ge",
    "logical_and", "logical_or", "logical_not", "logical_xor",
    "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "shift_left", "shift_right",
})  # fmt: skip

# What anchors compute while they read their operands, and whether they read an element more than once. Operands that are
# missing here are read from memory as they are.
_ONCE: tuple[Prologue, bool] = ("pointwise", False)
_OFTEN: tuple[Prologue, bool] = ("pointwise", True)
_MOVED: tuple[Prologue, bool] = ("movement", True)
ANCHOR_PROLOGUES: Mapping[str, Mapping[str | int, tuple[Prologue, bool]]] = {
    "matmul": {0: _MOVED, 1: _MOVED},
    "packed_matmul": {0: _MOVED},
    "attention": {0: _MOVED, 1: _MOVED, 2: _MOVED, "mask": _OFTEN, "offset": _OFTEN},
    "causal_conv1d": {0: _OFTEN},
    "depthwise_conv": {0: _OFTEN},
    "dft": {0: _ONCE},
    "long_conv": dict.fromkeys(range(3), _OFTEN),
    "linear_scan": {0: _ONCE, 1: _ONCE, 2: _ONCE},
    "selective_scan": {0: _ONCE, 1: _ONCE, 2: _OFTEN, 3: _OFTEN, 4: _OFTEN, "z": _ONCE, "h0": _ONCE, "mask": _OFTEN},
    "gated_linear_attention": {0: _OFTEN, 1: _OFTEN, 2: _ONCE, 3: _OFTEN, "h0": _ONCE},
    "update_slice": {1: _ONCE},
    "cumsum": {0: _ONCE},
    "cumprod": {0: _ONCE},
    "argmax": {0: _ONCE},
    "argmin": {0: _ONCE},
}


LONGEST_BODY = 256  # nodes; compile time grows faster than linearly with the length of a kernel


@dataclass(frozen=True)
class Demand:
    """One kernel's need for a node.

    Attributes:
        region: the kernel.
        prologue: what it may compute on the way.
        repeated: whether it reads an element more than once, so that arithmetic would be repeated.
        in_place: whether it reads each element exactly where its own element is, with nothing moved in between.
        parts: the siblings of the kernel that need the node; each would compute it for itself.
    """

    region: Region
    prologue: Prologue
    repeated: bool
    in_place: bool
    parts: frozenset[Node] = frozenset()

    def __or__(self, other: Demand) -> Demand:
        prologue = min(self.prologue, other.prologue, key=("none", "movement", "pointwise").index)
        in_place, parts = self.in_place and other.in_place, self.parts | other.parts
        return Demand(self.region, prologue, self.repeated or other.repeated or len(parts) > 1, in_place, parts)


def place_pointwise(uses: Uses, owner: dict[Node, Region]) -> None:
    """Complete ``owner``; nodes that stay without an owner are free."""
    demands: dict[Node, dict[Region, Demand]] = {}
    for node in reversed(uses.nodes):
        if node.op in (ops.input_, ops.weight):
            continue
        needs = demands[node] = {}
        if node not in owner:
            for demand in demands_on(node, uses, owner, demands):
                known = needs.get(demand.region)
                needs[demand.region] = demand | known if known else demand
            region = choose_owner(node, needs, uses, owner)
            if region:
                region.nodes = sorted([*region.nodes, node], key=uses.position.__getitem__)
                owner[node] = region
            else:
                for reader in needs:
                    reader.free += 1


def demands_on(
    node: Node, uses: Uses, owner: Mapping[Node, Region], demands: Mapping[Node, Mapping[Region, Demand]]
) -> Iterator[Demand]:
    """The needs of all readers, seen through free nodes."""
    for reader, index in uses.readers[node]:
        region = owner.get(reader)
        if region:
            part = region.parts.get(reader)
            yield replace(own_demand(reader, index, region), parts=frozenset({part} if part else ()))
        else:
            yield from (through(reader, index, d) for d in demands[reader].values())


def own_demand(reader: Node, index: int, region: Region) -> Demand:
    """The need of a node that a kernel owns."""
    if is_elementwise(reader):
        return Demand(region, "pointwise", False, reader.types[0].dims == region.space)
    if is_movement(reader):
        return Demand(region, "pointwise", region.kind != "row" and is_repeating(reader, index), False)
    if region.kind in ("row", "reduce"):
        return Demand(region, "pointwise", False, reader.inputs[0].dims == region.space)
    if reader.op is ops.scan:
        return Demand(region, *scan_prologue(reader, index), False)
    table = ANCHOR_PROLOGUES.get(reader.op.name, {})
    fixed = len(reader.inputs) - len(reader.attrs.get("optional", ()))
    key: str | int = index if index < fixed else reader.attrs["optional"][index - fixed]
    prologue, repeated = table.get(key, ("none", False))
    return Demand(region, prologue, repeated, False)


def scan_prologue(scan: Node, index: int) -> tuple[Prologue, bool]:
    """What a general scan computes while it reads an operand.

    First values are read once, and so is a sequence by steps that are one kernel and repeat none of it; a constant is read
    again in every step. Products and the like want rows of memory, unless they are sums over the rows of a state.
    """
    body, carries = scan.attrs["body"], scan.attrs["carries"]
    if index < carries:
        return _ONCE
    sweep = sweep_of(scan)
    if sweep is not None:
        return "pointwise", index >= carries + scan.attrs["sequences"] or sweep.reads_often(index)
    repeated = index >= carries + scan.attrs["sequences"] or any(map(is_heavy, body.nodes))
    reached = {body.inputs[index]}
    for node in body.nodes:
        if not reached.isdisjoint(node.inputs):
            if is_heavy(node):
                return "none", True
            repeated |= is_movement(node) and is_repeating(node, 0)
            reached.update(node.results)
    return "pointwise", repeated


def through(reader: Node, index: int, demand: Demand) -> Demand:
    """The need for an operand of a free node."""
    if is_elementwise(reader):
        return demand
    return replace(demand, repeated=demand.repeated or is_repeating(reader, index), in_place=False)


def is_repeating(reader: Node, index: int) -> bool:
    """Whether a movement node copies an element of the operand to several places."""
    if reader.op in (ops.take, ops.gather):
        return index == 0
    return reader.op is ops.broadcast and reader.types[0].size != reader.inputs[0].type.size


def choose_owner(node: Node, needs: Mapping[Region, Demand], uses: Uses, owner: Mapping[Node, Region]) -> Region | None:
    """The kernel that stores ``node``, or ``None`` if the node is free."""
    reason = why_stored(node, needs, uses, owner)
    if not reason:
        return None
    if node.op is not ops.constant:
        record_refusal("fuse_prologue", node, reason)
    dims = node.types[0].dims
    if is_elementwise(node):
        for region, demand in needs.items():
            fits = (
                demand.in_place and dims == region.space and region.kind in ("row", "pointwise") and not is_full(region)
            )
            others = set(needs) - {region}
            if fits and not waits_for_any(region, others, node, uses, owner):
                return region
    return Region("pointwise", dims, dims)


def why_stored(node: Node, needs: Mapping[Region, Demand], uses: Uses, owner: Mapping[Node, Region]) -> str:
    """Why the node cannot be free; empty if it can."""
    if node in uses.results:
        return "" if is_alias(node, owner) else "it is an output of the model"
    if node.op is ops.constant:
        return "an anchor reads it from memory" if any(d.prologue == "none" for d in needs.values()) else ""
    if node.op is ops.reshape:
        return ""
    if any(d.prologue == "none" or (d.prologue == "movement" and not moves(node)) for d in needs.values()):
        return "a kernel that reads it computes nothing on the way to this operand"
    if is_movement(node):
        return ""
    if any(map(is_full, needs)):
        return f"the kernel that reads it has {LONGEST_BODY} nodes already"
    if is_cheap(node):
        return ""
    if any(d.repeated for d in needs.values()):
        return "a kernel would compute it several times"
    return f"{len(needs)} kernels would compute it" if len(needs) > 1 else ""


def is_full(region: Region) -> bool:
    """Whether the kernel is as long as kernels get."""
    return region.free + len(region.nodes) >= LONGEST_BODY


def moves(node: Node) -> bool:
    return is_movement(node) or node.op is ops.cast


def is_alias(node: Node, owner: Mapping[Node, Region]) -> bool:
    """Whether the node is a free reshape of something stored."""
    while node.op is ops.reshape:
        node = node.inputs[0].node
    return node.op in (ops.input_, ops.weight) or node in owner


def is_cheap(node: Node) -> bool:
    """Whether computing the node again costs no more than reading it: a simple op over at most one large operand."""
    return node.op.name in CHEAP and sum(1 for v in node.inputs if not is_small(v)) <= 1


def is_small(value: Value) -> bool:
    """A scalar, an index, or a broadcast of something smaller."""
    return value.type.size == 1 or value.op in (ops.iota, ops.constant, ops.broadcast)


def waits_for_any(region: Region, others: set[Region], node: Node, uses: Uses, owner: Mapping[Node, Region]) -> bool:
    """Whether ``region`` waits for one of ``others``; then they cannot wait for it to store ``node``."""
    if not others:
        return False
    start = [v.node for n in region.nodes for v in n.inputs if owner.get(v.node) is not region]
    return depends(start, lambda n: owner.get(n) in others, uses.position[node], uses, owner)
