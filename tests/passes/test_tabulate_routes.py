"""Orders of tokens: what becomes a table, what stays, and that every token ends up where it was."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_routes import moved

from coilc.codegen.target import parse_target
from coilc.ir import Graph, Module, TensorType, interpret, literal, ops, parse_graph
from coilc.ir.opdef import MOVEMENT, STRUCTURAL
from coilc.ir.types import DTYPES
from coilc.passes import explain, run_pipeline, tracing
from coilc.passes.tabulate_routes import tabulate_routes

Check = Callable[..., Module]

CROSS = """
def main(x: f32[B, 2, 3, 8], *, B: dim[1:]):
    v0: f32[B, 6, 8] = reshape(x, dims=(B, 6, 8))
    v1: f32[B, 3, 2, 8] = transpose(x, perm=(0, 2, 1, 3))
    v2: f32[B, 6, 8] = reshape(v1, dims=(B, 6, 8))
    v3: f32[B, 12, 8] = concat(v0, v2, axis=1)
    return {"y": v3}
"""


def test_rows_and_columns_are_one_table(check: Check) -> None:
    found = check(
        tabulate_routes,
        CROSS,
        """
        def main(x: f32[B, 2, 3, 8], *, B: dim[1:]):
            v0: f32[B, 6, 8] = reshape(x, dims=(B, 6, 8))
            v1: i64[12] = weight(name="route.0", type=i64[12])
            v2: f32[B, 12, 8] = take(v0, v1, axis=1)
            return {"y": v2}
        """,
        exact=True,
    )
    assert found.weights["route.0"].tolist() == [0, 1, 2, 3, 4, 5, 0, 3, 1, 4, 2, 5]


def test_projections_come_first_when_they_are_no_more_work() -> None:
    def found(matrix: str, equation: str, columns: str) -> list[str]:
        graph = parse_graph(f"""
def main(x: f32[B, 6, 8], w: f32[{matrix}], *, B: dim[1:]):
    v0: f32[B, 6, 8] = flip(x, axes=(1,))
    v1: f32[B, 1, 6, 8] = reshape(x, dims=(B, 1, 6, 8))
    v2: f32[B, 1, 6, 8] = reshape(v0, dims=(B, 1, 6, 8))
    v3: f32[B, 2, 6, 8] = concat(v1, v2, axis=1)
    v4: f32[B, 2, 6, 5] = einsum(v3, w, equation="{equation}")
    return {{"y": v4}}
""")
        return [node.op.name for node in tabulate_routes(Module({"main": graph})).entries["main"].nodes]

    assert found("2, 5, 8", "bkld,kcd->bklc", "5")[-1] == "take"
    assert found("5, 8", "bkld,cd->bklc", "5")[-1] == "take"


SUB_GRIDS = """
def main(x: f32[B, 6, 8], w: f32[2, 5, 8], *, B: dim[1:]):
    v0: f32[B, 3, 8] = slice(x, starts=(0, 0, 0), stops=(B, 6, 8), steps=(1, 2, 1))
    v1: f32[B, 3, 8] = slice(x, starts=(0, 1, 0), stops=(B, 6, 8), steps=(1, 2, 1))
    v2: f32[B, 1, 3, 8] = reshape({first}, dims=(B, 1, 3, 8))
    v3: f32[B, 1, 3, 8] = reshape({second}, dims=(B, 1, 3, 8))
    v4: f32[B, 2, 3, 8] = concat(v2, v3, axis=1)
    v5: f32[B, 2, 3, 5] = einsum(v4, w, equation="bkld,kcd->bklc")
    return {{"y": v5}}
"""


def test_sub_grids_that_lie_side_by_side_are_an_axis(preserves: Check) -> None:
    found = preserves(tabulate_routes, SUB_GRIDS.format(first="v0", second="v1"))
    assert [node.op.name for node in found.entries["main"].nodes if node.op.name in ("take", "einsum")] == [
        "einsum",
        "take",
    ]


def test_other_sub_grids_are_projected_after_they_are_picked(preserves: Check) -> None:
    with tracing() as trace:
        preserves(tabulate_routes, SUB_GRIDS.format(first="v1", second="v0"))
    reasons = [event.reason for event in trace.declined]
    assert "the routes visit fewer tokens than there are, and each has a matrix of its own" in reasons


@pytest.mark.parametrize(
    "text",
    [
        # The two halves of the channels change places: the vectors themselves would be torn.
        """
        def main(x: f32[B, 3, 8], *, B: dim[1:]):
            v0: f32[B, 3, 4] = slice(x, starts=(0, 0, 4), stops=(B, 3, 8), steps=(1, 1, 1))
            v1: f32[B, 3, 4] = slice(x, starts=(0, 0, 0), stops=(B, 3, 4), steps=(1, 1, 1))
            v2: f32[B, 3, 8] = concat(v0, v1, axis=2)
            return {"y": v2}
        """,
        # Nothing is known of L: tokens are found by arithmetic.
        """
        def main(x: f32[B, L, 8], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, L, 8] = flip(x, axes=(1,))
            v1: f32[B, 2*L, 8] = concat(x, v0, axis=1)
            return {"y": v1}
        """,
    ],
)
def test_what_stays(check: Check, text: str) -> None:
    check(tabulate_routes, text, text)


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        ("6", "a flip that is not gathered or joined is arithmetic"),
        ("L", "the order depends on an extent that is a symbol"),
    ],
)
def test_a_flip_that_stays_says_why(length: str, reason: str) -> None:
    text = f"""
def main(x: f32[B, {length}, 8], *, B: dim[1:], L: dim[1:]):
    v0: f32[B, {length}, 8] = flip(x, axes=(1,))
    return {{"y": v0}}
"""
    (declined,) = explain(Module({"main": parse_graph(text)}), "tabulate_routes").declined
    assert reason in declined.reason


CROSS_SCAN = """
def main(x: f32[B, 6, 5, 16], *, B: dim[1:]):
    w0: f32[32, 16] = weight(name="in", type=f32[32, 16])
    v0: f32[B, 6, 5, 32] = linear(x, w0)
    v1: f32[B, 32, 6, 5] = transpose(v0, perm=(0, 3, 1, 2))
    w1: f32[32, 1, 3, 3] = weight(name="conv", type=f32[32, 1, 3, 3])
    v2: f32[B, 32, 6, 5] = conv(v1, w1, strides=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=32)
    v3: f32[B, 32, 6, 5] = silu(v2)
    v4: f32[B, 1, 32, 30] = reshape(v3, dims=(B, 1, 32, 30))
    v5: f32[B, 32, 5, 6] = transpose(v3, perm=(0, 1, 3, 2))
    v6: f32[B, 1, 32, 30] = reshape(v5, dims=(B, 1, 32, 30))
    v7: f32[B, 2, 32, 30] = concat(v4, v6, axis=1)
    v8: f32[B, 2, 32, 30] = flip(v7, axes=(3,))
    xs: f32[B, 4, 32, 30] = concat(v7, v8, axis=1)
    w2: f32[4, 10, 32] = weight(name="project", type=f32[4, 10, 32])
    p: f32[B, 4, 10, 30] = einsum(xs, w2, equation="bkdl,kcd->bkcl")
    p0: f32[B, 4, 2, 30] = slice(p, starts=(0, 0, 0, 0), stops=(B, 4, 2, 30), steps=(1, 1, 1, 1))
    p1: f32[B, 4, 4, 30] = slice(p, starts=(0, 0, 2, 0), stops=(B, 4, 6, 30), steps=(1, 1, 1, 1))
    p2: f32[B, 4, 4, 30] = slice(p, starts=(0, 0, 6, 0), stops=(B, 4, 10, 30), steps=(1, 1, 1, 1))
    w3: f32[4, 32, 2] = weight(name="dt", type=f32[4, 32, 2])
    d0: f32[B, 4, 32, 30] = einsum(p0, w3, equation="bkrl,kdr->bkdl")
    d1: f32[B, 128, 30] = reshape(d0, dims=(B, 128, 30))
    d2: f32[B, 30, 128] = transpose(d1, perm=(0, 2, 1))
    x0: f32[B, 128, 30] = reshape(xs, dims=(B, 128, 30))
    x1: f32[B, 30, 128] = transpose(x0, perm=(0, 2, 1))
    A: f32[4, 128] = weight(name="A", type=f32[4, 128])
    b: f32[B, 30, 4, 4] = transpose(p1, perm=(0, 3, 1, 2))
    c: f32[B, 30, 4, 4] = transpose(p2, perm=(0, 3, 1, 2))
    y, last = selective_scan(x1, d2, A, b, c, optional=(), softplus=True)
    y0: f32[B, 30, 4, 32] = reshape(y, dims=(B, 30, 4, 32))
    y1: f32[B, 4, 32, 30] = transpose(y0, perm=(0, 2, 3, 1))
    y2: f32[B, 2, 32, 30] = slice(y1, starts=(0, 0, 0, 0), stops=(B, 2, 32, 30), steps=(1, 1, 1, 1))
    y3: f32[B, 2, 32, 30] = slice(y1, starts=(0, 2, 0, 0), stops=(B, 4, 32, 30), steps=(1, 1, 1, 1))
    y4: f32[B, 2, 32, 30] = flip(y3, axes=(3,))
    y5: f32[B, 2, 32, 30] = add(y2, y4)
    y6: f32[B, 1, 32, 30] = slice(y5, starts=(0, 0, 0, 0), stops=(B, 1, 32, 30), steps=(1, 1, 1, 1))
    y7: f32[B, 1, 32, 30] = slice(y5, starts=(0, 1, 0, 0), stops=(B, 2, 32, 30), steps=(1, 1, 1, 1))
    y8: f32[B, 32, 30] = reshape(y6, dims=(B, 32, 30))
    y9: f32[B, 32, 5, 6] = reshape(y7, dims=(B, 32, 5, 6))
    ya: f32[B, 32, 6, 5] = transpose(y9, perm=(0, 1, 3, 2))
    yb: f32[B, 32, 30] = reshape(ya, dims=(B, 32, 30))
    yc: f32[B, 32, 30] = add(y8, yb)
    yd: f32[B, 30, 32] = transpose(yc, perm=(0, 2, 1))
    g: f32[32] = weight(name="gain", type=f32[32])
    ye: f32[B, 30, 32] = rms_norm(yd, g, eps=1e-05)
    return {"y": ye}
"""


def test_a_cross_scan_leaves_no_copies(preserves: Check) -> None:
    """VMamba's SS2D: six kernels, none of which only moves, and every tensor between them has its channels innermost."""
    claims = parse_target("x86-64-v3").claims
    graph = preserves(lambda module: run_pipeline(module, claims), CROSS_SCAN).entries["main"]
    bodies = [node.attrs["body"] for node in graph.nodes if node.op is ops.fused]
    heavy = [[n.op.name for n in body.nodes if not n.op.traits & {MOVEMENT, STRUCTURAL}] for body in bodies]
    assert all(heavy)
    assert len(bodies) == 6
    assert sum("selective_scan" in names for names in heavy) == 1
    between = [value for body in bodies for value in body.results]
    assert {value.dims[-1] for value in between} <= {32, 40, 128}


# --- random routes ---------------------------------------------------------------------------------------------------


def test_a_single_element_has_no_order() -> None:
    x = ops.input_(name="x", type=TensorType(DTYPES["f32"], (1, 1)))
    graph = Graph("main", (x,), (("y", ops.concat(x, ops.flip(x, axes=(1,)), axis=1)),))
    assert tabulate_routes(Module({"main": graph})).entries["main"].outputs[0][1].dims == (1, 2)


@st.composite
def routes(draw: st.DrawFn) -> Graph:
    """Several routes over one grid, projected, through a recurrence, and summed in reverse."""
    grid = draw(st.sampled_from(((5,), (2, 3), (3, 4), (2, 1, 3))))
    x = ops.input_(name="x", type=TensorType(DTYPES["f32"], (2, *grid, 4)))
    parts = [draw(moved(x)) for _ in range(draw(st.integers(1, 3)))]
    along = parts[0] if len(parts) == 1 else ops.concat(*parts, axis=1)
    if draw(st.booleans()):
        along = ops.linear(along, ops.weight(name="w", type=TensorType(DTYPES["f32"], (4, 4))))
    decay = ops.sigmoid(along)
    zero = ops.broadcast(literal(0.0, DTYPES["f32"]), dims=(2, 4))
    states, last = ops.linear_scan(decay, along, zero, axis=1, reverse=draw(st.booleans()))
    return Graph("main", (x,), (("y", ops.flip(states, axes=(1,))), ("last", last)))


@given(graph=routes(), seed=st.integers(0, 9))
def test_random_routes_keep_their_numbers(graph: Graph, seed: int) -> None:
    rng = np.random.default_rng(seed)
    module = Module({"main": graph}, {"w": rng.standard_normal((4, 4)).astype(np.float32)})
    inputs = {"x": rng.standard_normal(tuple(graph.inputs[0].dims)).astype(np.float32)}
    expected = interpret(module, inputs)
    for result in (tabulate_routes(module), run_pipeline(module)):
        for name, array in interpret(result, inputs).items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6)
