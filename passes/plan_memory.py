"""Place every intermediate value of a scheduled graph in an arena whose size is a formula over the symbolic dims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coilc.ir import Dim, Graph, Value, dims

Ranges = Mapping[str, tuple[int, "int | None"]]

ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register


@dataclass(frozen=True)
class MemoryPlan:
    """Where the intermediate values of one entry live.

    Attributes:
        slots: the arena's slots in order. A slot is as large as the largest of its sizes (bytes), rounded up to
            ``ALIGNMENT``; several sizes remain only where no one of them is largest for every value of the symbols.
        placement: the slot of every value in the arena. A reshape has its operand's slot. Inputs, weights and graph
            outputs live in the caller's or the artifact's memory and do not appear.
    """

    slots: tuple[tuple[Dim, ...], ...]
    placement: Mapping[Value, int]

    def bytes(self, bindings: Mapping[str, int]) -> int:
        """The arena's size for concrete dims."""
        return sum(slot_bytes(slot, bindings) for slot in self.slots)


def slot_bytes(sizes: tuple[Dim, ...], bindings: Mapping[str, int]) -> int:
    """One slot's size in bytes for concrete dims."""
    largest = max((dims.evaluate(size, bindings) for size in sizes), default=0)
    return -(-largest // ALIGNMENT) * ALIGNMENT


def plan_memory(graph: Graph) -> MemoryPlan:
    """Reuse memory greedily: a value takes the free slot that fits best, and grows one only if none is large enough.

    Values live from the group that writes them to the last group that reads them or an alias of them, in the order of
    ``graph.nodes``. A group never writes over a slot that it reads.

    Needs: a scheduled graph. Guarantees: values that are alive together never share a slot, for any dims.
    """
    return _Planner(graph).plan()


@dataclass
class _Slot:
    sizes: list[Dim] = field(default_factory=list)


class _Planner:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.ranges = graph, graph.ranges
        self.outside = {root(v) for v in graph.results} | set(graph.inputs)
        self.slots: list[_Slot] = []
        self.free: list[int] = []
        self.placement: dict[Value, int] = {}

    def plan(self) -> MemoryPlan:
        expiring = self.last_uses()
        for position, node in enumerate(self.graph.nodes):
            if node.op.name == "fused":
                for value in node.results:
                    if value not in self.outside:
                        self.placement[value] = self.take_slot(value.type.bytes)
            elif node.op.name == "reshape" and (base := root(node.inputs[0])) in self.placement:
                self.placement[node.results[0]] = self.placement[base]
            self.free.extend(self.placement[value] for value in expiring.get(position, ()) if value in self.placement)
        return MemoryPlan(tuple(tuple(slot.sizes) for slot in self.slots), self.placement)

    def last_uses(self) -> Mapping[int, list[Value]]:
        """For every position, the fused results that nothing reads after it."""
        last: dict[Value, int] = {}
        for position, node in enumerate(self.graph.nodes):
            if node.op.name == "fused":
                last.update((value, position) for value in node.results)
            last.update((base, position) for base in map(root, node.inputs) if base in last)
        expiring: dict[int, list[Value]] = {}
        for value, position in last.items():
            expiring.setdefault(position, []).append(value)
        return expiring

    def take_slot(self, size: Dim) -> int:
        fitting = [i for i in self.free if any(never_larger(size, have, self.ranges) for have in self.slots[i].sizes)]
        if fitting:
            index = min(fitting, key=lambda i: (self.weight(i), i))
        elif self.free:
            index = max(self.free, key=lambda i: (self.weight(i), -i))
            kept = [have for have in self.slots[index].sizes if not never_larger(have, size, self.ranges)]
            self.slots[index].sizes = [*kept, size]
        else:
            self.slots.append(_Slot([size]))
            return len(self.slots) - 1
        self.free.remove(index)
        return index

    def weight(self, index: int) -> int:
        """An order of slots by size at typical dims; it decides only how well things pack."""
        return max(typical(size, self.ranges) for size in self.slots[index].sizes)


def root(value: Value) -> Value:
    """The value whose memory ``value`` has: reshapes are aliases."""
    while value.op.name == "reshape":
        (value,) = value.node.inputs
    return value


def never_larger(small: Dim, large: Dim, ranges: Ranges) -> bool:
    """Whether ``small <= large`` for all dims in range (sufficient: term by term)."""
    if small == large:
        return True
    return dims.bounds(without_common_symbols(large - small), ranges)[0] >= 0


def without_common_symbols(difference: Dim) -> Dim:
    """``difference`` divided by the symbols that all of its terms share: the same sign, tighter bounds."""
    for name in sorted(set(dims.symbols(difference))):
        while (quotient := dims.divide_exactly(difference, dims.symbol(name))) is not None and quotient != 0:
            difference = quotient
    return difference


def typical(size: Dim, ranges: Ranges) -> int:
    """``size`` when every symbol is 64, or as near as its range allows."""
    middle = {s: min(max(64, ranges[s][0]), ranges[s][1] or 2**62) for s in dims.symbols(size)}
    return dims.evaluate(size, middle)
