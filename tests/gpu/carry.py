"""Everything that a GPU must compute right, compiled and packed to be carried to a machine that has one.

    python tests/gpu/carry.py FOLDER [--target cuda:sm_90a] [--precision bf16] [NAME ...]

Each case is a folder with ``model.coil`` and ``cases.npz``, inputs and expected outputs of its runs. ``test_carried.py``
runs them there with NumPy and pytest alone. ``laws`` holds an entry for every example of every op, ``products`` products of
16-bit floats of many sizes; the others are the models of ``tests/models`` and of ``examples/zoo``.
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
from coilc.ir import Graph, Module, interpret, parse_graph
from coilc.ir import dims as d

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


# Products by name: what they are given, with K a multiple of 8 as bulk copies want it, and the sizes to run. The last of
# each have more tiles than a GPU has multiprocessors, so that a block computes several; those with B many of a few elements.
PRODUCTS: Mapping[str, tuple[str, Sequence[Mapping[str, int]]]] = {
    "bias": (
        """x: bf16[M, 200], w: bf16[200, 776], b: bf16[776]
        v0: bf16[M, 776] = matmul(x, w)
        v1: bf16[M, 776] = broadcast(b, dims=(M, 776))
        y: bf16[M, 776] = add(v0, v1)""",
        [{"M": rows} for rows in (1, 7, 64, 65, 128, 200, 1000, 2500)],
    ),
    "tall": (
        """x: bf16[M, 40], w: bf16[40, 136]
        v0: bf16[M, 136] = matmul(x, w)
        y: bf16[M, 136] = neg(v0)""",
        [{"M": 33001}],
    ),
    "odd": (
        """x: f16[B, M, 72], w: f16[B, 13, 72], r: f16[B, M, 13]
        v0: f16[B, 72, 13] = transpose(w, perm=(0, 2, 1))
        v1: f16[B, M, 13] = matmul(x, v0)
        v2: f16[B, M, 13] = gelu(v1)
        y: f16[B, M, 13] = mul(v2, r)""",
        [{"B": b, "M": m} for b, m in ((1, 1), (3, 7), (2, 65), (3, 200), (150, 129), (270, 65))],
    ),
    "widened": (
        """x: bf16[B, M, 136], w: bf16[B, 136, 24], r: f32[B, M, 24]
        v0: f32[B, M, 136] = cast(x, dtype=f32)
        v1: f32[B, 136, 24] = cast(w, dtype=f32)
        v2: f32[B, M, 24] = matmul(v0, v1)
        v3: f32[B, M, 24] = add(v2, r)
        y: f32[B, M, 24] = sigmoid(v3)""",
        [{"B": b, "M": m} for b, m in ((1, 1), (2, 64), (2, 130), (70, 130))],
    ),
    "transposed": (
        """x: bf16[B, 136, 72], w: bf16[B, 40, 136]
        v0: bf16[B, 72, 136] = transpose(x, perm=(0, 2, 1))
        v1: f32[B, 72, 136] = cast(v0, dtype=f32)
        v2: bf16[B, 136, 40] = transpose(w, perm=(0, 2, 1))
        v3: f32[B, 136, 40] = cast(v2, dtype=f32)
        y: f32[B, 72, 40] = matmul(v1, v3)""",
        [{"B": 1}, {"B": 134}],
    ),
    "inner": (
        """x: bf16[B, M, 8*K], w: bf16[B, 10, 8*K]
        v0: bf16[B, 8*K, 10] = transpose(w, perm=(0, 2, 1))
        y: bf16[B, M, 10] = matmul(x, v0)""",
        [{"B": b, "M": m, "K": k} for b, m, k in ((1, 1, 3), (2, 9, 1), (2, 65, 9), (140, 65, 21))],
    ),
}


def carry_products(folder: Path, target: str) -> None:
    """Products of halves, whose sums are exact in fp32."""
    graphs: dict[str, Graph] = {}
    runs: list[Run] = []
    generator = np.random.default_rng(0)
    for name, (text, sizes) in PRODUCTS.items():
        given, *lines = (line.strip() for line in text.splitlines())
        symbols = ", ".join(f"{symbol}: dim[1:]" for symbol in sizes[0])
        body = "".join(f"    {line}\n" for line in [*lines, "return {'y': y}"])
        graph = graphs[name] = parse_graph(f"def {name}({given}, *, {symbols}):\n{body}")
        for size in sizes:
            inputs = {}
            for x in graph.inputs:
                halves = generator.integers(-1, 2, [d.evaluate(dim, size) for dim in x.dims]) / 2
                inputs[x.node.attrs["name"]] = halves.astype(x.type.dtype.numpy)
            wide = interpret(Module({"main": graph}), inputs, wide=True)["y"]
            runs.append((name, inputs, {"y": wide.astype(graph.results[0].type.dtype.numpy)}))
    coilc.compile(Module(graphs), folder / "model.coil", target=target)
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
    yield "products", lambda folder, target, **_: carry_products(folder, target)
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
