"""A Mamba language model on a GPU beside transformers: decoding at batch 1 against the memory's bandwidth, and prefill.

    python benchmarks/gpu/mamba.py build FOLDER [--shape 2.8b] [--precision bf16]   # anywhere; no GPU, little memory
    PYTHONPATH=src python benchmarks/gpu/mamba.py run FOLDER [--prefill 8192]       # on the GPU machine; no compiler

The folder holds no weights, so that it is small enough to carry: ``run`` draws them. Rounds alternate; times are those
between two events of the device, and of the host where it says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import time
from collections.abc import Callable
from pathlib import Path

SHAPES = {
    "130m": {"hidden_size": 768, "num_hidden_layers": 24},
    "790m": {"hidden_size": 1536, "num_hidden_layers": 48},
    "2.8b": {"hidden_size": 2560, "num_hidden_layers": 64},
}
VOCABULARY, STATES = 50280, 16
STEPS = 16  # that follow one another, as in decoding: the host is ahead of the device
HEADER = "weights.header"


def build(folder: Path, shape: str, precision: str, target: str) -> None:
    """Compile the shape with weights of no content."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    import coilc

    with torch.device("meta"):
        module = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, state_size=STATES, **SHAPES[shape])).eval()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            content = torch.zeros(()).expand(parameter.shape)  # one element, whatever the shape
            setattr(part, name, torch.nn.Parameter(content, requires_grad=False))
    module.tie_weights()
    ids = torch.zeros(1, 8, dtype=torch.long)
    program = coilc.export(module, kwargs={"input_ids": ids}, dynamic_shapes={"input_ids": {0: "B", 1: "L"}})
    folder.mkdir(parents=True, exist_ok=True)
    path = coilc.compile(
        program, folder / "model.coil", target=target, entries=("prefill", "step"), precision=precision
    )
    weights = path / "weights.safetensors"
    with weights.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        (path / HEADER).write_bytes(file.read(size))
    weights.unlink()
    (folder / "shape.json").write_text(json.dumps({"shape": shape, "precision": precision}))


def draw_weights(path: Path) -> None:
    """Random content for every tensor of the header, small enough that nothing overflows."""
    import torch

    header = (path / HEADER).read_bytes()
    tensors = {name: t for name, t in json.loads(header).items() if name != "__metadata__"}
    end = max(t["data_offsets"][1] for t in tensors.values())
    data = torch.empty(end, dtype=torch.uint8, device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    types = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    for name, tensor in tensors.items():
        if tensor["dtype"] not in types:
            continue
        begin, stop = tensor["data_offsets"]
        place = data[begin:stop].view(types[tensor["dtype"]])
        place.normal_(0, 0.02, generator=generator)
        if "A_log" in name:  # decays
            place.copy_(-1 - place.abs())
    with (path / "weights.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.write(data.cpu().numpy().tobytes())


def medians(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Seconds of the device and of the host per call."""
    import torch

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    warm = 3 if rounds > 1 else 0  # a single run of something slow is warm enough
    for number in range(rounds + warm):
        for name, call in sides.items():
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            first.record()
            start = time.perf_counter()
            call()
            host = time.perf_counter() - start
            last.record()
            last.synchronize()
            if number >= warm:
                found[name].append((first.elapsed_time(last) / 1e3, host))
    return {name: tuple(map(statistics.median, zip(*times))) for name, times in found.items()}  # type: ignore[misc]


def run(folder: Path, prefill: int, rounds: int) -> None:
    """Decode and prefill beside transformers' own module of the same shape and type."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    import coilc.runtime

    about = json.loads((folder / "shape.json").read_text())
    path = folder / "model.coil"
    draw_weights(path)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[about["precision"]]
    began = time.perf_counter()
    model = coilc.runtime.load(path, verify=False)
    session = model.session()
    token, prompt = (torch.randint(0, VOCABULARY, (1, n), device="cuda") for n in (1, prefill))
    session.step(input_ids=token)
    torch.cuda.synchronize()
    print(f"{about['shape']} {about['precision']}: open and first step {time.perf_counter() - began:.2f} s")
    torch.set_grad_enabled(False)
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        eager = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, state_size=STATES, **SHAPES[about["shape"]])).eval()
    cache = eager(input_ids=token, use_cache=True).cache_params

    def steps() -> None:
        for _ in range(STEPS):
            session.step(input_ids=token)

    def eager_step() -> object:
        try:
            return eager(
                input_ids=token, use_cache=True, cache_params=cache, cache_position=torch.tensor([4], device="cuda")
            )
        except TypeError:
            return eager(input_ids=token, use_cache=True, cache_params=cache)

    copied = torch.empty(1 << 29, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(copied)
    found = medians({"coilc": steps, "eager": eager_step, "copy": lambda: target.copy_(copied)}, rounds)
    step, host = (seconds / STEPS for seconds in found["coilc"])
    bandwidth = 4 * copied.numel() / found["copy"][0]
    embedding = VOCABULARY * SHAPES[about["shape"]]["hidden_size"] * dtype.itemsize
    size = (path / "weights.safetensors").stat().st_size - embedding  # of the table of tokens one row is read
    reads = size / step
    print(f"copy {bandwidth / 1e12:.2f} TB/s; weights read per step {size / 1e9:.2f} GB")
    print(
        f"step, {STEPS} in a row: coilc {step * 1e3:.3f} ms (host {host * 1e6:.0f} us), {reads / 1e12:.2f} TB/s, "
        f"{reads / bandwidth:.0%} of copy; eager {found['eager'][0] * 1e3:.2f} ms, {found['eager'][0] / step:.1f}x"
    )
    whole = model.session()

    def ours() -> object:
        whole.reset()
        return whole.prefill(input_ids=prompt)

    mine = medians({"coilc": ours}, 5)["coilc"][0]
    print(f"prefill {prefill}: coilc {mine * 1e3:.1f} ms")
    theirs = medians({"eager": lambda: eager(input_ids=prompt, use_cache=False)}, 1)["eager"][0]
    print(f"prefill {prefill}: eager {theirs * 1e3:.1f} ms, {theirs / mine:.1f}x")


def main() -> None:
    """Build or run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("build", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="2.8b")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--target", default="cuda:sm_90a")
    parser.add_argument("--prefill", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=10)
    asked = parser.parse_args()
    if asked.what == "build":
        build(asked.folder, asked.shape, asked.precision, asked.target)
    else:
        run(asked.folder, asked.prefill, asked.rounds)


if __name__ == "__main__":
    main()
