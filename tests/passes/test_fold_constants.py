"""Constants and weights are computed once, at compile time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from coilc.ir import Module, parse_graph
from coilc.passes import fold_constants


def test_weights_fold(check: Callable[..., Module]) -> None:
    result = check(
        fold_constants,
        """
        def main(x: f32[B, 32], *, B: dim[1:]):
            v0: f32[32] = weight(name="A_log", type=f32[32])
            v1: f32[32] = exp(v0)
            v2: f32[32] = neg(v1)
            v3: f32[B, 32] = broadcast(v2, dims=(B, 32))
            v4: f32[B, 32] = mul(x, v3)
            return {"y": v4}
        """,
        """
        def main(x: f32[B, 32], *, B: dim[1:]):
            v0: f32[32] = weight(name="A_log.folded", type=f32[32])
            v1: f32[B, 32] = broadcast(v0, dims=(B, 32))
            v2: f32[B, 32] = mul(x, v1)
            return {"y": v2}
        """,
    )
    assert set(result.weights) == {"A_log.folded"}


def test_small_results_become_constants(check: Callable[..., Module]) -> None:
    check(
        fold_constants,
        """
        def main(x: f32[2]):
            v0: f32[2] = constant(value=array(f32, [1.0, 2.0]))
            v1: f32[2] = add(v0, v0)
            v2: f32[2] = mul(x, v1)
            return {"y": v2}
        """,
        """
        def main(x: f32[2]):
            v0: f32[2] = constant(value=array(f32, [2.0, 4.0]))
            v1: f32[2] = mul(x, v0)
            return {"y": v1}
        """,
    )


def test_what_grows_or_is_symbolic_stays() -> None:
    graph = parse_graph("""
def main(x: f32[B, 4096], *, B: dim[1:]):
    v0: f32[()] = constant(value=array(f32, 1.0))
    v1: f32[4096, 4096] = broadcast(v0, dims=(4096, 4096))
    v2: i64[B] = iota(dims=(B,), axis=0, dtype=i64)
    v3: f32[B, 4096] = matmul(x, v1)
    return {"y": v3, "z": v2}
""")
    assert fold_constants(Module({"main": graph})).entries["main"] == graph


def test_names_are_short_and_repeatable() -> None:
    graph = parse_graph("""
def main(x: f32[4, 8]):
    v0: f32[8, 4] = weight(name="w", type=f32[8, 4])
    v1: f32[4, 8] = transpose(v0, perm=(1, 0))
    v2: f32[4, 8] = exp(v1)
    v3: f32[4, 8] = add(v1, x)
    v4: f32[4, 8] = add(v2, v3)
    return {"y": v4}
""")
    module = Module({"main": graph}, {"w": np.ones((8, 4), np.float32)})
    once = fold_constants(module)
    assert set(once.weights) == {"w.folded", "w.folded1"}
    assert list(fold_constants(module).weights) == list(once.weights)
    assert fold_constants(once).entries == once.entries
