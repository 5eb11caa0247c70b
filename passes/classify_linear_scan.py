"""Carries that are elementwise affine in themselves leave the loop as ``linear_scan``."""

from __future__ import annotations

from coilc.ir import Node, Value, dims, ops
from coilc.ir.opdef import REDUCTION

from .classify_affine import Affine, AffineIn, NotAffine, filled
from .classify_factors import factors_of
from .loop_parts import Loop, from_front
from .replace_values import replace_values
from .rewrite import on
from .trace import Declined, no
from .vectorise_time import NotParallel, Parallel, Timed


@on("scan")
def carry_is_linear(node: Node) -> tuple[Value, ...] | Declined | None:
    """One carry with h = a h + b, a and b free of carries, becomes a linear_scan; the rest of the loop reads its states.

    Before::

        def step(h, a, x):
            after = add(mul(a, h), x)
            return {"h": after, "y": tanh(after)}
        last, y = scan(h0, a, x, body=step)

    After::

        states, last = linear_scan(a, x, h0)
        y = tanh(states)

    Needs: outputs that contract an outer-product state are classified first. Guarantees: equal up to the order of
    additions in the affine form; a loop without carries is gone.
    """
    loop, reasons = Loop(node), []
    for place in range(loop.carries):
        try:
            return _without_carry(loop, place)
        except (NotAffine, NotParallel) as broken:
            reasons.append(f"carry {place}: {broken.reason} ('{broken.node.op.name}')")
    return no("; ".join(reasons))


def _without_carry(loop: Loop, place: int) -> tuple[Value, ...]:
    """The scan's results when carry ``place`` runs by itself."""
    time = Parallel(loop)
    carry, after = loop.body_carries[place], loop.next_carries[place]
    if carry.type.dtype.kind not in ("float", "complex"):
        raise NotAffine(after.node, f"a carry of {carry.type.dtype} is not a linear recurrence")
    analysis = AffineIn(time, carry)
    step = analysis.of(after)
    if step.view not in (None, analysis.state):
        raise NotAffine(after.node, "the state does not come back in its own layout")
    if step.view is not None and _is_expanded(loop, step, carry):
        raise NotAffine(after.node, "the state is an outer product that the outputs contract: it stays in the loop")
    states, last = _states(loop, time, step, loop.inits[place])
    time.known[after] = Timed(states, True)
    time.known.setdefault(carry, Timed(_before(loop, states, loop.inits[place]), True))
    if loop.carries == 1:
        ys = [from_front(time.full(time.value(y)), loop.axis) for y in loop.outputs]
        return (last, *ys)
    return _smaller_loop(loop, place, time, last)


def _states(loop: Loop, time: Parallel, step: Affine, init: Value) -> tuple[Value, Value]:
    """All states with time first, and the last one."""
    shift = time.full(step.shift or filled(0, init))
    if step.view is None:
        return shift, _end(loop, shift, init)
    if step.scale is None:
        states = ops.add(ops.cumsum(shift, axis=0, reverse=loop.reverse), init)
        return states, _end(loop, states, init)
    states, last = ops.linear_scan(time.full(step.scale), shift, init, axis=0, reverse=loop.reverse)
    return states, last


def _end(loop: Loop, states: Value, init: Value) -> Value:
    """The state after the last step."""
    last = 0 if loop.reverse else loop.length - 1
    if _may_be_empty(loop):
        states, last = _with_first(loop, states, init), 0 if loop.reverse else loop.length
    return ops.reshape(ops.slice_axis(states, 0, last, last + 1), dims=states.dims[1:])


def _before(loop: Loop, states: Value, init: Value) -> Value:
    """The state that each step starts from."""
    if _may_be_empty(loop):
        begin = 1 if loop.reverse else 0
        return ops.slice_axis(_with_first(loop, states, init), 0, begin, begin + loop.length)
    first = ops.expand_dims(init, 0)
    if loop.reverse:
        return ops.concat(ops.slice_axis(states, 0, 1, loop.length), first, axis=0)
    return ops.concat(first, ops.slice_axis(states, 0, 0, loop.length - 1), axis=0)


def _may_be_empty(loop: Loop) -> bool:
    """Whether there may be no step at all: where the first steps of a loop stayed apart. A symbol is at least 1."""
    names = dims.symbols(loop.length)
    return dims.bounds(loop.length, dict.fromkeys(names, (1, None)))[0] < 1


def _with_first(loop: Loop, states: Value, init: Value) -> Value:
    """All states, the one before the first step among them."""
    first = ops.expand_dims(init, 0)
    return ops.concat(*((states, first) if loop.reverse else (first, states)), axis=0)


def _is_expanded(loop: Loop, step: Affine, carry: Value) -> bool:
    """Whether the state is larger than each of the factors that are added to it, and the body sums over it."""
    if step.shift is None:
        return False
    axes = tuple(range(1 - step.shift.varies, step.shift.value.type.rank + 1 - step.shift.varies))
    full = {i + 1 for i, extent in enumerate(carry.dims) if extent != 1}
    if any(f.support >= full for f in factors_of(step.shift.value, axes)):
        return False
    reading = AffineIn(Parallel(loop), carry)
    nodes = loop.body.nodes
    contracts = (n for n in nodes if REDUCTION in n.op.traits or n.op.name in ("matmul", "einsum", "linear"))
    return any(not reading.is_free(Value(n)) for n in contracts)


def _smaller_loop(loop: Loop, place: int, time: Parallel, last: Value) -> tuple[Value, ...]:
    """The loop with carry ``place`` replaced by two sequences: the states before and after each step."""
    ends = {"before": loop.body.inputs[place], "after": loop.body.results[place]}
    fresh = {name: ops.input_(name=next(loop.fresh_names(name)), type=v.type) for name, v in ends.items()}
    inner = replace_values(loop.body, {ends[name]: fresh[name] for name in ends})
    outputs = (output for i, output in enumerate(inner.outputs) if i != place)
    carries = dict(zip(loop.body_carries, loop.inits, strict=True))
    del carries[ends["before"]]
    states = {fresh[name]: from_front(time.known[v].value, loop.axis) for name, v in ends.items()}
    rest = loop.rebuilt(outputs, carries, {**states, **loop.sequences})
    return (*rest[:place], last, *rest[place:])
