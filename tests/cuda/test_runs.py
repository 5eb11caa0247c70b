"""Runs of a model for a GPU: the same numbers as eager, launched once, recorded, repeated."""

from __future__ import annotations

import pytest
import torch
from emulation.gpu import GRAPHS, LAUNCHES, EmulatedGPU

from coilc.runtime import Model

from .block import Block
from .conftest import emulated

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def test_it_computes_what_eager_computes(model: Model, block: Block) -> None:
    for length in (1, 5, 5, 5, 17, 5):
        x = torch.randn(3, length, 8)
        torch.testing.assert_close(model(x=x)["out"], block(x), **CLOSE)


@emulated
@pytest.mark.parametrize("eager", ["0", "1"])
def test_the_second_run_is_recorded_and_repeated_from_then_on(
    model: Model, block: Block, gpu: EmulatedGPU, eager: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_GPU_EAGER", eager)
    seen = []
    for _ in range(4):
        before = gpu.count(LAUNCHES), gpu.count(GRAPHS)
        x = torch.randn(2, 7, 8)
        torch.testing.assert_close(model(x=x)["out"], block(x), **CLOSE)
        seen.append((gpu.count(LAUNCHES) - before[0], gpu.count(GRAPHS) - before[1]))
    kernels = seen[0][0]
    assert kernels > 1
    assert seen == [(kernels, 0), (kernels, 1), (0, 1), (0, 1)]
