"""The interpreter: symbols from shapes, rounding between ops, float64 on request, clear refusals."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from coilc.ir import InputError, Module, interpret, parse_graph

GRAPH = parse_graph("""
def main(x: f32[B, 2*L], n: i64[L], *, B: dim[1:4], L: dim[1:]):
    w: f32[2] = weight(name="w", type=f32[2])
    v0: f32[L] = cast(n, dtype=f32)
    v1: f32[B, L, 2] = reshape(x, dims=(B, L, 2))
    v2: f32[B, L, 2] = broadcast(w, dims=(B, L, 2))
    v3: f32[B, L, 2] = mul(v1, v2)
    v4: f32[()] = extent(dim=B*L, dtype=f32)
    return {"y": v3, "n": v0, "count": v4}
""")
MODULE = Module({"main": GRAPH}, {"w": np.array([1, 2], np.float32)})


def inputs(batch: int = 2, length: int = 3) -> dict[str, np.ndarray]:
    return {"x": np.ones((batch, 2 * length), np.float32), "n": np.arange(length)}


def test_symbols_are_solved_from_shapes() -> None:
    results = interpret(MODULE, inputs())
    assert results["y"].shape == (2, 3, 2)
    assert results["count"] == 6
    np.testing.assert_array_equal(results["y"][0, 0], [1, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "input 'x' is missing; the graph takes f32[B, 2*L]"),
        ({"x": np.ones((2, 7), np.float32)}, "input 'x' has 7 at axis 1; f32[B, 2*L] needs 2*L with L = 3"),
        ({"x": np.ones(6, np.float32)}, "input 'x' has rank 1; the model takes f32[B, 2*L]"),
        ({"x": np.ones((2, 6))}, "input 'x' is float64; the graph takes f32[B, 2*L]"),
        ({"x": np.ones((5, 6), np.float32)}, "B is 5; the model takes 1 to 4"),
        ({"n": np.arange(0), "x": np.ones((1, 0), np.float32)}, "L is 0; the model takes 1 to any"),
    ],
)
def test_refusals(change: dict[str, np.ndarray | None], message: str) -> None:
    given = {name: array for name, array in {**inputs(), **change}.items() if array is not None}
    with pytest.raises(InputError) as error:
        interpret(MODULE, given)
    assert error.value.message == message


def test_sixteen_bit_floats_round_between_ops() -> None:
    graph = parse_graph("""
def main(x: bf16[4]):
    v0: bf16[4] = mul(x, x)
    v1: bf16[()] = sum(v0, axes=(0,), keepdims=False)
    return {"square": v0, "total": v1}
""")
    x = np.array([1.0078125] * 4, ml_dtypes.bfloat16)
    results = interpret(Module({"main": graph}), {"x": x})
    assert results["square"].dtype == ml_dtypes.bfloat16
    assert float(results["square"][0]) == 1.015625
    assert float(results["total"]) == 4.0625


def test_wide_evaluation_reaches_bodies_casts_and_constants() -> None:
    graph = parse_graph("""
def main(x: f32[5], h: f32[()]):
    def body_0(h: f32[()], x: f32[()]):
        v0: f32[()] = exp(x)
        v1: bf16[()] = cast(v0, dtype=bf16)
        v2: f32[()] = cast(v1, dtype=f32)
        v3: f32[()] = add(h, v2)
        return {"h": v3}
    v0 = scan(h, x, body=body_0, carries=1, sequences=1, axis=0, reverse=False)
    return {"y": v0}
""")
    x = np.linspace(-1, 1, 5)
    result = interpret(Module({"main": graph}), {"x": x, "h": np.zeros(())}, wide=True)["y"]
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, np.exp(x).sum(), rtol=1e-15)


def test_observers_see_every_value() -> None:
    seen: list[str] = []
    interpret(MODULE, inputs(), observe=lambda value, _: seen.append(value.op.name))
    assert sorted(seen) == ["broadcast", "cast", "extent", "mul", "reshape", "weight"]
