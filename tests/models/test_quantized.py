"""The trained language model with quantised weights: near the original, and step by step the same as at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

import coilc
from coilc.comparison.metrics import TOLERANCE, difference

TRAINED = Path(__file__).parents[2] / "examples" / "models" / "stdlib-mamba"
TEXT = b"import os\n\n\ndef read_file(path):\n    with open(path) as file:\n        return file.read()\n"


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_the_trained_model(form: str, tmp_path: Path) -> None:
    trained = transformers.MambaForCausalLM.from_pretrained(TRAINED).eval()
    ids = np.frombuffer(TEXT, np.uint8)[None].astype(np.int64)
    tokens = torch.from_numpy(ids)
    program = coilc.export(trained, (tokens,), dynamic_shapes={"input_ids": {1: "L"}})
    path = coilc.compile(program, tmp_path / "m.coil", entries=("main", "prefill", "step"), quantize=form)
    with torch.no_grad():
        expected = trained(tokens, use_cache=False).logits.numpy()
    model = coilc.load(path, threads=1)
    whole = model(input_ids=ids)["logits"]
    assert difference(whole, expected).relative_error <= TOLERANCE[form]
    assert model.describe()["weights"]["bytes"] < 0.31 * 4 * trained.num_parameters()
    session = model.session()
    parts = [session.prefill(input_ids=ids[:, :40])["logits"]]
    parts += [session.step(input_ids=ids[:, t : t + 1])["logits"] for t in range(40, ids.shape[1])]
    assert difference(np.concatenate(parts, 1), whole).relative_error <= 0.2 * TOLERANCE[form]
