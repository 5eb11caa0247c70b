"""Loops that are delta rules, as sums and as products with a matrix, and loops that nearly are."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.ir import Graph, Module, Node, interpret, parse_graph, print_graph
from coilc.passes import rewrite_module, tracing
from coilc.passes.classify_delta_rule import scan_is_delta_rule

LOOP = """
def main(
    q: f32[2, 5, 3, 4], k: f32[2, 5, 3, 4], v: f32[2, 5, 3, 6], g: f32[2, 5, 3, {gate}], beta: f32[2, 5, 3],
    start: f32[2, 3, 4, 6]
):
    def step(
        S: f32[2, 3, 4, 6], q: f32[2, 3, 4], k: f32[2, 3, 4], v: f32[2, 3, 6], g: f32[2, 3, {gate}], beta: f32[2, 3]
    ):
        d0: f32[2, 3, {gate}, 1] = reshape(g, dims=(2, 3, {gate}, 1))
        d1: f32[2, 3, {gate}, 1] = exp(d0)
        d2: f32[2, 3, 4, 6] = broadcast(d1, dims=(2, 3, 4, 6))
        kept: f32[2, 3, 4, 6] = mul(d2, S)
        k0: f32[2, 3, 1, 4] = reshape(k, dims=(2, 3, 1, 4))
        k1: f32[2, 3, 4, 1] = reshape(k, dims=(2, 3, 4, 1))
        held: f32[2, 3, 1, 6] = matmul(k0, {read})
        v0: f32[2, 3, 1, 6] = reshape(v, dims=(2, 3, 1, 6))
        b0: f32[2, 3, 1, 1] = reshape(beta, dims=(2, 3, 1, 1))
        b1: f32[2, 3, 1, 6] = broadcast(b0, dims=(2, 3, 1, 6))
        error: f32[2, 3, 1, 6] = sub(v0, held)
        new: f32[2, 3, 1, 6] = mul(b1, error)
        inflow: f32[2, 3, 4, 6] = matmul({key}, new)
        after: f32[2, 3, 4, 6] = add(kept, inflow)
        q0: f32[2, 3, 1, 4] = reshape(q, dims=(2, 3, 1, 4))
        o: f32[2, 3, 1, 6] = matmul(q0, after)
        return {{"S": after, "o": o}}
    S, o = scan(start, q, k, v, g, beta, body=step, carries=1, sequences=5, axis=1, reverse={reverse})
    return {{"o": o, "S": S}}
"""

# The state as [value, key], times identity minus outer product; one key for all heads; a rate per head; no decay.
HOUSEHOLDER = """
def main(q: f32[5, 4], k: f32[5, 4], v: f32[5, 3, 6], beta: f32[5, 3]):
    zero: f32[()] = constant(value=array(f32, 0.0))
    start: f32[3, 6, 4] = broadcast(zero, dims=(3, 6, 4))
    e: f32[4, 4] = constant(value=array(
        f32, [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, {corner}]]
    ))
    one: f32[3, 4, 4] = broadcast(e, dims=(3, 4, 4))
    def step(S: f32[3, 6, 4], q: f32[4], k: f32[4], v: f32[3, 6], beta: f32[3], one: f32[3, 4, 4]):
        row: f32[3, 4, 4] = broadcast(k, dims=(3, 4, 4))
        k0: f32[4, 1] = reshape(k, dims=(4, 1))
        column: f32[3, 4, 4] = broadcast(k0, dims=(3, 4, 4))
        kk: f32[3, 4, 4] = mul(column, row)
        b0: f32[3, 1, 1] = reshape(beta, dims=(3, 1, 1))
        b1: f32[3, 4, 4] = broadcast(b0, dims=(3, 4, 4))
        bkk: f32[3, 4, 4] = mul(b1, kk)
        away: f32[3, 4, 4] = sub(one, bkk)
        kept: f32[3, 6, 4] = matmul(S, away)
        v0: f32[3, 6, 1] = reshape(v, dims=(3, 6, 1))
        v1: f32[3, 6, 4] = broadcast(v0, dims=(3, 6, 4))
        k1: f32[3, 6, 4] = broadcast(k, dims=(3, 6, 4))
        b2: f32[3, 6, 4] = broadcast(b0, dims=(3, 6, 4))
        vk: f32[3, 6, 4] = mul(v1, k1)
        bvk: f32[3, 6, 4] = mul(b2, vk)
        after: f32[3, 6, 4] = add(kept, bvk)
        q1: f32[3, 6, 4] = broadcast(q, dims=(3, 6, 4))
        read: f32[3, 6, 4] = mul(after, q1)
        o: f32[3, 6] = sum(read, axes=(2,), keepdims=False)
        return {{"S": after, "o": o}}
    S, o = scan(start, q, k, v, beta, one, body=step, carries=1, sequences=4, axis=0, reverse=False)
    return {{"o": o, "S": S}}
"""


def loop(gate: int = 1, read: str = "kept", key: str = "k1", reverse: bool = False) -> str:
    return LOOP.format(gate=gate, read=read, key=key, reverse=reverse)


def classified(graph: Graph) -> Graph:
    return rewrite_module(Module({"main": graph}), scan_is_delta_rule).entries["main"]


def rule_of(before: Graph) -> Node:
    """The op that the loop became; it computes the same."""
    after = classified(before)
    assert "scan" not in {node.op.name for node in after.nodes}, print_graph(after)
    rng = np.random.default_rng(0)
    feed = {v.node.attrs["name"]: rng.uniform(-0.7, 0.7, v.dims).astype(np.float32) for v in before.inputs}
    expected, found = (interpret(Module({"main": g}), feed) for g in (before, after))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
    (node,) = (n for n in after.nodes if n.op.name.endswith("delta_rule"))
    return node


@pytest.mark.parametrize("gate", [1, 4], ids=["per head", "per key channel"])
@pytest.mark.parametrize("reverse", [False, True])
def test_loop_is_gated_delta_rule(gate: int, reverse: bool) -> None:
    node = rule_of(parse_graph(loop(gate, reverse=reverse)))
    assert node.op.name == "gated_delta_rule"
    assert node.inputs[3].dims == ((2, 5, 3) if gate == 1 else (2, 5, 3, 4))


def test_no_decay() -> None:
    text = loop(read="S").replace("add(kept, inflow)", "add(S, inflow)")
    assert rule_of(parse_graph(text)).op.name == "gated_delta_rule"


def test_product_with_a_householder_matrix_and_a_shared_key() -> None:
    node = rule_of(parse_graph(HOUSEHOLDER.format(corner=1.0)))
    assert node.op.name == "gated_delta_rule"
    assert [v.dims for v in node.inputs] == [(1, 5, 1, 4), (1, 5, 1, 4), (1, 5, 3, 6), (1, 5, 3), (1, 5, 3)]


def test_another_removal_key() -> None:
    """What is removed was read before the decay, or under the query: not the delta rule of the key that is written."""
    assert rule_of(parse_graph(loop(read="S"))).op.name == "generalized_delta_rule"
    text = (
        loop()
        .replace("matmul(k0, kept)", "matmul(q1, kept)")
        .replace("held:", "q1: f32[2, 3, 1, 4] = reshape(q, dims=(2, 3, 1, 4))\n        held:")
    )
    assert rule_of(parse_graph(text)).op.name == "generalized_delta_rule"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (loop().replace("sub(v0, held)", "mul(v0, held)").replace("mul(b1, error)", "tanh(error)"), "'tanh'"),
        (loop().replace("matmul(k1, new)", "mul(kept, inflow0)").replace(
            "inflow:", "inflow0: f32[2, 3, 4, 6] = matmul(k1, new)\n        inflow:"), "'mul' of the state"),
        (loop().replace("sub(v0, held)", "add(v0, b1)"), "contracts the state 0 times"),
        (loop().replace("matmul(q0, after)", "matmul(q0, S)"), "do not contract the updated state"),
        (loop().replace("exp(d0)", "tanh(d0)"), "not known to be positive"),
        (HOUSEHOLDER.format(corner=0.5), "'matmul' of the state"),
    ],
    ids=["not affine", "squared", "nothing removed", "read before", "decay of any sign", "no identity"],
)  # fmt: skip
def test_near_miss_says_why(text: str, reason: str) -> None:
    graph = parse_graph(text)
    with tracing() as trace:
        after = classified(graph)
    assert after == graph
    assert reason in trace.declined[0].reason
