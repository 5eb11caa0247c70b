"""A signal, value by value: forecast the next sunspot number while the series arrives, in bounded time and memory.

    python examples/streaming.py

Nothing here is about language: the model takes real numbers, and the session API is the same. A small Mamba is trained on
the first two thirds of the yearly series that ships with statsmodels (a minute on a CPU), compiled, and then stepped through the rest
as a device would: one value in, one forecast out, the state carried by the session.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from statsmodels.datasets import sunspots
from torch import Tensor, nn
from transformers import MambaConfig, MambaModel

import coilc
from coilc.units import show_bytes, show_seconds

console = Console()


class Forecaster(nn.Module):
    """From the values x[B, L, 1] so far, the next one at every time: [B, L, 1]."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.enter = nn.Linear(1, width)
        config = MambaConfig(vocab_size=1, hidden_size=width, num_hidden_layers=layers, state_size=8, use_cache=False)
        self.mamba = MambaModel(config)
        self.leave = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.leave(self.mamba(inputs_embeds=self.enter(x)).last_hidden_state)


def load_series() -> tuple[np.ndarray, int]:
    """The series, scaled by its training part: [L], and how much of it is for training."""
    values = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(np.float32)
    train = len(values) * 2 // 3
    return (values - values[:train].mean()) / values[:train].std(), train


def train(series: np.ndarray, steps: int) -> Forecaster:
    """Fit one-step forecasts on random pieces of the series."""
    torch.manual_seed(0)
    model, x = Forecaster(), torch.tensor(series)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    for _ in range(steps):
        starts = torch.randint(len(x) - 65, (16, 1))
        pieces = x[starts + torch.arange(66)[:65]][..., None]
        loss = nn.functional.mse_loss(model(pieces[:, :-1]), pieces[:, 1:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def stream(session: coilc.Session, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts and seconds, one per value."""
    forecasts, seconds = np.empty_like(values), np.empty(len(values))
    for t, value in enumerate(values):
        start = time.perf_counter()
        (forecast,) = session.step(x=np.full((1, 1, 1), value, np.float32)).values()
        seconds[t] = time.perf_counter() - start
        forecasts[t] = forecast[0, 0, 0]
    return forecasts, seconds


def root_mean_square(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="of training")
    given = parser.parse_args()

    series, split = load_series()
    with console.status(f"training on {split} values"):
        model = train(series[:split], given.steps)
    with torch.no_grad():
        expected = model(torch.tensor(series)[None, :, None])[0, :, 0].numpy()

    with tempfile.TemporaryDirectory() as folder:
        shapes = {"x": {0: "B", 1: "L"}}
        program = coilc.export(model, (torch.tensor(series[:16])[None, :, None],), dynamic_shapes=shapes)
        artifact = coilc.compile(program, Path(folder) / "forecaster.coil", entries=("prefill", "step"))
        session = coilc.load(artifact, threads=1).session()
        session.prefill(x=series[None, :split, None])  # what is known already
        forecasts, seconds = stream(session, series[split:])
        memory = session.memory_bytes

    actual, known = series[split + 1 :], forecasts[:-1]
    table = Table(title=f"{len(actual)} forecasts of the yearly sunspot number", show_header=False)
    table.add_row("error of the forecast", f"{root_mean_square(known - actual):.3f} standard deviations")
    table.add_row("error of 'as last year'", f"{root_mean_square(series[split:-1] - actual):.3f}")
    table.add_row(
        "a step, median / slowest", f"{show_seconds(float(np.median(seconds)))} / {show_seconds(seconds.max())}"
    )
    table.add_row("memory of the session", show_bytes(memory))
    difference = np.abs(forecasts - expected[split:]).max()
    table.add_row("farthest from eager PyTorch", f"{difference:.1e}")
    console.print(table)
    if difference > 1e-4:
        raise SystemExit("the artifact and PyTorch disagree")


if __name__ == "__main__":
    main()
