"""Let a graph over sequences of a known length, or of whole chunks, take any shorter one, if it is causal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coilc.ir import Dim, Graph, Location, Node, UnsupportedError, Value, at, dims, ops
from coilc.ir.core import symbols_in, topological_order
from coilc.ir.opdef import ELEMENTWISE, MIXER

from .timeline import SEQUENCES, Mixes, rebuilt, replace_at


def shorten_sequences(graph: Graph, time: str) -> Graph:
    """Replace the extent of the time axis, a number or a multiple of a symbol, by a symbol that may be as large.

    Before::

        def main(x: f32[B, 97, 4], *, B: dim[1:]):
            k: f32[97, 4] = weight(name="k", type=f32[97, 4])
            y: f32[B, 97, 4] = long_conv(x, k)

    After, with ``time`` "L"::

        def main(x: f32[B, L, 4], *, B: dim[1:], L: dim[1:97]):
            k: f32[97, 4] = weight(name="k", type=f32[97, 4])
            y: f32[B, L, 4] = long_conv(x, k)

    Where the extent is ``4*C``, for chunks of four, every length becomes possible: the next multiple has one.

    What has an extent for every element and does not depend on the inputs, such as an embedding of places, is cut to its
    first L. The time axis is that which a causal convolution or recurrence runs along.

    Needs: structure recognised. Guarantees: results for L elements are the first L of those for all.

    Raises:
        UnsupportedError: listing every op that looks at more than the past, or for which no rule is known.
    """
    extents = _extents(graph)
    if len(extents) != 1:
        raise UnsupportedError(f"'{graph.name}' has no dimension '{time}', and not one extent for it", ())
    (extent,) = extents
    longest = dims.bounds(extent, graph.ranges)[1]
    walk = _Walk(dims.symbol(time), extent)
    inputs = tuple(map(walk.input, graph.inputs))
    outputs = tuple((name, walk.output(name, value)) for name, value in graph.outputs)
    if walk.refused:
        raise UnsupportedError(f"'{graph.name}' cannot take fewer than {extent} elements:", walk.refused)
    gone = set(dims.symbols(extent))
    kept = tuple((name, limits) for name, limits in graph.symbols if name not in gone)
    short = Graph(graph.name, inputs, outputs, (*kept, (time, (1, longest))), graph.states)
    left = [n for n in short.nodes if gone.intersection(symbols_in((*n.types, *n.attrs.values())))]
    if left:
        places = [(f"{n.op.name} has an extent that depends on {extent}", n.location) for n in left]
        raise UnsupportedError(f"'{graph.name}' cannot take fewer than {extent} elements:", places)
    return short


def _extents(graph: Graph) -> set[Dim]:
    """How long the sequences are that something remembers along."""
    return {n.inputs[0].dims[1] for n in graph.nodes if MIXER in n.op.traits and n.op.name in RULES}


Shortened = tuple[Value, int | None]  # with the axis that is time, if any
Rule = Callable[["_Walk", Node, Sequence[Shortened]], Shortened]


class _Walk:
    """Values with the symbol in place of the extent, operands first."""

    def __init__(self, length: Dim, extent: Dim) -> None:
        self.length, self.extent = length, extent
        self.known: dict[Value, Shortened | None] = {}  # None: refused, or computed from what was
        self.refused: list[tuple[str, Location | None]] = []

    def input(self, value: Value) -> Value:
        axes = [a for a, d in enumerate(value.dims) if d == self.extent]
        if len(axes) > 1:
            name = value.node.attrs["name"]
            self.refused.append((f"input '{name}' has several axes of {self.extent}", value.location))
        axis = axes[0] if len(axes) == 1 else None
        short = value
        if axis is not None:
            type_ = value.type.with_dims(replace_at(value.dims, axis, self.length))
            short = ops.input_(name=value.node.attrs["name"], type=type_)
        self.known[value] = short, axis
        return short

    def output(self, name: str, value: Value) -> Value:
        for node in topological_order([value.node], lambda n: n.results[0] in self.known):
            if node.results[0] not in self.known:
                self.visit(node)
        found = self.known[value]
        if found is None:
            if not self.refused:
                self.refused.append((f"output '{name}' is not one element per time", value.location))
            return value
        if found[1] is None:
            self.refused.append((f"output '{name}' is not one element per time", value.location))
        return found[0]

    def visit(self, node: Node) -> None:
        self.known.update(dict.fromkeys(node.results))
        operands = [self.known[v] for v in node.inputs]
        given = [o for o in operands if o is not None]
        if len(given) < len(operands):
            return
        try:
            with at(node.location):
                self.known |= self.shortened(node, given)
        except Mixes as reason:
            self.refused.append((f"{node.op.name} {reason}", node.location))

    def shortened(self, node: Node, operands: Sequence[Shortened]) -> Mapping[Value, Shortened | None]:
        if all(axis is None for _, axis in operands):
            return {v: (v, None) for v in node.results}
        if node.op.name in RULES:
            return {node.results[0]: RULES[node.op.name](self, node, operands)}
        if ELEMENTWISE in node.op.traits:
            return {node.results[0]: aligned(self, node, operands)}
        raise Mixes("has no rule for a shorter sequence")

    def cut(self, operand: Shortened, axis: int) -> Value:
        """A value with time at an axis; one that does not depend on the inputs is cut to its first elements."""
        value, own = operand
        if own == axis:
            return value
        if own is not None:
            raise Mixes("combines elements of different times")
        if value.op is ops.iota:
            return ops.iota(**{**value.node.attrs, "dims": replace_at(value.dims, axis, self.length)})
        if value.op is ops.broadcast:
            (source,) = value.node.inputs
            place = axis - value.type.rank + source.type.rank
            if place >= 0 and source.dims[place] != 1:
                source = self.cut((source, None), place)
            return ops.broadcast(source, dims=replace_at(value.dims, axis, self.length))
        return ops.slice_axis(value, axis, 0, self.length)


def aligned(walk: _Walk, node: Node, operands: Sequence[Shortened]) -> Shortened:
    """Elementwise: time stays where it is."""
    axis = next(a for _, a in operands if a is not None)
    return rebuilt(node, [walk.cut(o, axis) for o in operands])[0], axis


def concat(walk: _Walk, node: Node, operands: Sequence[Shortened]) -> Shortened:
    value, axis = aligned(walk, node, operands)
    refuse(axis, node.attrs["axis"])
    return value, axis


def refuse(axis: int | None, *axes: int) -> None:
    if axis in axes:
        raise Mixes("mixes all times")


def by_row(walk: _Walk, node: Node, operands: Sequence[Shortened]) -> Shortened:
    """The last axis is worked on, all others are rows."""
    (x, axis), *others = operands
    if axis is None or any(a is not None for _, a in others):
        raise Mixes("has an operand that changes over time")
    refuse(axis, x.type.rank - 1)
    return rebuilt(node, [x, *(v for v, _ in others)])[0], axis


def reduced(walk: _Walk, node: Node, operands: Sequence[Shortened]) -> Shortened:
    """Over other axes than time."""
    ((x, axis),) = operands
    axes = node.attrs["axes"] if "axes" in node.attrs else (node.attrs["axis"],)
    refuse(axis, *axes)
    assert axis is not None
    gone = 0 if node.attrs.get("keepdims", True) else sum(a < axis for a in axes)
    return rebuilt(node, [x])[0], axis - gone


def transpose(walk: _Walk, node: Node, operands: Sequence[Shortened]) -> Shortened:
    ((x, axis),) = operands
    return rebuilt(node, [x])[0], node.attrs["perm"].index(axis)


def reshape(walk: _Walk, node: Node, operands: Sequence[Shortened]) -> Shortened:
    """Axes are split and merged before or after time."""
    ((x, axis),), target = operands, node.attrs["dims"]
    outer = dims.size(x.dims[:axis])
    places = [a for a, d in enumerate(target) if d == walk.extent and dims.size(target[:a]) == outer]
    if not places:
        raise Mixes("merges time with another axis")
    return ops.reshape(x, dims=replace_at(target, places[0], walk.length)), places[0]


def broadcast(walk: _Walk, node: Node, operands: Sequence[Shortened]) -> Shortened:
    ((x, axis),), target = operands, node.attrs["dims"]
    assert axis is not None
    place = axis + len(target) - x.type.rank
    return ops.broadcast(x, dims=replace_at(target, place, walk.length)), place


def slice(walk: _Walk, node: Node, operands: Sequence[Shortened]) -> Shortened:
    """A piece of another axis."""
    ((x, axis),) = operands
    starts, stops, steps = (node.attrs[name] for name in ("starts", "stops", "steps"))
    assert axis is not None
    if (starts[axis], stops[axis], steps[axis]) != (0, walk.extent, 1):
        raise Mixes("picks single times")
    return ops.slice(x, starts=starts, stops=replace_at(stops, axis, walk.length), steps=steps), axis


def remembering(walk: _Walk, node: Node, operands: Sequence[Shortened]) -> Shortened:
    """A convolution or recurrence over axis 1; a kernel may have more taps than there are elements."""
    if "future" in node.attrs["optional"]:
        raise Mixes("looks ahead in time")
    if any(axis not in (1, None) for _, axis in operands):
        raise Mixes("does not run over time alone")
    fixed = len(operands) - len(node.attrs["optional"])
    names = (*range(fixed), *node.attrs["optional"])
    sequences = SEQUENCES[node.op.name]
    return rebuilt(node, [walk.cut(o, 1) if n in sequences else o[0] for n, o in zip(names, operands, strict=True)])[
        0
    ], 1


RULES: Mapping[str, Rule] = {
    "concat": concat, "transpose": transpose, "reshape": reshape, "broadcast": broadcast, "slice": slice,
    **dict.fromkeys(("linear", "layer_norm", "rms_norm"), by_row),
    **dict.fromkeys(("sum", "mean", "max", "min", "softmax", "log_softmax", "var"), reduced),
    **dict.fromkeys(SEQUENCES, remembering),
}  # fmt: skip
