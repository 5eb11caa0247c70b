"""Loops that are Mamba's selective scan, in the forms that models write them, and loops that nearly are."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.ir import Graph, Module, interpret, parse_graph, print_graph
from coilc.passes import rewrite_module, tracing
from coilc.passes.classify_selective_scan import absorb_skip_and_gate, scan_is_selective

# Discretised before the loop, channels before states, output by a matmul (transformers' slow path).
OUTSIDE = """
def main(x: f32[2, 5, 6], dt: f32[2, 5, 6], A: f32[6, 4], Bm: f32[2, 5, 4], Cm: f32[2, 5, 4]):
    a0: f32[2, 5, 6, 1] = reshape(dt, dims=(2, 5, 6, 1))
    a1: f32[2, 5, 6, 4] = broadcast(a0, dims=(2, 5, 6, 4))
    a2: f32[2, 5, 6, 4] = broadcast(A, dims=(2, 5, 6, 4))
    a3: f32[2, 5, 6, 4] = mul(a2, a1)
    a4: f32[2, 5, 6, 4] = exp(a3)
    b0: f32[2, 5, 1, 4] = reshape(Bm, dims=(2, 5, 1, 4))
    b1: f32[2, 5, 6, 4] = broadcast(b0, dims=(2, 5, 6, 4))
    b2: f32[2, 5, 6, 4] = mul(a1, b1)
    u0: f32[2, 5, 6, 1] = reshape(x, dims=(2, 5, 6, 1))
    u1: f32[2, 5, 6, 4] = broadcast(u0, dims=(2, 5, 6, 4))
    u2: f32[2, 5, 6, 4] = mul(b2, u1)
    a: f32[5, 2, 6, 4] = transpose(a4, perm=(1, 0, 2, 3))
    b: f32[5, 2, 6, 4] = transpose(u2, perm=(1, 0, 2, 3))
    c: f32[5, 2, 4] = transpose(Cm, perm=(1, 0, 2))
    zero: f32[()] = constant(value=array(f32, 0.0))
    h: f32[2, 6, 4] = broadcast(zero, dims=(2, 6, 4))
    def step(h: f32[2, 6, 4], a: f32[2, 6, 4], b: f32[2, 6, 4], c: f32[2, 4]):
        v0: f32[2, 6, 4] = mul(a, h)
        v1: f32[2, 6, 4] = add(v0, b)
        v2: f32[2, 4, 1] = reshape(c, dims=(2, 4, 1))
        v3: f32[2, 6, 1] = matmul(v1, v2)
        v4: f32[2, 6] = reshape(v3, dims=(2, 6))
        return {"h": v1, "y": v4}
    last, ys = scan(h, a, b, c, body=step, carries=1, sequences=3, axis=0, reverse=False)
    y: f32[2, 5, 6] = transpose(ys, perm=(1, 0, 2))
    return {"y": y, "last": last}
"""

# The same, discretised by einsums that sum over nothing.
EINSUMS = (
    OUTSIDE[: OUTSIDE.index("    a0:")]
    + """
    a3: f32[2, 5, 6, 4] = einsum(dt, A, equation="bld,dn->bldn")
    a4: f32[2, 5, 6, 4] = exp(a3)
    u2: f32[2, 5, 6, 4] = einsum(dt, Bm, x, equation="bld,bln,bld->bldn")
"""
    + OUTSIDE[OUTSIDE.index("    a: f32") :]
)

# Everything in the loop, states before channels, a given initial state, time on axis 1.
INSIDE = """
def main(x: f32[2, 5, 6], dt: f32[2, 5, 6], A: f32[6, 4], Bm: f32[2, 5, 4], Cm: f32[2, 5, 4], h0: f32[2, 4, 6]):
    def step(h: f32[2, 4, 6], x: f32[2, 6], dt: f32[2, 6], b: f32[2, 4], c: f32[2, 4], A: f32[6, 4]):
        a0: f32[4, 6] = transpose(A, perm=(1, 0))
        a1: f32[2, 4, 6] = broadcast(a0, dims=(2, 4, 6))
        d0: f32[2, 1, 6] = reshape(dt, dims=(2, 1, 6))
        d1: f32[2, 4, 6] = broadcast(d0, dims=(2, 4, 6))
        a2: f32[2, 4, 6] = mul(d1, a1)
        a3: f32[2, 4, 6] = exp(a2)
        v0: f32[2, 4, 6] = mul(h, a3)
        u0: f32[2, 6] = mul(x, dt)
        u1: f32[2, 1, 6] = reshape(u0, dims=(2, 1, 6))
        b0: f32[2, 4, 1] = reshape(b, dims=(2, 4, 1))
        u2: f32[2, 4, 6] = matmul(b0, u1)
        v1: f32[2, 4, 6] = add(u2, v0)
        v2: f32[2, 6] = einsum(v1, c, equation="bnd,bn->bd")
        v3: f32[2, 6] = mul(v2, x)
        return {"h": v1, "y": v3}
    last, ys = scan(h0, x, dt, Bm, Cm, A, body=step, carries=1, sequences=4, axis=1, reverse=REVERSE)
    return {"y": ys, "last": last}
"""


def classified(graph: Graph) -> Graph:
    return rewrite_module(Module({"main": graph}), scan_is_selective).entries["main"]


def count(graph: Graph, op: str) -> int:
    return sum(node.op.name == op for node in graph.nodes)


def largest(graph: Graph) -> int:
    return max(t.size for node in graph.nodes for t in node.types if isinstance(t.size, int))


def same_numbers(before: Graph, after: Graph) -> None:
    rng = np.random.default_rng(0)
    feed = {v.node.attrs["name"]: rng.uniform(-1, 1, v.dims).astype(np.float32) for v in before.inputs}
    expected, found = (interpret(Module({"main": g}), feed) for g in (before, after))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [OUTSIDE, EINSUMS, INSIDE.replace("REVERSE", "False"), INSIDE.replace("REVERSE", "True")],
    ids=["out", "einsums", "in", "back"],
)
def test_loop_is_a_selective_scan(text: str) -> None:
    before = parse_graph(text)
    after = classified(before)
    assert count(after, "selective_scan") == 1, print_graph(after)
    assert count(after, "scan") == 0
    assert largest(after) <= 2 * 5 * 6, "a tensor with length, channels and states is left"
    same_numbers(before, after)


def test_softplus_and_bias_of_the_step_size_are_taken_along() -> None:
    text = OUTSIDE.replace("Cm: f32[2, 5, 4])", "Cm: f32[2, 5, 4], bias: f32[6])").replace(
        "    a0: f32[2, 5, 6, 1] = reshape(dt, dims",
        """    s0: f32[2, 5, 6] = broadcast(bias, dims=(2, 5, 6))
    s1: f32[2, 5, 6] = add(dt, s0)
    s2: f32[2, 5, 6] = softplus(s1)
    a0: f32[2, 5, 6, 1] = reshape(s2, dims""",
    )
    before = parse_graph(text)
    after = classified(before)
    (scan,) = (n for n in after.nodes if n.op.name == "selective_scan")
    assert scan.attrs["softplus"]
    assert scan.attrs["optional"] == ("dt_bias",)
    assert count(after, "softplus") == 0
    same_numbers(before, after)


@pytest.mark.parametrize(
    ("found", "instead", "reason"),
    [
        ("v1: f32[2, 6, 4] = add(v0, b)", "w: f32[2, 6, 4] = tanh(v0)\n        v1: f32[2, 6, 4] = add(w, b)", "'tanh' of"),
        ("u2: f32[2, 5, 6, 4] = mul(b2, u1)", "u2: f32[2, 5, 6, 4] = mul(b1, u1)", "not scaled by the step size"),
        ("a4: f32[2, 5, 6, 4] = exp(a3)", "a4: f32[2, 5, 6, 4] = sigmoid(a3)", "not one exponential"),
        ('"y": v4}', '"y": v4, "all": v1}', "the whole state leaves the loop"),
        ("v3: f32[2, 6, 1] = matmul(v1, v2)", "w: f32[2, 6, 4] = exp(v1)\n        v3: f32[2, 6, 1] = matmul(w, v2)", "'exp' of"),
    ],
)  # fmt: skip
def test_near_miss_says_why(found: str, instead: str, reason: str) -> None:
    text = OUTSIDE.replace(found, instead)
    text = text.replace("last, ys = scan", "last, ys, rest = scan") if "rest" in instead or '"all"' in instead else text
    graph = parse_graph(text)
    with tracing() as trace:
        after = classified(graph)
    assert count(after, "selective_scan") == 0
    assert count(after, "scan") == 1
    assert reason in trace.declined[0].reason


def test_skip_and_gate_are_absorbed() -> None:
    graph = parse_graph("""
def main(x: f32[2, 5, 6], dt: f32[2, 5, 6], A: f32[4, 6], Bm: f32[2, 5, 1, 4], Cm: f32[2, 5, 1, 4], D: f32[6], z: f32[2, 6, 5]):
    y, h = selective_scan(x, dt, A, Bm, Cm, optional=(), softplus=False)
    v0: f32[2, 6, 5] = transpose(y, perm=(0, 2, 1))
    v1: f32[6, 1] = reshape(D, dims=(6, 1))
    v2: f32[2, 6, 5] = broadcast(v1, dims=(2, 6, 5))
    v3: f32[2, 6, 5] = transpose(x, perm=(0, 2, 1))
    v4: f32[2, 6, 5] = mul(v3, v2)
    v5: f32[2, 6, 5] = add(v0, v4)
    v6: f32[2, 6, 5] = silu(z)
    v7: f32[2, 6, 5] = mul(v5, v6)
    return {"y": v7, "h": h}
""")
    after = absorb_skip_and_gate(Module({"main": graph})).entries["main"]
    (scan,) = (n for n in after.nodes if n.op.name == "selective_scan")
    assert scan.attrs["optional"] == ("D", "z")
    assert count(after, "silu") == 0
    same_numbers(graph, after)


def test_skip_stays_outside_when_the_bare_output_is_needed() -> None:
    graph = parse_graph("""
def main(x: f32[2, 5, 6], dt: f32[2, 5, 6], A: f32[4, 6], Bm: f32[2, 5, 1, 4], Cm: f32[2, 5, 1, 4], D: f32[6]):
    y, h = selective_scan(x, dt, A, Bm, Cm, optional=(), softplus=False)
    v2: f32[2, 5, 6] = broadcast(D, dims=(2, 5, 6))
    v4: f32[2, 5, 6] = mul(x, v2)
    v5: f32[2, 5, 6] = add(y, v4)
    return {"y": v5, "bare": y}
""")
    module = Module({"main": graph})
    assert absorb_skip_and_gate(module) == module
