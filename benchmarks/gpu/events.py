"""Times on a GPU by its own events: sides by turns, medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

ROUNDS, CALLS = 9, 4
AHEAD = 20_000_000  # cycles of the device, about 10 ms


def medians(sides: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds on the GPU of a call of each side; before those that count in a round, each is called once."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, call in sides.items():
            call()
            times[name].append(seconds(call))
    return {name: statistics.median(found) for name, found in times.items()}


def seconds(call: Callable[[], object]) -> float:
    """Of one of several calls in a row, which the host hands over while the device sleeps: what it takes does not count."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(AHEAD)
    start.record()
    for _ in range(CALLS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / CALLS / 1e3
