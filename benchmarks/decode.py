"""Steps of Mamba language models: ``taskset -c 0 python benchmarks/decode.py [layers]``; ``-c 0,1`` for two threads.

First the trained model of ``examples/models``: what a step costs after 10 tokens and after 10,000. Then a Mamba of the
130M shape (24 layers unless said otherwise) at batch 1 in float32: a step reads every weight once, so the memory is the
limit. The rate of its bytes is set against that of ``read_memory.c``, which only reads, over an array of the same size and
with as many threads, and its time against eager PyTorch's step with transformers' cache. Rounds alternate; times are
medians, of the thread's own time where there is one thread and of the clock on the wall where there are more.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from timing import medians

import numpy as np  # isort: skip
import torch
from transformers import MambaForCausalLM
from transformers.utils import logging

import coilc
from coilc.runtime.model import Model

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from quickstart import build_model  # noqa: E402

TOKEN = np.array([[5]])
THREADS = len(os.sched_getaffinity(0))
CLOCK = time.thread_time if THREADS == 1 else time.perf_counter
ENTRIES = ("main", "prefill", "step")


def compiled(model: MambaForCausalLM, path: Path) -> Model:
    """The model as an artifact; a session is checked against eager before anything is timed."""
    ids = torch.arange(1, 17)[None]
    program = coilc.export(model, (ids.repeat(2, 1),), dynamic_shapes={"input_ids": {0: "B", 1: "L"}})
    loaded = coilc.load(coilc.compile(program, path, entries=ENTRIES), threads=THREADS)
    session, expected = loaded.session(), model(ids, use_cache=False).logits
    logits = torch.cat([session.step(input_ids=token[None])["logits"] for token in ids.T], 1)
    error = float((logits - expected).norm() / expected.norm())
    assert error < 1e-5, f"steps are off by {error:.1e}"
    return loaded


def at_positions(folder: Path) -> None:
    """A step after few and after many tokens."""
    model = compiled(
        MambaForCausalLM.from_pretrained(EXAMPLES / "models" / "stdlib-mamba").eval(), folder / "small.coil"
    )
    sessions = {f"after {n}": model.session() for n in (10, 10_000)}
    for session, length in zip(sessions.values(), (10, 10_000), strict=True):
        session.prefill(input_ids=np.random.default_rng(0).integers(0, 256, (1, length)))
    steps = {name: lambda s=session: s.step(input_ids=TOKEN) for name, session in sessions.items()}
    found = medians(steps, rounds=40, calls=20, clock=CLOCK)
    print("1.8M parameters, trained:", ", ".join(f"{s * 1e6:.0f} us {name}" for name, s in found.items()))


class Reader:
    """Reads an array of so many bytes, a part of it per thread."""

    def __init__(self, size: int, folder: Path) -> None:
        source, library = Path(__file__).with_name("read_memory.c"), folder / "read_memory.so"
        flags = ["-O3", "-mcpu=native", "-shared", "-fPIC"]
        subprocess.run([sys.executable, "-m", "ziglang", "cc", *flags, str(source), "-o", str(library)], check=True)
        self.read = ctypes.CDLL(str(library)).read_memory
        self.read.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        self.parts = [np.ones(size // 4 // THREADS, np.float32) for _ in range(THREADS)]
        self.pool = ThreadPoolExecutor(THREADS)

    def __call__(self) -> None:
        run = map if THREADS == 1 else self.pool.map
        list(run(lambda part: self.read(part.ctypes.data, part.nbytes), self.parts))


def against_memory(layers: int, folder: Path) -> None:
    """A step against reading its weights, and against eager's."""
    torch.set_num_threads(THREADS)
    model = build_model(layers)
    artifact = compiled(model, folder / "large.coil")
    size = artifact.describe()["weights"]["bytes"]
    session = artifact.session()
    session.prefill(input_ids=np.arange(16)[None])
    result = model(torch.arange(16)[None], use_cache=True)
    cache = {name: value for name, value in result.items() if name.startswith("cache")}  # cache, or cache_params
    token = torch.from_numpy(TOKEN)
    found = medians({
        "coilc": lambda: session.step(input_ids=TOKEN),
        "read": Reader(size, folder),
        "eager": lambda: model(token, **cache, use_cache=True),
    }, clock=CLOCK)  # fmt: skip
    step, read = (size / found[name] / 1e9 for name in ("coilc", "read"))
    print(f"{layers} layers, {size / 1e6:.0f} MB of weights, threads: {THREADS}")
    print(f"  step {found['coilc'] * 1e3:.1f} ms, {step:.1f} GB/s, {step / read:.0%} of the {read:.1f} GB/s of reading")
    print(f"  eager {found['eager'] * 1e3:.1f} ms: coilc is {found['eager'] / found['coilc']:.1f} times faster")


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        at_positions(Path(place))
        against_memory(int(sys.argv[1]) if len(sys.argv) > 1 else 24, Path(place))
