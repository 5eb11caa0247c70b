"""Where the elements of a view lie: as the reference computes them from a tensor of its own positions."""

from __future__ import annotations

import re

import numpy as np
import pytest

from coilc.codegen.kernels.gpu.operand import strided
from coilc.ir import Graph, interpret, parse_graph
from coilc.ir import dims as d
from coilc.ir.core import Module

SIZES = {"B": 2, "L": 3}
VIEWS = [
    ("x: i64[B, L, 8]", "v0: i64[B*L, 8] = reshape(x, dims=(B*L, 8))"),
    ("x: i64[B*L, 8]", "v0: i64[8, B*L] = transpose(x, perm=(1, 0))"),
    (
        "x: i64[B, L, 24]",
        "v0: i64[B, L, 8] = slice(x, starts=(0, 0, 8), stops=(B, L, 16), steps=(1, 1, 1)); "
        "v1: i64[B*L, 8] = reshape(v0, dims=(B*L, 8))",
    ),
    (
        "x: i64[B, L, 24]",
        "v0: i64[B, L, 4, 6] = reshape(x, dims=(B, L, 4, 6)); v1: i64[B, 4, L, 6] = transpose(v0, perm=(0, 2, 1, 3)); "
        "v2: i64[B, 4, 6, L] = transpose(v1, perm=(0, 1, 3, 2))",
    ),
    ("x: i64[1, L]", "v0: i64[B, 8, L] = broadcast(x, dims=(B, 8, L))"),
    ("x: i64[B, 1, 8]", "v0: i64[B, L, 8] = broadcast(x, dims=(B, L, 8))"),
    ("x: i64[7, 8]", "v0: i64[3, 4] = slice(x, starts=(1, 0), stops=(7, 8), steps=(2, 2))"),
]
OPAQUE = [
    ("x: i64[B, L]", "v0: i64[L, B] = transpose(x, perm=(1, 0)); v1: i64[B*L] = reshape(v0, dims=(B*L,))"),
    ("x: i64[B, L]", "v0: i64[B, L] = neg(x)"),
    ("x: i64[B, L]", "v0: i32[B, L] = cast(x, dtype=i32)"),
    ("x: i64[B, 8]", "v0: i64[B, 9] = pad(x, low=(0, 0), high=(0, 1), value=0)"),
]


def graph(given: str, steps: str) -> Graph:
    lines = steps.split("; ")
    body = "".join(f"    {line}\n" for line in lines)
    return parse_graph(f"def body({given}):\n{body}    return {{'y': {lines[-1].split(':')[0]}}}\n")


@pytest.mark.parametrize(("given", "steps"), VIEWS)
def test_a_view_is_strides(given: str, steps: str) -> None:
    static = graph(*(re.sub(r"\b[BL]\b", lambda found: str(SIZES[found[0]]), text) for text in (given, steps)))
    shape = static.inputs[0].dims
    positions = np.arange(np.prod(shape)).reshape(shape)
    expected = interpret(Module({"main": static}), {"x": positions})["y"]
    memory = strided(graph(given, steps).results[0])
    assert memory is not None
    strides = [d.evaluate(stride, SIZES) for stride in memory.strides]
    base = d.evaluate(memory.base, SIZES)
    np.testing.assert_array_equal(
        base + sum(i * s for i, s in zip(np.indices(expected.shape), strides, strict=True)), expected
    )


@pytest.mark.parametrize(("given", "steps"), OPAQUE)
def test_what_is_computed_is_no_view(given: str, steps: str) -> None:
    assert strided(graph(given, steps).results[0]) is None


def test_a_vector_needs_alignment_on_every_other_axis() -> None:
    def width(given: str, steps: str) -> int:
        memory = strided(graph(given, steps).results[0])
        assert memory is not None
        return memory.vector(-1)

    cut = "v0: bf16[B, 8] = slice(x, starts=(0, {0}), stops=(B, {1}), steps=(1, 1))"
    assert width("x: bf16[B, 24]", cut.format(8, 16)) == 8
    assert width("x: bf16[B, 24]", cut.format(4, 12)) == 1
    assert width("x: bf16[B, 20]", cut.format(8, 16)) == 1
    assert width("x: f32[B, L]", "v0: f32[B, L] = reshape(x, dims=(B, L))") == 1
