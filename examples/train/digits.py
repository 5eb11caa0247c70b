"""Train the vision Mamba of examples/digits.py on scikit-learn's handwritten digits; a few minutes on a CPU.

python examples/train/digits.py
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from digits import FOLDER, build_model, load_images

SHAPE = {"width": 48, "states": 8, "depth": 3}


def shifted(images: Tensor) -> Tensor:
    """Each image moved by up to one pixel in each direction."""
    padded = F.pad(images, (1, 1, 1, 1))
    rows, columns = torch.randint(3, (2, len(images), 1, 1))
    grid = torch.arange(8)
    batch = torch.arange(len(images))[:, None, None]
    return padded[batch, 0, rows + grid[:, None], columns + grid][:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--output", type=Path, default=FOLDER)
    given = parser.parse_args()

    torch.manual_seed(0)
    images, labels, test_images, test_labels = map(torch.tensor, load_images())
    model = build_model(**SHAPE).train()
    batch, start = 64, time.perf_counter()
    steps = given.epochs * (len(images) // batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for epoch in range(given.epochs):
        losses = []
        for pick in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            loss = F.cross_entropy(model(shifted(images[pick])), labels[pick], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch}  loss {np.mean(losses):.3f}  {time.perf_counter() - start:.0f} s", flush=True)

    model.eval()
    with torch.no_grad():
        accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
    print(f"accuracy on {len(test_labels)} test images: {accuracy:.2%}")
    given.output.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), given.output / "model.safetensors")
    (given.output / "config.json").write_text(json.dumps(SHAPE) + "\n")
    record = {
        "test_accuracy": round(accuracy, 4),
        "epochs": given.epochs,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    (given.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
