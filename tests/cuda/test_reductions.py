"""Reductions whose work threads share, and what is computed from them, as they run on a device, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulation.gpu import EmulatedGPU

import coilc
from coilc.ir import Module, interpret, parse_graph
from coilc.runtime import Model

PROGRAM = """
def main(x: f32[L, 5, 40], y: f32[3, 300], z: f32[3, L], *, L: dim[1:9999]):
    down: f32[40] = sum(x, axes=(0, 1), keepdims=False)
    turned: f32[5, L, 40] = transpose(x, perm=(1, 0, 2))
    warp: f32[5, L] = max(turned, axes=(2,), keepdims=False)
    first: i64[3] = argmax(y, axis=1, keepdims=False)
    long: f32[3] = min(z, axes=(1,), keepdims=False)
    return {"down": down, "warp": warp, "first": first, "long": long}
"""

# What rows are computed from is read at their own places, and x and m at others too.
ROWS = """
def main(x: f32[B, {n}], r: f32[B, {n}], w: f32[{n}], *, B: dim[1:]):
    s: f32[B, {n}] = add(x, r)
    q: f32[B, {n}] = mul(s, s)
    t: f32[B, 1] = sum(q, axes=(1,), keepdims=True)
    u: f32[B, 1] = rsqrt(t)
    v: f32[B, {n}] = broadcast(u, dims=(B, {n}))
    m: f32[B, {n}] = mul(s, v)
    z: f32[B, {n}] = broadcast(w, dims=(B, {n}))
    y: f32[B, {n}] = mul(m, z)
    f: f32[B, {n}] = flip(m, axes=(1,))
    h: f32[B, {n}] = add(f, x)
    return {{"s": s, "y": y, "h": h}}
"""


@pytest.fixture(scope="module")
def model(gpu: EmulatedGPU | None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("reductions") / "reductions.coil"
    return coilc.load(coilc.compile(Module({"main": parse_graph(PROGRAM)}), path, "cuda:sm_90a"))


@pytest.mark.parametrize("length", [1, 37, 700])
def test_reductions_compute_the_reference(model: Model, rng: np.random.Generator, length: int) -> None:
    sizes = {"x": (length, 5, 40), "y": (3, 300), "z": (3, length)}
    arrays = {name: rng.integers(-9, 9, dims).astype(np.float32) for name, dims in sizes.items()}  # sums are exact
    expected, actual = interpret(Module({"main": parse_graph(PROGRAM)}), arrays), model(**arrays)
    for name, wanted in expected.items():
        np.testing.assert_array_equal(actual[name], wanted, err_msg=name)


@pytest.mark.parametrize("length", [1, 5, 40, 512, 701, 4096])
def test_rows_compute_the_reference(
    gpu: EmulatedGPU | None, tmp_path: Path, rng: np.random.Generator, length: int
) -> None:
    module = Module({"main": parse_graph(ROWS.format(n=length))})
    arrays = {name: rng.standard_normal(dims).astype("f") for name, dims in
              {"x": (3, length), "r": (3, length), "w": (length,)}.items()}  # fmt: skip
    expected = interpret(module, arrays, wide=True)
    actual = coilc.load(coilc.compile(module, tmp_path / "rows.coil", "cuda:sm_90a"))(**arrays)
    for name, wanted in expected.items():
        np.testing.assert_allclose(actual[name], wanted, rtol=4e-6, atol=1e-6, err_msg=name)
