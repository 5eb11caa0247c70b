"""Loops that are linear attention with decay, and loops that nearly are."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.ir import Graph, Module, interpret, parse_graph, print_graph
from coilc.passes import rewrite_module, tracing
from coilc.passes.classify_gated_linear_attention import scan_is_gated_linear_attention

LOOP = """
def main(q: f32[2, 5, 3, 4], k: f32[2, 5, 3, 4], v: f32[2, 5, 3, 6], g: f32[2, 5, 3, {gate}]):
    zero: f32[()] = constant(value=array(f32, 0.0))
    start: f32[2, 3, 4, 6] = broadcast(zero, dims=(2, 3, 4, 6))
    def step(S: f32[2, 3, 4, 6], q: f32[2, 3, 4], k: f32[2, 3, 4], v: f32[2, 3, 6], g: f32[2, 3, {gate}]):
        d0: f32[2, 3, {gate}, 1] = reshape(g, dims=(2, 3, {gate}, 1))
        d1: f32[2, 3, {gate}, 1] = {decay}(d0)
        d2: f32[2, 3, 4, 6] = broadcast(d1, dims=(2, 3, 4, 6))
        s0: f32[2, 3, 4, 6] = mul(d2, S)
        k0: f32[2, 3, 4, 1] = reshape(k, dims=(2, 3, 4, 1))
        v0: f32[2, 3, 1, 6] = reshape(v, dims=(2, 3, 1, 6))
        kv: f32[2, 3, 4, 6] = matmul(k0, v0)
        after: f32[2, 3, 4, 6] = add(s0, kv)
        q0: f32[2, 3, 1, 4] = reshape(q, dims=(2, 3, 1, 4))
        o0: f32[2, 3, 1, 6] = matmul(q0, after)
        o: f32[2, 18] = reshape(o0, dims=(2, 18))
        return {{"S": after, "o": o}}
    S, o = scan(start, q, k, v, g, body=step, carries=1, sequences=4, axis=1, reverse={reverse})
    return {{"o": o, "S": S}}
"""

# One key for every head (Mamba-2), a constant decay, the state as [value, key], no batch axis.
SHARED = """
def main(q: f32[5, 4], k: f32[5, 4], v: f32[5, 3, 6], start: f32[3, 6, 4]):
    decay: f32[3, 1, 1] = constant(value=array(f32, [[[0.9]], [[0.5]], [[0.7]]]))
    def step(S: f32[3, 6, 4], q: f32[4], k: f32[4], v: f32[3, 6], decay: f32[3, 1, 1]):
        d2: f32[3, 6, 4] = broadcast(decay, dims=(3, 6, 4))
        s0: f32[3, 6, 4] = mul(S, d2)
        k2: f32[3, 6, 4] = broadcast(k, dims=(3, 6, 4))
        v1: f32[3, 6, 1] = reshape(v, dims=(3, 6, 1))
        v2: f32[3, 6, 4] = broadcast(v1, dims=(3, 6, 4))
        kv: f32[3, 6, 4] = mul(v2, k2)
        after: f32[3, 6, 4] = add(kv, s0)
        q2: f32[3, 6, 4] = broadcast(q, dims=(3, 6, 4))
        read: f32[3, 6, 4] = mul(after, q2)
        o: f32[3, 6] = sum(read, axes=(2,), keepdims=False)
        return {"S": after, "o": o}
    S, o = scan(start, q, k, v, decay, body=step, carries=1, sequences=3, axis=0, reverse=False)
    return {"o": o, "S": S}
"""


# The state is read before it is updated: with a bonus for the current key and value, with nothing, with something else.
READ = """        u0: f32[3, 4, 1] = reshape(u, dims=(3, 4, 1))
        u1: f32[2, 3, 4, 6] = broadcast(u0, dims=(2, 3, 4, 6))
        u2: f32[2, 3, 4, 6] = mul(u1, kv)
        seen: f32[2, 3, 4, 6] = add(S, u2)
        o0: f32[2, 3, 1, 6] = matmul(q0, seen)"""
OTHER = """        s1: f32[2, 3, 4, 6] = add(S, d2)
        o0: f32[2, 3, 1, 6] = matmul(q0, s1)"""


def classified(graph: Graph) -> Graph:
    return rewrite_module(Module({"main": graph}), scan_is_gated_linear_attention).entries["main"]


def attention_of(before: Graph) -> Graph:
    after = classified(before)
    names = [node.op.name for node in after.nodes]
    assert names.count("gated_linear_attention") == 1, print_graph(after)
    assert "scan" not in names
    rng = np.random.default_rng(0)
    feed = {v.node.attrs["name"]: rng.uniform(-1, 1, v.dims).astype(np.float32) for v in before.inputs}
    expected, found = (interpret(Module({"main": g}), feed) for g in (before, after))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)
    return after


@pytest.mark.parametrize("gate", [1, 4], ids=["per head", "per key channel"])
@pytest.mark.parametrize("decay", ["exp", "sigmoid"])
@pytest.mark.parametrize("reverse", [False, True])
def test_loop_is_gated_linear_attention(gate: int, decay: str, reverse: bool) -> None:
    attention_of(parse_graph(LOOP.format(gate=gate, decay=decay, reverse=reverse)))


def test_shared_keys_constant_decay_and_initial_state() -> None:
    after = attention_of(parse_graph(SHARED))
    (node,) = (n for n in after.nodes if n.op.name == "gated_linear_attention")
    assert [v.dims for v in node.inputs[:4]] == [(1, 5, 1, 4), (1, 5, 1, 4), (1, 5, 3, 6), (1, 5, 3)]


def test_bonus_for_the_current_token() -> None:
    text = LOOP.format(gate=4, decay="exp", reverse=False)
    text = text.replace("g: f32[2, 5, 3, 4]):", "g: f32[2, 5, 3, 4], u: f32[3, 4]):")
    text = text.replace("g: f32[2, 3, 4]):", "g: f32[2, 3, 4], u: f32[3, 4]):").replace(
        "q, k, v, g, body", "q, k, v, g, u, body"
    )
    after = attention_of(parse_graph(text.replace("        o0: f32[2, 3, 1, 6] = matmul(q0, after)", READ)))
    (node,) = (n for n in after.nodes if n.op.name == "gated_linear_attention")
    assert node.attrs["optional"] == ("bonus",)


def test_state_is_read_before_the_update() -> None:
    attention_of(
        parse_graph(LOOP.format(gate=1, decay="exp", reverse=False).replace("matmul(q0, after)", "matmul(q0, S)"))
    )


def test_no_decay() -> None:
    attention_of(parse_graph(LOOP.format(gate=1, decay="exp", reverse=False).replace("add(s0, kv)", "add(S, kv)")))


@pytest.mark.parametrize(
    ("found", "instead", "reason"),
    [
        ("exp(d0)", "tanh(d0)", "not known to be positive"),
        ("        o0: f32[2, 3, 1, 6] = matmul(q0, after)", OTHER, "not its inflow times a constant"),
        ("mul(d2, S)", "mul(S, S)", "'mul' of the state"),
    ],
)
def test_near_miss_says_why(found: str, instead: str, reason: str) -> None:
    graph = parse_graph(LOOP.format(gate=1, decay="exp", reverse=False).replace(found, instead))
    with tracing() as trace:
        after = classified(graph)
    assert after == graph
    assert reason in trace.declined[0].reason
