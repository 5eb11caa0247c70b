"""From nothing to the first token: ``taskset -c 0 python benchmarks/cold_start.py [layers]``.

``coil-run`` for this machine, one thread, starts, maps the weights of a Mamba of the 130M shape (24 layers unless said
otherwise), and generates one token, or two. Each reads every weight once; what only the first one pays for is the start of
the program, opening, binding, and the page faults of the mapping. Beside it stands a dot product over the same file, mapped
anew. First the file is in the page cache, then it is dropped from it before every start, so that the disk is read too.
Rounds alternate. Times are medians in milliseconds, the fastest beside them: CPU time, which other programs on the
machine disturb little, and wall-clock time, which includes the disk.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from quickstart import build_model
from transformers.utils import logging

import coilc
from coilc.codegen.bundle import PROGRAM, link_device_program
from coilc.runtime.artifact import WEIGHTS, read_manifest
from coilc.runtime.generate import generate

TOKEN, ROUNDS = 5, 15
Cost = np.ndarray  # CPU and wall-clock time in ms


def command(program: Path, tokens: int) -> list[str]:
    """Generate so many tokens."""
    options = f"--ids {TOKEN} --tokens {tokens} --temperature 0 --threads 1"
    return [str(program), "generate", *options.split()]


def prepare(layers: int, folder: Path) -> Path:
    """An artifact with ``coil-run`` beside its weights, which gives the tokens that Python gives."""
    ids = torch.ones(2, 16, dtype=torch.long)
    program = coilc.export(build_model(layers), (ids,), dynamic_shapes={"input_ids": {0: "B", 1: "L"}})
    artifact = coilc.compile(program, folder / "mamba.coil", entries=("main", "prefill", "step"))
    link_device_program(artifact, read_manifest(artifact), artifact / PROGRAM)
    expected = generate(coilc.load(artifact), [TOKEN], temperature=0)
    found = subprocess.run(command(artifact / PROGRAM, 2), check=True, capture_output=True, text=True).stdout.split()
    assert [int(token) for token in found] == [next(expected), next(expected)]
    return artifact


def cost_of(arguments: list[str]) -> Cost:
    """From before the process exists until it has ended."""
    began = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0
    return 1e3 * np.array([usage.ru_utime + usage.ru_stime, time.perf_counter() - began])


def cost_of_reading(weights: Path) -> Cost:
    """Map the file and read it by a dot product."""
    began = np.array([time.thread_time(), time.perf_counter()])
    content = np.memmap(weights, np.uint8, "r").view(np.float32)
    with np.errstate(all="ignore"):  # its header is no number
        np.dot(content, content)
    return 1e3 * (np.array([time.thread_time(), time.perf_counter()]) - began)


def drop(weights: Path) -> None:
    """Out of the page cache."""
    with weights.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(artifact: Path, cold: bool) -> None:
    """Alternate rounds, and what the first token takes beyond the others."""
    program, weights = artifact / PROGRAM, artifact / WEIGHTS
    parts = {
        "start and end": lambda: cost_of([str(program), "--help"]),
        "one token": lambda: cost_of(command(program, 1)),
        "two tokens": lambda: cost_of(command(program, 2)),
        "map and dot product": lambda: cost_of_reading(weights),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in parts}
    for _ in range(ROUNDS):
        for name, part in parts.items():
            if cold:
                drop(weights)
            costs[name].append(part())
    middle = {name: np.median(taken, axis=0) for name, taken in costs.items()}
    print("dropped from the page cache" if cold else "in the page cache")
    for name, (cpu, wall) in middle.items():
        least = np.min(costs[name], axis=0)
        print(f"  {name:36} CPU {cpu:6.1f} ({least[0]:.1f})  wall {wall:6.1f} ({least[1]:.1f})")
    beyond = 2 * middle["one token"] - middle["two tokens"], middle["one token"] - middle["map and dot product"]
    for name, (cpu, wall) in zip(
        ("first token beyond the second", "first token beyond the dot product"), beyond, strict=True
    ):
        print(f"  {name:36} CPU {cpu:6.1f}          wall {wall:6.1f}")


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        prepared = prepare(int(sys.argv[1]) if len(sys.argv) > 1 else 24, Path(place))
        drop(prepared / WEIGHTS)  # what was just written lies in small pages; a file that was read lies in large ones
        print(f"{(prepared / WEIGHTS).stat().st_size / 1e6:.0f} MB of weights")
        for cold in (False, True):
            measure(prepared, cold)
