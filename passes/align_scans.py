"""Scans made alike: written with one body, where one reads a sequence in place of a constant or stacks more.

The rows of a grid are scans that read the row before. The first row has none, and reads zeros that do not move; nothing
reads what the last row would have to stack for the next.
"""

from __future__ import annotations

from collections.abc import Mapping

from coilc.ir import Graph, Node, Value, at, ops

from .loop_parts import Loop
from .replace_values import replace_values


def align_scans(pattern: Node, actual: Node) -> tuple[Value, ...] | None:
    """Operands with which ``pattern``'s op computes what ``actual`` does, or ``None`` if there are none.

    Before (``pattern`` reads a sequence ``x`` where ``actual`` reads a constant)::

        h = scan(h0, xs, x, body=lambda h, x: h * x, carries=1)
        g = scan(h0, xs, zero, body=lambda h, zero: h * zero, carries=1)

    After, the operands ``(h0, xs, stacked)`` with::

        stacked = broadcast(zero, dims=(T, *zero.dims))
    """
    if pattern.attrs == actual.attrs and pattern.types == actual.types:
        return actual.inputs
    ours, theirs = Loop(pattern), Loop(actual)
    places = ("carries", "axis", "reverse")
    if pattern.types != actual.types or any(pattern.attrs[name] != actual.attrs[name] for name in places):
        return None
    found = _match_bodies(ours, theirs)
    if found is None:
        return None
    return tuple(found.get(v, given) for v, given in zip(ours.body.inputs, pattern.inputs, strict=True))


def _match_bodies(ours: Loop, theirs: Loop) -> Mapping[Value, Value] | None:
    """An operand for every input of our body that it reads; ``None`` if the bodies are not the same.

    Where theirs reads a constant, that may be computed, outside of the loop, as ours is inside.
    """
    pairs = [(a, b, False) for a, b in zip(ours.body.results, theirs.body.results, strict=True)]
    bound = {a: (b, False) for a, b in zip(ours.body_carries, theirs.body_carries, strict=True)}
    seen = set[tuple[Value, Value, bool]]()
    while pairs:
        a, b, outside = pairs.pop()
        if not outside and b in theirs.consts:
            b, outside = theirs.consts[b], True
        if (a, b, outside) in seen:
            continue
        seen.add((a, b, outside))
        source = a.node.inputs[0] if a.op is ops.reshape and b.op is not ops.reshape else a
        if source.op is ops.input_ and (source is a or source in ours.sequences):
            if bound.setdefault(source, (b, outside)) != (b, outside):
                return None
        elif a.op is not b.op or a.index != b.index or a.node.attrs != b.node.attrs or a.node.types != b.node.types:
            return None
        else:
            pairs += ((x, y, outside) for x, y in zip(a.node.inputs, b.node.inputs, strict=True))
    operands = {a: _operand(ours, a, theirs, b, outside) for a, (b, outside) in bound.items()}
    return None if None in operands.values() else {a: v for a, v in operands.items() if v is not None}


def _operand(ours: Loop, a: Value, theirs: Loop, b: Value, outside: bool) -> Value | None:
    """What to give for our input ``a`` that does what their ``b``, inside or outside of the loop, does."""
    if a in ours.body_carries:
        return None if outside else dict(zip(theirs.body_carries, theirs.inits, strict=True)).get(b)
    if not outside:
        return theirs.sequences.get(b) if a in ours.sequences else None
    if a in ours.consts:
        return b
    dims = list(a.dims)
    dims.insert(ours.axis, ours.length)
    once = ops.reshape(b, dims=(*dims[: ours.axis], 1, *dims[ours.axis + 1 :]))
    return ops.broadcast(once, dims=tuple(dims))


def equal_outputs(graph: Graph) -> Graph:
    """Let scans that differ only in how many outputs they stack stack all that one of them does.

    Before::

        h, y, hs = scan(h0, x, body=lambda h, x: (h * x, g(h), h * x), carries=1)
        k, z = scan(k0, hs, body=lambda h, x: (h * x, g(h)), carries=1)

    After, with the body of the first::

        k, z, ks = scan(k0, hs, body=lambda h, x: (h * x, g(h), h * x), carries=1)
    """
    scans = [node for node in graph.nodes if node.op is ops.scan]
    longest: dict[object, Node] = {}
    for node in scans:
        other = longest.setdefault(_without_outputs(node), node)
        if len(node.types) > len(other.types):
            longest[_without_outputs(node)] = node
    replaced: dict[Value, Value] = {}
    for node in scans:
        other = longest[_without_outputs(node)]
        count = len(node.types)
        if count < len(other.types) and other.attrs["body"].results[:count] == node.attrs["body"].results:
            with at(node.location):
                replaced.update(zip(node.results, ops.scan.node(*node.inputs, **other.attrs).results, strict=False))
    return replace_values(graph, replaced) if replaced else graph


def _without_outputs(node: Node) -> object:
    """What scans that differ only in their outputs have in common."""
    loop = Loop(node)
    types = tuple(v.type for v in node.inputs)
    return loop.body.inputs, loop.next_carries, types, loop.carries, len(loop.sequences), loop.axis, loop.reverse
