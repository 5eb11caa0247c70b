"""Unmodified models of nine kinds: one import each, right at every batch and length."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from models import zoo

from coilc.comparison.metrics import difference
from coilc.frontend import capture
from coilc.frontend.capture import HOOKS
from coilc.frontend.torch_export import export, import_program
from coilc.ir import Module, interpret, verify
from coilc.passes import run_pipeline

TOLERANCE = 1e-5


def relative_error(actual: np.ndarray, expected: torch.Tensor) -> float:
    return difference(actual, expected.numpy()).relative_error


@pytest.fixture(scope="module", params=list(zoo.MODELS))
def imported(request: pytest.FixtureRequest) -> tuple[Any, Module]:
    case = zoo.MODELS[request.param]()
    return case, export(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)


@pytest.mark.parametrize("wide", [False, True], ids=["as declared", "in float64"])
def test_every_size_agrees_with_eager(imported: tuple[Any, Module], wide: bool) -> None:
    case, module = imported
    verify.any_graph(module)
    error, place = case.worst(lambda **inputs: interpret(module, inputs, wide=wide))
    assert error <= TOLERANCE, place


def test_symbols_carry_the_names_and_start_at_one(imported: tuple[Any, Module]) -> None:
    case, module = imported
    named = {name for axes in case.dynamic_shapes.values() for name in axes.values()}
    ranges = module.entries["main"].ranges
    assert set(ranges) == named
    assert all(low == 1 for low, _ in ranges.values())


def test_every_computation_knows_its_line(imported: tuple[Any, Module]) -> None:
    _, module = imported
    silent = {"input", "weight", "constant"}
    nodes = [node for node in module.entries["main"].nodes if node.op.name not in silent]
    lost = [node for node in nodes if node.location is None or not node.location.file.startswith("transformers/")]
    assert not lost
    sources = [node.location.source for node in nodes if node.location.source]
    assert len(sources) == len(set(sources)) > len(nodes) // 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mamba", {"selective_scan": 2, "causal_conv1d": 2}),
        ("falcon_mamba", {"selective_scan": 2, "causal_conv1d": 2}),
        ("mamba2", {"gated_linear_attention": 2, "causal_conv1d": 2}),
        ("llama", {"attention": 2}),
        ("bert", {"attention": 2, "layer_norm": 5, "gelu": 2}),
        ("convnext", {"conv": 4}),
    ],
)
def test_composites_arrive_whole(name: str, expected: dict[str, int]) -> None:
    case = zoo.MODELS[name]()
    module = export(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)
    ops = [node.op.name for node in module.entries["main"].nodes]
    assert {op: ops.count(op) for op in expected} == expected


@pytest.mark.parametrize("name", ["bert", "convnext", "vit", "t5_encoder"])
def test_programs_in_core_aten_import_as_they_are(name: str) -> None:
    """What somebody else exported and lowered with torch's own decompositions."""
    case = zoo.MODELS[name]()
    inputs = case.make_inputs(**case.sizes[1])
    with torch.no_grad():
        module = import_program(torch.export.export(case.module, (), inputs).run_decompositions())
    found = interpret(module, {key: tensor.numpy() for key, tensor in inputs.items()})
    for key, tensor in case.eager(inputs).items():
        assert relative_error(found[key], tensor) <= TOLERANCE


RECURRENCES = {"selective_scan", "gated_linear_attention", "gated_delta_rule"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, build in zoo.HYBRIDS.items() if name != "recurrent_gemma"]
)  # a Python loop
def test_hooks_reach_hybrid_models(name: str) -> None:
    case = zoo.HYBRIDS[name]()
    module = export(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)
    ops = {node.op.name for node in module.entries["main"].nodes}
    assert {"causal_conv1d", "attention"} <= ops
    assert name == "lfm2" or ops & RECURRENCES
    error, place = case.worst(lambda **inputs: interpret(module, inputs))
    assert error <= TOLERANCE, place


def test_rwkv_without_its_hook_is_found_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own loop over time, unrolled at one length."""
    monkeypatch.setattr(capture, "HOOKS", {k: v for k, v in HOOKS.items() if k != "rwkv_linear_attention"})
    case = zoo.MODELS["rwkv"]()
    inputs = case.make_inputs(B=2, L=6)
    module = run_pipeline(export(case.module, (), inputs), stop_after="recognise")
    names = [node.op.name for node in module.entries["main"].nodes]
    assert (names.count("wkv"), names.count("scan"), names.count("exp")) == (2, 0, 0)
    found = interpret(module, {key: tensor.numpy() for key, tensor in inputs.items()})[case.output]
    assert relative_error(found, case.eager(inputs)[case.output]) <= TOLERANCE


def test_causal_models_need_no_mask() -> None:
    """transformers builds a mask tensor while exporting; the hook leaves the causal flag."""
    case = zoo.MODELS["llama"]()
    module = export(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)
    attention = next(node for node in module.entries["main"].nodes if node.op.name == "attention")
    assert attention.attrs["causal"] is True
    assert len(attention.inputs) == 3


def test_tied_weights_are_one_weight() -> None:
    case = zoo.MODELS["mamba"]()
    module = export(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)
    assert "backbone.embeddings.weight" in module.weights
    assert "lm_head.weight" not in module.weights
    assert np.shares_memory(module.weights["backbone.embeddings.weight"], case.module.lm_head.weight.detach().numpy())


def test_positions_bound_the_length() -> None:
    case = zoo.MODELS["gpt2"]()
    module = export(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)
    assert module.entries["main"].ranges["L"] == (1, 64)


def test_the_model_is_left_as_it_was() -> None:
    case = zoo.MODELS["mamba"]()
    home = sys.modules[type(case.module).__module__]
    before = {name: vars(home)[name] for name in HOOKS if name in vars(home)}
    case.module.train()
    export(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)
    assert before
    assert {name: vars(home)[name] for name in before} == before
    assert case.module.training
    assert all(part.training for part in case.module.modules())
    assert case.module.config.use_cache is True


def test_a_program_with_captured_scans_runs_in_torch() -> None:
    from coilc.frontend.torch_export import trace

    case = zoo.MODELS["mamba2"]()
    program = trace(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)
    inputs = case.make_inputs(B=2, L=9)
    with torch.no_grad():
        found = program.module()(**inputs)["logits"]
    assert relative_error(found.numpy(), case.eager(inputs)["logits"]) <= TOLERANCE
