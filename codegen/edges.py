"""How far the padding at the start of an axis reaches: elements further in need no test of whether they read it."""

from __future__ import annotations

from collections.abc import Iterator

from coilc.ir import Graph, Value
from coilc.ir.opdef import ELEMENTWISE

Place = tuple[Value, int, int]  # a value, its axis that follows one of the result, and by how many elements it is ahead


def edge_of(body: Graph, axis: int) -> int:
    """From which index on along an axis of the results no pad or concat is read in its first, constant part."""
    pending: list[Place] = [(value, axis, 0) for value in body.results]
    seen: set[Place] = set()
    edge = 0
    while pending:
        place = pending.pop()
        if place not in seen:
            seen.add(place)
            edge = max(edge, _constant_part(*place))
            pending += _read_by(*place)
    return edge


def _constant_part(value: Value, axis: int, ahead: int) -> int:
    """The first index whose element lies behind the constant part of a pad or concat."""
    attrs = value.node.attrs
    if value.op.name == "pad" and isinstance(attrs["low"][axis], int):
        return int(attrs["low"][axis]) - ahead
    if value.op.name == "concat" and attrs["axis"] % value.type.rank == axis:
        extents = [x.dims[axis] for x in value.node.inputs[:-1]]
        return sum(n for n in extents if isinstance(n, int)) - ahead if all(isinstance(n, int) for n in extents) else 0
    return 0


def _read_by(value: Value, axis: int, ahead: int) -> Iterator[Place]:
    """The operands in which the axis goes on."""
    name, attrs, operands = value.op.name, value.node.attrs, value.node.inputs
    if ELEMENTWISE in value.op.traits:
        yield from ((x, axis, ahead) for x in operands)
    elif name == "transpose":
        yield operands[0], attrs["perm"][axis], ahead
    elif name == "broadcast":
        place = axis - value.type.rank + operands[0].type.rank
        if place >= 0 and operands[0].dims[place] == value.dims[axis] != 1:
            yield operands[0], place, ahead
    elif name == "slice" and attrs["steps"][axis] == 1 and isinstance(attrs["starts"][axis], int):
        yield operands[0], axis, ahead + attrs["starts"][axis]
    elif name == "pad" and isinstance(attrs["low"][axis], int):
        yield operands[0], axis, ahead - attrs["low"][axis]
    elif name == "concat" and attrs["axis"] % value.type.rank != axis:
        yield from ((x, axis, ahead) for x in operands)
