"""What can go wrong with a GPU is one sentence each, and what goes on, goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from emulation.gpu import BYTES, EmulatedGPU

import coilc
from coilc.runtime import ArtifactError, InputError, Model, RunError

from .block import compile_block
from .conftest import emulated

pytestmark = emulated
X = np.linspace(-1, 1, 80, dtype=np.float32).reshape(2, 5, 8)

OPENING = {
    "no device": (
        {"EMULATED_GPU_COUNT": "0"},
        "this model runs on an NVIDIA GPU and the driver finds none: see nvidia-smi",
    ),
    "an old driver": (
        {"EMULATED_GPU_DRIVER": "12040"},
        "this model needs a driver for CUDA 13.0 or newer, the one here is for 12.4: update it, or compile",
    ),
    "another architecture": (
        {"EMULATED_GPU_CAPABILITY": "80"},
        "compiled for compute capability 9.0 alone, device 0 (Emulated GPU) has 8.0: choose another device, or compile",
    ),
    "a newer architecture": (
        {"EMULATED_GPU_CAPABILITY": "91"},
        "capability 9.0 alone, device 0 (Emulated GPU) has 9.1",
    ),
    "other code": (
        {"EMULATED_GPU_LOAD": "209"},
        "loading the kernels failed on device 0 (Emulated GPU): no kernel image is available for execution on the device",
    ),
    "no memory": (
        {"EMULATED_GPU_MEMORY": "100"},
        "out of memory on device 0 (Emulated GPU): the weights needs ",
    ),
    "a copy that fails": (
        {"EMULATED_GPU_COPY": "1"},
        "copying the weights failed on device 0 (Emulated GPU): invalid argument",
    ),
}


@pytest.mark.parametrize("what", OPENING)
def test_a_model_that_cannot_be_opened_says_why(
    path: Path, gpu: EmulatedGPU, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, said = OPENING[what]
    before = gpu.count(BYTES)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArtifactError) as caught:
        coilc.load(path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert gpu.count(BYTES) == before
    monkeypatch.undo()
    assert np.isfinite(coilc.load(path)(x=X)["out"]).all()


def test_a_device_that_does_not_exist(path: Path) -> None:
    with pytest.raises(ArtifactError, match="device 7 does not exist, the driver finds 1"):
        coilc.load(path, device=7)


def test_a_device_for_a_model_of_the_cpu(tmp_path: Path) -> None:
    compiled = compile_block(tmp_path / "cpu.coil", "native")
    with pytest.raises(InputError, match="runs on the CPU, so there is no device 1 for it"):
        coilc.load(compiled, device=1)


def test_no_driver(path: Path) -> None:
    """In a process of its own: this one has the emulated driver loaded."""
    script = f"from coilc.runtime import load\ntry: load({str(path)!r})\nexcept Exception as error: print(error)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ}, timeout=120
    )
    assert done.stdout.startswith(
        "this model runs on an NVIDIA GPU and its driver is not installed here (libcuda.so.1:"
    )
    assert done.stdout.endswith("install it, or compile the model for a CPU\n")


def test_dims_without_memory_leave_the_session_as_it_was(
    model: Model, gpu: EmulatedGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model(x=X)["out"]
    bound = dict(model._idle[0].bound)
    monkeypatch.setenv("EMULATED_GPU_MEMORY", str(gpu.count(BYTES) + 1000))
    with pytest.raises(
        RunError, match=r"out of memory on device 0 \(Emulated GPU\): the .* needs \d+ bytes, \d+ of \d+ are"
    ):
        model(x=np.zeros((64, 200, 8), np.float32))
    for _ in range(3):
        np.testing.assert_array_equal(model(x=X)["out"], expected)
    assert model._idle[0].bound == bound


def test_states_without_memory(model: Model, gpu: EmulatedGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.session()
    expected = model.session().prefill(x=X)["out"]
    monkeypatch.setenv("EMULATED_GPU_MEMORY", str(gpu.count(BYTES)))
    with pytest.raises(RunError, match=r"out of memory on device 0 \(Emulated GPU\): states needs"):
        session.prefill(x=X)
    monkeypatch.undo()
    np.testing.assert_array_equal(session.prefill(x=X)["out"], expected)


@pytest.mark.parametrize("eager", ["0", "1"])
def test_after_a_fault_everything_else_goes_on(
    path: Path, gpu: EmulatedGPU, tmp_path: Path, eager: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMULATED_GPU_EAGER", eager)
    cpu = coilc.load(compile_block(tmp_path / "cpu.coil", "native"), threads=1)
    model = coilc.load(path)
    expected, session = model(x=X)["out"], model.session()
    session.prefill(x=X)
    monkeypatch.setenv("EMULATED_GPU_FAULT", "kernel")
    lost = (
        r"a kernel failed on device 0 \(Emulated GPU\) with CUDA_ERROR_ILLEGAL_ADDRESS and its context is lost to this "
        "process: close every model that uses it, of other libraries too, and open them again, or start the process anew"
    )
    with pytest.raises(RunError, match=lost):
        model(x=X)
    monkeypatch.delenv("EMULATED_GPU_FAULT")
    for call in (partial(model, x=X), partial(session.step, x=X[:, :1]), session.reset, session.fork):
        with pytest.raises(RunError, match=lost):
            call()
    np.testing.assert_allclose(cpu(x=X)["out"], expected, rtol=1e-4, atol=1e-5)
    del model, session, call
    np.testing.assert_array_equal(coilc.load(path)(x=X)["out"], expected)


def test_a_fork_is_told_what_to_do(model: Model) -> None:
    model(x=X)
    child = os.fork()
    if not child:
        try:
            model(x=X)
        except RunError as error:
            os._exit(42 if "the process was forked after the model was opened" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert np.isfinite(model(x=X)["out"]).all()
