"""transformers' Mamba, FalconMamba and Mamba-2: a plain torch.export is the same program as one with capture hooks."""

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


def test_falcon_mamba_unrolled_is_the_captured_one() -> None:
    torch.manual_seed(0)
    config = transformers.FalconMambaConfig(
        vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2, use_cache=False
    )
    falcon = transformers.FalconMambaForCausalLM(config).eval()
    assert_same_program(falcon, 7)


@pytest.mark.parametrize(("length", "chunk"), [(11, 4), (8, 4), (3, 4), (4, 4), (9, 2), (7, 256)], ids=lambda n: f"{n}")
@pytest.mark.parametrize("groups", [1, 2])
def test_chunked_mamba2_is_the_captured_one(length: int, chunk: int, groups: int) -> None:
    assert_same_program(mamba2(chunk, groups), length)


def test_chunked_mamba2_of_any_length() -> None:
    model = mamba2(chunk=4, groups=2)
    auto = torch.export.Dim.AUTO
    shapes = {"input_ids": {0: auto, 1: auto}, "use_cache": None}
    exported = torch.export.export(model, (tokens(11),), {"use_cache": False}, dynamic_shapes=shapes, strict=False)
    module = recognised(import_program(exported))
    names = [node.op.name for node in module.entries["main"].nodes]
    assert names.count("gated_linear_attention") == 2
    assert not set(names) & {"pad", "einsum", "cumsum", "exp", "concat", "iota"}
    for size in (1, 2, 4, 5, 29):
        with torch.no_grad():
            expected = model(tokens(size), use_cache=False).logits.numpy()
        found = interpret(module, {"input_ids": tokens(size).numpy()})["logits"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def mamba2(chunk: int, groups: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.Mamba2Config(
        vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2, num_heads=4, head_dim=8, n_groups=groups,
        chunk_size=chunk, use_cache=False,
    )  # fmt: skip
    return transformers.Mamba2ForCausalLM(config).eval()


def assert_same_program(model: torch.nn.Module, length: int) -> None:
    plain = recognised(unrolled(model, length))
    captured = recognised(export(model, (tokens(length),), {"use_cache": False}))
    assert print_module(plain, locations=False) == print_module(captured, locations=False)
    with torch.no_grad():
        expected = model(tokens(length), use_cache=False).logits.numpy()
    found = interpret(plain, {"input_ids": tokens(length).numpy()})["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


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
