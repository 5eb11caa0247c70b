"""Whole models: exported unmodified, compiled once, and equal to eager PyTorch at every size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from models import zoo

import coilc
from coilc.comparison.metrics import TOLERANCE

# RecurrentGemma keeps its last state in an attribute, which torch.export puts back.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute.*assigned during export")

BUILDERS = {**zoo.MODELS, **zoo.HYBRIDS}


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", [n if n in zoo.MODELS else pytest.param(n, marks=pytest.mark.slow) for n in BUILDERS])
def test_one_artifact_serves_every_size(name: str, tmp_path: Path) -> None:
    case = BUILDERS[name]()
    program = coilc.export(
        case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes, lengths=case.lengths
    )
    model = coilc.load(coilc.compile(program, tmp_path / "model.coil"), threads=2)
    for size in case.sizes:
        inputs = case.make_inputs(**size)
        found = model(**{key: tensor.numpy() for key, tensor in inputs.items()})
        for output, expected in case.eager(inputs).items():
            assert relative_error(found[output], expected.numpy()) <= TOLERANCE["float32"], f"{output} at {size}"
