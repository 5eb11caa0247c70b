"""Where padding at the start of an axis ends, and that rows behind it are computed without it."""

from __future__ import annotations

import numpy as np
import pytest
from codegen.kernels.harness import TOLERANCE, Compiled

from coilc.codegen.edges import edge_of
from coilc.ir import Graph, parse_graph

HEAD = "def body(x: f32[B, L, 96], s: f32[B, 2, 96], w: f32[96], *, B: dim[1:], L: dim[1:]):\n"
SHIFTED = """    v0: f32[B, L + 3, 96] = pad(x, low=(0, 3, 0), high=(0, 0, 0), value=0.5)
    v1: f32[B, L, 96] = slice(v0, starts=(0, 1, 0), stops=(B, L + 1, 96), steps=(1, 1, 1))
    v2: f32[B, L, 96] = broadcast(w, dims=(B, L, 96))
    y: f32[B, L, 96] = mul(v1, v2)
    return {"y": y}
"""
JOINED = """    v0: f32[B, L + 2, 96] = concat(s, x, axis=1)
    v1: f32[B, L, 96] = slice(v0, starts=(0, 0, 0), stops=(B, L, 96), steps=(1, 1, 1))
    v2: f32[B, L, 96] = slice(v0, starts=(0, 2, 0), stops=(B, L + 2, 96), steps=(1, 1, 1))
    v3: f32[B, L, 96] = broadcast(w, dims=(B, L, 96))
    v4: f32[B, L, 96] = mul(v1, v3)
    y: f32[B, L, 96] = add(v4, v2)
    return {"y": y}
"""
BEHIND = """    v0: f32[B, L + 1, 96] = pad(x, low=(0, 0, 0), high=(0, 1, 0), value=0.5)
    v1: f32[B, L + 3, 96] = concat(v0, s, axis=1)
    y: f32[B, L + 3, 96] = exp(v1)
    return {"y": y}
"""
TRANSPOSED = """    v0: f32[L, B, 96] = transpose(x, perm=(1, 0, 2))
    v1: f32[L + 4, B, 96] = pad(v0, low=(4, 0, 0), high=(0, 0, 0), value=0.0)
    y: f32[B, L + 4, 96] = transpose(v1, perm=(1, 0, 2))
    return {"y": y}
"""


def body(text: str) -> Graph:
    return parse_graph(HEAD + text)


@pytest.mark.parametrize(("text", "edge"), [(SHIFTED, 2), (JOINED, 2), (BEHIND, 0), (TRANSPOSED, 4)])
def test_where_the_edge_ends(text: str, edge: int) -> None:
    assert edge_of(body(text), 1) == edge
    assert edge_of(body(text), 0) == 0


@pytest.mark.parametrize("text", [SHIFTED, JOINED, BEHIND, TRANSPOSED])
def test_kernels_are_right_on_both_sides_of_the_edge(text: str, rng: np.random.Generator) -> None:
    kernel = Compiled(body(text))
    for batch, length in ((1, 1), (2, 2), (3, 3), (1, 4), (2, 9), (1, 300)):
        shapes = ((batch, length, 96), (batch, 2, 96), (96,))
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        (found,), (expected,) = kernel(*arrays), kernel.expected(arrays)
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE["f32"], atol=TOLERANCE["f32"])
