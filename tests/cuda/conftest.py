"""Models for a GPU: an emulated one, unless this machine has one (then ``pytest tests/cuda`` tests the real driver)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from emulation.gpu import NVCC, EmulatedGPU, build

import coilc
from coilc.runtime import Model

REAL = shutil.which("nvidia-smi") is not None
emulated = pytest.mark.skipif(REAL, reason="asks the emulated GPU what it did, or makes it fail")


class Block(torch.nn.Module):
    """A running sum and attention over everything: states that are exchanged, a cache that grows, a position."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.enter, self.leave, self.norm = (
            torch.nn.Linear(size, 3 * size),
            torch.nn.Linear(size, size),
            torch.nn.RMSNorm(size),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.enter(self.norm(x))[:, None].chunk(3, -1)
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
        return x + self.leave(seen + torch.cumsum(x, 1))


@pytest.fixture(scope="session")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedGPU | None]:
    if REAL:
        yield None
        return
    library = build(tmp_path_factory.mktemp("emulation"))
    before = dict(os.environ)
    os.environ["COILC_NVCC"] = NVCC
    yield EmulatedGPU(library)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def block() -> Block:
    torch.manual_seed(0)
    return Block().eval()


def compile_block(block: Block, path: Path, target: str) -> Path:
    x = torch.randn(2, 5, 8)
    program = coilc.export(block, (x,), dynamic_shapes={"x": {0: "B", 1: "L"}})
    return coilc.compile(program, path, target, entries=("main", "prefill", "step"), context=64)


@pytest.fixture(scope="session")
def path(gpu: EmulatedGPU | None, block: Block, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_block(block, tmp_path_factory.mktemp("cuda") / "block.coil", "cuda:sm_90a")


@pytest.fixture
def model(path: Path) -> Model:
    return coilc.load(path)
