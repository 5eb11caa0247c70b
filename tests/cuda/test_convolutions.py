"""Convolutions whose extents are symbols, on a device, where a thread has one place, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulation.gpu import EmulatedGPU

import coilc
from coilc.ir import Module, interpret, parse_graph
from coilc.runtime import Model

PROGRAM = """
def main(x: f32[B, 3, H, W], w: f32[10, 3, 3, 3], p: f32[15, 10, 1], *, B: dim[1:], H: dim[1:], W: dim[1:]):
    y: f32[B, 10, (H + 1)//2, (W + 1)//2] = conv(x, w, strides=(2, 2), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)
    flat: f32[B, 10, ((H + 1)//2)*((W + 1)//2)] = reshape(y, dims=(B, 10, ((H + 1)//2)*((W + 1)//2)))
    z: f32[B, 15, ((H + 1)//2)*((W + 1)//2)] = conv(flat, p, strides=(1,), padding=((0, 0),), dilation=(1,), groups=1)
    return {"y": y, "z": z}
"""


@pytest.fixture(scope="module")
def model(gpu: EmulatedGPU | None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("convolutions") / "convolutions.coil"
    return coilc.load(coilc.compile(Module({"main": parse_graph(PROGRAM)}), path, "cuda:sm_90a"))


@pytest.mark.parametrize("extents", [(1, 1, 1), (2, 1, 6), (3, 9, 4), (1, 8, 33)])
def test_convolutions_compute_the_reference(
    model: Model, rng: np.random.Generator, extents: tuple[int, int, int]
) -> None:
    batch, height, width = extents
    sizes = {"x": (batch, 3, height, width), "w": (10, 3, 3, 3), "p": (15, 10, 1)}
    arrays = {name: rng.integers(-9, 9, dims).astype(np.float32) for name, dims in sizes.items()}  # sums are exact
    expected, actual = interpret(Module({"main": parse_graph(PROGRAM)}), arrays), model(**arrays)
    for name, wanted in expected.items():
        np.testing.assert_array_equal(actual[name], wanted, err_msg=name)
