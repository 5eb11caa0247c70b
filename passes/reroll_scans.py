"""Find a recurrence that an export unrolled over time and turn it back into ``scan``.

Before (three of T steps)::

    x0 = slice(x, 0:1); h1 = f(h0, x0); x1 = slice(x, 1:2); h2 = f(h1, x1); x2 = ...; y = concat(h1, h2, h3)

After::

    hT, ys = scan(h0, x; body=f)

Needs: any graph. Guarantees: the same function; what does not fit the pattern is left as it was, with a reason.

The idea. The operands of a long ``concat`` are the outputs of successive steps. Walking the last two of them in lockstep,
latest node first, every pair of nodes either is the same node (an *invariant*), or slices one tensor at consecutive
places (a *sequence*), or meets a node of the later step's past that the earlier step has already been paired with (a
*carry*), or applies one op to operands that are pairs again. That gives the body. The body is then matched against
every earlier step, so the cost is linear in the size of the graph; steps at the start that differ (a zero state folded
away) are peeled and stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from coilc.ir import DTYPES, Array, Graph, Module, Value, at, literal, ops
from coilc.ir.core import Node, topological_order
from coilc.ir.opdef import MIXER

from .align_scans import equal_outputs
from .loop_parts import to_front
from .match_loops import (
    MIN_STEPS,
    Mismatch,
    Step,
    Template,
    find_templates,
    inside,
    longest,
    match_step,
    moving_axis,
    rebuild,
)
from .replace_values import replace_values
from .rewrite import inherit_location
from .simplify import simplify
from .trace import record_refusal

LOOKED_BACK = 4  # pairs of steps, from the end, that are compared to find the odd one out
SUMS = (ops.add, ops.mul, ops.maximum, ops.minimum)
LEAST_SUM = 6  # terms of a sum from which it is a loop over time, of which only the end is used
NEIGHBOURS = 6  # how far back, among nodes that do the same, the end of the step before is looked for


def reroll_loops(module: Module) -> Module:
    """Re-roll the loops of every entry, before and after trivial ops are gone, and those of which only the end is used.

    First as traced, because there the first step is like the others: ``0 * h`` and ``x - 0`` are still written out.
    """
    return simplify(module.map(reroll_scans)).map(reroll_scans).map(reroll_ends)


class _Later(Exception):
    """A loop around one, or after one, that this round replaces: by ``instead``, if anything changes."""

    def __init__(self, instead: Mapping[Value, Value] | None = None) -> None:
        super().__init__()
        self.instead = instead or {}


def reroll_scans(graph: Graph) -> Graph:
    """Re-roll every unrolled loop of ``graph``; a trace tells what broke the pattern of the others, and at which step.

    Loops are found round by round: those of one round do not contain one another, and are replaced together.
    """
    tried: set[Node] = set()
    while True:
        surroundings, replacements = _Surroundings(graph), dict[Value, Value]()
        found, busy = list[_Found](), set[Node]()
        for concat in _candidates(graph):
            if concat in tried:
                continue
            try:
                with at(inside(concat)):
                    loop = _find(surroundings, concat, busy)
                    _stack_what_is_read(surroundings, found, loop)
                    replacements |= _replace(surroundings, loop, ())
                    found.append(loop)
                    busy.add(concat)
            except _Later as later:
                replacements |= later.instead
                busy.add(concat)
                continue
            except Mismatch as mismatch:
                record_refusal("reroll_scans", mismatch.node, mismatch.reason)
            tried.add(concat)
        if not replacements:
            return graph
        graph = equal_outputs(replace_values(graph, replacements))


def _candidates(graph: Graph) -> Iterator[Node]:
    concats = (n for n in graph.nodes if n.op is ops.concat and len(n.inputs) >= MIN_STEPS)
    return (n for n in concats if len({v.type for v in n.inputs}) == 1)  # an outer one holds the loop of a round before


class _Surroundings:
    """What a loop needs to know of its graph: the order of nodes, and who reads a value (``None``: an output)."""

    def __init__(self, graph: Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.readers: dict[Value, list[Node | None]] = {v: [None] for v in graph.results}
        for node in graph.nodes:
            for value in node.inputs:
                self.readers.setdefault(value, []).append(node)


# --- the replacement ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """A loop: its form, its steps in time order, and the concat of what they put out, the last steps first or last."""

    concat: Node
    template: Template
    steps: Sequence[Step]
    backwards: bool


def _find(surroundings: _Surroundings, concat: Node, busy: AbstractSet[Node]) -> _Found:
    """The loop whose outputs ``concat`` stacks, in the order of the steps or else the other way round."""
    try:
        return _find_in_order(surroundings, concat, busy, backwards=False)
    except Mismatch as mismatch:
        with suppress(Mismatch):
            return _find_in_order(surroundings, concat, busy, backwards=True)
        raise mismatch


def _find_in_order(surroundings: _Surroundings, concat: Node, busy: AbstractSet[Node], *, backwards: bool) -> _Found:
    outputs = concat.inputs[::-1] if backwards else concat.inputs
    templates = _templates(surroundings.order, outputs)
    if not busy.isdisjoint(templates[0].interior):
        raise _Later
    template, steps, broken = longest(templates, outputs)
    if broken and len(outputs) - len(steps) > 1:
        record_refusal("reroll_scans", broken.node, f"{broken.reason}; only the steps after it become a scan")
    return _Found(concat, template, steps, backwards)


def _replace(surroundings: _Surroundings, loop: _Found, read: Sequence[Value]) -> dict[Value, Value]:
    """What becomes of the values of a loop. Of ``read``, values of its last step, those of all steps are kept."""
    concat, template, steps = loop.concat, loop.template, loop.steps
    escapes = [v for v in _escapes(surroundings, concat, template) if v not in read]
    finals, (stacked, *kept) = _loop(template, steps, escapes, [template.root, *read])
    axis = concat.attrs["axis"]
    whole = _unstack(ops.flip(stacked, axes=(0,)) if loop.backwards else stacked, axis)
    outputs = concat.inputs[::-1] if loop.backwards else concat.inputs
    peeled = outputs[: len(outputs) - len(steps)]
    parts = (whole, *peeled[::-1]) if loop.backwards else (*peeled, whole)
    result = ops.concat(*parts, axis=axis) if peeled else whole
    inherit_location(concat, (result,))
    slices = {
        step.made[value]: _at(all_steps, t)
        for value, all_steps in zip(read, kept, strict=True)
        for t, step in enumerate(steps)
    }
    return finals | slices | {Value(concat): result}


def _at(stacked: Value, t: int) -> Value:
    """``stacked[t]``."""
    rest = stacked.dims[1:]
    starts, stops = (t, *(0 for _ in rest)), (t + 1, *rest)
    return ops.reshape(ops.slice(stacked, starts=starts, stops=stops, steps=(1,) * len(starts)), dims=rest)


def _stack_what_is_read(surroundings: _Surroundings, found: Sequence[_Found], outer: _Found) -> None:
    """Keep ``outer`` from running other loops again, whose states it would carry next to its own.

    The rows of a grid read the row before, step by step. That row becomes a loop that stacks what is read; ``outer``
    waits for the next round, where it finds sequences.

    Raises:
        _Later: there is such a loop.
    """
    for loop in found:
        if not loop.template.carries.keys() < outer.template.carries.keys():
            continue
        inside = loop.template.interior
        others = (node for node in outer.template.interior if node not in inside)
        read = list(dict.fromkeys(v for node in others for v in node.inputs if v in loop.steps[-1].made))
        if read:
            raise _Later(_replace(surroundings, loop, read))


def _templates(order: Mapping[Node, int], outputs: Sequence[Value]) -> list[Template]:
    """Forms of the step, from the last two.

    Raises:
        Mismatch: these differ. If two of the steps before them do not, it says which step is the odd one.
    """
    found: list[Mismatch] = []
    for number in range(len(outputs), max(1, len(outputs) - LOOKED_BACK), -1):
        try:
            templates = find_templates(order, outputs[number - 2], outputs[number - 1])
        except Mismatch as mismatch:
            found.append(mismatch)
        else:
            if not found:
                return templates
            raise found[-1].at_step(number + 1, len(outputs))
    raise found[0]


def _loop(
    template: Template, steps: Sequence[Step], escapes: list[Value], outputs: Sequence[Value]
) -> tuple[dict[Value, Value], tuple[Value, ...]]:
    """Build the scan: what the values that it leaves become, and the stacked ``outputs``."""
    sequences = _sequences(template, steps)
    left = (*template.carries.values(), *escapes)
    results = ops.scan.node(
        *(steps[0].carries[read] for read in template.carries),
        *(ops.broadcast(literal(0, v.type.dtype), dims=v.dims) for v in escapes),
        *sequences.values(),
        *template.invariants,
        body=_body(template, escapes, list(sequences), outputs),
        carries=len(left),
        sequences=len(sequences),
        axis=0,
        reverse=False,
    ).results
    return dict(zip(left, results, strict=False)), results[len(left) :]


def _sequences(template: Template, steps: Sequence[Step]) -> dict[Value, Value]:
    """What moves with time, [T, ...], by what a step reads of it: the number of the step where that is nothing."""
    found = {leaf: _sequence(leaf, [s.sequences[leaf] for s in steps]) for leaf in template.sequences}
    if found:
        return found
    numbers = ops.iota(dims=(len(steps),), axis=0, dtype=DTYPES["i64"])
    return {ops.input_(name="step", type=numbers.type.with_dims(())): numbers}


def _escapes(surroundings: _Surroundings, concat: Node | None, template: Template) -> list[Value]:
    """Values of the last step, other than its carries, that something after the loop reads.

    They leave the scan as carries that no step reads, so that only the last one is kept.
    """
    inside = {concat, *template.interior, *(left.node for left in template.carries.values())}
    covered = {*template.carries, *template.carries.values()}
    values = (v for node in sorted(template.interior, key=surroundings.order.__getitem__) for v in node.results)
    return [v for v in values if v not in covered and any(r not in inside for r in surroundings.readers.get(v, ()))]


def _sequence(leaf: Value, actuals: Sequence[Value]) -> Value:
    """The tensor ``[T, *leaf dims]`` whose t-th slice is the leaf of step t.

    Raises:
        Mismatch: the slices do not advance by one constant positive or negative stride.
    """
    if leaf.op is ops.constant:
        return ops.constant(value=Array(np.stack([v.node.attrs["value"].value for v in actuals])))
    axis = moving_axis(actuals[0].node, actuals[1].node)
    if axis is None:
        raise Mismatch(leaf.node, "two steps read the same slice")
    starts = [v.node.attrs["starts"][axis] for v in actuals]
    stride = starts[1] - starts[0]
    if any(q - p != stride for p, q in pairwise(starts)) or not isinstance(stride, int):
        raise Mismatch(leaf.node, "the slices do not advance by a constant stride")
    attrs = leaf.node.attrs
    low, high = min(starts[0], starts[-1]), max(starts[0], starts[-1]) + 1
    window = ops.slice(
        leaf.node.inputs[0],
        starts=_with(attrs["starts"], axis, low),
        stops=_with(attrs["stops"], axis, high),
        steps=_with(attrs["steps"], axis, abs(stride)),
    )
    window = window if window.type != leaf.node.inputs[0].type else leaf.node.inputs[0]
    window = ops.flip(window, axes=(axis,)) if stride < 0 else window
    return ops.reshape(to_front(window, axis), dims=(len(actuals), *leaf.dims))


def _with(items: Sequence[object], index: int, item: object) -> tuple[object, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _body(template: Template, escapes: list[Value], moving: list[Value], outputs: Sequence[Value]) -> Graph:
    leaves = {"h": template.carries, "l": escapes, "x": moving, "c": template.invariants}
    parameters = [(f"{kind}{i}", leaf) for kind, group in leaves.items() for i, leaf in enumerate(group)]
    inputs = [ops.input_(name=name, type=leaf.type) for name, leaf in parameters]
    mapping = {leaf: v for (name, leaf), v in zip(parameters, inputs, strict=True) if not name.startswith("l")}
    results = rebuild([*template.carries.values(), *escapes, *outputs], mapping)
    names = [name for name, _ in parameters if name[0] in "hl"] + [f"y{i or ''}" for i in range(len(outputs))]
    return Graph("step", tuple(inputs), tuple(zip(names, results, strict=True)))


def _unstack(stacked: Value, axis: int) -> Value:
    """``[T, *dims]`` to the concat of its slices along ``axis``."""
    dims = stacked.dims[1:]
    moved = ops.transpose(stacked, perm=(*range(1, axis + 1), 0, *range(axis + 1, len(dims) + 1)))
    return ops.reshape(moved, dims=(*dims[:axis], stacked.dims[0] * dims[axis], *dims[axis + 1 :]))


# --- loops of which only the end is used ------------------------------------------------------------------------------


def reroll_ends(graph: Graph) -> Graph:
    """Re-roll loops that stack no outputs, of which only the values that the last step leaves are used.

    Such a value is the last of many nodes that do the same; the one of the step before is among the others.
    """
    while True:
        surroundings = _Surroundings(graph)
        loops = [loop for later, earlier in _alike(surroundings) for loop in _chains(surroundings, later, earlier)]
        if not loops:
            return graph
        template, steps = max(loops, key=lambda loop: (len(loop[1]), -len(loop[0].carries)))
        with at(inside(template.root.node)):
            finals, _ = _loop(template, steps, _escapes(surroundings, None, template), [])
        smaller = replace_values(graph, finals)
        if len(graph.nodes) - len(smaller.nodes) <= (len(steps) - 2) * len(template.interior):
            return graph  # something else reads the steps, so they stay
        graph = smaller


def _alike(surroundings: _Surroundings) -> Iterator[tuple[Value, list[Value]]]:
    """Of nodes with one op and type: the last, and those that come before it, nearest first."""
    alike: dict[object, list[Value]] = {}
    for node in surroundings.order:
        if len(node.types) == 1 and node.inputs:
            alike.setdefault((node.op.name, node.types), []).append(Value(node))
    return ((vs[-1], vs[-2 : -2 - NEIGHBOURS : -1]) for vs in alike.values() if len(vs) >= MIN_STEPS)


def _chains(
    surroundings: _Surroundings, later: Value, earlier: Sequence[Value]
) -> Iterator[tuple[Template, list[Step]]]:
    """Loops whose steps make ``later`` from one of ``earlier``."""
    for value in earlier:
        with suppress(Mismatch):
            for template in find_templates(surroundings.order, value, later):
                if template.carries.get(value) == later and template.sequences:
                    steps = _match_chain(template, value)
                    if _waits(template) or (len(steps) >= LEAST_SUM and not _has_loops(template)):
                        yield template, steps


def _has_loops(template: Template) -> bool:
    """Whether a step has recurrences of its own: those of several routes or heads run side by side."""
    return any(MIXER in node.op.traits for node in template.interior)


def _waits(template: Template) -> bool:
    """Whether more happens to a carry than that a term is added: over a few routes or heads, that is no recurrence."""
    touched = set(template.carries)
    for node in topological_order((v.node for v in template.carries.values()), lambda n: n not in template.interior):
        own = [v for v in node.inputs if v in touched]
        if own and (len(own) > 1 or node.op not in SUMS):
            return True
        touched.update(node.results if own else ())
    return False


def _match_chain(template: Template, read: Value) -> list[Step]:
    """As ``match_steps`` where each step's output is the value that the step after it reads as ``read``."""
    steps: list[Step] = []
    wanted: Mapping[Value, Value] = dict(template.carries)
    with suppress(Mismatch):
        while True:
            steps.append(match_step(template, wanted[read], wanted))
            wanted = steps[-1].carries
    if len(steps) < MIN_STEPS:
        raise Mismatch(read.node, "too few equal steps")
    steps.reverse()
    return steps
