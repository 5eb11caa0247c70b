"""The main job: compile a Mamba language model of the 130M shape, run it without PyTorch, show that it is right, and write.

    python examples/quickstart.py

The model is transformers' ``MambaForCausalLM``, unmodified, with seeded random weights, so nothing is downloaded. One
artifact serves every batch size and length. It runs in a process that imports neither torch nor tvm, and its logits
are compared with those of eager PyTorch. At the end a small trained one, ``models/stdlib-mamba``, writes Python.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
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
from transformers.utils import logging

import coilc
from coilc.comparison import TOLERANCE, difference
from coilc.units import show_bytes, show_ratio, show_seconds

SHAPES = ((1, 1), (3, 7), (1, 64), (3, 64), (1, 512))  # batch, length
TRAINED = Path(__file__).resolve().parent / "models" / "stdlib-mamba"
PROMPT = "import os\n\ndef read_file(path):\n    with open("
PATIENCE = 5.0  # seconds per shape after which no more runs are timed
console = Console()

# What the second process runs: coilc.runtime and NumPy, nothing else.
RUNNER = """
import json, sys, time
import numpy as np
import coilc

artifact, threads, folder, runs = sys.argv[1:]
model = coilc.load(artifact, threads=int(threads))
medians = {}
for name, ids in np.load(folder + "/inputs.npz").items():
    model(input_ids=ids)
    seconds = []
    for _ in range(int(runs)):
        start = time.perf_counter()
        logits = model(input_ids=ids)["logits"]
        seconds.append(time.perf_counter() - start)
    medians[name] = sorted(seconds)[len(seconds) // 2]
    np.save(folder + "/logits " + name, logits)
    del logits
assert not {"torch", "tvm"} & set(sys.modules)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": medians, "peak": 1024 * int(peak)}))
"""


def build_model(layers: int) -> MambaForCausalLM:
    """Mamba of the 130M shape when ``layers`` is 24.

    Untrained weights with transformers' default deviation of 0.1 amplify rounding: eager float32 is then 7e-5 away from
    eager float64. With 0.02, usual for language models, it is 2e-6, and an error of the compiler would be seen.
    """
    torch.manual_seed(0)
    shape = {"vocab_size": 50280, "hidden_size": 768, "state_size": 16, "num_hidden_layers": layers}
    return MambaForCausalLM(MambaConfig(**shape, initializer_range=0.02, use_cache=False)).eval()


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
    with tempfile.TemporaryDirectory(dir=artifact.parent) as folder:
        np.savez(Path(folder) / "inputs.npz", **batches)
        command = [sys.executable, "-c", RUNNER, str(artifact), str(threads), folder, str(runs)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        logits = {name: np.load(Path(folder) / f"logits {name}.npy") for name in batches}
    return json.loads(done.stdout) | {"logits": logits}


def run_eager(model: MambaForCausalLM, ids: np.ndarray, runs: int) -> tuple[np.ndarray, float]:
    """Logits of eager PyTorch and the median of its seconds."""
    seconds: list[float] = []
    with torch.no_grad():
        while len(seconds) <= runs and sum(seconds) < PATIENCE:
            start = time.perf_counter()
            logits = model(torch.from_numpy(ids)).logits.numpy()
            seconds.append(time.perf_counter() - start)
    timed = sorted(seconds[1:] or seconds)  # the first run warms up, unless there was time for no other
    return logits, timed[len(timed) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=24, help="24 is the 130M shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of both sides")
    parser.add_argument("--runs", type=int, default=3, help="timed runs per shape, the median counts")
    parser.add_argument("--folder", type=Path, default=Path("quickstart"), help="where the artifact goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()  # transformers would tell how to install CUDA kernels
    logging.disable_progress_bar()
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
    write_python(options.folder, options.threads)
    sys.exit(0 if right else 1)


def show_table(alone: dict[str, Any], eager: dict[str, tuple[np.ndarray, float]], threads: int) -> bool:
    """Print a row per shape; returns whether all are within the tolerance for float32."""
    plural = "s" * (threads > 1)
    console.print(f"\n[bold]logits against eager PyTorch, {threads} thread{plural} each[/bold]\n", highlight=False)
    table = Table(box=None, pad_edge=False)
    headings = ("batch x length", "relative error", "same argmax", "PyTorch", "artifact", "artifact is", "")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    right = True
    for name, (expected, seconds) in eager.items():
        mine = alone["seconds"][name]
        error = difference(alone["logits"][name], expected, "logits")
        good = error.relative_error <= TOLERANCE["float32"]
        right &= good
        cells = [
            f"{error.relative_error:.1e}",
            f"{error.argmax_agreement:.1%}",
            show_seconds(seconds),
            show_seconds(mine),
        ]
        table.add_row(name, *cells, show_ratio(seconds / mine), "[green]✓[/green]" if good else "[red]✗[/red]")
    console.print(table, highlight=False)
    return right


def write_python(folder: Path, threads: int) -> None:
    """Continue ``PROMPT`` byte by byte with a trained model, and show how fast."""
    artifact = folder / "stdlib-mamba.coil"
    with stage("compile a trained model, to run step by step"):
        model = MambaForCausalLM.from_pretrained(TRAINED).eval()
        example = torch.zeros(2, 16, dtype=torch.int64)
        program = coilc.export(model, (example,), {}, dynamic_shapes={"input_ids": {0: "B", 1: "L"}})
        coilc.compile(program, artifact, entries=("prefill", "step"))
    command = [sys.executable, "-m", "coilc", "generate", artifact, "--prompt", PROMPT, "--tokens", "160"]
    console.print(f"\n[bold]coilc generate {artifact}[/bold]\n", highlight=False)
    options = ["--temperature", "0.6", "--top-k", "20", "--seed", "3", "--stop", "\n\n", "--threads", str(threads)]
    subprocess.run([*command, *options], check=True)


def show_sizes(model: MambaForCausalLM, artifact: Path, peak: int) -> None:
    sizes = {file.name: file.stat().st_size for file in artifact.iterdir()}
    parameters = sum(p.nbytes for p in model.parameters())
    console.print(
        f"\nweights: {show_bytes(sizes['weights.safetensors'])} ({show_bytes(parameters)} in PyTorch)\n"
        f"code:    {show_bytes(sizes['code.so'])}\n"
        f"memory:  {show_bytes(peak)} at the peak of the process that ran it, with 103 MB of logits for 1 x 512\n\n"
        f"The artifact is {artifact}. Look inside with: coilc inspect {artifact} --calls",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
