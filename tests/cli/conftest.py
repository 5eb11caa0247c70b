"""Running the command line inside the test's process, and a few small models for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coilc.cli import main

MODELS = """
import torch


class Scale(torch.nn.Module):
    def __init__(self, factor=3.0):
        super().__init__()
        self.linear = torch.nn.Linear(4, 6)
        torch.nn.init.constant_(self.linear.weight, 0.5)
        self.factor = factor

    def forward(self, x):
        hidden = torch.tanh(self.linear(x))
        return {"logits": hidden * self.factor}


def scale():
    torch.manual_seed(0)
    return Scale(), (torch.randn(2, 4),), {}, {"x": {0: "B:1..64"}}


def other():
    return Scale(2.0), (torch.randn(2, 4),), {}, {"x": {0: "B:1..64"}}


def fixed():
    return Scale(), (torch.randn(2, 4),)


def loop():
    class Loop(torch.nn.Module):
        def forward(self, x):
            h = torch.zeros_like(x[:, 0])
            for t in range(x.shape[1]):
                h = torch.tanh(h + x[:, t])
            return h

    return Loop(), (torch.randn(2, 5, 4),), {}, {"x": {0: "B", 1: "L"}}


def branches():
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    return Branches(), (torch.randn(2, 4),)


def wrong():
    return Scale()


def raises():
    raise RuntimeError("no weights here")
"""

TEXT = """def main(x: f32[L, 4], *, L: dim[1:64]):
    v0: f32[L, 4] = relu(x)  # model.py:7 in block.act
    v1: f32[L, 4] = add(v0, v0)  # model.py:8 in block
    return {"y": v1}
"""


@dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Done]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("run", path)`` runs ``coilc run path``."""

    def run(*args: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["coilc", *map(str, args)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of functions that return models."""
    path = tmp_path_factory.mktemp("models") / "zoo.py"
    path.write_text(MODELS)
    return path


@pytest.fixture(scope="session")
def scale(models: Path) -> Path:
    """An artifact of ``scale``."""
    from coilc import compile, export
    from coilc.cli.sources import load_example

    example = load_example(f"{models}:scale")
    program = export(example.module, example.args, dynamic_shapes=example.dynamic_shapes)
    return compile(program, models.with_name("scale.coil"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of IR text."""
    path = tmp_path / "graph.py"
    path.write_text(TEXT)
    return path
