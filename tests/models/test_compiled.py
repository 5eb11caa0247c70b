"""Whole models: exported unmodified, compiled once, and equal to eager PyTorch at every size."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from models import zoo

import coilc
from coilc.comparison.metrics import TOLERANCE

# RecurrentGemma keeps its last state in an attribute, which torch.export puts back.
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute.*assigned during export")

# Those that run piece by piece are compiled once, for ``test_sessions``.
BUILDERS = {name: build for name, build in (zoo.MODELS | zoo.HYBRIDS).items() if name not in zoo.DECODERS}


@pytest.mark.parametrize("name", BUILDERS)
def test_one_artifact_serves_every_size(name: str, tmp_path: Path) -> None:
    case = BUILDERS[name]()
    program = coilc.export(
        case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes, lengths=case.lengths
    )
    error, place = case.worst(coilc.load(coilc.compile(program, tmp_path / "model.coil"), threads=2))
    assert error <= TOLERANCE["float32"], place
