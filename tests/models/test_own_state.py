"""Models that bring their own cache: updated buffers, declared pairs of input and output, transformers' static cache."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import coilc

WIDTH = 6


class Filter(nn.Module):
    """A recurrence over x [B, L, D] that goes on where the last call ended; the first starts from the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("window", torch.zeros(2, 1, WIDTH))
        self.register_buffer("mean", torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        shifted = torch.cat([self.window, x], 1)
        self.window.copy_(x[:, -1:])
        y = torch.cumsum(torch.tanh(self.inner(shifted[:, :-1])), 1) + self.mean[:, None] + x
        self.mean.copy_(y[:, -1])
        return y


class Cell(nn.Module):
    """A step that takes its state and returns the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(WIDTH, 5)

    def forward(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        after = self.cell(x, h)
        return {"y": after.sin(), "h_next": after}


def test_updated_buffers_are_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Filter().eval(), torch.randn(2, 12, WIDTH)
    program = coilc.export(module, (x,), dynamic_shapes={"x": {1: "L"}})
    model = coilc.load(coilc.compile(program, tmp_path / "m.coil", entries=("prefill", "step")), threads=1)
    assert {state["name"] for state in model.describe()["states"]} == {"window", "mean", "started"}
    session, eager = model.session(), copy.deepcopy(module)
    with torch.no_grad():
        for start, stop in ((0, 3), (3, 4), (4, 11), (11, 12)):
            run = session.step if stop - start == 1 else session.prefill
            found = run(x=x[:, start:stop].numpy())["out"]
            np.testing.assert_allclose(found, eager(x[:, start:stop]).numpy(), rtol=1e-5, atol=1e-5)
    session.reset()
    np.testing.assert_allclose(session.prefill(x=x.numpy())["out"], module(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_declared_pairs_are_states(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Cell().eval(), torch.randn(7, 3, WIDTH)
    shapes = {"x": {0: "B"}, "h": {0: "B"}}
    example = (x[0], torch.zeros(3, 5))
    program = coilc.export(module, example, dynamic_shapes=shapes, states={"h": "h_next"})
    model = coilc.load(coilc.compile(program, tmp_path / "m.coil", entries=("main", "step")), threads=1)
    session, h = model.session(history=2), torch.zeros(3, 5)
    with torch.no_grad():
        for row in x:
            result = module(row, h)
            h = result["h_next"]
            np.testing.assert_allclose(session.step(x=row.numpy())["y"], result["y"].numpy(), rtol=1e-5, atol=1e-6)
        direct = model(x=x[0].numpy(), h=example[1].numpy())  # whoever likes to keep the state still can
        np.testing.assert_allclose(direct["h_next"], module(*example)["h_next"].numpy(), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    module, shapes = Cell().eval(), {"x": {0: "B"}, "h": {0: "B"}}
    args = (torch.zeros(2, WIDTH), torch.zeros(2, 5))
    for states, sentence in (
        ({"hh": "h_next"}, "there is no input 'hh' to be a state; it has x, h"),
        ({"h": "next"}, "there is no output 'next' to be a state; it has y, h_next"),
        ({"x": "y"}, r"input 'x' is f32\[B, 6\] and the output 'y' f32\[B, 5\]: a state keeps its size"),
    ):
        with pytest.raises(coilc.CoilError, match=sentence):
            coilc.export(module, args, dynamic_shapes=shapes, states=states)
    program = coilc.export(module, args, dynamic_shapes=shapes, states={"h": "h_next"})
    with pytest.raises(coilc.CoilError, match="or ask for 'step' alone, which is what 'main' does"):
        coilc.compile(program, tmp_path / "m.coil", entries=("prefill", "step"))


def test_the_static_cache_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from models import zoo
    from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

    case, length = zoo.llama(), 12
    config = case.module.generation_config
    config.use_cache, config.cache_implementation = True, "static"
    config.cache_config = {"batch_size": 1, "max_cache_len": 16, "device": "cpu"}
    module = TorchExportableModuleWithStaticCache(case.module)
    token, place = torch.ones(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    program = coilc.export(module, (), {"input_ids": token, "cache_position": place})
    model = coilc.load(coilc.compile(program, tmp_path / "m.coil", entries=("step",)), threads=1)
    assert {"key_cache_0", "value_cache_1"} <= {state["name"] for state in model.describe()["states"]}
    ids, session = case.make_inputs(B=1, L=length)["input_ids"], model.session()
    steps = [session.step(input_ids=ids[:, t : t + 1], cache_position=torch.tensor([t]))["out"] for t in range(length)]
    torch.testing.assert_close(torch.cat(steps, 1), case.eager({"input_ids": ids})["logits"], rtol=1e-4, atol=1e-5)
