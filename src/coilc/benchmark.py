"""Timing an artifact beside other ways to run its model: alternately, in one process, on the same inputs."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from coilc.comparison.side_by_side import signature_of
from coilc.frontend.torch_export import evaluating
from coilc.ir import InputError
from coilc.runtime import Model

KERNELS = ("mamba_ssm", "causal_conv1d", "fla")  # packages whose kernels transformers calls when they are installed
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per run of one side."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def row(self, ours: float) -> dict[str, Any]:
        """Plain values; ``ratio`` is how many times faster the artifact is."""
        return {
            "name": self.name,
            "median": self.median,
            "best": min(self.seconds),
            "worst": max(self.seconds),
            "runs": len(self.seconds),
            "ratio": self.median / ours,
        }


def eager(module: torch.nn.Module) -> torch.nn.Module:
    return module


def inductor(module: torch.nn.Module) -> torch.nn.Module:
    """On a GPU with its launches recorded, which is what its authors advise for small batches."""
    mode = "reduce-overhead" if next(module.parameters()).is_cuda else "default"
    return torch.compile(module, mode=mode)


# Other ways to run a module, by the name that --against takes.
RIVALS: Mapping[str, Callable[[torch.nn.Module], torch.nn.Module]] = {"eager": eager, "inductor": inductor}


def benchmark(
    artifact: Model,
    module: torch.nn.Module,
    kwargs: Mapping[str, Any],
    *,
    entry: str = "main",
    against: tuple[str, ...] = ("eager",),
    runs: int = 20,
) -> tuple[Timing, ...]:
    """Time one entry of an artifact, then each rival, in rounds that alternate; the first three are not counted.

    An artifact for a GPU gets its inputs there, and so do the rivals, in the artifact's precision; times are those between
    two events of the device. On the CPU all use the artifact's number of threads.

    Args:
        kwargs: the module's arguments by name; its tensors are those of the entry, in order.

    Raises:
        InputError: no such rival or entry, other inputs, or no GPU for torch to time on.
    """
    unknown = [name for name in against if name not in RIVALS]
    if unknown:
        raise InputError(f"there is no rival '{unknown[0]}'; there are {', '.join(RIVALS)}")
    described = artifact.describe()
    kind = described["target"]["kind"]
    if kind != "cpu" and not torch.cuda.is_available():
        raise InputError(f"'{artifact.path}' runs on a GPU, and torch, which times it, sees none here")
    dtype = PRECISIONS.get(described["options"].get("precision") or "")
    given = {name: _moved(x, kind) for name, x in kwargs.items()}
    tensors = [x for x in given.values() if isinstance(x, torch.Tensor)]
    inputs = dict(zip(_inputs(artifact, entry, len(tensors)), tensors, strict=True))
    sides: dict[str, Call] = {"coilc": lambda: artifact.run(entry, inputs)}
    for name in against:
        sides[name] = _side(RIVALS[name](copy.deepcopy(module).to(kind, dtype)), given, dtype)
    with _threads(artifact.threads):
        return tuple(_alternate(sides, runs, _clock(kind)))


def _inputs(artifact: Model, entry: str, count: int) -> list[str]:
    """Names of the entry's inputs, for which there are ``count`` tensors."""
    names = [tensor["name"] for tensor in signature_of(artifact, entry)["inputs"]]
    if len(names) != count:
        raise InputError(
            f"tensors among the model's arguments: {count}; inputs of the entry: {', '.join(names)}. Caches and nested "
            "arguments cannot be timed here; 'coilc compare' also measures models that take them"
        )
    return names


def kernels_installed() -> list[str]:
    """Which packages lend eager PyTorch their kernels here."""
    return [name for name in KERNELS if find_spec(name)]


def _moved(x: Any, kind: str) -> Any:
    return x.to(kind) if isinstance(x, torch.Tensor) else x


def _side(module: torch.nn.Module, given: Mapping[str, Any], dtype: torch.dtype | None) -> Call:
    narrow = {k: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for k, x in given.items()}

    def call() -> object:
        with torch.no_grad(), evaluating(module, narrow):
            return module(**narrow)

    return call


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _alternate(sides: Mapping[str, Call], runs: int, clock: Callable[[Call], float]) -> Iterator[Timing]:
    warm = 3  # memory, compilation, recorded launches
    samples = [{name: clock(call) for name, call in sides.items()} for _ in range(warm + runs)][warm:]
    for name in sides:
        yield Timing(name, tuple(sample[name] for sample in samples))


def _clock(kind: str) -> Callable[[Call], float]:
    return _processor_seconds if kind == "cpu" else _device_seconds


def _processor_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _device_seconds(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
