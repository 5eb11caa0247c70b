"""Scans over a matrix of state, in passes over its rows: one or several steps per pass, or several passes per step."""

from __future__ import annotations

import pytest

from coilc.codegen.target import parse_target
from coilc.ir import Graph, parse_graph
from coilc.passes.state_sweeps import Sweep, sweep_of

from .harness import Compiled

OUTER = """
        ks = reshape(k, dims=(B, {n}, 1))
        kk = broadcast(ks, dims=(B, {n}, {p}))
        vs = reshape(v, dims=(B, 1, {p}))
        vv = broadcast(vs, dims=(B, {n}, {p}))
        u = mul(kk, vv)"""
READ = """
        qs = reshape(q, dims=(B, 1, {n}))
        ys = matmul(qs, next)
        y = reshape(ys, dims=(B, {p}))"""

# Name: operands after the state, the step, and how many passes a step takes.
STEPS: dict[str, tuple[str, str, int]] = {
    "linear_attention": (
        "q: f32[{s}{n}], k: f32[{s}{n}], v: f32[{s}{p}]",
        OUTER + "\n        next = add(h, u)" + READ,
        1,
    ),
    "decay_per_row": (
        "q: f32[{s}{n}], k: f32[{s}{n}], v: f32[{s}{p}], a: f32[{s}{n}]",
        OUTER
        + """
        ea = exp(a)
        ra = reshape(ea, dims=(B, {n}, 1))
        da = broadcast(ra, dims=(B, {n}, {p}))
        kept = mul(da, h)
        next = add(kept, u)"""
        + READ,
        1,
    ),
    "selective": (
        "q: f32[{s}{n}], k: f32[{s}{n}], v: f32[{s}{p}], rate: f32[{n}, {p}]",
        OUTER
        + """
        dt = abs(vv)
        slow = abs(rate)
        fall = neg(slow)
        r = broadcast(fall, dims=(B, {n}, {p}))
        x = mul(dt, r)
        d = exp(x)
        kept = mul(d, h)
        next = add(kept, u)
        qs = reshape(q, dims=(B, {n}, 1))
        qq = broadcast(qs, dims=(B, {n}, {p}))
        yy = mul(qq, next)
        y = sum(yy, axes=(1,), keepdims=False)""",
        1,
    ),
    "delta_rule": (
        "q: f32[{s}{n}], k: f32[{s}{n}], v: f32[{s}{p}], b: f32[{s}1]",
        """
        ks = reshape(k, dims=(B, 1, {n}))
        held = matmul(ks, h)
        vs = reshape(v, dims=(B, 1, {p}))
        miss = sub(vs, held)
        bs = reshape(b, dims=(B, 1, 1))
        bb = broadcast(bs, dims=(B, 1, {p}))
        w = mul(bb, miss)
        ww = broadcast(w, dims=(B, {n}, {p}))
        kt = reshape(k, dims=(B, {n}, 1))
        kk = broadcast(kt, dims=(B, {n}, {p}))
        u = mul(kk, ww)
        next = add(h, u)"""
        + READ,
        2,
    ),
    # Two sums before the state may change, the second one over what the first has scaled; the state is an output too.
    "rescaled": (
        "q: f32[{s}{n}], k: f32[{s}{n}], v: f32[{s}{p}]",
        OUTER
        + """
        g = add(h, u)
        size = abs(g)
        top = max(size, axes=(1,), keepdims=True)
        one = constant(value=array(f32, 1.0))
        ones = broadcast(one, dims=(B, 1, {p}))
        floor = add(top, ones)
        down = broadcast(floor, dims=(B, {n}, {p}))
        e = div(g, down)
        total = sum(e, axes=(1,), keepdims=True)
        t = broadcast(total, dims=(B, {n}, {p}))
        tenth = constant(value=array(f32, 0.1))
        tenths = broadcast(tenth, dims=(B, {n}, {p}))
        small = mul(t, tenths)
        next = sub(e, small)"""
        + READ,
        3,
    ),
}


def scan_of(name: str, n: int, p: int, *, reverse: bool = False, dtype: str = "f32") -> Graph:
    operands, step, _ = STEPS[name]
    parts = operands.format(s="B, ", n=n, p=p)
    whole = operands.format(s="B, L, ", n=n, p=p)
    names = [part.split(":")[0] for part in parts.replace("], ", "]\0").split("\0")]
    sequences = 3 + ("a" in names) + ("b" in names)
    text = f"""def kernel(h0: f32[B, {n}, {p}], {whole}):
    def body(h: f32[B, {n}, {p}], {parts}):{step.format(n=n, p=p)}
        return {{"h": next, "y": y}}
    s, y = scan(h0, {", ".join(names)}, body=body, carries=1, sequences={sequences}, axis=1, reverse={reverse})
    return {{"s": s, "y": y}}
"""
    return parse_graph(text.replace("f32", dtype))


def passes_of(graph: Graph) -> Sweep | None:
    return sweep_of(next(node for node in graph.nodes if node.op.name == "scan"))


@pytest.mark.parametrize(("n", "p"), [(1, 8), (3, 16), (16, 64), (32, 32), (130, 96), (5, 100)])
@pytest.mark.parametrize("name", STEPS)
def test_every_length(name: str, n: int, p: int) -> None:
    graph = scan_of(name, n, p)
    sweep = passes_of(graph)
    assert n == 1 or (sweep is not None and sweep.stages == STEPS[name][2])
    kernel = Compiled(graph)
    for batch, length in ((1, 1), (2, 2), (1, 7), (3, 21)):
        kernel.check_random(ranges=ranges(n), B=batch, L=length)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
def test_in_reverse(name: str, dtype: str) -> None:
    kernel = Compiled(scan_of(name, 5, 32, reverse=True, dtype=dtype))
    for length in (1, 6):
        kernel.check_random(ranges=ranges(5), B=2, L=length)


@pytest.mark.parametrize("target", ["x86-64-v3", "aarch64"])
def test_other_targets_compile(target: str) -> None:
    for name in STEPS:
        Compiled(scan_of(name, 16, 32), parse_target(target))


def ranges(n: int) -> dict[str, tuple[float, float]]:
    """Keys of length at most one, so that a step does not amplify the state."""
    return {"k": (-(n**-0.5), n**-0.5), "a": (-2.0, 0.0), "b": (0.0, 1.0)}


def test_vectors_of_later_steps_are_prefetched() -> None:
    assert "prefetcht0" in Compiled(scan_of("selective", 16, 32), parse_target("x86-64-v4")).library.inspect_source(
        "asm"
    )


MIXED = {
    "other rows": "old = flip(h, axes=(1,))",
    "other lanes": "old = flip(h, axes=(2,))",
    "a turned state": "old = transpose(h, perm=(0, 2, 1))",
}


@pytest.mark.parametrize("name", MIXED)
def test_rows_that_meet_are_no_sweep(name: str) -> None:
    graph = parse_graph(f"""def kernel(h0: f32[B, 16, 16], q: f32[B, L, 16]):
    def body(h: f32[B, 16, 16], q: f32[B, 16]):
        {MIXED[name]}
        next = add(old, h)
        qs = reshape(q, dims=(B, 1, 16))
        ys = matmul(qs, next)
        y = reshape(ys, dims=(B, 16))
        return {{"h": next, "y": y}}
    s, y = scan(h0, q, body=body, carries=1, sequences=1, axis=1, reverse=False)
    return {{"s": s, "y": y}}
""")
    assert passes_of(graph) is None
    Compiled(graph).check_random(B=2, L=3)
