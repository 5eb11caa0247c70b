"""The selective scan on a GPU, with softplus, skip and gate, against mamba-ssm's kernel where that is installed.

    python benchmarks/gpu/scan.py build FOLDER [cuda:sm_90a]
    PYTHONPATH=src python benchmarks/gpu/scan.py run FOLDER

The second command needs NumPy, torch and this repository, but no compiler; with mamba-ssm its `selective_scan_cuda` takes
turns with ours, in the layout that it wants. Results are first compared with a loop in float64. Times are medians in
microseconds, by events on the GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from events import medians

CHANNELS, STATES = 2048, 16
SIZES = ((8, 4096), (1, 32768))
CHECKED = (64, 256)  # channels and steps that are compared

TEXT = """\
def {name}(x: {t}[B, L, {D}], dt: {t}[B, L, {D}], a: f32[{N}, {D}], b: {t}[B, L, 1, {N}], c: {t}[B, L, 1, {N}],
           skip: f32[{D}], z: {t}[B, L, {D}], bias: f32[{D}], *, B: dim[1:], L: dim[1:]):
    y, h = selective_scan(x, dt, a, b, c, skip, z, bias, optional=("D", "z", "dt_bias"), softplus=True)
    return {{"y": y}}
"""


def build(path: Path, target: str) -> None:
    """One artifact with an entry per type."""
    import coilc
    from coilc.ir import Module, parse_graph

    texts = {name: TEXT.format(name=name, t=name, D=CHANNELS, N=STATES) for name in ("f32", "bf16")}
    coilc.compile(Module({name: parse_graph(text) for name, text in texts.items()}), path, target)


def draw(batch: int, length: int, dtype: Any) -> dict[str, Any]:
    import torch

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda")

    rates = torch.arange(1, STATES + 1, device="cuda").float()[:, None]
    inputs = {
        "x": normal(batch, length, CHANNELS),
        "dt": normal(batch, length, CHANNELS) - 4,
        "b": normal(batch, length, 1, STATES),
        "c": normal(batch, length, 1, STATES),
        "z": normal(batch, length, CHANNELS),
    }
    kept = {
        "a": -rates * (0.5 + torch.rand(1, CHANNELS, device="cuda")),
        "skip": normal(CHANNELS),
        "bias": torch.rand(CHANNELS, device="cuda") / 10,
    }
    return {name: value.to(dtype) for name, value in inputs.items()} | kept


def reference(given: dict[str, Any]) -> Any:
    """The first steps of the first channels of the first sequence, in float64."""
    import torch

    channels, steps = CHECKED
    wide = {name: v.double() for name, v in given.items()}
    x, dt, z = (wide[name][0, :steps, :channels] for name in ("x", "dt", "z"))
    dt = torch.nn.functional.softplus(dt + wide["bias"][:channels])
    h, found = torch.zeros(STATES, channels, device="cuda", dtype=torch.float64), []
    for t in range(steps):
        h = torch.exp(dt[t] * wide["a"][:, :channels]) * h + wide["b"][0, t, 0, :, None] * dt[t] * x[t]
        found.append(wide["c"][0, t, 0] @ h)
    return (torch.stack(found) + wide["skip"][:channels] * x) * torch.nn.functional.silu(z)


def rival(given: dict[str, Any]) -> Callable[[], object]:
    """mamba-ssm's kernel on the same values, channels before time."""
    kernel = import_module("selective_scan_cuda").fwd
    x, dt, z = (given[name].transpose(1, 2).contiguous() for name in ("x", "dt", "z"))
    b, c = (given[name].permute(0, 2, 3, 1).contiguous() for name in ("b", "c"))
    a = given["a"].T.contiguous()
    return lambda: kernel(x, dt, a, b, c, given["skip"], z, given["bias"], True)


def run(path: Path) -> None:
    import torch

    import coilc

    model = coilc.load(path)
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, {CHANNELS} channels, {STATES} states")
    for name, dtype, allowed in (("f32", torch.float32, 1e-5), ("bf16", torch.bfloat16, 4e-3)):
        for batch, length in SIZES:
            given = draw(batch, length, dtype)
            expected = reference(given)
            found = model.run(name, given)["y"][0, : CHECKED[1], : CHECKED[0]].double()
            error = float((found - expected).norm() / expected.norm())
            assert error < allowed, f"{name} is off by {error:.1e}"
            sides = {"coilc": lambda n=name, g=given: model.run(n, g)}
            if find_spec("selective_scan_cuda"):
                sides["mamba-ssm"] = rival(given)
            ours, *theirs = medians(sides).values()
            peer = f"  mamba-ssm {theirs[0] * 1e6:7.0f} us  ratio {theirs[0] / ours:5.2f}" if theirs else ""
            print(f"{name:5} B {batch} L {length:6}  coilc {ours * 1e6:7.0f} us{peer}  error {error:.1e}")


if __name__ == "__main__":
    command, folder, *target = sys.argv[1:]
    artifact = Path(folder) / "scan.coil"
    build(artifact, *(target or ["cuda:sm_90a"])) if command == "build" else run(artifact)
