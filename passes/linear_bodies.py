"""Bodies of loops that are linear in what changes from step to step: which parts are, and by which matrices."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from coilc.ir import Graph, Module, Node, SymDim, Value, dims, interpret, ops
from coilc.ir.core import topological_order
from coilc.ir.opdef import MOVEMENT

from .match import is_zero

BATCH = 2  # what symbols stand for when a body is evaluated: two rows that must come out alike

EVERYWHERE = frozenset({"add", "sub", "neg", "real", "imag", "complex", "cast", "sum", "mean", "concat"})
IN_ONE = frozenset({"mul", "einsum", "matmul"})
IN_THE_FIRST = frozenset({"div", "linear", "take"})


class NotLinear(Exception):
    """A body that is not linear with constant coefficients; the message is a reason for ``coilc explain``."""


class Linear:
    """What each value of a body depends on among ``states`` and ``inputs``, linearly; constants depend on none.

    What the inputs alone give in another way is a further input.
    """

    def __init__(self, states: Collection[Value], inputs: Collection[Value]) -> None:
        self.states, self.inputs = frozenset(states), list(inputs)
        self.known: dict[Value, frozenset[Value]] = {v: frozenset([v]) for v in (*states, *inputs)}

    def of(self, value: Value) -> frozenset[Value]:
        """Raises:
        NotLinear: ``value`` depends on a state in another way than linearly.
        """
        for node in topological_order([value.node], self._is_known):
            if not self._is_known(node):
                self._visit(node)
        return self.known[value]

    def _is_known(self, node: Node) -> bool:
        return node.results[0] in self.known

    def _visit(self, node: Node) -> None:
        found = [self.known[v] for v in node.inputs]
        moving = list(map(bool, found))
        sources = frozenset[Value]().union(*found)
        if not any(moving) or _is_linear(node, moving):
            self.known.update(dict.fromkeys(node.results, sources))
        elif sources & self.states:
            raise NotLinear(f"'{node.op.name}' of the state is not linear with constant coefficients")
        else:
            self.inputs += node.results
            self.known.update({v: frozenset([v]) for v in node.results})

    def rest(self, value: Value, dropped: Value) -> Value | None:
        """The part of ``value`` that does not depend on ``dropped``; ``None`` is 0."""
        if dropped not in self.of(value):
            return value
        if value == dropped:
            return None
        parts = [self.rest(v, dropped) if dropped in self.of(v) else v for v in value.node.inputs]
        if None not in parts:
            return Value(Node.make(value.op, tuple(p for p in parts if p is not None), value.node.attrs))
        left = [p for p in parts if p is not None and self.of(p)]
        if not left:
            return None
        if value.op is ops.add:
            return left[0]
        if value.op is ops.sub:
            return left[0] if parts[1] is None else ops.neg(left[0])
        raise NotLinear(f"'{value.op.name}' of the state and the inputs together")


def _is_linear(node: Node, moving: list[bool]) -> bool:
    """Whether an op is linear in its moving operands; what is added to them must be moving or 0."""
    name = node.op.name
    if name in IN_ONE:
        return sum(moving) == 1
    if name in IN_THE_FIRST:
        return moving[0] and not any(moving[1:]) and (name != "linear" or len(moving) == 2)
    if name == "cast" and node.attrs["dtype"].kind not in ("float", "complex"):
        return False
    if name == "pad" and node.attrs["value"] != 0:
        return False
    still = (v for v, moves in zip(node.inputs, moving, strict=True) if not moves)
    return (name in EVERYWHERE or MOVEMENT in node.op.traits) and all(map(is_zero, still))


class Evaluation:
    """Values of a body in double precision, with constants from the weights and chosen arrays for its sources."""

    def __init__(self, constants: Mapping[Value, Value], weights: Mapping[str, np.ndarray]) -> None:
        """``constants`` maps inputs of the body to values of the enclosing graph, ``weights`` are the module's.

        Raises:
            NotLinear: a constant depends on an input of the model, or on its size.
        """
        self.constants = {inner: constant_value(outer, weights) for inner, outer in constants.items()}

    def __call__(self, value: Value, arrays: Mapping[Value, np.ndarray]) -> np.ndarray:
        """One value; sources that are not in ``arrays`` are zeros."""
        inputs = tuple(n.results[0] for n in topological_order([value.node]) if n.op is ops.input_)
        graph = _sized(Graph("body", inputs, (("value", value),)))
        given: dict[str, np.ndarray] = {}
        for inner, sized in zip(inputs, graph.inputs, strict=True):
            known = self.constants.get(inner, arrays.get(inner))
            given[sized.node.attrs["name"]] = np.zeros(shape(sized)) if known is None else known
        (result,) = interpret(Module({"main": graph}), given, wide=True).values()
        return result


def constant_value(value: Value, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """What weights and constants alone give, every symbol being ``BATCH``.

    Raises:
        NotLinear: it depends on an input, or on a size.
    """
    graph = Graph("constant", (), (("value", value),))
    for node in graph.nodes:
        if node.op is ops.input_:
            raise NotLinear(f"its coefficients depend on the input '{node.attrs['name']}'")
        if node.op.name in ("extent", "iota") and any(isinstance(d, SymDim) for d in _counted(node)):
            raise NotLinear("its coefficients depend on a length")
    (result,) = interpret(Module({"main": _sized(graph)}, weights), {}, wide=True).values()
    return result


def _counted(node: Node) -> Sequence[object]:
    return node.attrs["dims"] if node.op is ops.iota else (node.attrs["dim"],)


def _sized(graph: Graph) -> Graph:
    names = {s for n in graph.nodes for t in n.types for d in t.dims for s in dims.symbols(d)}
    return graph.substitute(dict.fromkeys(names, BATCH))


def shape(value: Value) -> tuple[int, ...]:
    """The dims of a value with every symbol ``BATCH``."""
    return tuple(dims.evaluate(d, dict.fromkeys(dims.symbols(d), BATCH)) for d in value.dims)
