"""Loops that are RWKV-4's weighted average, with and without a running maximum, and loops that nearly are."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.ir import Graph, Module, interpret, parse_graph, print_graph
from coilc.passes import rewrite_module, tracing
from coilc.passes.classify_wkv import scan_is_plain_wkv, scan_is_wkv

# Carries in another order than the op's: denominator, maximum, numerator.
LOOP = """
def main(k: f32[2, 5, 3], v: f32[2, 5, 3], w: f32[3], u: f32[3], b0: f32[2, 3], m0: f32[2, 3], a0: f32[2, 3]):
    def step(b: f32[2, 3], m: f32[2, 3], a: f32[2, 3], k: f32[2, 3], v: f32[2, 3], w: f32[3], u: f32[3]):
        w0: f32[2, 3] = broadcast(w, dims=(2, 3))
        u0: f32[2, 3] = broadcast(u, dims=(2, 3))
        own: f32[2, 3] = add(u0, k)
        p: f32[2, 3] = maximum(own, m)
        d0: f32[2, 3] = sub(m, p)
        d1: f32[2, 3] = sub(own, p)
        e0: f32[2, 3] = exp(d0)
        e1: f32[2, 3] = exp(d1)
        n0: f32[2, 3] = mul(e0, a)
        n1: f32[2, 3] = mul(e1, v)
        above: f32[2, 3] = add(n0, n1)
        n2: f32[2, 3] = mul(e0, b)
        below: f32[2, 3] = add(n2, e1)
        y: f32[2, 3] = div(above, below)
        faded: f32[2, 3] = add(m, w0)
        top: f32[2, 3] = maximum(faded, k)
        d2: f32[2, 3] = sub(faded, top)
        d3: f32[2, 3] = sub(k, top)
        e2: f32[2, 3] = exp(d2)
        e3: f32[2, 3] = exp(d3)
        s0: f32[2, 3] = mul(a, e2)
        s1: f32[2, 3] = mul(e3, v)
        next_a: f32[2, 3] = add(s1, s0)
        s2: f32[2, 3] = mul(b, e2)
        next_b: f32[2, 3] = add(s2, e3)
        z: f32[2, 3] = tanh(y)
        return {{"b": next_b, "m": top, "a": next_a, "z": z}}
    b, m, a, z = scan(b0, m0, a0, k, v, w, u, body=step, carries=3, sequences=2, axis=1, reverse={reverse})
    return {{"z": z, "a": a, "b": b, "m": m}}
"""
FRESH = """
    zero: f32[()] = constant(value=array(f32, 0.0))
    low: f32[()] = constant(value=array(f32, -1e+38))
    b0: f32[2, 3] = broadcast(zero, dims=(2, 3))
    a0: f32[2, 3] = broadcast(zero, dims=(2, 3))
    m0: f32[2, 3] = broadcast(low, dims=(2, 3))
    def step("""


def loop(reverse: bool = False) -> str:
    return LOOP.format(reverse=reverse)


def classified(graph: Graph) -> Graph:
    return rewrite_module(Module({"main": graph}), scan_is_wkv, scan_is_plain_wkv).entries["main"]


def check(text: str, *optional: str) -> None:
    before = parse_graph(text)
    after = classified(before)
    (node,) = (n for n in after.nodes if n.op.name in ("wkv", "scan"))
    assert node.op.name == "wkv", print_graph(after)
    assert node.attrs["optional"] == optional
    rng = np.random.default_rng(0)
    feed = {v.node.attrs["name"]: rng.uniform(0.1, 2, v.dims).astype(np.float32) for v in before.inputs}
    expected, found = (interpret(Module({"main": g}), feed) for g in (before, after))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_loop_is_wkv(reverse: bool) -> None:
    check(loop(reverse), "num", "den", "max")


def test_states_at_the_start_of_a_sequence_are_left_out() -> None:
    check(loop().replace(", b0: f32[2, 3], m0: f32[2, 3], a0: f32[2, 3]", "").replace("\n    def step(", FRESH))


@pytest.mark.parametrize(
    ("found", "instead", "reason"),
    [
        ("maximum(faded, k)", "add(faded, k)", "no carry is a running maximum"),
        ("mul(a, e2)", "mul(a, e3)", "a sum is not the last one"),
        ("add(s2, e3)", "add(s2, s1)", "the weights alone"),
        ("sub(own, p)", "sub(k, p)", "no output is the quotient"),
        ("maximum(own, m)", "maximum(k, m)", "no output weighs the current token"),
        ("broadcast(w, dims=(2, 3))", "add(v, k)", "not one number per channel"),
    ],
)
def test_near_miss_says_why(found: str, instead: str, reason: str) -> None:
    graph = parse_graph(loop().replace(found, instead))
    with tracing() as trace:
        after = classified(graph)
    assert after == graph
    assert reason in trace.declined[0].reason


# The same without a maximum; the denominator is the first carry.
PLAIN = """
def main(k: f32[2, 5, 3], v: f32[2, 5, 3], w: f32[3], u: f32[3], b0: f32[2, 3], a0: f32[2, 3]):
    d: f32[3] = exp(w)
    def step(b: f32[2, 3], a: f32[2, 3], k: f32[2, 3], v: f32[2, 3], d: f32[3], u: f32[3]):
        d0: f32[2, 3] = broadcast(d, dims=(2, 3))
        u0: f32[2, 3] = broadcast(u, dims=(2, 3))
        now: f32[2, 3] = exp(k)
        sum: f32[2, 3] = add(u0, k)
        own: f32[2, 3] = exp(sum)
        share: f32[2, 3] = mul(v, own)
        above: f32[2, 3] = add(share, a)
        below: f32[2, 3] = add(b, own)
        y: f32[2, 3] = div(above, below)
        s0: f32[2, 3] = mul(a, d0)
        s1: f32[2, 3] = mul(now, v)
        next_a: f32[2, 3] = add(s1, s0)
        s2: f32[2, 3] = mul(d0, b)
        next_b: f32[2, 3] = add(s2, now)
        z: f32[2, 3] = tanh(y)
        return {"b": next_b, "a": next_a, "z": z}
    b, a, z = scan(b0, a0, k, v, d, u, body=step, carries=2, sequences=2, axis=1, reverse=False)
    return {"z": z, "a": a, "b": b}
"""


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        ("", ""),
        ("reverse=False", "reverse=True"),
        ("add(u0, k)\n        own: f32[2, 3] = exp(sum)", "exp(u0)\n        own: f32[2, 3] = mul(sum, now)"),
        ("exp(w)", "constant(value=array(f32, [0.5, 0.9, 1.0]))"),
        ("exp(w)", "sigmoid(w)"),
    ],
    ids=["as it stands", "backwards", "product of exponentials", "constant decay", "sigmoid"],
)
def test_loop_without_maximum_is_wkv(found: str, instead: str) -> None:
    check(PLAIN.replace(found, instead), "num", "den", "max")


def test_large_keys_no_longer_overflow() -> None:
    before = parse_graph(PLAIN)
    rng = np.random.default_rng(0)
    feed = {v.node.attrs["name"]: rng.uniform(0, 1, v.dims).astype(np.float32) for v in before.inputs}
    feed["k"] += 100
    after = interpret(Module({"main": classified(before)}), feed)["z"]
    np.testing.assert_allclose(after, interpret(Module({"main": before}), feed, wide=True)["z"], rtol=1e-5)


@pytest.mark.parametrize(
    ("found", "instead", "reason"),
    [
        ("now: f32[2, 3] = exp(k)", "now: f32[2, 3] = tanh(k)", "no carry is a fading sum of exponentials"),
        ("mul(a, d0)", "mul(a, u0)", "the other carry is not a sum of weighted values"),
        ("add(b, own)", "add(b, now)", "no output is the quotient"),
        ("add(u0, k)", "add(u0, v)", "does not weigh the current token"),
        ("exp(w)", "tanh(w)", "may be negative"),
        ("broadcast(d, dims=(2, 3))", "exp(v)", "not one number per channel"),
    ],
)
def test_near_miss_without_maximum_says_why(found: str, instead: str, reason: str) -> None:
    graph = parse_graph(PLAIN.replace(found, instead))
    with tracing() as trace:
        assert classified(graph) == graph
    assert reason in trace.declined[0].reason
