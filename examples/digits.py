"""Read handwritten digits with a trained vision Mamba, compiled: every image of the test set, and what it got wrong.

    python examples/digits.py

The model is the Vim of the zoo (examples/zoo/vim.py): each block reads its 17 tokens in both directions. Its weights are
in examples/models/digits-vim; examples/train/digits.py made them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from zoo.vim import Vim

import coilc
from coilc.units import show_bytes, show_seconds

FOLDER = Path(__file__).parent / "models" / "digits-vim"
console = Console()


def build_model(width: int, states: int, depth: int) -> Vim:
    """For images [B, 1, 8, 8] in patches of 2 by 2; logits [B, 10]."""
    model = Vim(size=8, patch=2, width=width, states=states, depth=depth, classes=10)
    model.embed = nn.Conv2d(1, width, kernel_size=2, stride=2)
    return model.eval()


def load_model() -> Vim:
    """The trained one."""
    shape = json.loads((FOLDER / "config.json").read_text())
    model = build_model(**shape)
    model.load_state_dict(load_file(FOLDER / "model.safetensors"))
    return model


def load_images() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images [B, 1, 8, 8] from 0 to 1 and labels [B] to train on; then those to test on, a fifth of all."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    train, test, train_labels, test_labels = train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    return train, train_labels, test, test_labels


def show(image: np.ndarray) -> str:
    """An image as text."""
    return "\n".join("".join(" .:*#"[round(float(v) * 4)] * 2 for v in row) for row in image[0])


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = load_model()
    _, _, images, labels = load_images()
    with tempfile.TemporaryDirectory() as folder:
        program = coilc.export(model, (torch.tensor(images[:2]),), dynamic_shapes={"image": {0: "B"}})
        artifact = coilc.compile(program, Path(folder) / "digits.coil")
        compiled = coilc.load(artifact)
        start = time.perf_counter()
        (logits,) = compiled(image=images).values()
        seconds = time.perf_counter() - start
        size = (artifact / "weights.safetensors").stat().st_size
    with torch.no_grad():
        expected = model(torch.tensor(images)).numpy()
    found, difference = logits.argmax(1), np.abs(logits - expected).max()
    wrong = np.flatnonzero(found != labels)
    console.print(f"{len(labels)} test images in {show_seconds(seconds)}, {show_bytes(size)} of weights")
    console.print(f"accuracy {np.mean(found == labels):.2%}; farthest from eager PyTorch {difference:.1e}")
    for index in wrong[:2]:
        console.print(f"\na {labels[index]}, read as {found[index]}:\n{show(images[index])}", highlight=False)
    if difference > 1e-3 or not np.array_equal(found, expected.argmax(1)):
        raise SystemExit("the artifact and PyTorch disagree")


if __name__ == "__main__":
    main()
