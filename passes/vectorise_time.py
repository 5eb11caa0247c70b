"""What a loop's body computes without its carries, computed for all steps at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coilc.ir import Dim, Node, OpDef, Value, ops
from coilc.ir.opdef import ELEMENTWISE, REDUCTION

from .loop_parts import Loop, to_front


@dataclass(frozen=True)
class Timed:
    """A value of the body as one of the enclosing graph: ``[T, *dims]`` when it varies from step to step."""

    value: Value
    varies: bool


class NotParallel(Exception):
    """A value that cannot be had for all steps at once; ``node`` is the first one, operands first."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason


class Parallel:
    """Body values over the whole time axis. ``known`` starts with the loop's inputs; a caller may add to it."""

    def __init__(self, loop: Loop) -> None:
        self.length = loop.length
        self.known = {inner: Timed(to_front(outer, loop.axis), True) for inner, outer in loop.sequences.items()}
        self.known |= {inner: Timed(outer, False) for inner, outer in loop.consts.items()}

    @classmethod
    def over(cls, length: Dim, known: Mapping[Value, Timed]) -> Parallel:
        """The same for ``length`` equal computations, from ``known`` values."""
        parallel = cls.__new__(cls)
        parallel.length, parallel.known = length, dict(known)
        return parallel

    def value(self, value: Value) -> Timed:
        """Raises:
        NotParallel: the value depends on something that is not known, or on an op without a rule.
        """
        stack = [value]
        while stack:
            top = stack[-1]
            if top in self.known:
                stack.pop()
            elif missing := [v for v in top.node.inputs if v not in self.known]:
                stack += missing
            elif top.op is ops.input_:
                raise NotParallel(top.node, "a value of the step before is needed")
            else:
                operands = [self.known[v] for v in top.node.inputs]
                results = self.apply(top.node.op, operands, top.node.attrs)
                self.known.update(zip(top.node.results, results, strict=True))
        return self.known[value]

    def call(self, op: OpDef, *operands: Timed, **attrs: Any) -> Timed:
        """One application of an op with one result."""
        return self.apply(op, operands, attrs)[0]

    def apply(self, op: OpDef, operands: Sequence[Timed], attrs: Mapping[str, Any]) -> tuple[Timed, ...]:
        """Apply an op of the body to all steps."""
        values = [x.value for x in operands]
        if not any(x.varies for x in operands):
            return tuple(Timed(v, False) for v in op.node(*values, **attrs).results)
        rule = self._rule(op, [x.varies for x in operands])
        if rule is not None:
            results = rule(self, operands, dict(attrs), op)
            return tuple(Timed(v, True) for v in results)
        if op.decompose is not None:
            return self._by_parts(op, operands, attrs)
        raise NotParallel(op.node(*(v for v in map(self._step, operands)), **attrs), f"'{op.name}' works on one step")

    @staticmethod
    def _rule(op: OpDef, varies: list[bool]) -> Rule | None:
        if ELEMENTWISE in op.traits:
            return _elementwise
        if REDUCTION in op.traits:
            return _reduction
        if op.name in _ROWWISE and not any(varies[1:]):
            return _elementwise
        return _RULES.get(op.name)

    def _step(self, x: Timed) -> Value:
        """Some value with the type that ``x`` has in the body."""
        return ops.reshape(ops.slice_axis(x.value, 0, 0, 1), dims=x.value.dims[1:]) if x.varies else x.value

    def _by_parts(self, op: OpDef, operands: Sequence[Timed], attrs: Mapping[str, Any]) -> tuple[Timed, ...]:
        inputs = [
            ops.input_(name=f"p{i}", type=x.value.type.with_dims(x.value.dims[x.varies :]))
            for i, x in enumerate(operands)
        ]
        assert op.decompose is not None
        parts = op.decompose(*inputs, **attrs)
        inner = Parallel.over(self.length, dict(zip(inputs, operands, strict=True)))
        return tuple(inner.value(v) for v in (parts if isinstance(parts, tuple) else (parts,)))

    def full(self, x: Timed) -> Value:
        """``x`` with a time axis, repeated if it does not vary."""
        return x.value if x.varies else ops.broadcast(x.value, dims=(self.length, *x.value.dims))


# --- rules: operands over time to results over time, for each op that is not elementwise ------------------------------

Rule = Callable[[Parallel, Sequence[Timed], dict[str, Any], OpDef], Iterable[Value]]


def _elementwise(_: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    return op.node(*(x.value for x in xs), **attrs).results


def _reduction(_: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    return op.node(xs[0].value, **{**attrs, "axes": tuple(a + 1 for a in attrs["axes"])}).results


def _along_axis(time: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    return op.node(*map(time.full, xs), **{**attrs, "axis": attrs["axis"] + 1}).results


def _broadcast(time: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    x, dims = xs[0].value, attrs["dims"]
    units = (1,) * (len(dims) - (x.type.rank - 1))
    padded = ops.reshape(x, dims=(time.length, *units, *x.dims[1:])) if units else x
    return (ops.broadcast(padded, dims=(time.length, *dims)),)


def _reshape(time: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    return (ops.reshape(xs[0].value, dims=(time.length, *attrs["dims"])),)


def _transpose(_: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    return (ops.transpose(xs[0].value, perm=(0, *(axis + 1 for axis in attrs["perm"]))),)


def _slice(time: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    starts, stops, steps = (0, *attrs["starts"]), (time.length, *attrs["stops"]), (1, *attrs["steps"])
    return (ops.slice(xs[0].value, starts=starts, stops=stops, steps=steps),)


def _flip(_: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    return (ops.flip(xs[0].value, axes=tuple(axis + 1 for axis in attrs["axes"])),)


def _pad(_: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    return (ops.pad(xs[0].value, **{**attrs, "low": (0, *attrs["low"]), "high": (0, *attrs["high"])}),)


def _take(time: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    (x, places), axis = xs, attrs["axis"]
    if not places.varies:
        return (ops.take(x.value, places.value, axis=axis + 1),)
    if x.varies:
        raise NotParallel(op.node(*map(time._step, xs), **attrs), "'take' with moving data and moving indices")
    return (to_front(ops.take(x.value, places.value, axis=axis), axis),)


def _matmul(time: Parallel, xs: Sequence[Timed], attrs: dict[str, Any], op: OpDef) -> tuple[Value, ...]:
    """One product over time and rows when only the left operand moves and there are no batch dims."""
    x, y = xs
    if not y.varies and y.value.type.rank == 2:
        length, rows, inner = x.value.dims
        flat = ops.matmul(ops.reshape(x.value, dims=(length * rows, inner)), y.value)
        return (ops.reshape(flat, dims=(length, rows, flat.dims[1])),)
    return (ops.matmul(time.full(x), time.full(y)),)


_ROWWISE = frozenset({"linear", "layer_norm", "rms_norm", "packed_matmul"})  # first operand: any leading dims
_RULES: Mapping[str, Rule] = {
    "broadcast": _broadcast, "reshape": _reshape, "transpose": _transpose, "slice": _slice, "flip": _flip,
    "pad": _pad, "take": _take, "matmul": _matmul,
    **dict.fromkeys(
        ("concat", "gather", "cumsum", "cumprod", "sort", "argmax", "argmin", "softmax", "log_softmax", "topk"),
        _along_axis,
    ),
}  # fmt: skip
