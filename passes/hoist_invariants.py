"""Take out of a loop what does not need to be in it."""

from __future__ import annotations

from coilc.ir import Graph, Module, Node, Value, dims, ops
from coilc.ir.opdef import MOVEMENT

from .loop_parts import Loop, from_front, to_front
from .replace_values import replace_values
from .rewrite import on, rewrite_module
from .trace import Declined, no
from .vectorise_time import NotParallel, Parallel, Timed

HEAVY = ("matmul", "linear", "conv", "packed_matmul")  # far cheaper over all steps at once than step by step


def hoist_invariants(module: Module) -> Module:
    """Compute before the loop what needs no carry, after it what only outputs need, and drop what nothing needs.

    Before::

        def step(h, x, w, u):
            after = tanh(add(matmul(x, w), h))
            return {"h": after, "y": matmul(after, u)}
        last, y = scan(h0, xs, w, u, body=step)

    After::

        x = matmul(xs, w)
        def step(h, x):
            after = tanh(add(x, h))
            return {"h": after, "y": after}
        last, states = scan(h0, x, body=step)
        y = matmul(states, u)

    Needs: nothing. Guarantees: equal values; what would grow by leaving the loop (a broadcast, an outer product) stays.
    """
    return drop_unused(rewrite_module(module, tidy_loop, loop_without_carry, leave_loop_early, leave_loop_late))


# --- before the loop -------------------------------------------------------------------------------------------------


@on("scan")
def leave_loop_early(node: Node) -> tuple[Value, ...] | None:
    """Values that need no carry are computed for all steps before the loop, and outputs among them leave it"""
    loop = Loop(node)
    time = Parallel(loop)
    outside = _computed_outside(loop, time)
    early = {i for i, y in enumerate(loop.body.results) if i >= loop.carries and y.node in outside}
    crossing = [v for v in _frontier(loop, outside, early) if _computes(v)]
    if not crossing and not early:
        return None
    names = zip(crossing, loop.fresh_names("e"), strict=False)
    moved = {v: ops.input_(name=name, type=v.type) for v, name in names}
    sequences, consts = dict(loop.sequences), dict(loop.consts)
    for value, inner in moved.items():
        whole = time.known[value]
        if whole.varies:
            sequences[inner] = from_front(whole.value, loop.axis)
        else:
            consts[inner] = whole.value
    outputs = replace_values(loop.body, moved).outputs
    results = iter(loop.rebuilt((o for i, o in enumerate(outputs) if i not in early), None, sequences, consts))
    lifted = {i: from_front(time.full(time.known[loop.body.results[i]]), loop.axis) for i in early}
    return tuple(lifted[i] if i in early else next(results) for i in range(len(outputs)))


def _computed_outside(loop: Loop, time: Parallel) -> set[Node]:
    """Nodes of the body that need no carry and do not grow by being computed for all steps."""
    outside: set[Node] = set()
    for node in loop.body.nodes:
        if node.op is ops.input_ or any(v not in time.known for v in node.inputs) or _grows(node, time):
            continue
        try:
            for value in node.results:
                time.value(value)
        except NotParallel:
            continue
        outside.add(node)
    return outside


def _grows(node: Node, time: Parallel) -> bool:
    """Whether the result takes more room over time than each operand, without being worth it."""
    if node.op.name in HEAVY or not node.inputs:
        return False
    moving = [v for v in node.inputs if time.known[v].varies] or node.inputs
    result = dims.size(node.types[0].dims)
    return all(dims.bounds(dims.size(v.dims) - result, {})[0] < 0 for v in moving)


def _frontier(loop: Loop, outside: set[Node], early: set[int]) -> list[Value]:
    """Values computed outside that the loop still reads."""
    results = [v for i, v in enumerate(loop.body.results) if i not in early]
    inside = (
        node
        for node in Graph("rest", (), tuple((str(i), v) for i, v in enumerate(results))).nodes
        if node not in outside
    )
    readers = [v for node in inside for v in node.inputs] + results
    return [v for v in dict.fromkeys(readers) if v.node in outside]


def _computes(value: Value) -> bool:
    """Whether there is work in ``value``, not only movement of inputs of the loop."""
    nodes = Graph("value", (), (("v", value),)).nodes
    return any(MOVEMENT not in n.op.traits and n.op not in (ops.input_, ops.constant) for n in nodes)


# --- after the loop --------------------------------------------------------------------------------------------------


@on("scan")
def leave_loop_late(node: Node) -> tuple[Value, ...] | None:
    """Products with weights that only outputs need, and what follows them, run once over all steps"""
    loop = Loop(node)
    after = _after(loop)
    if not after:
        return None
    late = {i for i, y in enumerate(loop.body.results) if y.node in after}
    time = Parallel(loop)
    stay = [output for i, output in enumerate(loop.body.outputs) if i not in late]
    cut = _state_read_by(loop, after)
    results = loop.rebuilt((*stay, *((f"s{i}", v) for i, v in enumerate(cut, len(stay)))))
    for value, states in zip(cut, results[len(stay) :], strict=True):
        time.known[value] = Timed(to_front(states, loop.axis), True)
    try:
        lifted = {i: from_front(time.full(time.value(loop.body.results[i])), loop.axis) for i in late}
    except NotParallel:
        return None
    kept = iter(results)
    return tuple(lifted[i] if i in late else next(kept) for i in range(len(loop.body.results)))


def _after(loop: Loop) -> set[Node]:
    """Products of a moving value with a fixed one that no carry needs, and everything that depends on them."""
    state = set(Graph("state", (), loop.body.outputs[: loop.carries]).nodes)
    fixed = {v.node for v in loop.consts}
    after: set[Node] = set()
    for node in loop.body.nodes:
        if node.inputs and all(v.node in fixed for v in node.inputs):
            fixed.add(node)
        projects = node.op.name in HEAVY and node not in state and all(v.node in fixed for v in node.inputs[1:])
        if (projects and node not in fixed) or any(v.node in after for v in node.inputs):
            after.add(node)
    return after


def _state_read_by(loop: Loop, after: set[Node]) -> list[Value]:
    """Values that depend on a carry and that nodes of ``after`` read from the others."""
    dependent = {v.node for v in loop.body_carries}
    for node in loop.body.nodes:
        if any(v.node in dependent for v in node.inputs):
            dependent.add(node)
    read = dict.fromkeys(v for node in loop.body.nodes if node in after for v in node.inputs)
    return [v for v in read if v.node in dependent and v.node not in after]


# --- what is not used ------------------------------------------------------------------------------------------------


@on("scan")
def loop_without_carry(node: Node) -> tuple[Value, ...] | Declined | None:
    """Steps that do not depend on one another all run at once"""
    loop = Loop(node)
    if loop.carries:
        return None
    time = Parallel(loop)
    try:
        return tuple(from_front(time.full(time.value(y)), loop.axis) for y in loop.outputs)
    except NotParallel as broken:
        return no(broken.reason)


@on("scan")
def tidy_loop(node: Node) -> tuple[Value, ...] | None:
    """A carry that never changes is a constant, and inputs that the body does not read go"""
    loop = Loop(node)
    still = {i for i, (a, b) in enumerate(zip(loop.body_carries, loop.next_carries, strict=True)) if a == b}
    given = dict(zip(loop.body.inputs, node.inputs, strict=True))
    carries = {v: given[v] for i, v in enumerate(loop.body_carries) if i not in still}
    consts = {**loop.consts, **{loop.body_carries[i]: loop.inits[i] for i in still}}
    results = loop.rebuilt((o for i, o in enumerate(loop.body.outputs) if i not in still), carries, None, consts)
    if not still and len(results[0].node.inputs if results else ()) == len(node.inputs):
        return None
    kept = iter(results)
    return tuple(loop.inits[i] if i in still else next(kept) for i in range(len(node.types)))


def drop_unused(module: Module) -> Module:
    """Loops compute no output and carry no value that nothing reads."""
    return module.map(_drop_unused)


def _drop_unused(graph: Graph) -> Graph:
    replacements: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op is ops.scan:
            replacements |= _smaller(Loop(node), {v.index for v in node.results if v in graph.uses})
    return replace_values(graph, replacements) if replacements else graph


def _smaller(loop: Loop, used: set[int]) -> dict[Value, Value]:
    """What the used results become when the loop keeps only what they need."""
    live = set(used)
    while True:
        needed = set(Graph("live", (), tuple(o for i, o in enumerate(loop.body.outputs) if i in live)).nodes)
        more = live | {i for i, v in enumerate(loop.body_carries) if v.node in needed}
        if more == live:
            break
        live = more
    if len(live) == len(loop.body.outputs):
        return {}
    kept = sorted(live)
    carries = {v: x for i, (v, x) in enumerate(zip(loop.body_carries, loop.inits, strict=True)) if i in live}
    results = loop.rebuilt((loop.body.outputs[i] for i in kept), carries)
    return {Value(loop.node, i): v for i, v in zip(kept, results, strict=True) if i in used}
