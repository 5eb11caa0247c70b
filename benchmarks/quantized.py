"""Narrow weights on one thread: ``taskset -c 0 python benchmarks/quantized.py [layers]``.

First accuracy: bits per byte of the trained model of ``examples/models`` on pieces of the text that it was not trained on.
Then time: a step of a Mamba of the 130M shape (24 layers unless said otherwise) at batch 1, whose limit is the memory.
Rounds alternate; times are medians.
"""

from __future__ import annotations

import math
import sys
import sysconfig
import tempfile
from pathlib import Path

from timing import medians

import numpy as np  # isort: skip
import torch
from transformers import MambaForCausalLM
from transformers.utils import logging

import coilc
from coilc.runtime.model import Model

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "train")]

from language_model import read_corpus  # noqa: E402
from quickstart import build_model  # noqa: E402

FORMS = {
    "fp32": {}, "bf16": {"precision": "bf16"}, "fp16": {"precision": "fp16"},
    "int8": {"quantize": "int8"}, "int4": {"quantize": "int4"}, "int8, bf16": {"quantize": "int8", "precision": "bf16"},
}  # fmt: skip
PIECES, LENGTH, BATCH = 128, 512, 8


def compiled(model: MambaForCausalLM, folder: Path, *entries: str) -> dict[str, Model]:
    """The model in every form."""
    ids = torch.arange(1, 17)[None].repeat(2, 1)
    program = coilc.export(model, (ids,), dynamic_shapes={"input_ids": {0: "B", 1: "L"}})
    paths = {name: coilc.compile(program, folder / f"{name}.coil", entries=entries, **f) for name, f in FORMS.items()}
    return {name: coilc.load(path, threads=1) for name, path in paths.items()}


def bits_per_byte(model: Model, pieces: np.ndarray) -> float:
    """Mean cross entropy of the bytes after the first of each piece, [P, L + 1]."""
    nats = 0.0
    for batch in np.split(pieces, range(BATCH, len(pieces), BATCH)):
        logits = model(input_ids=batch[:, :-1])["logits"].astype(np.float64)
        total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        nats += float((total - np.take_along_axis(logits, batch[:, 1:, None], -1)[..., 0]).sum())
    return nats / pieces[:, 1:].size / math.log(2)


def accuracy(folder: Path) -> None:
    _, held_out = read_corpus(Path(sysconfig.get_path("stdlib")))
    text = np.frombuffer(held_out, np.uint8).astype(np.int64)
    starts = np.linspace(0, len(text) - LENGTH - 1, PIECES).astype(int)
    pieces = np.stack([text[start : start + LENGTH + 1] for start in starts])
    trained = MambaForCausalLM.from_pretrained(EXAMPLES / "models" / "stdlib-mamba").eval()
    print(f"trained model, {PIECES} pieces of {LENGTH} bytes")
    for name, model in compiled(trained, folder, "main").items():
        size = model.describe()["weights"]["bytes"]
        print(
            f"  {name:10} {bits_per_byte(model, pieces):.4f} bits per byte, {size / 1e6:.1f} MB of weights", flush=True
        )


def speed(layers: int, folder: Path) -> None:
    models = compiled(build_model(layers), folder, "prefill", "step")
    sessions = {name: model.session() for name, model in models.items()}
    token = np.array([[5]])
    found = medians({name: lambda s=session: s.step(input_ids=token) for name, session in sessions.items()})
    print(f"{layers} layers, a step")
    for name, seconds in found.items():
        size = models[name].describe()["weights"]["bytes"]
        print(
            f"  {name:10} {seconds * 1e3:6.1f} ms, {found['fp32'] / seconds:4.1f} times fp32, {size / 1e6:.0f} MB of weights"
        )


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        accuracy(Path(place))
        speed(int(sys.argv[1]) if len(sys.argv) > 1 else 24, Path(place))
