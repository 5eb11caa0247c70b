"""Whole models in half precision: as near to fp32 as PyTorch is in that type, at once and step by step; states in f32."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from models import zoo

import coilc
from coilc.runtime import Model

LENGTH, CONTEXT = 24, 32
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CASES = [("mamba", "bf16"), ("mamba2", "bf16"), ("jamba", "bf16"), ("llama", "bf16"), ("mamba", "fp16")]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def eager(module: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module(input_ids=torch.from_numpy(ids), use_cache=False).logits.float().numpy()


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """The artifact, tokens, PyTorch's logits in fp32, and the error that is allowed: 1.5 times that of PyTorch in half."""
    name, precision = request.param
    case = {**zoo.MODELS, **zoo.HYBRIDS}[name]()
    program = coilc.export(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)
    path = tmp_path_factory.mktemp(name) / "model.coil"
    coilc.compile(program, path, entries=("main", "prefill", "step"), context=CONTEXT, precision=precision)
    ids = case.make_inputs(B=2, L=LENGTH)["input_ids"].numpy()
    expected = eager(case.module, ids)
    half = eager(copy.deepcopy(case.module).to(TYPES[precision]), ids)
    return coilc.load(path, threads=1), ids, expected, 1.5 * relative_error(half, expected)


def test_it_is_as_near_as_pytorch(compiled: tuple) -> None:
    model, ids, expected, allowed = compiled
    assert relative_error(model(input_ids=ids)["logits"], expected) <= allowed


def test_step_by_step_is_as_near(compiled: tuple) -> None:
    model, ids, expected, allowed = compiled
    session = model.session()
    parts = [session.prefill(input_ids=ids[:, :5])["logits"]]
    parts += [session.step(input_ids=ids[:, t : t + 1])["logits"] for t in range(5, LENGTH)]
    assert relative_error(np.concatenate(parts, 1), expected) <= allowed
    assert relative_error(np.concatenate(parts, 1), model(input_ids=ids)["logits"]) <= allowed


def test_what_is_stored_is_narrow_and_what_is_remembered_is_not(compiled: tuple) -> None:
    model: Model = compiled[0]
    manifest = model.describe()
    assert {state["dtype"] for state in manifest["states"]} <= {"f32", "i64"}
    assert manifest["options"]["precision"] in TYPES
    stored = [result["dtype"] for call in manifest["entries"]["prefill"]["calls"] for result in call["results"]]
    assert stored.count("f16") + stored.count("bf16") > stored.count("f32")
