"""Everything that a GPU must compute right, compiled and packed to be carried to a machine that has one.

    python tests/gpu/carry.py FOLDER [--target cuda:sm_90a] [--precision bf16] [NAME ...]

Each case is a folder with ``model.coil`` and ``cases.npz``, inputs and expected outputs of its runs. ``test_carried.py``
runs them there with NumPy and pytest alone. ``laws`` holds an entry for every example of every op; the others are the
models of ``tests/models`` and of ``examples/zoo``.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

import torch
from laws import test_kernels as laws
from laws.ops import awkward, draw, edges
from models import zoo
from zoo import test_zoo as papers

import coilc
from coilc.codegen.target import TARGETS
from coilc.comparison.eager import tensors_in, to_numpy
from coilc.comparison.metrics import difference
from coilc.ir import Graph, Module, interpret

LENGTH = papers.LENGTH  # of a sequence that is also run step by step
NARROW = {"bf16": torch.bfloat16, "fp16": torch.float16}
Run = tuple[str, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]  # entry, inputs, expected outputs


def carry_laws(folder: Path, target: str) -> None:
    """Every op on random, awkward and extreme values: an entry of one artifact each."""
    entries: dict[str, Graph] = {}
    runs: list[Run] = []
    claims = TARGETS[target].claims if target in TARGETS else laws.CLAIMS
    for number, case in enumerate(laws.CASES):
        if not case[0].is_core and case[0].name not in claims:
            continue
        values = {"draw": draw(case[1]), "awkward": awkward(*case)}
        values |= dict(edges(*case)) if case[0].name in claims else {}
        for kind, arrays in values.items():
            if arrays is not None:
                entry = f"{case[0].name}_{number}_{kind.replace(' ', '_')}"
                graph = laws.body_of(case, arrays)
                inputs = {f"x{i}": array for i, array in enumerate(arrays)}
                with np.errstate(all="ignore"):
                    expected = interpret(Module({"main": graph}), inputs)
                entries[entry] = graph
                runs.append((entry, inputs, expected))
    coilc.compile(Module(entries), folder / "model.coil", target=target)
    save(folder, runs, {"kind": "laws"})


def carry_model(build: Callable[[], zoo.Case], folder: Path, target: str, **options: str) -> None:
    """A model of ``tests/models`` at each of its sizes; a decoder also runs step by step."""
    case = build()
    program = coilc.export(
        case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes, lengths=case.lengths
    )
    sizes = list(case.sizes)
    steps = case.output == "logits" and "L" in sizes[0]
    entries = ("main", "prefill", "step") if steps else None
    coilc.compile(program, folder / "model.coil", target=target, entries=entries, **options)
    draw = [case.make_inputs(**size) for size in (*sizes, *([{"B": 2, "L": LENGTH}] if steps else []))]
    eager = lambda module, inputs: replace(case, module=module).eager(inputs)
    runs = [run_of(case.module, eager, inputs) for inputs in draw]
    save(folder, runs, about_model(case.module, eager, draw, runs, steps=steps, **options))


def carry_paper(name: str, folder: Path, target: str, **options: str) -> None:
    """A model of ``examples/zoo``; one that takes a sequence piece by piece also runs step by step."""
    sys.path.insert(0, str(papers.FOLDER))
    case = papers.Case(importlib.import_module(name), folder)
    entries = papers.ENTRIES if case.by_pieces else None
    path = coilc.compile(case.program, folder / "model.coil", target=target, entries=entries, **options)
    manifest = json.loads((path / "manifest.json").read_text())
    outputs = [output["name"] for output in manifest["entries"]["main"]["outputs"]]
    sizes = [*case.sizes(), *([papers.sequence_size(case)] if case.by_pieces else [])]
    draw = [case.inputs(size, seed) for seed, size in enumerate(sizes)]
    eager = lambda module, inputs: dict(zip(outputs, tensors_in(module(**inputs)), strict=True))
    runs = [run_of(case.module, eager, inputs) for inputs in draw]
    save(folder, runs, about_model(case.module, eager, draw, runs, steps=case.by_pieces, **options))


Inputs = Mapping[str, object]
Eager = Callable[[torch.nn.Module, Inputs], Mapping[str, torch.Tensor]]


def run_of(module: torch.nn.Module, eager: Eager, inputs: Inputs) -> Run:
    """The arrays of a run of ``main``."""
    arrays = {name: x.numpy() for name, x in inputs.items() if isinstance(x, torch.Tensor)}
    return "main", arrays, outputs_of(module, eager, inputs)


@torch.no_grad()
def outputs_of(module: torch.nn.Module, eager: Eager, inputs: Inputs) -> dict[str, np.ndarray]:
    return {name: to_numpy(x) for name, x in eager(module, inputs).items()}


def about_model(
    module: torch.nn.Module,
    eager: Eager,
    draw: Sequence[Inputs],
    runs: Sequence[Run],
    *,
    steps: bool,
    precision: str = "fp32",
) -> dict[str, object]:
    """What the runs of a model are held to; ``narrow_error`` is what eager PyTorch itself loses, by output."""
    narrow: dict[str, float] | None = {}
    if dtype := NARROW.get(precision):
        try:
            narrow = narrow_error(copy.deepcopy(module).to(dtype), eager, draw, runs, dtype)
        except RuntimeError as error:  # torch's Fourier transforms, for one, know no bf16
            print(f"eager has no {precision} form: {str(error).splitlines()[0]}")
            narrow = None
    return {"kind": "model", "steps": LENGTH if steps else 0, "narrow_error": narrow, "precision": precision}


def narrow_error(
    module: torch.nn.Module, eager: Eager, draw: Sequence[Inputs], runs: Sequence[Run], dtype: torch.dtype
) -> dict[str, float]:
    """The worst error over all runs of every output of a module that computes in ``dtype``."""
    found: dict[str, float] = {}
    for inputs, (_, _, expected) in zip(draw, runs, strict=True):
        cast = {name: x.to(dtype) if _is_real(x) else x for name, x in inputs.items()}
        for name, array in outputs_of(module, eager, cast).items():
            error = difference(array.astype(expected[name].dtype), expected[name]).relative_error
            found[name] = max(error, found.get(name, 0.0))
    return found


def _is_real(x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def save(folder: Path, runs: list[Run], about: Mapping[str, object]) -> None:
    """Arrays by the number of the run; bf16, which NumPy's files do not know, as its bits."""
    arrays = {}
    for number, (_, inputs, outputs) in enumerate(runs):
        for side, tensors in (("in", inputs), ("out", outputs)):
            for name, array in tensors.items():
                stored = array.view(np.uint16) if array.dtype.name == "bfloat16" else np.asarray(array)
                arrays[f"{number}|{side}|{name}|{array.dtype.name}"] = stored
    np.savez_compressed(folder / "cases.npz", **arrays)
    (folder / "about.json").write_text(json.dumps({"entries": [entry for entry, *_ in runs], **about}))


def everything() -> Iterator[tuple[str, Callable[..., None]]]:
    """What can be carried, by name."""
    yield "laws", lambda folder, target, **_: carry_laws(folder, target)
    for name, build in {**zoo.MODELS, **zoo.HYBRIDS}.items():
        yield name, lambda *place, build=build, **options: carry_model(build, *place, **options)
    for name in papers.NAMES:
        yield f"zoo-{name}", lambda *place, name=name, **options: carry_paper(name, *place, **options)


def main() -> int:
    """Carry what the command line names, by default everything; what fails is listed and leaves nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--target", default="cuda:sm_90a")
    parser.add_argument("--precision")
    asked = parser.parse_intermixed_args()
    options = {"precision": asked.precision} if asked.precision else {}
    failed = []
    for name, carry in everything():
        if asked.names and name not in asked.names:
            continue
        folder = asked.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            carry(folder, asked.target, **options)
            print(f"{name}: carried", flush=True)
        except Exception:  # the others are still worth carrying
            traceback.print_exc()
            print(f"{name}: FAILED", flush=True)
            shutil.rmtree(folder)
            failed.append(name)
    print(f"failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
