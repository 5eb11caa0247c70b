"""How passes are tested: the text before and after, and equal results from the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from textwrap import dedent

import numpy as np
import pytest

from coilc.ir import Graph, Module, TensorType, dims, interpret, parse_graph, print_module, verify

SIZES = {"B": 2, "L": 5, "M": 3, "T": 4}
TOLERANCE = {"rtol": 2e-5, "atol": 1e-6}

Pass = Callable[[Module], Module]


def random_array(rng: np.random.Generator, type_: TensorType) -> np.ndarray:
    shape = tuple(dims.evaluate(dim, SIZES) for dim in type_.dims)
    if type_.dtype.kind in ("int", "uint"):
        return rng.integers(0, 3, shape).astype(type_.dtype.numpy)
    if type_.dtype.kind == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if type_.dtype.is_complex:
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(type_.dtype.numpy)
    return rng.standard_normal(shape).astype(type_.dtype.numpy)


def random_weights(rng: np.random.Generator, graph: Graph) -> dict[str, np.ndarray]:
    nodes = [node for node in graph.nodes if node.op.name == "weight"]
    return {node.attrs["name"]: random_array(rng, node.types[0]) for node in nodes}


def module_of(text: str, rng: np.random.Generator) -> Module:
    graph = parse_graph(dedent(text).strip())
    return Module({graph.name: graph}, random_weights(rng, graph))


def assert_same_results(before: Module, after: Module, rng: np.random.Generator, exact: bool = False) -> None:
    """Both modules give the same numbers; complex boundaries may have become pairs."""
    (name,) = before.entries
    inputs = {v.node.attrs["name"]: random_array(rng, v.type) for v in before.entries[name].inputs}
    expected = interpret(before, inputs, name)
    found = interpret(after, {k: pairs(a) for k, a in inputs.items()} if changed_types(before, after) else inputs, name)
    assert list(expected) == list(found)
    for key, array in expected.items():
        reference = pairs(array) if array.dtype.kind == "c" and found[key].dtype.kind != "c" else array
        assert found[key].dtype == reference.dtype
        assert found[key].shape == reference.shape
        if exact:
            np.testing.assert_array_equal(found[key], reference)
        else:
            np.testing.assert_allclose(found[key], reference, **TOLERANCE)


def changed_types(before: Module, after: Module) -> bool:
    return any(
        [v.type for v in before.entries[n].inputs] != [v.type for v in after.entries[n].inputs] for n in before.entries
    )


def pairs(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "c":
        return array
    return np.ascontiguousarray(array).view(array.real.dtype).reshape(*array.shape, 2)


@pytest.fixture
def check(rng: np.random.Generator) -> Callable[..., Module]:
    """Apply a pass, compare the text with ``after``, verify, and compare numbers; returns the module."""

    def run(transform: Pass, before: str, after: str, *, exact: bool = False) -> Module:
        module = module_of(before, rng)
        result = transform(module)
        verify.any_graph(result)
        found = print_module(result, locations=False).strip()
        assert found == dedent(after).strip(), f"the pass gave:\n{found}"
        assert_same_results(module, result, rng, exact)
        return result

    return run


@pytest.fixture
def preserves(rng: np.random.Generator) -> Callable[..., Module]:
    """Apply a pass and compare numbers only."""

    def run(transform: Pass, before: str | Module, weights: Mapping[str, np.ndarray] | None = None) -> Module:
        module = module_of(before, rng) if isinstance(before, str) else before
        result = transform(module)
        verify.any_graph(result)
        assert_same_results(module, result, rng)
        return result

    return run
