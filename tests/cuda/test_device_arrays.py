"""Inputs that lie on the GPU already, in any mix with others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from emulation.gpu import EmulatedGPU

import coilc
from coilc.runtime import InputError, Model, RunError

from .arrays import Context, GPUArray
from .block import Block
from .conftest import emulated

pytestmark = emulated
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("offset", [0, 4, 16])
def test_an_array_is_used_where_it_is(model: Model, block: Block, gpu: EmulatedGPU, x: np.ndarray, offset: int) -> None:
    """Kernels read vectors of 16 bytes, so what is not aligned to them goes through a copy on the device."""
    expected = block(torch.from_numpy(x)).detach().numpy()
    with Context(gpu):
        array = GPUArray(gpu, x, offset)
        for _ in range(4):
            np.testing.assert_allclose(model(x=array)["out"], expected, **CLOSE)
        assert array.streams == [1] * 4
    np.testing.assert_allclose(model(x=x)["out"], expected, **CLOSE)


def test_a_session_takes_them_too(model: Model, block: Block, gpu: EmulatedGPU, x: np.ndarray) -> None:
    expected = block(torch.from_numpy(x)).detach().numpy()
    session = model.session()
    with Context(gpu):
        whole = session.prefill(x=GPUArray(gpu, np.ascontiguousarray(x[:, :19])))["out"]
        last = session.step(x=x[:, 19:])["out"]
    np.testing.assert_allclose(np.concatenate([whole, last], 1), expected, **CLOSE)


def test_what_does_not_fit_is_a_sentence(model: Model, gpu: EmulatedGPU, x: np.ndarray) -> None:
    with Context(gpu):
        with pytest.raises(InputError, match=r"input 'x' is not dense in memory: give a contiguous copy of it"):
            model(x=GPUArray(gpu, np.asfortranarray(x)))
        with pytest.raises(InputError, match=r"input 'x' has elements of type f64, the model takes f32\[B, L, 8\]"):
            model(x=GPUArray(gpu, x.astype(np.float64)))


def test_another_device_is_named(
    model: Model, gpu: EmulatedGPU, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_GPU_COUNT", "2")
    said = "input 'x' is on device 1, the model on device 0: copy it there, or open the model here"
    with Context(gpu, 1), pytest.raises(RunError, match=said):
        model(x=GPUArray(gpu, x, device=1))


def test_a_model_opens_on_the_device_that_is_asked_for(
    path: Path, block: Block, gpu: EmulatedGPU, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_GPU_COUNT", "2")
    model = coilc.load(path, device=1)
    expected = block(torch.from_numpy(x)).detach().numpy()
    with Context(gpu, 1):
        np.testing.assert_allclose(model(x=GPUArray(gpu, x, device=1))["out"], expected, **CLOSE)
