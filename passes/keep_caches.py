"""Caches that a model passes from call to call, and that grow, become states of a fixed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coilc.ir import DTYPES, Graph, InputError, Location, Node, UnsupportedError, Value, at, dims, ops
from coilc.ir.core import substitute_attr
from coilc.ir.states import Growth, growth

from .causal_attention import TIME, all_seen, last_seen
from .timeline import Mixes, Timeline, rebuilt, replace_at


def growing(graph: Graph) -> Mapping[str, Growth]:
    """The states that grow, by name of the input."""
    types, outputs = {v.node.attrs["name"]: v.type for v in graph.inputs}, dict(graph.outputs)
    found = {before: growth(types[before], outputs[after].type) for before, after in graph.states}
    return {before: how for before, how in found.items() if how is not None}


def keep_caches(graph: Graph, room: int) -> Graph:
    """Replace growing states by caches with room for ``room`` elements, and their length by the position.

    Before::

        def main(q: f32[B, 2, L, 8], k: f32[B, 2, L, 8], past: f32[B, 2, P, 8] = "present", *, ...):
            v0: f32[B, 2, L + P, 8] = concat(past, k, axis=2)
            v1: i64[()] = extent(dim=P, dtype=i64)
            v2: f32[B, 2, L, 8] = attention(q, v0, v0, v1, optional=("offset",), causal=True)
            return {"y": v2, "present": v0}

    After::

        def main(q: f32[B, 2, L, 8], k: f32[B, 2, L, 8], keys: f32[B, 2, 64, 8] = "keys", position: i64[()] = "position", *, ...):
            v0: f32[B, 2, 64, 8] = update_slice(keys, k, position, axis=2)
            v1: f32[B, 2, L, 8] = attention(q, v0, v0, position, optional=("offset",), causal=True)
            v2: i64[()] = extent(dim=L, dtype=i64)
            v3: i64[()] = add(position, v2)
            return {"y": v1, "keys": v0, "position": v3}

    Other states stay. A cache is empty at the start of a sequence.

    Needs: attention and masks recognised. Guarantees: what the graph gives for the caches of all earlier calls.

    Raises:
        InputError: the caches have different lengths.
        UnsupportedError: listing every op that reads a cache otherwise.
    """
    caches = growing(graph)
    kinds = {(how.symbol, how.step) for how in caches.values()}
    if len(kinds) != 1:
        rows = ", ".join(f"'{name}' from {how.symbol} by {how.step}" for name, how in caches.items())
        raise InputError(f"the caches of a call grow together, but these do not: {rows}")
    ((past, step),) = kinds
    names = [v.node.attrs["name"] for v in graph.inputs] + [name for name, _ in graph.outputs]
    line = Timeline(past, {*names, *graph.ranges}, room)
    line.length = step
    fixed = [(before, after) for before, after in graph.states if before not in caches]
    gone = {after: before for before, after in graph.states if before in caches}
    inputs = {v.node.attrs["name"]: v for v in graph.inputs}
    walk = _Walk(line, {value: inputs[gone[name]] for name, value in graph.outputs if name in gone})
    outputs = [(name, walk.value(value)) for name, value in graph.outputs if name not in gone]
    if walk.refused:
        raise UnsupportedError(f"the cache of '{graph.name}' cannot become a state:", walk.refused)
    return Graph(
        graph.name,
        (*(v for name, v in inputs.items() if name not in caches), *(s.before for s in line.states)),
        (*outputs, *((s.name, s.after) for s in line.states)),
        tuple((name, limits) for name, limits in graph.symbols if name != past),
        (*fixed, *((s.before.node.attrs["name"], s.name) for s in line.states)),
    )


class _Walk:
    """Values without the length of the caches, which is the position; operands first.

    ``caches`` are the values of the states after a call, and the inputs that they were before.
    """

    def __init__(self, line: Timeline, caches: Mapping[Value, Value]) -> None:
        self.line, self.caches = line, caches
        self.known: dict[Value, Value | None] = {}  # None: refused, or computed from what was
        self.refused: list[tuple[str, Location | None]] = []

    def value(self, value: Value) -> Value:
        """What stands for an output; the value itself if there is nothing."""
        self.visit(value)
        return self.known[value] or value

    def visit(self, value: Value) -> None:
        pending = [value.node]
        while pending:
            node = pending[-1]
            missing = [v.node for v in self.operands(node) if v not in self.known]
            if not missing:
                pending.pop()
                self.known.update(zip(node.results, self.node(node), strict=True))
            pending += missing

    def operands(self, node: Node) -> Sequence[Value]:
        """What a node is computed from; of a cache that is what this call adds to it."""
        if not self.reads_cache(node):
            return node.inputs
        return [self.added(v) or v for v in node.inputs[:3]] if node.op is ops.attention else ()

    def reads_cache(self, node: Node) -> bool:
        return any(v in self.caches.values() or self.added(v) for v in node.inputs)

    def added(self, value: Value) -> Value | None:
        """What this call appends, if the value is a cache after it: what was there before, then the new elements."""
        before = self.caches.get(value)
        if before is None or value.op is not ops.concat or value.node.attrs["axis"] != TIME:
            return None
        first, *rest = value.node.inputs
        return rest[0] if first == before and len(rest) == 1 else None

    def node(self, node: Node) -> Sequence[Value | None]:
        operands = [self.known[v] for v in self.operands(node)]
        given = [v for v in operands if v is not None]
        if len(given) < len(operands):
            return [None] * len(node.types)
        try:
            with at(node.location):
                return self.follow(node, given)
        except Mixes as reason:
            self.refused.append((f"{node.op.name} {reason}", node.location))
            return [None] * len(node.types)

    def follow(self, node: Node, operands: Sequence[Value]) -> Sequence[Value]:
        if self.reads_cache(node):
            if node.op is not ops.attention:
                raise Mixes("reads a cache, which only attention may")
            return [self.attention(node, *operands)]
        if node.op is ops.extent:
            return [self.extent(node)]
        if node.op is ops.slice and not any(map(self.line.runs, node.types[0].dims)):
            return [self.table(node, operands[0])]
        if any(substitute_attr(part, {self.line.symbol: 0}) != part for part in (*node.types, *node.attrs.values())):
            name = f" '{node.attrs['name']}'" if node.op is ops.input_ else ""
            raise Mixes(f"{name} is as long as the cache".strip())
        return rebuilt(node, operands)

    def attention(self, node: Node, q: Value, k: Value, v: Value) -> Value:
        """Over everything, or a window of it, whose last elements this call brings."""
        optional, window = node.attrs["optional"], node.attrs["window"]
        if not all(map(self.added, node.inputs[1:3])):
            raise Mixes("reads a cache for one of keys and values")
        if "mask" in optional:
            raise Mixes("has a mask over the cache that is not causal, or depends on more than positions")
        offset = node.inputs[3].node.attrs.get("dim") if optional else None
        if offset != dims.symbol(self.line.symbol) and (node.attrs["causal"] or self.line.length != 1):
            raise Mixes("sees other elements of the cache than those up to its own")
        plain = ops.attention(q, k, v, **{**node.attrs, "causal": True, "optional": ()}).node
        if window is None:
            return all_seen(self.line, plain, q, k, v)
        return last_seen(self.line, plain, q, k, v, window)

    def extent(self, node: Node) -> Value:
        """A number that counts the cache counts the position instead."""
        dim, name = node.attrs["dim"], self.line.symbol
        rest = dims.substitute(dim, {name: 0})
        factor = dims.substitute(dim, {name: 1}) - rest
        if dim != factor * dims.symbol(name) + rest or not isinstance(factor, int):
            raise Mixes(f"counts {dim}")
        constant = ops.extent(dim=rest, dtype=node.attrs["dtype"])
        if factor == 0:
            return constant
        position = ops.cast(self.line.position(), dtype=node.attrs["dtype"])
        return ops.add(ops.mul(position, factor), constant)

    def table(self, node: Node, x: Value) -> Value:
        """Rows of a table from the position on."""
        starts, stops, steps = (node.attrs[name] for name in ("starts", "stops", "steps"))
        moving = [a for a in range(len(starts)) if self.line.runs(starts[a]) or self.line.runs(stops[a])]
        if not moving:
            return rebuilt(node, [x])[0]
        axis = moving[0]
        if len(moving) > 1 or starts[axis] != dims.symbol(self.line.symbol) or steps[axis] != 1:
            raise Mixes("picks other rows than those from the position on")
        rows = ops.add(ops.iota(dims=(node.types[0].dims[axis],), axis=0, dtype=DTYPES["i64"]), self.line.position())
        whole = {"starts": replace_at(starts, axis, 0), "stops": replace_at(stops, axis, x.dims[axis])}
        return ops.take(ops.slice(x, **whole, steps=steps), rows, axis=axis)
