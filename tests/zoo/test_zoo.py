"""The models of ``examples/zoo``: each is recognised, compiled once, and equal to eager PyTorch at every size.

A model is a file with ``build()``, which the command line takes as well, and what is said of it here:

``HOLDS``    first-class ops after the stage ``recognise``, and how often each
``CAUSAL``   whether a token sees only those before it
``LENGTHS``  extents to try besides the example's: of ``L``, or by name where there are several; ``C`` counts chunks
``EXPORT``   optional: further arguments of ``coilc.export``
``ROWS``     optional: how many sequences along ``L`` there are in one sample
``TOKENS``   where the length is fixed: how many tokens there are

A causal model of any length also runs piece by piece, with the same results.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from zoo.checks import copied, held, materialised, unrolled

import coilc
from coilc.codegen import build
from coilc.codegen.plan import make_plan
from coilc.codegen.target import parse_target
from coilc.comparison.eager import tensors_in, to_numpy
from coilc.comparison.metrics import TOLERANCE, difference, tolerance_for
from coilc.frontend.dynamic_shapes import Arguments, parse_dynamic
from coilc.ir import dims, interpret
from coilc.passes import run_pipeline
from coilc.passes.extract_state import extract_state
from coilc.runtime.model import Model

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "zoo"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SMALL = 1024  # bytes that may be copied: a matrix of weights for every route, repeated
LENGTH = 37  # of a sequence that comes in pieces
ENTRIES = ("main", "prefill", "step")

# Causal, but of one length: parameters or a convolution kernel as long as the sequence (``test_shorten_sequences``).
FROZEN = {"dss", "s4", "spacetime"}


@dataclass
class Case:
    """A model of the zoo, exported, recognised and compiled once for all tests of it."""

    file: ModuleType
    folder: Path

    def __post_init__(self) -> None:
        self.module, self.args, self.kwargs, self.dynamic_shapes = self.file.build()
        self.arguments = Arguments(self.module, self.args, self.kwargs)
        self.dynamic = parse_dynamic(self.arguments, self.dynamic_shapes)
        options = getattr(self.file, "EXPORT", {})
        self.program = coilc.export(self.module, self.args, self.kwargs, dynamic_shapes=self.dynamic_shapes, **options)
        self.stages: dict[str, coilc.Module] = {}
        run_pipeline(self.program, parse_target("native").claims, observe=self.stages.__setitem__)

    @cached_property
    def compiled(self) -> Model:
        entries = ENTRIES if self.by_pieces else None
        return coilc.load(coilc.compile(self.program, self.folder / "model.coil", entries=entries), threads=1)

    @property
    def by_pieces(self) -> bool:
        """Whether a sequence may come in pieces."""
        return self.file.CAUSAL and bool({"L", "C"} & set(self.dynamic.ranges))

    @property
    def chunk(self) -> int:
        """Tokens that the symbol ``C`` counts as one."""
        extents = [dim for axes in self.dynamic.axes.values() for dim in axes.values() if "C" in dims.symbols(dim)]
        return max((dims.evaluate(dim, {"C": 1}) for dim in extents), default=1)

    @property
    def lengths(self) -> list[str | int]:
        """Symbols along the sequence, or its fixed extent."""
        fixed = getattr(self.file, "TOKENS", None)
        return [fixed] if fixed else [name for name in self.dynamic.ranges if name != "B"]

    def sizes(self) -> Iterator[dict[str, int]]:
        """The example's extents, then those to try, with batches of 1, 2 and 3 in turn."""
        asked = [n if isinstance(n, dict) else {"L": n} for n in self.file.LENGTHS]
        for i, size in enumerate([{}, *(asked or [{}])]):
            yield {"B": 1 + i % 3, **size} if "B" in self.dynamic.ranges else size

    def inputs(self, size: dict[str, int], seed: int = 0) -> dict[str, Any]:
        """Random arguments with the extents of ``size``, and the example's where it has none."""
        generator = torch.Generator().manual_seed(seed)
        return {name: self._drawn(name, x, size, generator) for name, x in self.arguments.values.items()}

    def _drawn(self, name: str, example: Any, size: dict[str, int], generator: torch.Generator) -> Any:
        if not isinstance(example, torch.Tensor):
            return example
        shape = list(example.shape)
        for axis, dim in self.dynamic.axes.get((name,), {}).items():
            if set(dims.symbols(dim)) <= size.keys():
                shape[axis] = dims.evaluate(dim, size)
        if example.is_floating_point():
            return torch.randn(shape, generator=generator).to(example.dtype)
        return torch.randint(int(example.min()), int(example.max()) + 1, shape, generator=generator).to(example.dtype)

    def eager(self, inputs: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[np.ndarray]:
        module = self.module if dtype is torch.float32 else copy.deepcopy(self.module).to(dtype)
        cast = lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        with torch.no_grad():
            return [to_numpy(x) for x in tensors_in(module(**{name: cast(x) for name, x in inputs.items()}))]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield Case(importlib.import_module(request.param), tmp_path_factory.mktemp(request.param))
    finally:
        sys.path.remove(str(FOLDER))


def test_its_recurrences_are_recognised(case: Case) -> None:
    graph = case.stages["recognise"].entries["main"]
    assert held(graph, case.file.HOLDS) == case.file.HOLDS


def test_nothing_is_left_unrolled(case: Case) -> None:
    assert unrolled(case.stages["recognise"].entries["main"]) is None


def test_nothing_is_materialised(case: Case) -> None:
    rows = getattr(case.file, "ROWS", 1)
    for length in case.lengths:
        assert materialised(case.program, case.stages["fuse"], length, rows, case.chunk) is None


def test_routes_over_images_are_not_copied(case: Case) -> None:
    if any(isinstance(x, torch.Tensor) and x.ndim == 4 for x in case.args):
        copies = {name: size for name, size in copied(case.stages["fuse"]).items() if size > SMALL}
        assert not copies


def test_it_is_code_for_a_gpu(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as CUDA source; ``tests/codegen`` takes that of the templates to machine code."""
    sources: list[str] = []
    monkeypatch.setattr(build, "compile_device_code", lambda source, *_: sources.append(source))
    monkeypatch.setattr(build, "oldest_driver", lambda: 13000)  # which the compiler says, where there is one
    target, entries = parse_target("cuda:sm_90a"), ENTRIES if case.by_pieces else ()
    plan = make_plan(run_pipeline(case.program, target.claims, entries=entries, machine=target.machine))
    launches = build.build_object(plan.kernels, target, tmp_path / "kernels.o").launches
    assert len(launches) >= len(plan.kernels)
    assert all(f" {launch.name}(" in sources[0] for launch in launches)


def test_it_equals_eager_at_every_size(case: Case) -> None:
    for seed, size in enumerate(case.sizes()):
        inputs = case.inputs(size, seed)
        found = case.compiled(**{k: v.numpy() for k, v in inputs.items() if isinstance(v, torch.Tensor)})
        expected = case.eager(inputs)
        assert len(found) == len(expected)
        for (name, actual), wanted in zip(found.items(), expected):
            assert actual.shape == wanted.shape
            error, allowed = difference(actual, wanted).relative_error, tolerance_for(wanted)
            if error > allowed:  # which side is it that rounds? the model in double precision tells
                exact = case.eager(inputs, torch.float64)[list(found).index(name)].astype(wanted.dtype)
                error = difference(actual, exact).relative_error
                allowed = max(allowed, difference(wanted, exact).relative_error)
            assert error <= allowed, f"'{name}' at {size or 'the example'} is off by {error:.1e}"


@pytest.fixture(scope="module")
def sequence(case: Case) -> dict[str, np.ndarray]:
    """Inputs of a model that runs piece by piece: ``LENGTH`` elements, and what a last chunk lacks."""
    if not case.by_pieces:
        assert case.file.__name__ in FROZEN or not case.file.CAUSAL
        pytest.skip("all at once")
    return {name: x.numpy() for name, x in case.inputs(sequence_size(case)).items()}


def sequence_size(case: Case) -> dict[str, int]:
    """The extents of two sequences of ``LENGTH`` elements, or of the chunks that hold them."""
    return {"B": 2, "L": LENGTH, "C": -(-LENGTH // case.chunk)}


def first(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the first ``LENGTH`` elements."""
    return {name: x[:, :LENGTH] for name, x in outputs.items()}


def piece(inputs: dict[str, np.ndarray], start: int, stop: int) -> dict[str, np.ndarray]:
    return {name: x[:, start:stop] for name, x in inputs.items()}


def off(parts: list[dict[str, np.ndarray]], whole: dict[str, np.ndarray]) -> float:
    """The largest relative error of the pieces' outputs; of one without a time axis the last counts."""
    joined = {k: np.concatenate([p[k] for p in parts], 1)[:, -x.shape[1] :] for k, x in whole.items()}
    return max(difference(joined[name], expected).relative_error for name, expected in whole.items())


def test_any_split_is_the_whole(case: Case, sequence: dict[str, np.ndarray]) -> None:
    derived = extract_state(case.stages["recognise"], ENTRIES)
    whole, graph = first(interpret(derived, sequence, wide=True)), derived.entries["prefill"]
    types = {v.node.attrs["name"]: v.type.substitute({"B": 2}) for v in graph.inputs}
    start = {name: np.zeros(types[name].dims, types[name].dtype.numpy) for name, _ in graph.states}
    for cut in range(1, LENGTH):
        state, parts = start, []
        for begin, end in ((0, cut), (cut, LENGTH)):
            parts.append(interpret(derived, piece(sequence, begin, end) | state, "prefill", wide=True))
            state = {before: parts[-1].pop(after) for before, after in graph.states}
        assert off(parts, whole) <= 1e-10


def test_a_session_is_the_whole(case: Case, sequence: dict[str, np.ndarray]) -> None:
    whole = first(case.compiled(**sequence))
    for cut in range(1, LENGTH):
        session = case.compiled.session()
        parts = [session.prefill(**piece(sequence, *ends)) for ends in ((0, cut), (cut, LENGTH))]
        assert off(parts, whole) <= TOLERANCE["float32"]
    session = case.compiled.session()
    assert off([session.step(**piece(sequence, t, t + 1)) for t in range(LENGTH)], whole) <= TOLERANCE["float32"]
