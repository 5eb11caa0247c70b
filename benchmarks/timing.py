"""Timing that every benchmark shares: one thread, interleaved rounds, medians. Import it before NumPy and torch.

Times are the thread's own, so that what other programs take of the core does not count, unless several threads work.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping

os.environ["OMP_NUM_THREADS"] = os.environ["TVM_NUM_THREADS"] = "1"

import numpy as np
import torch

torch.set_num_threads(1)
torch.set_grad_enabled(False)

Candidates = Mapping[str, Callable[[], object]]


def medians(
    candidates: Candidates, rounds: int = 7, calls: int = 3, clock: Callable[[], float] = time.thread_time
) -> dict[str, float]:
    """Median seconds of each candidate; the rounds alternate, so that a noisy neighbour hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            call()
            for _ in range(calls):
                start = clock()
                call()
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, candidates: Candidates, work: float, unit: str, rounds: int = 7) -> None:
    """Print milliseconds, rate, and how many times faster the first candidate (ours) is."""
    found = medians(candidates, rounds)
    ours = next(iter(found.values()))
    print(title)
    for name, seconds in found.items():
        print(
            f"  {name:12} {seconds * 1e3:9.3f} ms  {work / seconds / 1e9:8.1f} {unit}  coilc is {seconds / ours:6.2f}x"
        )


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
