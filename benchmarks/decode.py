"""Steps of Mamba language models, one thread: ``taskset -c 0 python benchmarks/decode.py [layers]``.

First the trained model of ``examples/models``: what a step costs after 10 tokens and after 10,000. Then a Mamba of the
130M shape (24 layers unless said otherwise) at batch 1 in float32: a step reads every weight once, so the memory is the
limit. The rate of its bytes is set against that of reading an array of the same size by a sum or by a dot product,
whichever is faster, and its time against eager PyTorch's step with transformers' cache. Rounds alternate; times are medians.
"""

from __future__ import annotations

import sys
import tempfile
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
ENTRIES = ("main", "prefill", "step")


def compiled(model: MambaForCausalLM, path: Path) -> Model:
    """The model as an artifact; a session is checked against eager before anything is timed."""
    ids = torch.arange(1, 17)[None]
    program = coilc.export(model, (ids.repeat(2, 1),), dynamic_shapes={"input_ids": {0: "B", 1: "L"}})
    loaded = coilc.load(coilc.compile(program, path, entries=ENTRIES), threads=1)
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
    found = medians(steps, rounds=40, calls=20)
    print("1.8M parameters, trained:", ", ".join(f"{s * 1e6:.0f} us {name}" for name, s in found.items()))


def against_memory(layers: int, folder: Path) -> None:
    """A step against reading its weights, and against eager's."""
    model = build_model(layers)
    artifact = compiled(model, folder / "large.coil")
    size = artifact.describe()["weights"]["bytes"]
    memory, session = np.ones(size // 4, np.float32), artifact.session()
    session.prefill(input_ids=np.arange(16)[None])
    cache = model(torch.arange(16)[None], use_cache=True).cache_params
    token = torch.from_numpy(TOKEN)
    found = medians({
        "coilc": lambda: session.step(input_ids=TOKEN),
        "sum": memory.sum,
        "dot": lambda: memory.dot(memory),
        "eager": lambda: model(token, cache_params=cache, use_cache=True),
    })  # fmt: skip
    rates = {name: size / found[name] / 1e9 for name in ("coilc", "sum", "dot")}
    share = rates["coilc"] / max(rates["sum"], rates["dot"])
    print(f"{layers} layers, {size / 1e6:.0f} MB of weights")
    print(f"  step {found['coilc'] * 1e3:.1f} ms, {rates['coilc']:.1f} GB/s, {share:.0%} of what memory gives", end=" ")
    print(f"(sum {rates['sum']:.1f}, dot {rates['dot']:.1f} GB/s)")
    print(f"  eager {found['eager'] * 1e3:.1f} ms: coilc is {found['eager'] / found['coilc']:.1f} times faster")


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as place:
        at_positions(Path(place))
        against_memory(int(sys.argv[1]) if len(sys.argv) > 1 else 24, Path(place))
