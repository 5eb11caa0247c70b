"""transformers' Mamba, unrolled by plain torch.export, is the same program as the one exported with capture hooks."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from coilc.frontend.torch_export import export, import_program
from coilc.ir import Module, interpret, print_module
from coilc.passes import run_pipeline
from coilc.passes.unify_lengths import Length, unify_modules


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.MambaConfig(vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2, use_cache=False)
    return transformers.MambaForCausalLM(config).eval()


def tokens(length: int) -> torch.Tensor:
    return torch.arange(2 * length).reshape(2, length) % 50


def unrolled(model: torch.nn.Module, length: int) -> Module:
    return import_program(torch.export.export(model, (tokens(length),), {"use_cache": False}))


def recognised(module: Module) -> Module:
    return run_pipeline(module, stop_after="recognise")


def test_unrolled_export_is_the_captured_one(model: torch.nn.Module) -> None:
    plain = recognised(unrolled(model, 7))
    captured = recognised(export(model, (tokens(7),), {"use_cache": False}))
    assert print_module(plain, locations=False) == print_module(captured, locations=False)


def test_two_lengths_give_every_length(model: torch.nn.Module) -> None:
    length = Length("L", (1, None), 7, 11)
    module = recognised(unify_modules(unrolled(model, 7), unrolled(model, 11), length))
    names = {node.op.name for node in module.entries["main"].nodes}
    assert "selective_scan" in names
    assert not names & {"scan", "linear_scan", "concat", "exp"}
    for size in (1, 2, 29):
        ids = tokens(size)
        with torch.no_grad():
            expected = model(ids, use_cache=False).logits.numpy()
        found = interpret(module, {"input_ids": ids.numpy()})["logits"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
