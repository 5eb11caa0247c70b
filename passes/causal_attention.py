"""Attention over time: keys and values that later times will need are kept in a cache."""

from __future__ import annotations

from collections.abc import Sequence

from coilc.ir import DTYPES, Node, Value, literal, ops

from .causal_rules import Results, pointwise, rule
from .timeline import Mixes, Timed, Timeline, replace_at

TIME = 2  # axis of keys and values [B, G, L, E]


@rule("attention")
def attention(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Time is the batch axis; or causal, and then keys and values are remembered: the last ones of a window, or all."""
    if all(o.axis in (None, 0) and not o.excess for o in operands):
        return pointwise(line, node, operands)
    if not node.attrs["causal"]:
        raise Mixes("lets every time see all others: it is not causal")
    if node.attrs["optional"]:
        raise Mixes(f"has a {node.attrs['optional'][0]} over pairs of times, which would have to be remembered")
    if not all(o.plain and o.axis == TIME for o in operands):
        raise Mixes("does not run over time alone")
    q, k, v = (o.value for o in operands)
    window = node.attrs["window"]
    o = all_seen(line, node, q, k, v) if window is None else last_seen(line, node, q, k, v, window)
    return (Timed(o, TIME),)


def all_seen(line: Timeline, node: Node, q: Value, k: Value, v: Value) -> Value:
    """Everything is kept, each element in its place: as much as the context has room for."""

    def kept(kind: str, chunk: Value) -> Value:
        type_ = chunk.type.with_dims(replace_at(chunk.dims, TIME, line.context))
        before = line.remember(kind, type_, None, node.location)
        after = ops.update_slice(before, chunk, line.position(), axis=TIME)
        line.keep(before, after)
        return after

    keys, values = kept("keys", k), kept("values", v)
    attrs = {**node.attrs, "optional": ("offset",)}
    return ops.attention(q, keys, values, line.position(), **attrs)


def last_seen(line: Timeline, node: Node, q: Value, k: Value, v: Value, window: int) -> Value:
    """The last ``window - 1`` elements come before the chunk; at the start of the sequence they are not there yet."""
    if window == 1:
        return ops.attention(q, k, v, **node.attrs)
    count = window - 1

    def kept(kind: str, chunk: Value) -> Value:
        type_ = chunk.type.with_dims(replace_at(chunk.dims, TIME, count))
        before = line.remember(kind, type_, None, node.location)
        whole = ops.concat(before, chunk, axis=TIME)
        line.keep(before, ops.slice_axis(whole, TIME, line.length, line.length + count))
        return whole

    keys, values = kept("keys", k), kept("values", v)
    index = ops.iota(dims=(line.length + count,), axis=0, dtype=DTYPES["i64"])
    there = ops.ge(ops.add(index, line.position()), count)
    attrs = {**node.attrs, "optional": ("mask", "offset")}
    return ops.attention(q, keys, values, there, literal(count, DTYPES["i64"]), **attrs)
