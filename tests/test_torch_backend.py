"""``torch.compile(model, backend="coilc")``: right results, dynamic shapes, changed weights, no silent gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from models import zoo

import coilc.torch_backend
from coilc import CoilError
from coilc.comparison import difference


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("COILC_CACHE", str(tmp_path / "cache"))
    torch.compiler.reset()
    yield tmp_path / "cache"
    torch.compiler.reset()


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.SiLU(), torch.nn.LayerNorm(16), torch.nn.Linear(16, 4))


def test_it_is_registered_by_name() -> None:
    assert "coilc" in torch.compiler.list_backends()


def test_results_are_those_of_eager(model: torch.nn.Module, cache: Path) -> None:
    compiled = torch.compile(model, backend="coilc")
    x = torch.randn(3, 8)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    assert len(list(cache.glob("*.coil"))) == 1


def test_a_second_shape_makes_the_dim_dynamic(model: torch.nn.Module, cache: Path) -> None:
    compiled = torch.compile(model, backend="coilc")
    with torch.no_grad():
        for batch in (3, 5, 7, 11):
            x = torch.randn(batch, 8)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    assert len(list(cache.glob("*.coil"))) == 2


def test_changed_weights_are_seen(model: torch.nn.Module) -> None:
    compiled = torch.compile(model, backend="coilc")
    x = torch.randn(3, 8)
    with torch.no_grad():
        compiled(x)
        model[0].weight.mul_(2)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


def test_an_artifact_is_found_again(model: torch.nn.Module, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 8)
    expected = torch.compile(model, backend="coilc")(x)
    torch.compiler.reset()
    monkeypatch.setattr(coilc.torch_backend, "compile", lambda *_: pytest.fail("compiled again"))
    assert torch.equal(torch.compile(model, backend="coilc")(x), expected)


def test_a_backward_pass_says_that_there_is_none(model: torch.nn.Module) -> None:
    compiled = torch.compile(model, backend="coilc")
    with pytest.raises(CoilError, match="coilc compiles inference only"):
        compiled(torch.randn(3, 8)).sum().backward()


class Loop(torch.nn.Module):
    """Python's loop fixes the length, which dynamo takes for dynamic at the second shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, states = torch.zeros_like(x[0]), []
        for step in x:
            state = 0.5 * state + step
            states.append(state)
        return torch.stack(states)


def test_a_loop_is_compiled_for_each_length() -> None:
    compiled = torch.compile(Loop(), backend="coilc")
    with torch.no_grad():
        for length in (3, 5, 4, 5):
            x = torch.randn(length, 2, 6)
            torch.testing.assert_close(compiled(x), Loop()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.MODELS)
def test_transformers_models(name: str) -> None:
    case = zoo.MODELS[name]()
    inputs = case.make_inputs(**case.sizes[min(1, len(case.sizes) - 1)])
    expected = case.eager(inputs)[case.output]  # first: RWKV changes its weights when it runs for the first time
    with torch.no_grad():
        found = torch.compile(case.module, backend="coilc")(**inputs)[case.output]
    assert difference(found.numpy(), expected.numpy()).relative_error < 1e-5


class Counter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x * self.calls


def test_an_update_of_the_module_is_refused() -> None:
    with pytest.raises(Exception, match="cannot keep what a graph writes to its module"):
        torch.compile(Counter(), backend="coilc")(torch.ones(3))
