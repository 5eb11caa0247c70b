"""Turn two exports of one model at two lengths into one graph with that length as a symbol.

Before (lengths 7 and 11)::

    v0: f32[2, 7, 8] = exp(x)        v0: f32[2, 11, 8] = exp(x)

After::

    v0: f32[2, L, 8] = exp(x)

Needs: re-rolled graphs, so that both have the same nodes. Guarantees: substituting either length gives that export back;
every integer that differs became the affine function of the length through its two values, and type inference accepted
the result. Anything else that differs is an error that names the node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from coilc.ir import Array, Dim, DType, Graph, InputError, Location, Module, TensorType, Value, at, literal, ops
from coilc.ir import dims as d
from coilc.ir.core import Node

from .reroll_scans import reroll_loops
from .simplify import simplify
from .trace import tracing


@dataclass(frozen=True)
class Length:
    """The symbol to introduce, its range, and its value in the two exports."""

    symbol: str
    range: tuple[int, int | None]
    first: int
    second: int

    def dim(self, a: Dim, b: Dim) -> Dim | None:
        """The dimension that is ``a`` at the first length and ``b`` at the second, affine in the length."""
        slope = d.divide_exactly(b - a, self.second - self.first)
        return None if slope is None else slope * d.symbol(self.symbol) + (a - slope * self.first)


def unify_modules(first: Module, second: Module, length: Length) -> Module:
    """Two imports of one model, traced at ``length.first`` and ``length.second``, as one that takes any length in range.

    Every entry is re-rolled first, so that both have the same nodes whatever was unrolled over the length.

    Raises:
        InputError: entries or weights differ, or an entry differs in more than this length.
    """
    _require_same_weights(first, second)
    if list(first.entries) != list(second.entries):
        raise InputError(f"the exports have the entries {', '.join(first.entries)} and {', '.join(second.entries)}")
    a = _rerolled(first)
    with tracing() as trace:
        b = _rerolled(second)
    try:
        entries = {name: unify_lengths(a.entries[name], b.entries[name], length) for name in a.entries}
    except InputError as error:
        broken = [
            f"; {event.reason}, at {event.location}" for event in trace.declined if " breaks the loop" in event.reason
        ]
        error.message += "".join(broken[:1])
        raise
    return replace(a, entries=entries)


def _rerolled(module: Module) -> Module:
    """Every node is built anew, and shared with no other module, so that its location is that of this module."""
    Node.forget_all()
    return simplify(reroll_loops(module.map(lambda graph: graph.substitute({}))))


def _require_same_weights(first: Module, second: Module) -> None:
    for name in dict.fromkeys((*first.weights, *second.weights)):
        x, y = first.weights.get(name), second.weights.get(name)
        if x is None or y is None or x.dtype != y.dtype or x.shape != y.shape or x.tobytes() != y.tobytes():
            raise InputError(f"weight '{name}' is not the same in both exports; export one model, in eval mode, twice")


def unify_lengths(first: Graph, second: Graph, length: Length) -> Graph:
    """Raises:
    InputError: the exports differ in more than this length; the message names the first place, operands first.
    """
    graph = _unify_graph(first, second, length)
    limits = (_shortest(graph, length), length.range[1])
    return Graph(graph.name, graph.inputs, graph.outputs, (*first.symbols, (length.symbol, limits)))


def _shortest(graph: Graph, length: Length) -> int:
    """The smallest length in range at which no extent is negative and no slice leaves its operand.

    It is larger than the smallest in range when the first steps of a loop differ from the others, and so stayed apart.
    """
    sizes = {dim for node in graph.nodes for type_ in node.types for dim in type_.dims}
    slices = [node for node in graph.nodes if node.op is ops.slice]
    sizes |= {n - e for s in slices for n, e in zip(s.inputs[0].dims, s.attrs["stops"], strict=True)}
    sizes = {dim for dim in sizes if set(d.symbols(dim)) == {length.symbol}}
    candidates = range(length.range[0], length.first)
    fits = (n for n in candidates if all(d.evaluate(dim, {length.symbol: n}) >= 0 for dim in sizes))
    return next(fits, length.first)


def _unify_graph(first: Graph, second: Graph, length: Length) -> Graph:
    if len(first.nodes) != len(second.nodes) or [n for n, _ in first.outputs] != [n for n, _ in second.outputs]:
        raise _different_structure(first, second, length)
    mapping: dict[Value, Value] = {}
    for a, b in zip(first.nodes, second.nodes, strict=True):
        node = _unify_node(a, b, mapping, length)
        mapping.update(zip(a.results, node.results, strict=True))
    outputs = tuple((name, mapping[v]) for name, v in first.outputs)
    return Graph(first.name, tuple(mapping[v] for v in first.inputs), outputs)


def _different_structure(first: Graph, second: Graph, length: Length) -> InputError:
    """The operation whose number grows most from one export to the other, by op and line."""
    at_first, at_second = (Counter(map(_op_and_line, graph.nodes)) for graph in (first, second))
    worst = max(at_first | at_second, key=lambda key: abs(at_first[key] - at_second[key]))
    node = next(node for node in (*first.nodes, *second.nodes) if _op_and_line(node) == worst)
    return InputError(
        f"the exports at {length.symbol}={length.first} and {length.second} have different structure: this line has "
        f"'{node.op.name}' {at_first[worst]} times at the first and {at_second[worst]} times at the second, so it is in "
        f"a loop that is not rolled up, or does something else at another length",
        node.location,
    )


def _op_and_line(node: Node) -> tuple[str, str]:
    place = node.location
    return node.op.name, f"{place.file}:{place.line}" if place else ""


def _unify_node(a: Node, b: Node, mapping: Mapping[Value, Value], length: Length) -> Node:
    if a.op is not b.op or len(a.inputs) != len(b.inputs):
        raise InputError(f"'{a.op.name}' at one length is '{b.op.name}' at the other", a.location)
    with at(_common_location(a, b)):
        if a.op is ops.constant and a.attrs != b.attrs:
            return _unify_constant(a, b, length).node
        attrs = {name: _unify_attr(value, b.attrs[name], a, length) for name, value in a.attrs.items()}
        return Node.make(a.op, tuple(mapping[v] for v in a.inputs), attrs)


def _common_location(a: Node, b: Node) -> Location | None:
    """Only a name that a value has at both lengths does not depend on the length."""
    same = a.location is None or b.location is None or a.location.source == b.location.source
    return a.location if same or a.location is None else a.location.interior()


def _unify_attr(a: Any, b: Any, node: Node, length: Length) -> Any:
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return tuple(_unify_attr(x, y, node, length) for x, y in zip(a, b, strict=True))
    if isinstance(a, TensorType):
        return a.with_dims(_unify_attr(a.dims, b.dims, node, length))
    if isinstance(a, Graph):
        return a if a == b else _unify_graph(a, b, length)
    if _is_dim(a) and _is_dim(b) and a != b:
        dim = length.dim(a, b)
        if dim is not None:
            return dim
    elif a == b:
        return a
    raise InputError(
        f"'{node.op.name}' has {a} at one length and {b} at the other, not affine in the length", node.location
    )


def _is_dim(attr: Any) -> bool:
    return isinstance(attr, int | d.SymDim) and not isinstance(attr, bool)


NEIGHBOURS = (0, -1, 1)  # what divides a ramp may be this much more than the length


def _unify_constant(a: Node, b: Node, length: Length) -> Value:
    """A literal that depends on the length: one repeated value, or a ramp of integers, also over the length."""
    x, y = a.attrs["value"].value, b.attrs["value"].value
    dims = _unify_attr(x.shape, y.shape, a, length)
    if x.size and y.size and np.all(x == x.flat[0]) and np.all(y == x.flat[0]):
        return ops.broadcast(ops.constant(value=Array(x.flat[0])), dims=dims)
    dtype = a.types[0].dtype
    divisors = [(1, 1), *((length.first + n, length.second + n) for n in NEIGHBOURS if dtype.is_float)]
    for first, second in divisors if dtype.is_float or dtype.is_integer else ():
        ramps = _ramp(x, first), _ramp(y, second)
        start = length.dim(ramps[0][0], ramps[1][0]) if ramps[0] and ramps[1] else None
        if ramps[0] and ramps[1] and start is not None and ramps[0][1] == ramps[1][1]:
            over = length.dim(first, second)
            assert over is not None
            return _ramp_at(start, ramps[0][1], over, dims, dtype)
    raise InputError(
        "a constant array depends on the length and is neither uniform nor consecutive integers, nor these over the length",
        a.location,
    )


def _ramp(array: np.ndarray, over: int) -> tuple[int, int] | None:
    """(start, step) of an array that is ``(start + step * i) / over`` along its first axis, to the last bit."""
    rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    if not rows.size or not np.isfinite(rows.astype(np.float64)).all() or abs(rows).max() > 2**24:
        return None
    start, second = (round(float(rows[min(i, len(rows) - 1), 0]) * over) for i in (0, 1))
    expected = ((start + (second - start) * np.arange(len(rows))) / over).astype(array.dtype)
    return (start, second - start) if np.array_equal(rows, np.broadcast_to(expected[:, None], rows.shape)) else None


def _ramp_at(start: Dim, step: int, over: Dim, dims: tuple[Dim, ...], dtype: DType) -> Value:
    """``(start + step * i) / over`` at every length."""

    def number(dim: Dim) -> Value:
        return literal(dim, dtype) if isinstance(dim, int) else ops.extent(dim=dim, dtype=dtype)

    ramp = ops.iota(dims=dims, axis=0, dtype=dtype) if step else ops.broadcast(number(start), dims=dims)
    ramp = ops.mul(ramp, number(step)) if step not in (0, 1) else ramp
    ramp = ops.add(ramp, number(start)) if step and start != 0 else ramp
    result: Value = ramp if over == 1 else ops.div(ramp, number(over))
    return result
