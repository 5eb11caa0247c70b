"""Orders of tokens: what becomes a table, what stays, and that every token ends up where it was."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coilc.ir import Graph, Module, TensorType, Value, interpret, literal, ops, parse_graph
from coilc.ir.types import DTYPES
from coilc.passes import run_pipeline, tracing
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


# --- random routes ---------------------------------------------------------------------------------------------------


@st.composite
def moved(draw: st.DrawFn, x: Value) -> Value:
    """Some tokens of ``x`` [B, *grid, C] as a sequence [B, T, C]: flips, transposes, strides, tables."""
    for _ in range(draw(st.integers(0, 3))):
        rank = x.type.rank
        axes = range(1, rank - 1)
        match draw(st.sampled_from(("flip", "transpose", "slice", "take", "flatten"))):
            case "flip":
                x = ops.flip(x, axes=(draw(st.sampled_from(axes)),))
            case "transpose":
                x = ops.transpose(x, perm=(0, *draw(st.permutations(axes)), rank - 1))
            case "slice":
                starts = tuple(draw(st.integers(0, 1)) if i in axes and x.dims[i] > 1 else 0 for i in range(rank))
                steps = tuple(draw(st.integers(1, 2)) if i in axes else 1 for i in range(rank))
                x = ops.slice(x, starts=starts, stops=x.dims, steps=steps)
            case "take":
                axis = draw(st.sampled_from(axes))
                table = draw(st.permutations(range(x.dims[axis])))
                x = ops.take(x, literal(np.array(table)), axis=axis)
            case "flatten":
                x = ops.reshape(x, dims=(x.dims[0], prod(x.dims[1:-1]), x.dims[-1]))
    return ops.reshape(x, dims=(x.dims[0], prod(x.dims[1:-1]), x.dims[-1]))


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
