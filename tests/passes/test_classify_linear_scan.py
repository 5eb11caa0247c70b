"""Carries that are elementwise affine leave the loop; what depends on them runs over their states."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.ir import Graph, Module, interpret, parse_graph, print_graph
from coilc.passes import rewrite_module, tracing
from coilc.passes.classify_linear_scan import carry_is_linear

AVERAGE = """
def main(h0: f32[2, 3], x: f32[2, LENGTH, 3], w: f32[3, 4]):
    def step(h: f32[2, 3], x: f32[2, 3], w: f32[3, 4]):
        BODY
        y: f32[2, 4] = matmul(new, w)
        return {"h": new, "y": y}
    last, y = scan(h0, x, w, body=step, carries=1, sequences=1, axis=1, reverse=REVERSE)
    return {"y": y, "last": last}
"""
BODIES = {
    "leak": ["half: f32[()] = constant(value=array(f32, 0.5))", "a: f32[2, 3] = broadcast(half, dims=(2, 3))",
             "b: f32[2, 3] = mul(h, a)", "new: f32[2, 3] = add(b, x)"],
    "gate": ["g: f32[2, 3] = sigmoid(x)", "d: f32[2, 3] = sub(x, h)", "e: f32[2, 3] = mul(d, g)",
             "new: f32[2, 3] = add(h, e)"],
    "twice": ["g: f32[2, 3] = tanh(x)", "d: f32[2, 3] = mul(g, h)", "e: f32[2, 3] = add(d, x)",
              "f: f32[2, 3] = neg(e)", "new: f32[2, 3] = mul(f, g)"],
    "keep where masked": ["n: f32[2, 3] = neg(x)", "keep: bool[2, 3] = gt(x, n)", "d: f32[2, 3] = add(h, x)",
                          "new: f32[2, 3] = where(keep, d, h)"],
    "divide": ["e: f32[2, 3] = exp(x)", "d: f32[2, 3] = sub(e, h)", "new: f32[2, 3] = div(d, e)"],
    "in another layout": ["t: f32[3, 2] = transpose(h, perm=(1, 0))", "u: f32[3, 2] = transpose(x, perm=(1, 0))",
                          "d: f32[3, 2] = mul(t, u)", "new: f32[2, 3] = transpose(d, perm=(1, 0))"],
    "register": ["new: f32[2, 3] = exp(x)"],
    "previous": ["p: f32[2, 3] = tanh(h)", "new: f32[2, 3] = exp(x)"],
}  # fmt: skip


def graph_of(body: list[str], length: int = 5, reverse: bool = False) -> Graph:
    text = AVERAGE.replace("BODY", "\n        ".join(body))
    return parse_graph(text.replace("LENGTH", str(length)).replace("REVERSE", str(reverse)))


def classified(graph: Graph) -> Graph:
    return rewrite_module(Module({"main": graph}), carry_is_linear).entries["main"]


def same_numbers(before: Graph, after: Graph) -> None:
    rng = np.random.default_rng(0)
    feed = {v.node.attrs["name"]: rng.uniform(-1, 1, v.dims).astype(np.float32) for v in before.inputs}
    expected, found = (interpret(Module({"main": g}), feed) for g in (before, after))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 5])
def test_loop_becomes_linear_scan(name: str, reverse: bool, length: int) -> None:
    before = graph_of(BODIES[name], length, reverse)
    after = classified(before)
    names = [node.op.name for node in after.nodes]
    assert "scan" not in names, print_graph(after)
    assert names.count("linear_scan") == (name not in ("register", "previous"))
    same_numbers(before, after)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (["d: f32[2, 3] = tanh(h)", "new: f32[2, 3] = add(d, x)"], "'tanh' of the state is not affine"),
        (["d: f32[2, 3] = mul(h, x)", "new: f32[2, 3] = mul(d, h)"], "'mul' of the state"),
        (["g: f32[2, 3] = sigmoid(h)", "new: f32[2, 3] = mul(g, x)"], "'sigmoid' of the state"),
    ],
)
def test_near_miss_says_why(body: list[str], reason: str) -> None:
    graph = graph_of(body)
    with tracing() as trace:
        assert classified(graph) == graph
    assert reason in trace.declined[0].reason


def test_one_of_two_carries_leaves_the_loop() -> None:
    before = parse_graph("""
def main(h0: f32[3], c0: f32[3], x: f32[6, 3]):
    def step(h: f32[3], c: f32[3], x: f32[3]):
        m: f32[3] = mul(c, x)
        new: f32[3] = add(m, x)
        s: f32[3] = add(h, new)
        t: f32[3] = add(s, c)
        after: f32[3] = tanh(t)
        return {"h": after, "c": new, "y": s}
    h, c, y = scan(h0, c0, x, body=step, carries=2, sequences=1, axis=0, reverse=False)
    return {"h": h, "c": c, "y": y}
""")
    after = classified(before)
    (scan,) = (n for n in after.nodes if n.op.name == "scan")
    assert scan.attrs["carries"] == 1
    assert sum(n.op.name == "linear_scan" for n in after.nodes) == 1
    same_numbers(before, after)


def test_chain_of_linear_carries_dissolves() -> None:
    before = parse_graph("""
def main(a0: f32[3], b0: f32[3], x: f32[6, 3]):
    def step(a: f32[3], b: f32[3], x: f32[3]):
        m: f32[3] = mul(a, x)
        first: f32[3] = add(m, x)
        e: f32[3] = tanh(first)
        n: f32[3] = mul(e, b)
        second: f32[3] = add(n, a)
        return {"a": first, "b": second, "y": second}
    a, b, y = scan(a0, b0, x, body=step, carries=2, sequences=1, axis=0, reverse=True)
    return {"a": a, "b": b, "y": y}
""")
    after = classified(before)
    names = [node.op.name for node in after.nodes]
    assert (names.count("linear_scan"), names.count("scan")) == (2, 0)
    same_numbers(before, after)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_loop_may_have_no_steps(name: str, reverse: bool) -> None:
    """As where the first step stayed apart: what the loop leaves is then what it began with."""
    text = AVERAGE.replace("BODY", "\n        ".join(BODIES[name])).replace("REVERSE", str(reverse))
    text = text.replace("x: f32[2, LENGTH, 3], w: f32[3, 4])", "xs: f32[2, L, 3], w: f32[3, 4], *, L: dim[1:])")
    cut = "    x: f32[2, L - 1, 3] = slice(xs, starts=(0, 1, 0), stops=(2, L, 3), steps=(1, 1, 1))\n    def step"
    before = parse_graph(text.replace("    def step", cut))
    after = classified(before)
    rng = np.random.default_rng(0)
    for length in (1, 2, 3):
        feed = {
            "h0": rng.uniform(-1, 1, (2, 3)),
            "xs": rng.uniform(-1, 1, (2, length, 3)),
            "w": rng.uniform(-1, 1, (3, 4)),
        }
        feed = {key: array.astype(np.float32) for key, array in feed.items()}
        expected, found = (interpret(Module({"main": g}), feed) for g in (before, after))
        for key, array in expected.items():
            np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6)


def test_carries_that_leave_one_after_the_other_stay_apart() -> None:
    """Each one that leaves brings sequences of its own into the body, where an equal name would be the same input."""
    before = parse_graph("""
def main(a0: f32[2, 3], b0: f32[2, 3], c0: f32[2, 3], x: f32[4, 2, 3], k: f32[4, 2, 3], w: f32[2, 3]):
    def step(a: f32[2, 3], b: f32[2, 3], c: f32[2, 3], x: f32[2, 3], k: f32[2, 3], w: f32[2, 3]):
        a1: f32[2, 3] = mul(w, a)
        a2: f32[2, 3] = add(a1, x)
        b1: f32[2, 3] = mul(w, b)
        b2: f32[2, 3] = add(b1, k)
        gate: f32[2, 3] = tanh(a2)
        read: f32[2, 3] = tanh(b2)
        c1: f32[2, 3] = mul(gate, c)
        c2: f32[2, 3] = add(c1, read)
        c3: f32[2, 3] = add(c2, x)
        return {"a": a2, "b": b2, "c": c3}
    a, b, c = scan(a0, b0, c0, x, k, w, body=step, carries=3, sequences=2, axis=0, reverse=False)
    return {"c": c}
""")
    after = classified(before)
    assert [node.op.name for node in after.nodes].count("linear_scan") == 3
    same_numbers(before, after)


def test_expanded_state_that_is_contracted_stays_a_loop() -> None:
    graph = parse_graph("""
def main(h0: f32[3, 4], a: f32[3, 4], x: f32[6, 3], b: f32[4], c: f32[4]):
    def step(h: f32[3, 4], x: f32[3], a: f32[3, 4], b: f32[4], c: f32[4]):
        m: f32[3, 4] = mul(a, h)
        x0: f32[3, 1] = reshape(x, dims=(3, 1))
        x1: f32[3, 4] = broadcast(x0, dims=(3, 4))
        b1: f32[3, 4] = broadcast(b, dims=(3, 4))
        u: f32[3, 4] = mul(x1, b1)
        new: f32[3, 4] = add(m, u)
        c1: f32[3, 4] = broadcast(c, dims=(3, 4))
        r: f32[3, 4] = mul(new, c1)
        y: f32[3] = sum(r, axes=(1,), keepdims=False)
        return {"h": new, "y": y}
    last, y = scan(h0, x, a, b, c, body=step, carries=1, sequences=1, axis=0, reverse=False)
    return {"y": y}
""")
    with tracing() as trace:
        assert classified(graph) == graph
    assert "it stays in the loop" in trace.declined[0].reason
