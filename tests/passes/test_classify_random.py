"""Random loop bodies at random lengths: whatever the classification makes of them, the numbers stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from coilc.ir import Graph, Module, TensorType, Value, interpret, ops, verify
from coilc.ir.types import f32
from coilc.passes.classify_scans import classify_scans

B, D, N = 2, 3, 2
STATE, PLAIN = (B, D, N), (B, D)

Step = Callable[[st.DataObject, Value, Value, Value], Value]


def vector(name: str, dims: tuple[int, ...]) -> Value:
    return ops.input_(name=name, type=TensorType(f32, dims))


def spread(x: Value) -> Value:
    """[B, D] or [B, N] over the dims of the state."""
    return ops.reshape(x, dims=(B, D, 1)) if x.dims == PLAIN else ops.reshape(x, dims=(B, 1, N))


def combine(data: st.DataObject, values: list[Value], count: int) -> Value:
    """Grow an expression over ``values`` (all with the state's dims) by ``count`` random ops."""
    pool = list(values)
    for _ in range(count):
        op = data.draw(st.sampled_from([ops.add, ops.mul, ops.sub, ops.sigmoid, ops.neg, ops.maximum, ops.tanh]))
        arity = 1 if op in (ops.sigmoid, ops.neg, ops.tanh) else 2
        pool.append(op(*(data.draw(st.sampled_from(pool)) for _ in range(arity))))
    return pool[-1]


def update(data: st.DataObject, state: Value, moving: list[Value]) -> Value:
    """The next value of a carry, most of the time affine in it."""
    kind = data.draw(st.sampled_from(["decay", "gate", "exp", "any"]))
    shift = combine(data, moving, data.draw(st.integers(0, 3)))
    if kind == "any":
        return ops.tanh(combine(data, [state, *moving], 3))
    factor = combine(data, moving, data.draw(st.integers(0, 2)))
    scale = {"decay": ops.sigmoid(factor), "gate": ops.tanh(factor), "exp": ops.exp(ops.neg(ops.abs(factor)))}[kind]
    return ops.add(ops.mul(scale, state), shift)


def read(data: st.DataObject, states: list[Value], moving: list[Value]) -> Value:
    """An output: a contraction of a state with something, or something elementwise."""
    state = data.draw(st.sampled_from(states))
    if data.draw(st.booleans()):
        return combine(data, [state, *moving], 2)
    summed: Value = ops.sum(ops.mul(state, data.draw(st.sampled_from(moving))), axes=(data.draw(st.integers(1, 2)),))
    return summed


@given(st.data())
@settings(max_examples=60)
def test_random_loop_keeps_its_numbers(data: st.DataObject) -> None:
    carries, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    states = [vector(f"h{i}", STATE) for i in range(carries)]
    inputs = [vector("x", PLAIN), vector("k", (B, N)), vector("z", STATE)]
    fixed = vector("w", (D, N))
    moving = [ops.broadcast(spread(x) if x.dims != STATE else x, dims=STATE) for x in inputs]
    moving.append(ops.broadcast(fixed, dims=STATE))
    after: list[Value] = []
    for state in states:
        others = data.draw(st.sampled_from([[], after, states]))
        after.append(update(data, state, [*moving, *map(ops.tanh, others)]))
    outputs = [
        read(data, data.draw(st.sampled_from([after, states])), moving) for _ in range(data.draw(st.integers(0, 2)))
    ]
    named = [(f"o{i}", v) for i, v in enumerate([*after, *outputs])]
    body = Graph("step", (*states, *inputs, fixed), tuple(named))
    outer = [vector(f"init{i}", STATE) for i in range(carries)]
    outer += [vector(f"seq_{x.node.attrs['name']}", (length, *x.dims)) for x in inputs] + [fixed]
    node = ops.scan.node(
        *outer, body=body, carries=carries, sequences=len(inputs), axis=0, reverse=data.draw(st.booleans())
    )
    used = data.draw(st.sets(st.sampled_from(range(len(named))), min_size=1))
    graph = Graph("main", tuple(outer), tuple((f"y{i}", node.results[i]) for i in sorted(used)))
    before = Module({"main": graph})
    result = classify_scans(before)
    verify.any_graph(result)
    rng = np.random.default_rng(0)
    feed = {v.node.attrs["name"]: rng.uniform(-1, 1, v.dims).astype(np.float32) for v in graph.inputs}
    expected, found = interpret(before, feed), interpret(result, feed)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(array).max())))
