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

import heapq
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import numpy as np

from coilc.ir import Array, Graph, Location, Module, Value, at, literal, ops
from coilc.ir.core import Node

from .replace_values import replace_values
from .rewrite import inherit_location
from .simplify import simplify

MIN_STEPS = 3
NEIGHBOURS = 6  # how far back, among nodes that do the same, the end of the step before is looked for
MAX_FORMS = 8  # how many ways to cut the loop into steps are tried when the first does not fit its first steps


@dataclass(frozen=True)
class Declined:
    """Why a concat was not recognised as the outputs of a loop; ``node`` is where the pattern broke."""

    node: Node
    reason: str


class _Mismatch(Exception):
    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason


def reroll_loops(module: Module) -> Module:
    """Re-roll the loops of every entry, before and after trivial ops are gone, and those of which only the end is used.

    First as traced, because there the first step is like the others: ``0 * h`` and ``x - 0`` are still written out.
    """
    return simplify(module.map(reroll_scans)).map(reroll_scans).map(reroll_ends)


class _Later(Exception):
    """A loop around one that this round replaces."""


def reroll_scans(graph: Graph, declined: list[Declined] | None = None) -> Graph:
    """Re-roll every unrolled loop of ``graph``; ``declined`` collects near misses.

    Loops are found round by round: those of one round do not contain one another, and are replaced together.
    """
    tried: set[Node] = set()
    while True:
        surroundings, replacements = _Surroundings(graph), dict[Value, Value]()
        for concat in _candidates(graph):
            if concat in tried:
                continue
            try:
                with at(_inside(concat)):
                    replacements |= _reroll(surroundings, concat, replacements)
            except _Later:
                continue
            except _Mismatch as mismatch:
                if declined is not None:
                    declined.append(Declined(mismatch.node, mismatch.reason))
            tried.add(concat)
        if not replacements:
            return graph
        graph = replace_values(graph, replacements)


def _candidates(graph: Graph) -> Iterator[Node]:
    return (n for n in graph.nodes if n.op is ops.concat and len(n.inputs) >= MIN_STEPS)


class _Surroundings:
    """What a loop needs to know of its graph: the order of nodes, and who reads a value (``None``: an output)."""

    def __init__(self, graph: Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.readers: dict[Value, list[Node | None]] = {v: [None] for v in graph.results}
        for node in graph.nodes:
            for value in node.inputs:
                self.readers.setdefault(value, []).append(node)


# --- the body -------------------------------------------------------------------------------------------------------


@dataclass
class _Template:
    """One step of the loop, written in the nodes of the last step.

    ``carries`` maps the value that a step reads to the value it leaves for the next step, both as the *last* step
    names them; ``sequences`` holds slices (or constants) that move with time.
    """

    root: Value
    carries: dict[Value, Value] = field(default_factory=dict)
    sequences: dict[Value, Value] = field(default_factory=dict)
    invariants: dict[Value, None] = field(default_factory=dict)
    interior: dict[Node, Node] = field(default_factory=dict)


def _find_templates(order: Mapping[Node, int], earlier: Value, later: Value) -> list[_Template]:
    """Pair the nodes of the last two steps, latest first, so that a carry is met after the step that produces it.

    Returns the forms of the step that carry fewest values; they differ in where a step begins.
    """
    template = _Template(later)
    heap: list[tuple[int, int, Value, Value]] = [(-order[later.node], 0, earlier, later)]
    ties, seen = count(1), set[tuple[Value, Value]]()
    previous: dict[Value, Value] = {}
    while heap:
        _, _, a, b = heapq.heappop(heap)
        if (a, b) in seen:
            continue
        seen.add((a, b))
        if a == b:
            template.invariants[b] = None
        elif b in previous:
            template.carries[b] = previous[b]
        elif _is_sequence(a.node, b.node):
            template.sequences[b] = a
        else:
            _require_same_op(a, b)
            previous.update(zip(a.node.results, b.node.results, strict=True))
            template.interior[b.node] = a.node
            for x, y in zip(a.node.inputs, b.node.inputs, strict=True):
                heapq.heappush(heap, (-order[y.node], next(ties), x, y))
    if not template.carries:
        raise _Mismatch(later.node, "the steps do not depend on one another")
    return _carry_less(template, order)


def _carry_less(template: _Template, order: Mapping[Node, int]) -> list[_Template]:
    """Move work that a step does on carried values alone into the step before, where that carries fewest values.

    A leaky integrator that spikes is first seen to carry its potential and its spike; it carries what the reset leaves.
    """
    known, early = set(template.carries), []
    for node in sorted(template.interior, key=lambda n: order[n]):
        moving = [v for v in node.inputs if v not in template.invariants]
        if moving and known.issuperset(moving):
            early.append(node)
            known.update(node.results)
    cuts = [_cut(template, set(early[:k])) for k in range(len(early) + 1)]
    fewest = min(map(len, cuts))
    return [_with_cut(template, cut, early[:k]) for k, cut in enumerate(cuts) if len(cut) == fewest][:MAX_FORMS]


def _with_cut(template: _Template, cut: list[Value], early: list[Node]) -> _Template:
    """The step that begins after ``early`` and carries ``cut``."""
    if not early:
        return template
    next_step: dict[Value, Value] = dict(template.carries) | {v: v for v in template.invariants}
    carries = dict(zip(cut, _rebuild(list(cut), next_step), strict=True))
    interior = {n: a for n, a in template.interior.items() if n not in set(early)}
    return replace(template, carries=carries, interior=interior)


def _cut(template: _Template, early: set[Node]) -> list[Value]:
    """What a step would carry if ``early`` ran in the step before."""
    late = (node for node in template.interior if node not in early)
    return list(dict.fromkeys(v for n in late for v in n.inputs if v in template.carries or v.node in early))


def _require_same_op(a: Value, b: Value) -> None:
    if a.node.op is not b.node.op or a.index != b.index:
        raise _Mismatch(
            b.node, f"one step computes '{b.node.op.name}' where the step before computes '{a.node.op.name}'"
        )
    if a.node.attrs != b.node.attrs or a.node.types != b.node.types:
        raise _Mismatch(b.node, f"'{b.node.op.name}' has other attributes or types than in the step before")
    if len(a.node.inputs) != len(b.node.inputs) or not b.node.inputs:
        raise _Mismatch(b.node, f"'{b.node.op.name}' differs between steps")


def _is_sequence(a: Node, b: Node) -> bool:
    if a.op is not b.op or a.types != b.types:
        return False
    if b.op is ops.constant:
        return True
    return b.op is ops.slice and a.inputs == b.inputs and _moving_axis(a, b) is not None


def _moving_axis(a: Node, b: Node) -> int | None:
    """The only axis along which two unit slices of one tensor differ."""
    starts = [i for i, (p, q) in enumerate(zip(a.attrs["starts"], b.attrs["starts"], strict=True)) if p != q]
    return starts[0] if len(starts) == 1 and b.types[0].dims[starts[0]] == 1 else None


# --- every step -----------------------------------------------------------------------------------------------------


@dataclass
class _Step:
    """How one step instantiates the template: actual carries read, and the moving leaves."""

    carries: dict[Value, Value]
    sequences: dict[Value, Value]


def _longest(templates: Sequence[_Template], outputs: Sequence[Value]) -> tuple[_Template, list[_Step]]:
    """The first form of the step that fits every output, or else the one that fits most.

    Raises:
        _Mismatch: none fits enough outputs to be a loop; this is what the first form met.
    """
    fits, refusals = list[tuple[_Template, list[_Step]]](), list[_Mismatch]()
    for template in templates:
        try:
            fits.append((template, _match_steps(template, outputs)))
        except _Mismatch as mismatch:
            refusals.append(mismatch)
        if fits and len(fits[-1][1]) == len(outputs):
            return fits[-1]
    if not fits:
        raise refusals[0]
    return max(fits, key=lambda fit: len(fit[1]))


def _match_steps(template: _Template, outputs: Sequence[Value]) -> list[_Step]:
    """Match the template from the last step backwards; stops at the first step that differs (it is peeled).

    Returns the matched steps in time order; the last ``len(result)`` outputs are theirs.
    """
    steps: list[_Step] = []
    wanted = {read: left for read, left in template.carries.items()}
    for output in reversed(outputs):
        try:
            step = _match_step(template, output, wanted)
        except _Mismatch as mismatch:
            if len(steps) < MIN_STEPS - 1:
                raise mismatch
            break
        steps.append(step)
        wanted = step.carries
    steps.reverse()
    return steps


def _match_step(template: _Template, output: Value, left: Mapping[Value, Value]) -> _Step:
    """``left``: for every carry of the template, the value that this step must leave for the step after it."""
    step = _Step({}, {})
    stack = [(template.root, output), *((template.carries[read], value) for read, value in left.items())]
    seen: set[tuple[Value, Value]] = set()
    while stack:
        pair = stack.pop()
        if pair in seen:
            continue
        seen.add(pair)
        pattern, actual = pair
        if pattern in template.carries:
            _bind(step.carries, pattern, actual)
        elif pattern in template.sequences:
            if pattern != actual and not _is_sequence(pattern.node, actual.node):
                raise _Mismatch(actual.node, "this operand is not the next slice of the sequence")
            _bind(step.sequences, pattern, actual)
        elif pattern in template.invariants:
            if pattern != actual:
                raise _Mismatch(actual.node, "an operand that is the same in the last two steps differs here")
        else:
            _require_same_op(pattern, actual)
            stack += zip(pattern.node.inputs, actual.node.inputs, strict=True)
    if set(step.carries) != set(template.carries):
        raise _Mismatch(output.node, "this step reads fewer carried values than the last")
    return step


def _bind(bindings: dict[Value, Value], pattern: Value, actual: Value) -> None:
    if bindings.setdefault(pattern, actual) != actual:
        raise _Mismatch(actual.node, "one carried or moving value of the last step is two different values here")


# --- the replacement ------------------------------------------------------------------------------------------------


def _reroll(surroundings: _Surroundings, concat: Node, replaced: Mapping[Value, Value]) -> dict[Value, Value]:
    """Replace a loop whose outputs ``concat`` stacks."""
    outputs = concat.inputs
    templates = _find_templates(surroundings.order, outputs[-2], outputs[-1])
    if any(node.op is ops.concat and Value(node) in replaced for node in templates[0].interior):
        raise _Later
    template, steps = _longest(templates, outputs)
    finals, (stacked,) = _loop(template, steps, _escapes(surroundings, concat, template), [template.root])
    axis = concat.attrs["axis"]
    peeled, whole = outputs[: len(outputs) - len(steps)], _unstack(stacked, axis)
    result = ops.concat(*peeled, whole, axis=axis) if peeled else whole
    inherit_location(concat, (result,))
    return finals | {Value(concat): result}


def _inside(node: Node) -> Location | None:
    """The location of nodes that help to compute what ``node`` does."""
    return node.location and node.location.interior()


def _loop(
    template: _Template, steps: Sequence[_Step], escapes: list[Value], outputs: Sequence[Value]
) -> tuple[dict[Value, Value], tuple[Value, ...]]:
    """Build the scan: what the values that it leaves become, and the stacked ``outputs``."""
    sequences = {leaf: _sequence(leaf, [s.sequences[leaf] for s in steps]) for leaf in template.sequences}
    left = (*template.carries.values(), *escapes)
    results = ops.scan.node(
        *(steps[0].carries[read] for read in template.carries),
        *(ops.broadcast(literal(0, v.type.dtype), dims=v.dims) for v in escapes),
        *sequences.values(),
        *template.invariants,
        body=_body(template, escapes, outputs),
        carries=len(left),
        sequences=len(sequences),
        axis=0,
        reverse=False,
    ).results
    return dict(zip(left, results, strict=False)), results[len(left) :]


def _escapes(surroundings: _Surroundings, concat: Node | None, template: _Template) -> list[Value]:
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
        _Mismatch: the slices do not advance by one constant positive or negative stride.
    """
    if leaf.op is ops.constant:
        return ops.constant(value=Array(np.stack([v.node.attrs["value"].value for v in actuals])))
    axis = _moving_axis(actuals[0].node, actuals[1].node)
    if axis is None:
        raise _Mismatch(leaf.node, "two steps read the same slice")
    starts = [v.node.attrs["starts"][axis] for v in actuals]
    stride = starts[1] - starts[0]
    if any(q - p != stride for p, q in pairwise(starts)) or not isinstance(stride, int):
        raise _Mismatch(leaf.node, "the slices do not advance by a constant stride")
    attrs = leaf.node.attrs
    low, high = min(starts[0], starts[-1]), max(starts[0], starts[-1]) + 1
    window = ops.slice(
        leaf.node.inputs[0],
        starts=_with(attrs["starts"], axis, low),
        stops=_with(attrs["stops"], axis, high),
        steps=_with(attrs["steps"], axis, abs(stride)),
    )
    window = ops.flip(window, axes=(axis,)) if stride < 0 else window
    rank = len(leaf.dims)
    moved = ops.transpose(window, perm=(axis, *(i for i in range(rank) if i != axis)))
    return ops.reshape(moved, dims=(len(actuals), *leaf.dims))


def _with(items: Sequence[object], index: int, item: object) -> tuple[object, ...]:
    return (*items[:index], item, *items[index + 1 :])


def _body(template: _Template, escapes: list[Value], outputs: Sequence[Value]) -> Graph:
    leaves = {"h": template.carries, "l": escapes, "x": template.sequences, "c": template.invariants}
    parameters = [(f"{kind}{i}", leaf) for kind, group in leaves.items() for i, leaf in enumerate(group)]
    inputs = [ops.input_(name=name, type=leaf.type) for name, leaf in parameters]
    mapping = {leaf: v for (name, leaf), v in zip(parameters, inputs, strict=True) if not name.startswith("l")}
    results = _rebuild([*template.carries.values(), *escapes, *outputs], mapping)
    names = [name for name, _ in parameters if name[0] in "hl"] + ["y"] * len(outputs)
    return Graph("step", tuple(inputs), tuple(zip(names, results, strict=True)))


def _unstack(stacked: Value, axis: int) -> Value:
    """``[T, *dims]`` to the concat of its slices along ``axis``."""
    dims = stacked.dims[1:]
    moved = ops.transpose(stacked, perm=(*range(1, axis + 1), 0, *range(axis + 1, len(dims) + 1)))
    return ops.reshape(moved, dims=(*dims[:axis], stacked.dims[0] * dims[axis], *dims[axis + 1 :]))


def _rebuild(roots: Sequence[Value], mapping: dict[Value, Value]) -> list[Value]:
    """Copy the nodes below ``roots``, replacing the values in ``mapping`` (which grows by the copies)."""
    stack = [v.node for v in roots]
    while stack:
        node = stack[-1]
        missing = [v.node for v in node.inputs if v not in mapping]
        if all(v in mapping for v in node.results) or not missing:
            stack.pop()
            if not all(v in mapping for v in node.results):
                with at(_inside(node)):
                    copy = Node.make(node.op, tuple(mapping[v] for v in node.inputs), node.attrs)
                for old, new in zip(node.results, copy.results, strict=True):
                    mapping.setdefault(old, new)
        else:
            stack += missing
    return [mapping[v] for v in roots]


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
        with at(_inside(template.root.node)):
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
) -> Iterator[tuple[_Template, list[_Step]]]:
    """Loops whose steps make ``later`` from one of ``earlier``."""
    for value in earlier:
        with suppress(_Mismatch):
            for template in _find_templates(surroundings.order, value, later):
                if template.carries.get(value) == later and template.sequences:
                    yield template, _match_chain(template, value)


def _match_chain(template: _Template, read: Value) -> list[_Step]:
    """As ``_match_steps`` where each step's output is the value that the step after it reads as ``read``."""
    steps: list[_Step] = []
    wanted: Mapping[Value, Value] = dict(template.carries)
    with suppress(_Mismatch):
        while True:
            steps.append(_match_step(template, wanted[read], wanted))
            wanted = steps[-1].carries
    if len(steps) < MIN_STEPS:
        raise _Mismatch(read.node, "too few equal steps")
    steps.reverse()
    return steps
