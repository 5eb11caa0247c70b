"""Equal recurrences share a launch when none waits for another and the machine gains from it."""

from __future__ import annotations

from functools import partial
from textwrap import dedent

import pytest

from coilc.ir import Module, parse_graph
from coilc.passes import Machine, fuse_groups, tracing

from .conftest import assert_same_results, random_weights

MANY = Machine(cores=16)
ALIKE = """
    def main(a: f32[2, 200, 16], b: f32[2, 200, 16], h: f32[2, 16]):
        x, xh = linear_scan(a, b, h, axis=1, reverse=False)
        y, yh = linear_scan(b, a, h, axis=1, reverse=True)
        return {"x": x, "y": y}
"""
MEETING = """
    def main(x: f32[2, 100, 16], a: f32[8, 16], b: f32[2, 100, 1, 8]):
        v0: f32[2, 100, 16] = flip(x, axes=(1,))
        f, fh = selective_scan(x, x, a, b, b, optional=(), softplus=True)
        g, gh = selective_scan(v0, v0, a, b, b, optional=(), softplus=True)
        u: f32[2, 100, 16] = sigmoid(f)
        v: f32[2, 100, 16] = flip(g, axes=(1,))
        s: f32[2, 100, 16] = add(u, v)
        return {"s": s}
"""
CHAINED = """
    def main(a: f32[2, 200, 16], b: f32[2, 200, 16], h: f32[2, 16]):
        x, xh = linear_scan(a, b, h, axis=1, reverse=False)
        e: f32[2, 200, 16] = sigmoid(x)
        y, yh = linear_scan(e, b, h, axis=1, reverse=True)
        return {"y": y}
"""
# x then y on one side, y then x on the other: each pair alone could share a launch, both would wait for one another.
CROSSED = """
    def main(a: f32[2, 200, 16], b: f32[2, 200, 16], h: f32[2, 16], w: f32[4, 16]):
        s0, t0 = linear_scan(a, b, h, axis=1, reverse=False)
        c0, d0 = causal_conv1d(s0, w, optional=(), activation="none")
        c1, d1 = causal_conv1d(a, w, optional=(), activation="none")
        s1, t1 = linear_scan(c1, b, h, axis=1, reverse=False)
        return {"c0": c0, "s1": s1}
"""
# exp(b) is read by both: once in memory, not twice in the kernel.
SHARED = """
    def main(a: f32[2, 200, 16], b: f32[2, 200, 16], h: f32[2, 16]):
        e: f32[2, 200, 16] = sigmoid(b)
        f: f32[2, 200, 16] = sigmoid(a)
        x, xh = linear_scan(e, a, h, axis=1, reverse=False)
        y, yh = linear_scan(f, e, h, axis=1, reverse=True)
        return {"x": x, "y": y}
"""
UNEQUAL = """
    def main(a: f32[2, 200, 16], b: f32[2, 100, 16], h: f32[2, 16]):
        x, xh = linear_scan(a, a, h, axis=1, reverse=False)
        y, yh = linear_scan(b, b, h, axis=1, reverse=False)
        return {"x": x, "y": y}
"""


def kernels(text: str, machine: Machine, rng) -> list[str]:  # type: ignore[no-untyped-def]
    """The names of the kernels, which compute what the graph does."""
    graph = parse_graph(dedent(text).strip())
    module = Module({"main": graph}, random_weights(rng, graph))
    fused = fuse_groups(module, machine)
    assert_same_results(module, fused, rng)
    return [n.attrs["body"].name for n in fused.entries["main"].nodes if n.op.name == "fused"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ALIKE, ["linear_scans"]),
        (MEETING, ["selective_scans_sigmoid", "add"]),
        (CHAINED, ["linear_scan_sigmoid", "linear_scan"]),
        (SHARED, ["sigmoid", "linear_scans_sigmoid"]),
        (UNEQUAL, ["linear_scan", "linear_scan"]),
    ],
    ids=["alike", "meeting", "chained", "shared", "unequal"],
)
def test_one_kernel(text: str, expected: list[str], rng) -> None:  # type: ignore[no-untyped-def]
    assert kernels(text, MANY, rng) == expected


def test_two_pairs_that_would_wait_for_one_another(rng) -> None:  # type: ignore[no-untyped-def]
    found = kernels(CROSSED, MANY, rng)
    assert sorted(found) in (
        ["causal_conv1d", "causal_conv1d", "linear_scans"],
        ["causal_conv1ds", *["linear_scan"] * 2],
    )


def test_before_and_after(check) -> None:  # type: ignore[no-untyped-def]
    check(
        partial(fuse_groups, machine=MANY),
        ALIKE,
        """
        def main(a: f32[2, 200, 16], b: f32[2, 200, 16], h: f32[2, 16]):
            def linear_scans_0(x0: f32[2, 200, 16], x1: f32[2, 200, 16], x2: f32[2, 16]):
                v0, v1 = linear_scan(x0, x1, x2, axis=1, reverse=False)
                v2, v3 = linear_scan(x1, x0, x2, axis=1, reverse=True)
                return {"y0": v0, "y1": v2}
            v0, v1 = fused(a, b, h, body=linear_scans_0)
            return {"x": v0, "y": v1}
        """,
    )


@pytest.mark.parametrize(
    ("cores", "length", "merged"), [(1, 200, False), (16, 200, True), (2, 20000, False)], ids=["one", "many", "busy"]
)
def test_only_where_it_pays(cores: int, length: int, merged: bool, rng) -> None:  # type: ignore[no-untyped-def]
    with tracing() as trace:
        found = kernels(ALIKE.replace("200", str(length)), Machine(cores=cores), rng)
    assert found == (["linear_scans"] if merged else ["linear_scan"] * 2)
    reasons = [event.reason for event in trace.declined if event.rule == "merge_siblings"]
    assert len(reasons) == (2 if length == 20000 else 0)
    assert all("in one launch would take" in reason and "on 2 cores" in reason for reason in reasons)
