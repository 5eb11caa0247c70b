"""What every op does to time: one rule per op that treats time specially, by name.

A rule gets the timeline, the node of the full sequence and its operands as they run over time, and returns the results
likewise, or raises ``Mixes``. Elementwise ops share one rule. A composite without a rule is what its definition is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from coilc.ir import DTYPES, Dim, Node, Value, dims, ops
from coilc.ir.ops.wkv import WKV_STATES

from .timeline import SEQUENCES, Mixes, Timed, Timeline, filled, outer_extent, rebuilt, replace_at

Results = tuple[Timed, ...]
Rule = Callable[[Timeline, Node, Sequence[Timed]], Results]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the ops called ``names``."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# --- the same thing at every time -----------------------------------------------------------------------------------


def aligned(line: Timeline, operands: Sequence[Timed]) -> tuple[Timed, list[Value]]:
    """How operands of equal dims run over time together, and their values in a chunk."""
    if any(o.final for o in operands) and any(o.axis is not None for o in operands):
        raise Mixes("lets earlier elements see the last one")
    streams = [o for o in operands if o.axis is not None]
    if not streams:
        return next((o for o in operands if o.final), operands[0]), [o.value for o in operands]
    like = max(streams, key=lambda o: o.inner is not None)
    return like, [conformed(line, o, like) for o in operands]


def conformed(line: Timeline, operand: Timed, like: Timed) -> Value:
    """The operand's value, with as many elements over time as ``like``."""
    axis, same = like.axis, (operand.history, operand.excess) == (like.history, like.excess)
    if operand.steady or (same and operand.axis == axis and operand.inner in (like.inner, None)):
        return operand.value
    if axis is not None and operand.axis == axis and operand.inner is None and operand.value.op is ops.broadcast:
        (source,) = operand.value.node.inputs
        return ops.broadcast(source, dims=replace_at(operand.value.dims, axis, like.value.dims[axis]))
    raise Mixes("combines elements of different times")


def pointwise(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Elementwise: time stays where it is."""
    like, values = aligned(line, operands)
    return tuple(like.over(v, like.axis) for v in rebuilt(node, values))


def refuse_time(operands: Sequence[Timed], *axes: int) -> None:
    for operand in operands:
        if operand.axis in axes:
            raise Mixes("mixes all times")


def one_stream(operands: Sequence[Timed], first: int = 1) -> Timed:
    """The first operand, the others being steady."""
    if any(not o.steady for o in operands[first:]):
        raise Mixes("has an operand that changes over time")
    return operands[0]


def exact(operand: Timed) -> Timed:
    """An operand whose extents in a chunk are those of the full sequence with the chunk's length."""
    if operand.excess:
        raise Mixes("looks at a shortened sequence")
    return operand


@rule("sum", "prod", "max", "min", "all", "any", "mean", "var", "logsumexp", "argmax", "argmin")
def reduce(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Over other axes than time."""
    x = operands[0]
    axes = node.attrs["axes"] if "axes" in node.attrs else (node.attrs["axis"],)
    refuse_time(operands, *axes)
    axis = x.axis
    if axis is not None and not node.attrs["keepdims"]:
        axis -= sum(a < axis for a in axes)
    return tuple(x.over(v, axis) for v in rebuilt(node, [x.value]))


@rule("softmax", "log_softmax", "sort", "topk")
def along(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Along another axis than time."""
    refuse_time(operands, node.attrs["axis"])
    return tuple(operands[0].over(v, operands[0].axis) for v in rebuilt(node, [operands[0].value]))


@rule("layer_norm", "rms_norm", "linear", "packed_matmul")
def by_row(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """The last axis is worked on, all others are rows."""
    x = one_stream(operands)
    refuse_time([x], x.value.type.rank - 1)
    return tuple(x.over(v, x.axis) for v in rebuilt(node, [o.value for o in operands]))


@rule("matmul")
def matmul(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Time is a batch axis of both, rows of the left or columns of the right operand."""
    left, right = operands
    last = left.value.type.rank - 1
    refuse_time([left], last)
    refuse_time([right], last - 1)
    if left.axis is not None and right.axis is not None and max(left.axis, right.axis) >= last - 1:
        raise Mixes("multiplies every time with every other")
    if right.steady or (left.axis is not None and right.axis == left.axis):
        return pointwise(line, node, operands)
    if left.steady and (right.final or right.axis == last):
        return (right.over(rebuilt(node, [left.value, right.value])[0], right.axis),)
    raise Mixes("combines elements of different times")


@rule("take")
def take(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """A table looked up by a sequence, or a sequence from which fixed channels are taken."""
    (x, indices), axis = operands, node.attrs["axis"]
    (value,) = rebuilt(node, [x.value, indices.value])
    if x.steady:
        return (indices.over(value, None if indices.axis is None else axis + indices.axis),)
    one_stream(operands)
    refuse_time([x], axis)
    if x.axis is None or x.axis < axis:
        return (x.over(value, x.axis),)
    return (x.over(value, x.axis + indices.value.type.rank - 1),)


@rule("gather", "scatter")
def gather(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Time is a batch axis of all."""
    refuse_time(operands, node.attrs["axis"])
    return pointwise(line, node, operands)


# --- movement -------------------------------------------------------------------------------------------------------


@rule("transpose")
def transpose(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Time moves along."""
    (x,) = operands
    axis = None if x.axis is None else node.attrs["perm"].index(x.axis)
    return (x.over(rebuilt(node, [x.value])[0], axis),)


@rule("flip")
def flip(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Of other axes than time."""
    refuse_time(operands, *node.attrs["axes"])
    return pointwise(line, node, operands)


@rule("broadcast")
def broadcast(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """The same element at every time, or more axes."""
    (x,), target = operands, node.attrs["dims"]
    lead = len(target) - x.value.type.rank
    if x.axis is not None:
        whole = replace_at(target, x.axis + lead, x.value.dims[x.axis])
        return (x.over(ops.broadcast(x.value, dims=whole), x.axis + lead),)
    axes = [a for a, dim in enumerate(target) if line.runs(dim)]
    if not axes:
        return pointwise(line, node, operands)
    if x.final:
        raise Mixes("lets earlier elements see the last one")
    if len(axes) > 1:
        raise Mixes("needs a place for every pair of times")
    rest = line.beyond(target[axes[0]])
    history, excess = (0, 0) if rest is None else (max(rest, 0), min(rest, 0))
    whole = replace_at(target, axes[0], line.length + history if rest is not None else target[axes[0]])
    return (Timed(ops.broadcast(x.value, dims=whole), axes[0], None, history, excess),)


@rule("iota")
def iota(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Counting time continues where the last chunk ended."""
    axes = [a for a, dim in enumerate(node.attrs["dims"]) if line.runs(dim)]
    (value,) = rebuilt(node, [])
    if not axes:
        return (Timed(value),)
    if len(axes) > 1 or line.beyond(node.attrs["dims"][axes[0]]) != 0:
        raise Mixes("counts something else than time")
    if node.attrs["axis"] != axes[0]:
        return (Timed(value, axes[0], None),)
    return (Timed(ops.add(value, ops.cast(line.position(), dtype=node.attrs["dtype"])), axes[0]),)


@rule("reshape")
def reshape(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Axes may be merged with time or split from it: what lies after time in memory stays after it."""
    x, target = exact(operands[0]), node.attrs["dims"]
    (value,) = rebuilt(node, [x.value])
    if x.axis is None:
        return (x.over(value, None),)
    for axis in (a for a, dim in enumerate(target) if line.runs(dim)):
        if x.inner is None:
            return (replace(x, value=value, axis=axis, inner=1 if line.beyond(target[axis]) == x.history else None),)
        after = x.inner * dims.size(x.value.dims[x.axis + 1 :])
        inner = dims.divide_exactly(after, dims.size(target[axis + 1 :]))
        moved = replace(x, value=value, axis=axis, inner=inner)
        if inner is not None and outer_extent(line.length, moved) is not None:
            return (moved,)
    raise Mixes("tears time apart")


@rule("slice")
def slice(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """A piece of another axis; of time, a delay or the end."""
    (x,), axis = operands, operands[0].axis
    starts, stops, steps = (node.attrs[name] for name in ("starts", "stops", "steps"))
    if axis is None:
        if any(map(line.runs, (*starts, *stops))):
            return (table(line, node, x),)
        return (x.over(rebuilt(node, [x.value])[0], None),)

    def cut(start: Dim, stop: Dim) -> Value:
        return ops.slice(
            x.value, starts=replace_at(starts, axis, start), stops=replace_at(stops, axis, stop), steps=steps
        )

    whole = node.inputs[0].dims[axis]
    if (starts[axis], stops[axis], steps[axis]) == (0, whole, 1):
        return (x.over(cut(0, x.value.dims[axis]), axis),)
    start, end, begin = starts[axis], line.beyond(stops[axis]), line.beyond(starts[axis])
    if x.inner not in (1, None) or steps[axis] != 1 or end is None:
        raise Mixes("picks single times")
    if begin is not None:  # from the end of the sequence
        if begin < -1 or end > x.history:
            raise Mixes("takes several elements from the end of the sequence")
        return (Timed(cut(starts[axis], stops[axis]), final=True),)
    if not isinstance(start, int):
        raise Mixes("picks single times")
    history, excess = max(end - start, 0), min(end - start, 0)
    if start + history > x.history:
        raise Mixes("looks ahead in time")
    return (Timed(cut(start, line.length + start + history), axis, x.inner, history, excess),)


def table(line: Timeline, node: Node, x: Timed) -> Timed:
    """The first L rows of a table: in a chunk those from its position on."""
    axes = [a for a, dim in enumerate(node.types[0].dims) if line.runs(dim)]
    starts, stops, steps = (node.attrs[name] for name in ("starts", "stops", "steps"))
    if not x.steady or len(axes) != 1 or (starts[axes[0]], stops[axes[0]], steps[axes[0]]) != (0, line.length, 1):
        raise Mixes("takes as many elements as the sequence is long")
    (axis,) = axes
    whole = ops.slice(x.value, starts=starts, stops=replace_at(stops, axis, x.value.dims[axis]), steps=steps)
    rows = ops.add(ops.iota(dims=(line.length,), axis=0, dtype=DTYPES["i64"]), line.position())
    return Timed(ops.take(whole, rows, axis=axis), axis)


@rule("pad")
def pad(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Of time, a delay: what is pushed out of a chunk comes first in the next."""
    (x,), axis = operands, operands[0].axis
    low, high, number = (node.attrs[name] for name in ("low", "high", "value"))
    if axis is None:
        return pointwise(line, node, operands)
    before, behind = low[axis], high[axis]
    others = ops.pad(x.value, low=replace_at(low, axis, 0), high=replace_at(high, axis, 0), value=number)
    x = x.over(others, axis)
    if before == behind == 0:
        return (x,)
    if not isinstance(before, int) or not isinstance(behind, int):
        raise Mixes("pads by as much as the sequence is long")
    type_ = others.type.with_dims(replace_at(others.dims, axis, before))
    return (delayed(line, node, x, filled(type_, number), behind),)


@rule("concat")
def concat(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Of time, something fixed before the sequence; of another axis, more channels."""
    axis = node.attrs["axis"]
    streams = [i for i, o in enumerate(operands) if o.axis == axis]
    if not streams:
        like, values = aligned(line, operands)
        return (like.over(rebuilt(node, values)[0], like.axis),)
    if len(streams) > 1 or any(not o.steady for i, o in enumerate(operands) if i not in streams):
        raise Mixes("joins sequences one after another")
    (place,) = streams
    first = [o.value for o in operands[:place]]
    behind = sum(dims.evaluate(o.value.dims[axis], {}) for o in operands[place + 1 :])
    prefix = ops.concat(*first, axis=axis) if len(first) > 1 else first[0] if first else None
    return (delayed(line, node, operands[place], prefix, behind),)


def delayed(line: Timeline, node: Node, x: Timed, prefix: Value | None, behind: int) -> Timed:
    """``x`` after ``prefix``, and before ``behind`` elements that are not the sequence's.

    A state as long as the prefix comes before each chunk; the elements pushed out at the end are the next one.
    """
    assert x.axis is not None
    if x.inner not in (1, None) or (behind and x.excess < 0):
        raise Mixes("pads inside the sequence")
    value, axis, count = x.value, x.axis, 0
    if prefix is not None and prefix.dims[axis] != 0:
        count = dims.evaluate(prefix.dims[axis], {})
        before = line.remember("window", prefix.type, prefix, node.location)
        value = ops.concat(before, x.value, axis=axis)
        line.keep(before, ops.slice_axis(value, axis, line.length, line.length + count))
    history, excess = x.history + count, x.excess + behind
    dropped = min(history, max(-excess, 0))
    if dropped:
        value = ops.slice_axis(value, axis, 0, line.length + history - dropped)
    return Timed(value, axis, 1, history - dropped, excess + dropped)


# --- what remembers -------------------------------------------------------------------------------------------------


@rule("conv")
def conv(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """A window that looks back keeps its past; time may also be the batch axis."""
    x = one_stream(operands)
    if x.axis in (None, 0):
        return tuple(x.over(v, x.axis) for v in rebuilt(node, [o.value for o in operands]))
    refuse_time(operands, 1)
    place, attrs = x.axis - 2, dict(node.attrs)
    low, high = attrs["padding"][place]
    if attrs["strides"][place] != 1:
        raise Mixes("strides over time")
    span = (dims.evaluate(operands[1].value.dims[x.axis], {}) - 1) * attrs["dilation"][place]
    type_ = x.value.type.with_dims(replace_at(x.value.dims, x.axis, low))
    x = delayed(line, node, x, filled(type_, 0.0), high)
    if x.history < span:
        raise Mixes("looks ahead in time")
    attrs["padding"] = (*attrs["padding"][:place], (0, 0), *attrs["padding"][place + 1 :])
    value = Value(Node.make(node.op, (x.value, operands[1].value), attrs))
    return (replace(x, value=value, history=x.history - span),)


@rule("pool")
def pool(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """Over other axes than time."""
    x = operands[0]
    rank = x.value.type.rank
    refuse_time(operands, *range(rank - len(node.attrs["window"]), rank))
    return pointwise(line, node, operands)


# How a running result continues another one, and what it is before the first element.
RUNNING: Mapping[str, tuple[Callable[[Value, Value], Value], float]] = {
    "cumsum": (ops.add, 0),
    "cumprod": (ops.mul, 1),
    "cummax": (ops.maximum, -np.inf),
    "logcumsumexp": (ops.logaddexp, -np.inf),
}


@rule(*RUNNING)
def running(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """The result of all elements before the chunk is the state."""
    (x,), axis = operands, node.attrs["axis"]
    if x.axis != axis:
        return pointwise(line, node, operands)
    if x.inner not in (1, None) or node.attrs["reverse"]:
        raise Mixes("runs from the end")
    combine, number = RUNNING[node.op.name]
    type_ = node.types[0].with_dims(replace_at(node.types[0].dims, axis, 1))
    if type_.dtype.is_integer:
        number = max(number, int(np.iinfo(type_.dtype.numpy).min))
    before = line.remember(node.op.name, type_, filled(type_, number), node.location)
    value = combine(before, rebuilt(node, [x.value])[0])
    line.keep(before, ops.slice_axis(value, axis, line.length - 1, line.length))
    return (Timed(value, axis, 1, x.history, x.excess),)


def recurrence(kind: str, known: Sequence[str], states: Mapping[str, float] = {"h0": 0.0}) -> Rule:
    """The rule of a recurrence along axis 1 with optional operands ``known``.

    Args:
        kind: what its state is called, or else they have the names of their operands.
        states: which optional operands are its states, in the order of the results that follow them, and what a state
            that is not given is at the start.
    """

    def apply(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
        fixed, places = len(operands) - len(node.attrs["optional"]), SEQUENCES[node.op.name]
        given = dict(zip(node.attrs["optional"], operands[fixed:], strict=True))
        if all(o.axis in (None, 0) for o in operands):
            return batched(node, operands)
        sequences = [o for i, o in enumerate(operands[:fixed]) if i in places]
        sequences += [o for name, o in given.items() if name in places]
        others = [o for o in operands if not any(o is s for s in sequences)]
        if not all(o.plain and o.axis == 1 for o in sequences) or not all(o.steady for o in others):
            raise Mixes("does not run over time alone")
        before = {}
        for (name, number), type_ in zip(states.items(), node.types[1:], strict=True):
            initial = given[name].value if name in given else filled(type_, number)
            before[name] = line.remember(kind if len(states) == 1 else name, type_, initial, node.location)
        extra = {name: o.value for name, o in given.items()} | before
        named = tuple(name for name in known if name in extra)
        values = [*(o.value for o in operands[:fixed]), *(extra[name] for name in named)]
        y, *after = node.op(*values, **{**node.attrs, "optional": named})
        for old, new in zip(before.values(), after, strict=True):
            line.keep(old, new)
        return (Timed(y, 1), *(Timed(v, final=True) for v in after))

    return apply


RULES["selective_scan"] = recurrence("scan", ("D", "z", "dt_bias", "h0", "mask"))
RULES["gated_linear_attention"] = recurrence("scan", ("bonus", "h0"))
RULES["gated_delta_rule"] = recurrence("scan", ("h0",))
RULES["generalized_delta_rule"] = recurrence("scan", ("h0",))
RULES["wkv"] = recurrence("scan", tuple(WKV_STATES), WKV_STATES)
RULES["causal_conv1d"] = recurrence("conv", ("bias", "state"), {"state": 0.0})
RULES["lti_scan"] = recurrence("scan", ("h0",))


@rule("long_conv")
def long_conv(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """A kernel of known length keeps that many inputs, less one; any other needs them all."""
    x, k = operands[:2]
    if all(o.axis in (None, 0) for o in operands):
        return batched(node, operands)
    if node.attrs["optional"]:
        raise Mixes("looks ahead in time")
    if line.runs(node.inputs[1].dims[0]):
        raise Mixes(
            "has a kernel as long as the sequence that is no sum of exponentials, so every step needs all inputs"
        )
    if not isinstance(k.value.dims[0], int) or k.value.dims[0] == 0:
        raise Mixes("has a kernel of unknown length")
    taps = Timed(ops.flip(k.value, axes=(0,)), k.axis)
    return RULES["causal_conv1d"](line, ops.causal_conv1d.node(node.inputs[0], taps.value), [x, taps])[:1]


def batched(node: Node, operands: Sequence[Timed]) -> Results:
    """Nothing runs over time but the batch axis, if that."""
    if any(o.axis is not None for o in operands):
        raise Mixes("runs over another axis than time")
    final = any(o.final for o in operands)
    return tuple(Timed(v, final=final) for v in rebuilt(node, [o.value for o in operands]))


@rule("linear_scan")
def linear_scan(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """The last element is the state."""
    a, b, initial = operands
    if a.axis is None and b.axis is None:
        return batched(node, operands)
    require_forward(node, (a, b), (initial,))
    before = line.remember("scan", initial.value.type, initial.value, node.location)
    states, last = node.op(a.value, b.value, before, **node.attrs)
    line.keep(before, last)
    return Timed(states, node.attrs["axis"]), Timed(last, final=True)


@rule("scan")
def scan(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """The carries are states."""
    carries, sequences, axis = (node.attrs[name] for name in ("carries", "sequences", "axis"))
    initial, xs, consts = operands[:carries], operands[carries : carries + sequences], operands[carries + sequences :]
    line.refuse_length_in(node.attrs["body"])
    if all(o.axis is None for o in operands):
        return batched(node, operands)
    require_forward(node, xs, (*initial, *consts))
    before = [line.remember("scan", o.value.type, o.value, node.location) for o in initial]
    results = rebuilt(node, [*before, *(o.value for o in (*xs, *consts))])
    for old, new in zip(before, results, strict=False):
        line.keep(old, new)
    return (*(Timed(v, final=True) for v in results[:carries]), *(Timed(v, axis) for v in results[carries:]))


@rule("while_loop")
def while_loop(line: Timeline, node: Node, operands: Sequence[Timed]) -> Results:
    """The number of its steps is one for everything that it reads, so no part of a sequence has steps of its own."""
    if any(o.axis is not None for o in operands):
        raise Mixes("counts its steps over all times")
    line.refuse_length_in(node.attrs["condition"], node.attrs["body"])
    return batched(node, operands)


def require_forward(node: Node, sequences: Sequence[Timed], others: Sequence[Timed]) -> None:
    if node.attrs["reverse"]:
        raise Mixes("runs backwards in time")
    if not all(o.plain and o.axis == node.attrs["axis"] for o in sequences) or not all(o.steady for o in others):
        raise Mixes("does not run over time alone")
