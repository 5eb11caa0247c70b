"""Models for a GPU: an emulated one, unless this machine has one. Then, with the model compiled elsewhere and carried here,

    COILC_CARRIED_BLOCK=block.coil PYTHONPATH=src pytest -q --confcutdir=tests/cuda tests/cuda/test_{runs,states,torch}.py

tests the runtime on the real driver; it takes PyTorch, and no compiler.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from emulation.gpu import NVCC, EmulatedGPU, build

import coilc
from coilc.runtime import Model

from .block import TARGET, Block, compile_block, make_block

REAL = shutil.which("nvidia-smi") is not None
CARRIED = os.environ.get("COILC_CARRIED_BLOCK", "")
emulated = pytest.mark.skipif(REAL, reason="asks the emulated GPU what it did, or makes it fail")
compiles = pytest.mark.skipif(bool(CARRIED), reason="compiles, which is done elsewhere")
real = pytest.mark.skipif(not REAL, reason="no NVIDIA GPU here")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    return None if REAL else build(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="package")  # tests of other folders want the real compiler
def gpu(library: Path | None) -> Iterator[EmulatedGPU | None]:
    if library is None:
        yield None
        return
    before = dict(os.environ)
    os.environ["COILC_NVCC"] = NVCC
    yield EmulatedGPU(library)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def block() -> Block:
    return make_block()


@pytest.fixture(scope="package")
def path(gpu: EmulatedGPU | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(CARRIED) if CARRIED else compile_block(tmp_path_factory.mktemp("cuda") / "block.coil", TARGET)


@pytest.fixture
def model(path: Path) -> Model:
    return coilc.load(path)


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 20, 8), dtype=np.float32)


@pytest.fixture
def expected(block: Block, x: np.ndarray) -> np.ndarray:
    import torch

    return np.asarray(block(torch.from_numpy(x)).detach())
