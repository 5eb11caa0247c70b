"""Re-rolling: an unrolled loop becomes one scan, at any length, and computes the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from coilc.ir import Graph, Location, Module, Node, TensorType, Value, at, interpret, literal, ops, print_graph
from coilc.ir.types import f32
from coilc.passes.reroll_scans import reroll_ends, reroll_scans
from coilc.passes.simplify import simplify
from coilc.passes.trace import tracing
from coilc.passes.unify_lengths import Length, unify_lengths

B, D = 2, 3
Cell = Callable[[Value, tuple[Value, ...]], tuple[Value, ...]]


def parameter(name: str, *dims: int) -> Value:
    return ops.input_(name=name, type=TensorType(f32, dims))


def step_slice(x: Value, t: int, length: int) -> Value:
    part = ops.slice(x, starts=(0, t, 0), stops=(B, t + 1, D), steps=(1, 1, 1))
    return ops.reshape(part, dims=(B, D))


def unroll(cell: Cell, length: int, carries: int, *, reverse: bool = False, skip_first: bool = False) -> Graph:
    """``cell(x_t, (h, ...)) -> (h, ...)`` over ``x: f32[B, length, D]``; the first carry is also the output."""
    x = parameter("x", B, length, D)
    state = tuple(literal(np.full((B, D), 0.5 * i, np.float32)) for i in range(carries))
    outputs = []
    for t in reversed(range(length)) if reverse else range(length):
        part = step_slice(x, t, length)
        state = (ops.tanh(part), *state[1:]) if skip_first and not outputs else cell(part, state)
        outputs.append(ops.reshape(state[0], dims=(B, 1, D)))
    finals = tuple((f"state{i}", v) for i, v in enumerate(state))
    return Graph("main", (x,), (("y", ops.concat(*outputs, axis=1)), *finals))


def ema(x: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
    return (ops.add(ops.mul(state[0], 0.9), x),)


def lstm(x: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
    gate = ops.sigmoid(ops.add(x, state[0]))
    cell = ops.add(ops.mul(gate, state[1]), ops.mul(gate, ops.tanh(x)))
    return ops.mul(gate, ops.tanh(cell)), cell


def integrate_and_fire(x: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
    potential = ops.add(ops.mul(state[1], 0.5), x)
    spike = ops.cast(ops.ge(potential, 1.0), dtype=f32)
    return spike, ops.mul(potential, ops.sub(1.0, spike))


CELLS = {"ema": (ema, 1), "lstm": (lstm, 2), "lif": (integrate_and_fire, 2)}


def same_numbers(before: Graph, after: Graph, length: int) -> None:
    feed = {"x": np.random.default_rng(length).standard_normal((B, length, D)).astype(np.float32)}
    expected, found = (interpret(Module({"main": g}), feed) for g in (before, after))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)


def count(graph: Graph, op: str) -> int:
    return sum(node.op.name == op for node in graph.nodes)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("length", [3, 4, 9])
@pytest.mark.parametrize("reverse", [False, True])
def test_loop_becomes_one_scan(name: str, length: int, reverse: bool) -> None:
    cell, carries = CELLS[name]
    before = unroll(cell, length, carries, reverse=reverse)
    after = reroll_scans(before)
    assert count(after, "scan") == 1
    assert len(after.nodes) < 16, print_graph(after)
    same_numbers(before, after, length)


def test_first_step_that_differs_is_peeled() -> None:
    before = unroll(lstm, 6, 2, skip_first=True)
    after = reroll_scans(before)
    (scan,) = (n for n in after.nodes if n.op is ops.scan)
    assert scan.inputs[2].dims[0] == 5
    same_numbers(before, after, 6)


def test_stacked_cells_share_one_scan() -> None:
    def two_layers(x: Value, state: tuple[Value, ...]) -> tuple[Value, ...]:
        (inner,) = ema(x, state[1:])
        return (*ema(inner, state[:1]), inner)

    before = unroll(two_layers, 7, 2)
    after = reroll_scans(before)
    assert count(after, "scan") == 1
    same_numbers(before, after, 7)


def test_two_stacked_outputs_of_one_loop() -> None:
    single = unroll(lstm, 6, 2)
    cells = [node for node in single.nodes if node.op is ops.add and node.inputs[0].op is ops.mul]
    cells = [ops.reshape(Value(node), dims=(B, 1, D)) for node in cells]
    before = Graph("main", single.inputs, (*single.outputs, ("cells", ops.concat(*cells, axis=1))))
    after = reroll_scans(before)
    assert count(after, "concat") == 0
    same_numbers(before, after, 6)


def test_loop_within_a_loop() -> None:
    x, state, outputs = parameter("x", B, 4, D), literal(np.zeros((B, 1), np.float32)), []
    for t in range(4):
        part, inner = step_slice(x, t, 4), []
        for i in range(D):
            state = ops.tanh(ops.add(state, ops.slice(part, starts=(0, i), stops=(B, i + 1), steps=(1, 1))))
            inner.append(state)
        row = ops.concat(*inner, axis=1)
        outputs.append(ops.reshape(row, dims=(B, 1, D)))
    before = Graph("main", (x,), (("y", ops.concat(*outputs, axis=1)),))
    after = reroll_scans(before)
    (scan,) = (node for node in after.nodes if node.op is ops.scan)
    assert count(scan.attrs["body"], "scan") == 1
    same_numbers(before, after, 4)


def grid(height: int, width: int) -> Graph:
    """Two states per cell of ``x: f32[height, width, D]``, which read the cell before and the cell above."""
    x, zero, rows = parameter("x", height, width, D), literal(np.zeros(D, np.float32)), []
    above = [(zero, zero)] * width
    for i in range(height):
        left, row, outputs = (zero, zero), [], []
        for j in range(width):
            part = ops.slice(x, starts=(i, j, 0), stops=(i + 1, j + 1, D), steps=(1, 1, 1))
            cell = ops.add(ops.mul(left[0], 0.5), ops.tanh(ops.add(left[1], ops.reshape(part, dims=(D,)))))
            left = (cell, ops.sub(ops.mul(above[j][1], 0.7), ops.mul(above[j][0], cell)))
            outputs.append(ops.reshape(ops.add(*left), dims=(1, D)))
            row.append(left)
        above = row
        rows.append(ops.reshape(ops.concat(*outputs, axis=0) if width > 1 else outputs[0], dims=(1, width, D)))
    return Graph("main", (x,), (("y", ops.concat(*rows, axis=0) if height > 1 else rows[0]),))


@pytest.mark.parametrize("height", [1, 2, 3, 6])
@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_loop_over_a_grid(height: int, width: int) -> None:
    before = grid(height, width)
    after = reroll_scans(before)
    scans = [node for node in after.nodes if node.op is ops.scan]
    if width >= 3 and height >= 3:  # the first row, which reads zeros, is like the others
        (rows,) = scans
        assert count(rows.attrs["body"], "scan") == 1
        assert rows.inputs[rows.attrs["carries"]].dims[0] == height
    values = np.random.default_rng(0).standard_normal((height, width, D)).astype(np.float32)
    found, expected = (interpret(Module({"main": graph}), {"x": values}) for graph in (after, before))
    np.testing.assert_allclose(found["y"], expected["y"], rtol=1e-6)


@pytest.mark.parametrize("name", ["lstm", "lif"])
@pytest.mark.parametrize("length", [4, 9])
def test_loop_of_which_only_the_end_is_used(name: str, length: int) -> None:
    cell, carries = CELLS[name]
    whole = unroll(cell, length, carries)
    before = Graph("main", whole.inputs, whole.outputs[1:2])
    after = reroll_ends(before)
    assert count(after, "scan") == 1
    assert len(after.nodes) < 24
    same_numbers(before, after, length)


@pytest.mark.parametrize(("terms", "scans"), [(3, 0), (4, 0), (9, 1)])
def test_a_sum_over_a_few_routes_is_not_a_loop(terms: int, scans: int) -> None:
    x = parameter("x", B, terms, D)
    total: Value = ops.exp(step_slice(x, 0, terms))
    for t in range(1, terms):
        total = ops.add(total, ops.exp(step_slice(x, t, terms)))
    before = Graph("main", (x,), (("y", total),))
    after = reroll_ends(before)
    assert count(after, "scan") == scans
    same_numbers(before, after, terms)


@pytest.mark.parametrize("routes", [3, 7, 8, 12])
def test_a_sum_of_any_number_of_recurrences_leaves_them_side_by_side(routes: int) -> None:
    x, a = parameter("x", routes, 5, D), parameter("a", 5, D)
    first = ops.zeros(TensorType(f32, (D,)))
    total: Value | None = None
    for r in range(routes):
        y, _ = ops.linear_scan(
            a, ops.reshape(ops.slice_axis(x, 0, r, r + 1), dims=(5, D)), first, axis=0, reverse=False
        )
        total = y if total is None else ops.add(total, y)
    before = Graph("main", (x, a), (("y", total),))
    assert reroll_ends(before) == before


def test_no_end_is_found_where_steps_are_used_elsewhere() -> None:
    whole = unroll(lstm, 5, 2)
    assert reroll_ends(whole) == whole


def test_outputs_written_into_a_tensor_step_by_step() -> None:
    x, state = parameter("x", B, 5, D), literal(np.zeros((B, D), np.float32))
    out = ops.zeros(TensorType(f32, (B, 5, D)))
    for t in range(5):
        state = ops.tanh(ops.add(state, step_slice(x, t, 5)))
        parts = (ops.slice_axis(out, 1, 0, t), ops.reshape(state, dims=(B, 1, D)), ops.slice_axis(out, 1, t + 1, 5))
        out = ops.concat(*parts, axis=1)
    before = Graph("main", (x,), (("y", out),))
    after = reroll_scans(simplify(Module({"main": before})).entries["main"])
    assert count(after, "scan") == 1
    assert len(after.nodes) < 16, print_graph(after)
    same_numbers(before, after, 5)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("skip_first", [False, True])
def test_outputs_may_be_stacked_against_the_order_of_the_steps(name: str, skip_first: bool) -> None:
    cell, carries = CELLS[name]
    before = unroll(cell, 6, carries, reverse=True, skip_first=skip_first)
    (_, stacked), *finals = before.outputs
    before = replace(before, outputs=(("y", ops.concat(*stacked.node.inputs[::-1], axis=1)), *finals))
    after = reroll_scans(before)
    assert count(after, "scan") == 1
    same_numbers(before, after, 6)


@pytest.fixture(autouse=True)
def own_locations() -> None:
    """Equal nodes are one object, and would bring the lines of the test that made them first."""
    Node.forget_all()


def refusals(graph: Graph) -> list[str]:
    with tracing() as trace:
        reroll_scans(graph)
    return [event.reason for event in trace.declined]


def with_an_odd_step(odd: int, length: int, change: Callable[[Value], Value]) -> Graph:
    x = parameter("x", B, length, D)
    state, outputs = literal(np.zeros((B, D), np.float32)), []
    for t in range(1, length + 1):
        after = ops.tanh(ops.add(state, step_slice(x, t - 1, length)))
        with at(Location("model.py", t)):
            state = change(after) if t == odd else ops.mul(after, 0.5)
        outputs.append(ops.reshape(state, dims=(B, 1, D)))
    return Graph("main", (x,), (("y", ops.concat(*outputs, axis=1)),))


@pytest.mark.parametrize("odd", [4, 5, 6])
def test_an_odd_step_near_the_end_is_named(odd: int) -> None:
    graph = with_an_odd_step(odd, 6, lambda h: ops.add(h, 0.5))
    (reason,) = refusals(graph)
    there = 6 if odd == 4 else odd - 1  # which step it is compared with
    which = "the last step" if odd == 4 else "the step before"
    assert reason == f"step {odd} of 6 breaks the loop: it has 'add' where {which} has 'mul' (model.py:{there})" + (
        "; only the steps after it become a scan" if odd == 4 else ""
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h: ops.minimum(h, 0.5), "it has 'minimum' where the last step has 'mul'"),
        (lambda h: ops.mul(ops.exp(h), 0.5), "it has 'exp' where the last step has 'tanh'"),
        (lambda h: ops.mul(h, 0.25), "it has 0.25 where the last step has 0.5"),
    ],
)
def test_what_an_odd_step_does_is_named(change: Callable[[Value], Value], reason: str) -> None:
    graph = with_an_odd_step(3, 9, change)
    assert any(found.startswith("step 3 of 9 breaks the loop") and reason in found for found in refusals(graph))


def test_independent_slices_are_not_a_loop() -> None:
    x = parameter("x", B, 5, D)
    parts = [ops.reshape(ops.exp(step_slice(x, t, 5)), dims=(B, 1, D)) for t in range(5)]
    graph = Graph("main", (x,), (("y", ops.concat(*parts, axis=1)),))
    assert reroll_scans(graph) == graph
    assert refusals(graph) == ["the steps do not depend on one another"]


def repeated(step: Callable[[Value], Value], length: int) -> Graph:
    """``step`` of ``x: f32[B, D]`` again and again, all results stacked."""
    x = parameter("x", B, D)
    states = [x]
    for _ in range(length):
        states.append(step(states[-1]))
    stacked = ops.concat(*(ops.reshape(h, dims=(B, 1, D)) for h in states[1:]), axis=1)
    return Graph("main", (x,), (("y", stacked),))


def test_a_loop_that_reads_nothing_over_time() -> None:
    before = repeated(lambda h: ops.tanh(ops.mul(h, 1.5)), 7)
    after = reroll_scans(before)
    assert (count(after, "scan"), count(after, "tanh")) == (1, 0)
    feed = {"x": np.random.default_rng(0).standard_normal((B, D)).astype(np.float32)}
    expected, found = (interpret(Module({"main": g}), feed)["y"] for g in (before, after))
    np.testing.assert_array_equal(found, expected)


def test_moving_the_same_numbers_is_not_a_loop() -> None:
    graph = repeated(lambda h: ops.flip(h, axes=(1,)), 7)
    assert reroll_scans(graph) == graph
    assert refusals(graph) == ["the steps compute nothing"]


@pytest.mark.parametrize("name", CELLS)
def test_two_lengths_unify(name: str) -> None:
    cell, carries = CELLS[name]
    first, second = (reroll_scans(unroll(cell, length, carries)) for length in (7, 11))
    graph = unify_lengths(first, second, Length("L", (1, None), 7, 11))
    assert graph.substitute({"L": 7}) == first
    for length in (1, 2, 12):
        same_numbers(unroll(cell, length, carries), graph, length)


@pytest.mark.slow
def test_linear_time() -> None:
    """200,000 nodes; the limit is generous because machines differ, quadratic behaviour would take hours."""
    assert count(reroll_scans(unroll(lstm, 20_000, 2)), "scan") == 1
