"""Recurrences with a matrix of state, as they run on a device, against the reference: several warps, blocks and tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulation.gpu import EmulatedGPU

import coilc
from coilc.ir import Module, interpret, parse_graph
from coilc.runtime import Model

PROGRAM = """
def main(q: f32[B, L, 2, 24], k: f32[B, L, 2, 24], v: f32[B, L, 4, 33], decay: f32[B, L, 4], decays: f32[B, L, 4, 24],
         rate: f32[B, L, 4], erase: f32[B, L, 4, 24], write: f32[B, L, 4, 24], bonus: f32[4, 24], h: f32[B, 4, 24, 33],
         *, B: dim[1:9], L: dim[1:999]):
    o0, h0 = gated_linear_attention(q, k, v, decay, optional=(), scale=1.0)
    o1, h1 = gated_linear_attention(q, k, v, decays, bonus, h, optional=("bonus", "h0"), scale=0.5)
    o2, h2 = gated_delta_rule(q, k, v, decays, rate, h, optional=("h0",), scale=1.0)
    o3, h3 = gated_delta_rule(q, k, v, decay, rate, optional=(), scale=0.5)
    o4, h4 = generalized_delta_rule(q, k, v, decay, erase, write, h, optional=("h0",), scale=1.0)
    n4: f32[B, L, 4, 33] = neg(o4)
    return {"o0": o0, "h0": h0, "o1": o1, "h1": h1, "o2": o2, "h2": h2, "o3": o3, "n4": n4, "h4": h4}
"""
RANGES = {
    "k": (-0.3, 0.3),
    "decay": (-1, 0),
    "decays": (-1, 0),
    "rate": (0, 1),
    "erase": (-0.3, 0.3),
    "write": (-0.3, 0.3),
}


@pytest.fixture(scope="module")
def model(gpu: EmulatedGPU | None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("matrices") / "matrices.coil"
    module = Module({"main": parse_graph(PROGRAM)})
    return coilc.load(coilc.compile(module, path, "cuda:sm_90a", algorithm="sequential"))


@pytest.mark.parametrize(("batch", "length"), [(2, 1), (1, 7), (1, 37)])
def test_they_compute_the_reference(model: Model, rng: np.random.Generator, batch: int, length: int) -> None:
    module, arrays = Module({"main": parse_graph(PROGRAM)}), {}
    for value in module.entries["main"].inputs:
        name, sizes = value.node.attrs["name"], {"B": batch, "L": length}
        low, high = RANGES.get(name, (-1, 1))
        arrays[name] = rng.uniform(low, high, [sizes.get(str(dim), dim) for dim in value.dims]).astype(np.float32)
    expected, actual = interpret(module, arrays), model(**arrays)
    for name, wanted in expected.items():
        atol = 4e-6 * np.abs(wanted).max()
        np.testing.assert_allclose(actual[name], wanted, rtol=4e-6, atol=atol, err_msg=name)
