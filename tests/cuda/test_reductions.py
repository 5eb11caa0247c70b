"""Reductions whose work threads share, as they run on a device, against the reference."""

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
