"""Many steps of one session: ``python benchmarks/endurance.py [steps] [name ...]``, 100,000 unless said otherwise.

A tiny Mamba, a tiny Mamba-2 and the trained language model of ``examples/models`` read random tokens one by one. Memory
must not grow by a page after the first thousand steps, every logit must be finite, and every thousand steps must lie
within the bound of ``docs/artifact.md`` of the same recurrence evaluated in float64 by the interpreter, which defines every
op. Single steps may be off by more where the model amplifies what it reads; the worst is shown.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM
from transformers.utils import logging

import coilc
from coilc.ir import Module, interpret
from coilc.passes.pipeline import run_pipeline

BOUND = 1e-5  # relative error of the logits of CHUNK steps
WARM, CHUNK = 1_000, 1_000
TRAINED = Path(__file__).resolve().parent.parent / "examples" / "models" / "stdlib-mamba"
Array = np.ndarray[Any, Any]


def mamba() -> torch.nn.Module:
    return MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8))


def mamba2() -> torch.nn.Module:
    sizes = {"num_heads": 4, "head_dim": 16, "state_size": 16, "n_groups": 2, "chunk_size": 8}
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
    return Mamba2ForCausalLM(Mamba2Config(vocab_size=64, hidden_size=32, num_hidden_layers=2, **sizes, **special))


def trained() -> torch.nn.Module:
    return MambaForCausalLM.from_pretrained(TRAINED)


MODELS: Mapping[str, Callable[[], torch.nn.Module]] = {"mamba": mamba, "mamba2": mamba2, "trained": trained}


def pages() -> int:
    """Resident pages of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1])


def stepped(session: coilc.runtime.Session, tokens: Array, logits: Array) -> int:
    """Fill ``logits`` [T, V] step by step; returns by how many pages memory grew after the first ``WARM`` steps."""
    begun = 0
    for t in range(len(tokens)):
        logits[t] = session.step(input_ids=tokens[None, t : t + 1])["logits"][0, 0]
        if t == WARM - 1:
            begun = pages()
    return pages() - begun


def in_float64(program: Module, tokens: Array, logits: Array) -> Array:
    """The recurrence evaluated in float64: relative errors [chunks, 1 + CHUNK] of the logits of a chunk, and of each step."""
    derived = run_pipeline(program, entries=("prefill",), stop_after="specialise")
    graph, errors = derived.entries["prefill"], []
    types = {v.node.attrs["name"]: v.type for v in graph.inputs}
    states = {n: np.zeros([d if isinstance(d, int) else 1 for d in types[n].dims]) for n, _ in graph.states}
    for start in range(0, len(tokens), CHUNK):
        found = interpret(derived, {"input_ids": tokens[None, start : start + CHUNK], **states}, "prefill", wide=True)
        states = {before: found[after] for before, after in graph.states}
        expected = found["logits"][0]
        off = [np.linalg.norm(x, axis=1) for x in (logits[start : start + CHUNK] - expected, expected)]
        whole = np.linalg.norm(off[0]) / np.linalg.norm(off[1])
        errors.append(np.concatenate([[whole], off[0] / off[1]]))
    return np.stack(errors)


def endure(module: torch.nn.Module, steps: int, folder: Path) -> tuple[int, Array]:
    """Pages that memory grew by, and errors as ``in_float64`` gives them, of a multiple of ``CHUNK`` steps.

    Raises:
        AssertionError: a logit is not finite.
    """
    size = module.config.vocab_size
    tokens = np.random.default_rng(0).integers(0, size, steps)
    logits = np.zeros((steps, size), np.float32)
    logits.fill(1)  # every page is there before anything is counted
    shapes = {"input_ids": {0: "B", 1: "L"}}
    program = coilc.export(module.eval(), (torch.ones(2, 8, dtype=torch.int64),), dynamic_shapes=shapes)
    path = coilc.compile(program, folder / "model.coil", entries=("prefill", "step"))
    grown = stepped(coilc.load(path, threads=1).session(), tokens, logits)
    assert np.isfinite(logits).all()
    return grown, in_float64(program, tokens, logits)


def main(steps: int, *names: str) -> None:
    for name in names or MODELS:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            grown, errors = endure(MODELS[name](), steps, Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        chunks, single = errors[:, 0], errors[:, 1:]
        print(f"{name}: {steps} steps, {grown} pages more, all finite; peak of the process {peak / 1024:.0f} MB")
        print(
            f"  error of {CHUNK} steps: the first {chunks[0]:.1e}, the last {chunks[-1]:.1e}, the worst {chunks.max():.1e}"
        )
        print(f"  error of a step: median {np.median(single):.1e}, the worst {single.max():.1e}", flush=True)
        assert grown <= 0  # the system may take a page back
        assert chunks.max() <= BOUND


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, *sys.argv[2:])
