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
from collections.abc import Callable, Iterator, Mapping
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
from coilc.comparison.metrics import difference
from coilc.ir import Graph, Module, interpret

LENGTH = 37  # of a sequence that is also run step by step
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


def carry_model(build: Callable[[], zoo.Case], folder: Path, target: str, **options: object) -> None:
    """A model of ``tests/models`` at each of its sizes; a decoder also runs step by step."""
    case = build()
    program = coilc.export(
        case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes, lengths=case.lengths
    )
    sizes = list(case.sizes)
    steps = case.output == "logits" and "L" in sizes[0]
    entries = ("main", "prefill", "step") if steps else None
    coilc.compile(program, folder / "model.coil", target=target, entries=entries, **options)
    runs = [arrays_of(case, size) for size in (*sizes, *([{"B": 2, "L": LENGTH}] if steps else []))]
    narrow = None if "precision" not in options else narrow_error(case, runs[-1])
    save(folder, runs, {"kind": "model", "steps": steps, "narrow_error": narrow, **options})


def narrow_error(case: zoo.Case, run: Run) -> float:
    """What eager PyTorch loses when the module itself is in bf16."""
    module = copy.deepcopy(case.module).to(torch.bfloat16)
    inputs = {name: torch.from_numpy(array) for name, array in run[1].items()}
    cast = {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}
    found = replace(case, module=module).eager(cast)[case.output].float().numpy()
    return difference(found, run[2][case.output]).relative_error


def arrays_of(case: zoo.Case, size: Mapping[str, int]) -> Run:
    inputs = case.make_inputs(**size)
    expected = {name: value.numpy() for name, value in case.eager(inputs).items()}
    return "main", {name: value.numpy() for name, value in inputs.items()}, expected


def carry_paper(name: str, folder: Path, target: str, **options: object) -> None:
    """A model of ``examples/zoo``."""
    sys.path.insert(0, str(papers.FOLDER))
    case = papers.Case(importlib.import_module(name), folder)
    entries = papers.ENTRIES if case.by_pieces else None
    path = coilc.compile(case.program, folder / "model.coil", target=target, entries=entries, **options)
    outputs = [
        output["name"] for output in json.loads((path / "manifest.json").read_text())["entries"]["main"]["outputs"]
    ]
    runs: list[Run] = []
    for size in case.sizes():
        inputs = case.inputs(size)
        arrays = {k: v.numpy() for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        runs.append(("main", arrays, dict(zip(outputs, case.eager(inputs), strict=False))))
    save(folder, runs, {"kind": "model", "steps": False, **options})


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
    asked = parser.parse_args()
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
