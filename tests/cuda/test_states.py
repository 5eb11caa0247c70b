"""Sessions whose states stay on the device: everything that they can do on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from emulation.gpu import GRAPHS, LAUNCHES, EmulatedGPU

import coilc
from coilc.runtime import Model, RunError

from .conftest import compiles, emulated

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=["0", "1"], ids=["late", "at once"])
def when(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the emulated GPU works when it is waited for, or when it is told to."""
    monkeypatch.setenv("EMULATED_GPU_EAGER", request.param)
    return str(request.param)


class Sums(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 1)


@pytest.mark.usefixtures("when")
def test_pieces_are_the_whole(model: Model, x: np.ndarray, expected: np.ndarray) -> None:
    session = model.session()
    found = [session.prefill(x=x[:, :7])["out"], session.prefill(x=x[:, 7:9])["out"]]
    found += [session.step(x=x[:, t : t + 1])["out"] for t in range(9, 20)]
    np.testing.assert_allclose(np.concatenate(found, 1), expected, **CLOSE)


@emulated
@pytest.mark.usefixtures("when")
def test_steps_are_repeated(model: Model, gpu: EmulatedGPU, x: np.ndarray, expected: np.ndarray) -> None:
    """Two slots of the ring take turns, so there are two recordings."""
    session = model.session()
    for t in range(20):
        launches, graphs = gpu.count(LAUNCHES), gpu.count(GRAPHS)
        np.testing.assert_allclose(session.step(x=x[:, t : t + 1])["out"], expected[:, t : t + 1], **CLOSE)
        if t >= 4:
            assert (gpu.count(LAUNCHES), gpu.count(GRAPHS)) == (launches, graphs + 1)


@pytest.mark.usefixtures("when")
def test_rewind_fork_and_reset(model: Model, x: np.ndarray, expected: np.ndarray) -> None:
    session = model.session(history=3)
    for t in range(6):
        session.step(x=x[:, t : t + 1])
    other = session.fork()
    session.rewind(2)
    np.testing.assert_allclose(session.prefill(x=x[:, 4:8])["out"], expected[:, 4:8], **CLOSE)
    np.testing.assert_allclose(other.step(x=x[:, 6:7])["out"], expected[:, 6:7], **CLOSE)
    other.reset()
    np.testing.assert_allclose(other.prefill(x=x)["out"], expected, **CLOSE)


def test_a_saved_state_is_continued(model: Model, x: np.ndarray, expected: np.ndarray, tmp_path: Path) -> None:
    session, other = model.session(), model.session()
    session.prefill(x=x[:, :7])
    session.save(tmp_path / "a.state")
    other.load(tmp_path / "a.state")
    np.testing.assert_allclose(other.prefill(x=x[:, 7:12])["out"], expected[:, 7:12], **CLOSE)
    other.save(tmp_path / "b.state")
    session.load(tmp_path / "b.state")
    np.testing.assert_allclose(session.step(x=x[:, 12:13])["out"], expected[:, 12:13], **CLOSE)


@compiles
def test_a_model_of_sums_alone_goes_on_on_the_cpu_and_back(gpu: EmulatedGPU, x: np.ndarray, tmp_path: Path) -> None:
    """Its weights lie the same way on both, so both know its states."""
    program = coilc.export(Sums(), (torch.from_numpy(x),), dynamic_shapes={"x": {0: "B", 1: "L"}})
    both = [
        coilc.load(
            coilc.compile(program, tmp_path / f"{i}.coil", target, entries=("prefill", "step")), threads=1
        ).session()
        for i, target in enumerate(("cuda:sm_90a", "native"))
    ]
    for t in range(4):
        found = both[t % 2].step(x=x[:, t : t + 1])["out"]
        np.testing.assert_allclose(found[:, 0], x[:, : t + 1].sum(1), **CLOSE)
        both[t % 2].save(tmp_path / "a.state")
        both[1 - t % 2].load(tmp_path / "a.state")


@pytest.mark.usefixtures("when")
def test_several_sequences_step_as_one(model: Model, x: np.ndarray, expected: np.ndarray) -> None:
    sessions = [model.session(), model.session()]
    for row, session in enumerate(sessions):
        session.prefill(x=x[row : row + 1, :7])
    for t in range(7, 12):
        np.testing.assert_allclose(model.step_all(sessions, x=x[:, t : t + 1])["out"], expected[:, t : t + 1], **CLOSE)
    sessions[0].step(x=x[:1, 12:13])
    with pytest.raises(RunError, match="the sequences differ in 'position', which is one for all rows"):
        model.step_all(sessions, x=x[:, 12:13])
    np.testing.assert_allclose(sessions[1].step(x=x[1:, 12:13])["out"], expected[1:, 12:13], **CLOSE)


def test_a_full_cache_is_refused(model: Model) -> None:
    session = model.session()
    session.prefill(x=np.ones((1, 60, 8), np.float32))
    with pytest.raises(RunError, match="the sequence has 60 elements and would get 5 more, the model has room for 64"):
        session.prefill(x=np.zeros((1, 5, 8), np.float32))
    session.prefill(x=np.zeros((1, 3, 8), np.float32))
    session.step(x=np.zeros((1, 1, 8), np.float32))
    with pytest.raises(RunError, match="the sequence has 64 elements and would get 1 more"):
        session.step(x=np.zeros((1, 1, 8), np.float32))
    session.rewind(1)
    session.step(x=np.zeros((1, 1, 8), np.float32))


def test_a_trace_shows_what_is_on_the_device(model: Model, x: np.ndarray, expected: np.ndarray) -> None:
    seen = []
    result = model.trace({"x": x}, lambda traced: seen.append(traced.array.copy()), "main")
    assert len(seen) > 1
    np.testing.assert_allclose(seen[-1].reshape(expected.shape), expected, **CLOSE)
    np.testing.assert_allclose(result["out"], expected, **CLOSE)
