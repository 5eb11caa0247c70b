"""What must not be left of a model after recognition: loops written out, and tensors that the recurrence makes needless."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from coilc.ir import Dim, Graph, Module, Value, dims
from coilc.ir.opdef import MOVEMENT
from coilc.ir.opdef import STRUCTURAL as STRUCTURAL_OP

PIECES = 8  # more parts than any layer splits a tensor into by itself
LONG = 10_007  # a length next to which every constant part of a size vanishes
STRUCTURAL = ("input", "weight", "constant")


def held(graph: Graph, names: Iterable[str]) -> dict[str, int]:
    """How often each op of ``names`` occurs."""
    count = Counter(node.op.name for node in graph.nodes)
    return {name: count[name] for name in names}


def unrolled(graph: Graph) -> str | None:
    """A tensor that is cut into, or glued from, more parts than layers have: the trace of a loop over time.

    Args:
        graph: after the stage ``recognise``.
    """
    cuts = Counter(node.inputs[0] for node in graph.nodes if node.op.name == "slice")
    for value, count in cuts.items():
        if count > PIECES:
            return f"{value.type} is cut into {count} slices"
    for node in graph.nodes:
        if node.op.name == "concat" and len(set(node.inputs)) > PIECES:
            return f"{node.types[0]} is glued from {len(node.inputs)} parts"
    return None


def materialised(program: Module, scheduled: Module, length: str | int, rows: int = 1, chunk: int = 1) -> str | None:
    """A buffer that grows faster than the sequence, or is wider per token than all that the layers make.

    Args:
        program: as imported; its weights say how wide the layers are.
        scheduled: after the stage ``fuse``, where what is outside of the groups is memory.
        length: the symbol along the sequence, or its extent where it is fixed.
        rows: sequences side by side in one sample.
        chunk: tokens that the symbol counts as one.
    """
    graph = scheduled.entries["main"]
    sides = [side for array in program.weights.values() for side in array.shape]
    widest = max((*(_width(value, length) // chunk for value in graph.inputs), *sides), default=1)
    for value in _buffers(graph):
        if _is_square(value, length):
            return f"{value.type} grows with the square of the length"
        if _width(value, length) > 2 * widest * rows * chunk:
            wide = _width(value, length) // (rows * chunk)
            return f"{value.type} has {wide} elements per token; the widest layer has {widest}"
    return None


def copied(scheduled: Module) -> dict[str, int]:
    """Bytes that kernels write which do nothing but move elements, for a batch of one; scheduled as in ``materialised``."""
    found: dict[str, int] = {}
    for node in scheduled.entries["main"].nodes:
        body: Graph | None = node.attrs.get("body")
        if body and all(n.op.traits & {MOVEMENT, STRUCTURAL_OP} for n in body.nodes):
            found[f"{body.name}: {node.types[0]}"] = sum(
                dims.evaluate(t.bytes, defaultdict(lambda: 1)) for t in node.types
            )
    return found


def _buffers(graph: Graph) -> Iterator[Value]:
    for node in graph.nodes:
        if node.op.name not in STRUCTURAL:
            yield from (Value(node, i) for i in range(len(node.types)))


def _width(value: Value, length: str | int) -> int:
    """Elements per token of one sample."""
    return _extent(dims.size(value.dims), length) // (length if isinstance(length, int) else LONG)


def _is_square(value: Value, length: str | int) -> bool:
    if isinstance(length, int):
        return sum(extent == length for extent in value.dims) > 1
    once, twice = (_extent(dims.size(value.dims), length, factor) for factor in (1, 2))
    return twice > 3 * once


def _extent(dim: Dim, length: str | int, factor: int = 1) -> int:
    """``dim`` for one sample of a long sequence."""
    return dims.evaluate(dim, {name: factor * LONG if name == length else 1 for name in dims.symbols(dim)})
