"""Random loop bodies, compiled once each, agree with the interpreter at every length from 1 to 200."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from random_bodies import loops

from coilc.codegen.compile import compile
from coilc.ir import Graph, Module, interpret, symbol
from coilc.ir import dims as d
from coilc.runtime import Session, load

LONGEST, BATCHES = 200, (1, 3)
Arrays = dict[str, np.ndarray]


@settings(max_examples=6, deadline=None)
@given(loops(symbol("B")))
def test_random_bodies_agree_with_the_interpreter(graph: Graph) -> None:
    check(graph, range(1, LONGEST + 1))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(loops(symbol("B")))
def test_many_random_bodies(graph: Graph) -> None:
    check(graph, (1, 2, 3, 17, LONGEST))


def check(graph: Graph, lengths: range | tuple[int, ...]) -> None:
    module = Module({"main": graph})
    with tempfile.TemporaryDirectory() as folder:
        model = load(compile(module, Path(folder) / "body.coil"), threads=2)
        for batch in BATCHES:
            check_every_length(module, model, batch, lengths)


def check_every_length(module: Module, model: Session, batch: int, lengths: range | tuple[int, ...]) -> None:
    """The first steps of a long loop are those of a short one, so one run of the interpreter serves every length."""
    graph = module.entries["main"]
    scan = graph.results[0].node
    axis, reverse, carries = scan.attrs["axis"], scan.attrs["reverse"], scan.attrs["carries"]
    inputs = draw(graph, {"B": batch, "L": LONGEST})
    expected = interpret(module, inputs)
    for length in lengths:
        part = np.s_[LONGEST - length :] if reverse else np.s_[:length]
        place = (np.s_[:],) * axis + (part,)
        found = model(**{name: np.ascontiguousarray(a[place]) if "s_" in name else a for name, a in inputs.items()})
        for i, array in enumerate(found.values()):
            steps = expected[f"y{i + carries if i < carries else i}"][place]
            agree(array, steps.take(0 if reverse else -1, axis) if i < carries else steps, f"y{i}, L={length}")


def draw(graph: Graph, sizes: dict[str, int]) -> Arrays:
    rng = np.random.default_rng(0)
    shapes = {v.node.attrs["name"]: ([d.evaluate(n, sizes) for n in v.dims], v.type.dtype) for v in graph.inputs}
    return {
        name: rng.uniform(-1, 1, shape).astype(np.float32) if dtype.is_float else rng.integers(-3, 4, shape)
        for name, (shape, dtype) in shapes.items()
    }


def agree(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    if found.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4, err_msg=what)
    else:
        np.testing.assert_array_equal(found, expected, err_msg=what)
