"""What a loop's body does to its state: scale * h + shift, elementwise, for all steps at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coilc.ir import Graph, Node, OpDef, Value, literal, ops

from .rewrite import rewrite_graph
from .simplify import RULES as IDENTITIES
from .vectorise_time import Parallel, Timed


class NotAffine(Exception):
    """A value that is not elementwise affine in the state; ``node`` is where that shows."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason


@dataclass(frozen=True)
class Affine:
    """``scale * view + shift``; no scale is 1, no shift is 0.

    ``view`` is the state under movement; a value without it does not depend on the state and has only a shift.
    """

    view: Value | None
    scale: Timed | None = None
    shift: Timed | None = None


class AffineIn:
    """Values of a body as affine functions of ``base``: a carry, or the value that it leaves for the next step.

    ``zeros`` count as 0, but not as known: a product of one with the base is no more affine than the base squared.
    """

    def __init__(self, time: Parallel, base: Value, zeros: Iterable[Value] = ()) -> None:
        self.time, self.base = time, base
        self.state: Value = ops.input_(name="state", type=base.type)
        self.found: dict[Value, Affine] = {base: Affine(self.state), **dict.fromkeys(zeros, Affine(None))}
        self.free: dict[Node, bool] = dict.fromkeys((v.node for v in self.found), False)

    def is_free(self, value: Value) -> bool:
        """Whether ``value`` does not depend on the base."""
        stack = [value.node]
        while stack:
            node = stack[-1]
            missing = [v.node for v in node.inputs if v.node not in self.free]
            if node in self.free or not missing:
                stack.pop()
                if node not in self.free:
                    self.free[node] = all(self.free[v.node] for v in node.inputs)
            else:
                stack += missing
        return self.free[value.node]

    def of(self, value: Value) -> Affine:
        """Raises:
        NotAffine: ``value`` is something else.
        NotParallel: a coefficient needs another carry.
        """
        stack = [value]
        while stack:
            top = stack[-1]
            missing = [] if self.is_free(top) else [v for v in top.node.inputs if v not in self.found]
            if top in self.found or not missing:
                stack.pop()
                if top not in self.found:
                    self.found[top] = self._rule(top)
            else:
                stack += missing
        return self.found[value]

    def _rule(self, value: Value) -> Affine:
        if self.is_free(value):
            return Affine(None, None, self.time.value(value))
        node = value.node
        parts = [self.found[v] for v in node.inputs]
        match node.op.name:
            case "add":
                return self._plus(node, *parts)
            case "sub":
                return self._plus(node, parts[0], self._times(ops.mul, parts[1], filled(-1, value)))
            case "neg":
                return self._times(ops.mul, parts[0], filled(-1, value))
            case "mul" if any(map(self.is_free, node.inputs)):
                state, factor = parts if self.is_free(node.inputs[1]) else parts[::-1]
                assert factor.shift is not None
                return self._times(ops.mul, state, factor.shift)
            case "div" if parts[1].shift is not None and self.is_free(node.inputs[1]):
                return self._times(ops.div, parts[0], parts[1].shift)
            case "where" if parts[0].shift is not None and self.is_free(node.inputs[0]):
                return self._chosen(node, parts[0].shift, *parts[1:])
            case "transpose" | "reshape" | "broadcast" | "cast":
                return self._moved(node, parts[0])
        raise NotAffine(node, f"'{node.op.name}' of the state is not affine")

    def _moved(self, node: Node, x: Affine) -> Affine:
        def move(part: Timed | None) -> Timed | None:
            return part and self.time.apply(node.op, [part], node.attrs)[0]

        view = x.view and _simplest(node.op(x.view, **node.attrs))
        return Affine(view, move(x.scale), move(x.shift))

    def _times(self, op: OpDef, x: Affine, by: Timed) -> Affine:
        """``x * by`` or ``x / by``."""
        scale: Timed | None = None
        if x.view is not None:
            plain = op is ops.mul and x.scale is None
            scale = by if plain else self.time.call(op, x.scale or filled(1, x.view), by)
        return Affine(x.view, scale, x.shift and self.time.call(op, x.shift, by))

    def _plus(self, node: Node, x: Affine, y: Affine) -> Affine:
        if x.view is not None and y.view is not None:
            if x.view != y.view:
                raise NotAffine(node, "the state is added to itself in another layout")
            one = filled(1, x.view)
            scale: Timed | None = self.time.call(ops.add, x.scale or one, y.scale or one)
        else:
            scale = x.scale if x.view is not None else y.scale
        shift = self.time.call(ops.add, x.shift, y.shift) if x.shift and y.shift else x.shift or y.shift
        return Affine(x.view or y.view, scale, shift)

    def _chosen(self, node: Node, when: Timed, x: Affine, y: Affine) -> Affine:
        """where(c, a h + b, a' h + b') = where(c, a, a') h + where(c, b, b')"""
        views = {part.view for part in (x, y)} - {None}
        if len(views) != 1:
            raise NotAffine(node, "the state is chosen in two layouts")
        result = Value(node)
        zero, one = filled(0, result), filled(1, result)
        scales = [zero if part.view is None else part.scale or one for part in (x, y)]
        shifts = [part.shift or zero for part in (x, y)]
        scale, shift = (self.time.call(ops.where, when, *pair) for pair in (scales, shifts))
        return Affine(views.pop(), scale, None if x.shift is None and y.shift is None else shift)


def filled(number: float, like: Value) -> Timed:
    """The same number everywhere and at all times."""
    return Timed(ops.broadcast(literal(number, like.type.dtype), dims=like.dims), False)


def _simplest(view: Value) -> Value:
    return rewrite_graph(Graph("view", (), (("v", view),)), *IDENTITIES).results[0]
