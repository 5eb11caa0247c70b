"""Long convolutions against torch's, one thread: ``taskset -c 0 python benchmarks/long_conv.py [length ...]``.

A layer with a free kernel as long as the sequence, 256 channels, batch 1. torch computes what the model says, with the
spectrum of the kernel each time; ``prepared`` is torch with that spectrum given and channels first already, which is the
least that it can do. Every candidate is checked before it is timed; times are medians of interleaved rounds.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from torch import Tensor, nn

import coilc

torch.set_num_threads(1)
torch.set_grad_enabled(False)

CHANNELS = 256


class LongConv(nn.Module):
    """y = K * x over [B, L, H]."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.K = nn.Parameter(torch.randn(CHANNELS, length) / length**0.5)

    def forward(self, x: Tensor) -> Tensor:
        u, n = x.transpose(1, 2), 2 * x.shape[1]
        y = torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(self.K, n=n), n=n)
        return y[..., : x.shape[1]].transpose(1, 2)


def prepared(model: LongConv, x: Tensor) -> Callable[[], Tensor]:
    """torch without the layout changes, and without the kernel's transform."""
    u, n = x.transpose(1, 2).contiguous(), 2 * x.shape[1]
    spectrum = torch.fft.rfft(model.K, n=n)
    return lambda: torch.fft.irfft(torch.fft.rfft(u, n=n) * spectrum, n=n)[..., : x.shape[1]]


def medians(candidates: dict[str, Callable[[], object]], rounds: int = 9) -> dict[str, float]:
    """Seconds of each candidate; the rounds alternate, so that a noisy neighbour hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def compare(length: int, folder: Path) -> None:
    torch.manual_seed(0)
    model, x = LongConv(length).eval(), torch.randn(1, length, CHANNELS)
    ours = coilc.load(coilc.compile(coilc.export(model, (x,)), folder / f"{length}.coil"), threads=1)
    exact = model.double()(x.double())
    model.float()
    for name, y in {"coilc": ours(x=x)["out"], "torch": model(x)}.items():
        error = float((y - exact).norm() / exact.norm())
        assert error < 1e-6, f"{name} is off by {error:.1e}"
    array = x.numpy()
    found = medians({"coilc": lambda: ours(x=array), "torch": lambda: model(x), "prepared": prepared(model, x)})
    print(f"L {length}, D {CHANNELS}")
    for name, seconds in found.items():
        print(f"  {name:9} {seconds * 1e3:8.2f} ms   {seconds / found['coilc']:5.2f}x")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for asked in sys.argv[1:] or ("4096", "16384"):
            compare(int(asked), Path(place))
