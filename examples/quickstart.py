"""The main job: compile a Mamba language model of the 130M shape, run it without PyTorch, and show that it is right.

    python examples/quickstart.py

The model is transformers' ``MambaForCausalLM``, unmodified, with seeded random weights, so nothing is downloaded. One
artifact serves every batch size and length. It runs in a process that imports neither torch nor tvm, and its logits
are compared with those of eager PyTorch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import MambaConfig, MambaForCausalLM

import coilc
from coilc.comparison import TOLERANCE, difference
from coilc.units import show_bytes, show_ratio, show_seconds

SHAPES = ((1, 1), (1, 7), (1, 64), (3, 64), (1, 512), (3, 512))  # batch, length
console = Console()

# What the second process runs: coilc.runtime and NumPy, nothing else.
RUNNER = """
import json, resource, sys, time
import numpy as np
import coilc

model = coilc.load(sys.argv[1], threads=int(sys.argv[2]))
batches, rows = np.load(sys.argv[3]), []
logits = {}
for name, ids in batches.items():
    logits[name] = model(input_ids=ids)["logits"]
    seconds = []
    for _ in range(int(sys.argv[5])):
        start = time.perf_counter()
        model(input_ids=ids)
        seconds.append(time.perf_counter() - start)
    rows.append(sorted(seconds)[len(seconds) // 2])
assert not {"torch", "tvm"} & set(sys.modules)
np.savez(sys.argv[4], **logits)
print(json.dumps({"seconds": rows, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def build_model(layers: int) -> MambaForCausalLM:
    """Mamba of the 130M shape when ``layers`` is 24."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=50280, hidden_size=768, state_size=16, num_hidden_layers=layers, use_cache=False)
    return MambaForCausalLM(config).eval()


def mamba() -> tuple[Any, ...]:
    """The model and its example inputs, for ``coilc compile examples/quickstart.py:mamba``."""
    ids = torch.randint(0, 50280, (2, 16), generator=torch.Generator().manual_seed(1))
    return build_model(24), (ids,), {}, {"input_ids": {0: "B", 1: "L"}}


@contextmanager
def stage(name: str) -> Iterator[None]:
    start = time.perf_counter()
    with console.status(f"{name} ..."):
        yield
    console.print(f"[green]✓[/green] {name:<44} {time.perf_counter() - start:6.1f} s", highlight=False)


def run_alone(artifact: Path, batches: dict[str, np.ndarray], threads: int, runs: int) -> dict[str, Any]:
    """Run the artifact on every batch in a process of its own; returns its logits, median seconds and peak memory."""
    given, taken = artifact.with_name("inputs.npz"), artifact.with_name("outputs.npz")
    np.savez(given, **batches)
    command = [sys.executable, "-c", RUNNER, str(artifact), str(threads), str(given), str(taken), str(runs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout) | {"logits": np.load(taken)}


def run_eager(model: MambaForCausalLM, ids: np.ndarray, runs: int) -> tuple[np.ndarray, float]:
    """Logits of eager PyTorch and the median of its seconds."""
    seconds = []
    with torch.no_grad():
        logits = model(torch.from_numpy(ids)).logits.numpy()
        for _ in range(runs):
            start = time.perf_counter()
            model(torch.from_numpy(ids))
            seconds.append(time.perf_counter() - start)
    return logits, sorted(seconds)[len(seconds) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=24, help="24 is the 130M shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both sides")
    parser.add_argument("--runs", type=int, default=3, help="timed runs per shape, the median counts")
    parser.add_argument("--folder", type=Path, default=Path("quickstart"), help="where the artifact goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(exist_ok=True)
    artifact = options.folder / "mamba.coil"

    with stage("build the PyTorch model"):
        model = build_model(options.layers)
    with stage("export it with dynamic batch and length"):
        example = torch.zeros(2, 16, dtype=torch.int64)
        program = coilc.export(model, (example,), {}, dynamic_shapes={"input_ids": {0: "B", 1: "L"}})
    with stage("compile it"):
        coilc.compile(program, artifact)
    rng = np.random.default_rng(0)
    batches = {f"{b} x {n}": rng.integers(0, 50280, (b, n)) for b, n in SHAPES}
    with stage("run the artifact without torch and tvm"):
        alone = run_alone(artifact, batches, options.threads, options.runs)
    with stage("run eager PyTorch"):
        eager = {name: run_eager(model, ids, options.runs) for name, ids in batches.items()}
    right = show_table(alone, eager, options.threads)
    show_sizes(model, artifact, alone["peak"])
    sys.exit(0 if right else 1)


def show_table(alone: dict[str, Any], eager: dict[str, tuple[np.ndarray, float]], threads: int) -> bool:
    """Print a row per shape; returns whether all are within the tolerance for float32."""
    plural = "s" * (threads > 1)
    table = Table(title=f"\nlogits against eager PyTorch, {threads} thread{plural} each", title_justify="left", box=None)
    headings = ("batch x tokens", "relative error", "same next token", "PyTorch", "artifact", "artifact is", "")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    right = True
    for (name, (expected, seconds)), mine in zip(eager.items(), alone["seconds"], strict=True):
        error = difference(alone["logits"][name], expected, "logits")
        good = error.relative_error <= TOLERANCE["float32"]
        right &= good
        cells = [f"{error.relative_error:.1e}", f"{error.argmax_agreement:.1%}", show_seconds(seconds), show_seconds(mine)]
        table.add_row(name, *cells, show_ratio(seconds / mine), "[green]✓[/green]" if good else "[red]✗[/red]")
    console.print(table, highlight=False)
    return right


def show_sizes(model: MambaForCausalLM, artifact: Path, peak: int) -> None:
    sizes = {file.name: file.stat().st_size for file in artifact.iterdir()}
    parameters = sum(p.nbytes for p in model.parameters())
    console.print(
        f"\nweights {show_bytes(sizes['weights.safetensors'])} ({show_bytes(parameters)} in PyTorch), "
        f"code {show_bytes(sizes['code.so'])}, peak memory of the process that ran it {show_bytes(peak)}\n"
        f"artifact: {artifact}   look inside: coilc inspect {artifact}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
