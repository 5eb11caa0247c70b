"""One step of an unrolled loop: found by pairing the last two steps, then matched against every earlier one."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

from coilc.ir import Location, Value, at, ops
from coilc.ir.core import Node
from coilc.ir.opdef import MOVEMENT

from .align_scans import align_scans
from .match import scalar

MIN_STEPS = 3
MAX_FORMS = 8  # how many ways to cut the loop into steps are tried when the first does not fit its first steps


class Mismatch(Exception):
    """Why two steps are not the same; ``node`` is where the pattern broke."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason

    def at_step(self, number: int, count: int) -> Mismatch:
        """The same, of one step of a loop; steps count from 1."""
        return Mismatch(self.node, f"step {number} of {count} breaks the loop: {self.reason}")


# --- the body -------------------------------------------------------------------------------------------------------


@dataclass
class Template:
    """One step of the loop, written in the nodes of the last step.

    ``carries`` maps the value that a step reads to the value it leaves for the next step, both as the *last* step
    names them; ``sequences`` holds slices (or constants) that move with time.
    """

    root: Value
    carries: dict[Value, Value] = field(default_factory=dict)
    sequences: dict[Value, Value] = field(default_factory=dict)
    invariants: dict[Value, None] = field(default_factory=dict)
    interior: dict[Node, Node] = field(default_factory=dict)


def find_templates(order: Mapping[Node, int], earlier: Value, later: Value) -> list[Template]:
    """Pair the nodes of the last two steps, latest first, so that a carry is met after the step that produces it.

    Returns the forms of the step that carry fewest values; they differ in where a step begins.
    """
    template = Template(later)
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
            _require_same_op(a, b, "the step before")
            previous.update(zip(a.node.results, b.node.results, strict=True))
            template.interior[b.node] = a.node
            for x, y in zip(a.node.inputs, b.node.inputs, strict=True):
                heapq.heappush(heap, (-order[y.node], next(ties), x, y))
    if not template.carries:
        raise Mismatch(later.node, "the steps do not depend on one another")
    if not template.sequences and all(MOVEMENT in node.op.traits for node in template.interior):
        raise Mismatch(later.node, "the steps compute nothing")
    return _carry_less(template, order)


def _carry_less(template: Template, order: Mapping[Node, int]) -> list[Template]:
    """Move work that a step does on carried values into the step before, where that carries fewest values.

    A leaky integrator that spikes is first seen to carry its potential and its spike; it carries what the reset leaves. A
    state that is read before it is updated is first seen one update late; the update moves with its slices of sequences,
    if those go on for one more step.
    """
    ahead = {leaf: _next_slice(before.node, leaf.node) for leaf, before in template.sequences.items()}
    known, early = set(template.carries), []
    free = {*template.invariants, *(leaf for leaf, after in ahead.items() if after is not None)}
    for node in sorted(template.interior, key=lambda n: order[n]):
        if free.issuperset(node.inputs):
            free.update(node.results)
        elif free.union(known).issuperset(node.inputs) and node is not template.root.node:
            early.append(node)
            known.update(node.results)
    forms = [(_cut(template, set(early[:k])), early[:k]) for k in range(len(early) + 1)]
    forms = [(cut, moved) for cut, moved in forms if _is_whole(template, cut, set(moved))]
    fewest = min(len(cut) for cut, _ in forms)
    return [_with_cut(template, cut, moved, ahead) for cut, moved in forms if len(cut) == fewest][:MAX_FORMS]


def _is_whole(template: Template, cut: list[Value], early: set[Node]) -> bool:
    """Whether a step that begins after ``early`` still has all that the next one's early part reads."""
    return all(left.node not in early or left in cut for left in template.carries.values())


def _with_cut(template: Template, cut: list[Value], early: list[Node], ahead: Mapping[Value, Value | None]) -> Template:
    """The step that begins after ``early`` and carries ``cut``."""
    if not early:
        return template
    next_step: dict[Value, Value] = dict(template.carries) | {v: v for v in template.invariants}
    next_step |= {leaf: after for leaf, after in ahead.items() if after is not None}
    carries = dict(zip(cut, rebuild(list(cut), next_step), strict=True))
    moving = template.sequences | {after: leaf for leaf, after in ahead.items() if after is not None}
    read = _read([template.root, *carries.values()], {*carries, *moving, *template.invariants})
    sequences = {leaf: before for leaf, before in moving.items() if leaf in read}
    interior = {n: a for n, a in template.interior.items() if not read.isdisjoint(n.results)}
    return replace(template, carries=carries, sequences=sequences, interior=interior)


def _read(roots: Sequence[Value], leaves: set[Value]) -> set[Value]:
    """The values that ``roots`` are computed from, themselves included, down to ``leaves``."""
    found, stack = set[Value](), list(roots)
    while stack:
        value = stack.pop()
        if value not in found:
            found.add(value)
            stack += () if value in leaves else value.node.inputs
    return found


def _next_slice(before: Node, leaf: Node) -> Value | None:
    """The slice that follows ``leaf`` as that follows ``before``, or ``None`` if there is no more."""
    axis = moving_axis(before, leaf) if leaf.op is ops.slice else None
    if axis is None:
        return None
    start, stop = (
        [2 * late - early for early, late in zip(before.attrs[name], leaf.attrs[name], strict=True)]
        for name in ("starts", "stops")
    )
    extent = leaf.inputs[0].dims[axis]
    if not isinstance(extent, int) or not 0 <= start[axis] < extent:
        return None
    return Node.make(ops.slice, leaf.inputs, {**leaf.attrs, "starts": tuple(start), "stops": tuple(stop)}).results[0]


def _cut(template: Template, early: set[Node]) -> list[Value]:
    """What a step would carry if ``early`` ran in the step before."""
    late = (node for node in template.interior if node not in early)
    return list(dict.fromkeys(v for n in late for v in n.inputs if v in template.carries or v.node in early))


def _require_same_op(expected: Value, found: Value, which: str) -> None:
    """``which`` is the step that ``expected`` is in."""
    a, b = expected.node, found.node
    if a.op is not b.op or expected.index != found.index:
        raise Mismatch(b, f"it has '{b.op.name}' where {which} has '{a.op.name}'{_line(a, b)}")
    changed = [name for name, value in a.attrs.items() if b.attrs[name] != value]
    if changed:
        here, there = (f"{changed[0]}={node.attrs[changed[0]]}" for node in (b, a))
        raise Mismatch(b, f"'{b.op.name}' has {here} where {which} has {there}{_line(a, b)}")
    if a.types != b.types or len(a.inputs) != len(b.inputs):
        raise Mismatch(b, f"'{b.op.name}' makes {b.types[0]} where {which} makes {a.types[0]}{_line(a, b)}")
    if not b.inputs:
        raise Mismatch(b, f"it reads '{b.attrs.get('name', b.op.name)}' where {which} reads another one{_line(a, b)}")


def _line(expected: Node, found: Node) -> str:
    """Where the expected operation stands, if that is another line."""
    here, there = expected.location, found.location
    return "" if here is None or (there and (here.file, here.line) == (there.file, there.line)) else f" ({here})"


def _is_sequence(a: Node, b: Node) -> bool:
    if a.op is not b.op or a.types != b.types:
        return False
    if b.op is ops.constant:
        return True
    return b.op is ops.slice and a.inputs == b.inputs and moving_axis(a, b) is not None


def moving_axis(a: Node, b: Node) -> int | None:
    """The only axis along which two unit slices of one tensor differ."""
    starts = [i for i, (p, q) in enumerate(zip(a.attrs["starts"], b.attrs["starts"], strict=True)) if p != q]
    return starts[0] if len(starts) == 1 and b.types[0].dims[starts[0]] == 1 else None


# --- every step -----------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """How one step instantiates the template: actual carries read, the moving leaves, and what it computes."""

    carries: dict[Value, Value]
    sequences: dict[Value, Value]
    made: dict[Value, Value]


class Fit(NamedTuple):
    """How far a form of the step fits: steps in time order, up to the last, and what broke the one before them."""

    template: Template
    steps: list[Step]
    broken: Mismatch | None


def longest(templates: Sequence[Template], outputs: Sequence[Value]) -> Fit:
    """The first form of the step that fits every output, or else the one that fits most.

    Raises:
        Mismatch: none fits enough outputs to be a loop; this is what the first form met.
    """
    fits, refusals = list[Fit](), list[Mismatch]()
    for template in templates:
        try:
            fits.append(match_steps(template, outputs))
        except Mismatch as mismatch:
            refusals.append(mismatch)
        if fits and not fits[-1].broken:
            return fits[-1]
    if not fits:
        raise refusals[0]
    return max(fits, key=lambda fit: len(fit.steps))


def match_steps(template: Template, outputs: Sequence[Value]) -> Fit:
    """Match the template from the last step backwards; stops at the first step that differs (it is peeled).

    The last ``len(steps)`` outputs are those of the matched steps.
    """
    steps: list[Step] = []
    wanted = dict(template.carries)
    broken = None
    for number in range(len(outputs), 0, -1):
        try:
            step = match_step(template, outputs[number - 1], wanted)
        except Mismatch as mismatch:
            broken = mismatch.at_step(number, len(outputs))
            if len(steps) < MIN_STEPS - 1:
                raise broken from None
            break
        steps.append(step)
        wanted = step.carries
    steps.reverse()
    return Fit(template, steps, broken)


def match_step(template: Template, output: Value, left: Mapping[Value, Value]) -> Step:
    """``left``: for every carry of the template, the value that this step must leave for the step after it."""
    step = Step({}, {}, {})
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
                raise Mismatch(actual.node, f"'{actual.op.name}' is not the next slice of the sequence")
            _bind(step.sequences, pattern, actual)
        elif pattern in template.invariants:
            if pattern != actual:
                raise _changed(pattern, actual)
        elif pattern.op is ops.reshape and actual.op is not ops.reshape and pattern.node.inputs[0] in template.carries:
            (carried,) = pattern.node.inputs  # the first step may start from anything
            _bind(step.carries, carried, ops.reshape(actual, dims=carried.dims))
        else:
            step.made[pattern] = actual
            stack += zip(pattern.node.inputs, _operands(pattern, actual), strict=True)
    if set(step.carries) != set(template.carries):
        raise Mismatch(output.node, "it reads fewer carried values than the last step")
    return step


def _operands(pattern: Value, actual: Value) -> Sequence[Value]:
    """What ``actual`` is computed from, by the op of ``pattern``."""
    if pattern.op is ops.scan and actual.op is ops.scan and pattern.index == actual.index:
        aligned = align_scans(pattern.node, actual.node)
        if aligned is not None:
            return aligned
    _require_same_op(pattern, actual, "the last step")
    return actual.node.inputs


def _changed(shared: Value, found: Value) -> Mismatch:
    """An operand that the last two steps share is another value in this step."""
    here, there = scalar(found), scalar(shared)
    if here is not None and there is not None:
        return Mismatch(found.node, f"it has {here} where the last step has {there}")
    return Mismatch(
        found.node, f"'{found.op.name}' is an operand that the last two steps share, and here another value"
    )


def _bind(bindings: dict[Value, Value], pattern: Value, actual: Value) -> None:
    if bindings.setdefault(pattern, actual) != actual:
        raise Mismatch(actual.node, "one carried or moving value of the last step is two different values here")


def inside(node: Node) -> Location | None:
    """The location of nodes that help to compute what ``node`` does."""
    return node.location and node.location.interior()


def rebuild(roots: Sequence[Value], mapping: dict[Value, Value]) -> list[Value]:
    """Copy the nodes below ``roots``, replacing the values in ``mapping`` (which grows by the copies)."""
    stack = [v.node for v in roots]
    while stack:
        node = stack[-1]
        missing = [v.node for v in node.inputs if v not in mapping]
        if all(v in mapping for v in node.results) or not missing:
            stack.pop()
            if not all(v in mapping for v in node.results):
                with at(inside(node)):
                    copy = Node.make(node.op, tuple(mapping[v] for v in node.inputs), node.attrs)
                for old, new in zip(node.results, copy.results, strict=True):
                    mapping.setdefault(old, new)
        else:
            stack += missing
    return [mapping[v] for v in roots]
