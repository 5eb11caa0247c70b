"""Every core op and every composite that the CPU claims has a kernel, and it computes what the op's reference says."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from native_kernels import Kernels

from coilc.codegen.lower import lower_body
from coilc.codegen.target import TARGETS, parse_target
from coilc.ir import OPS, CoilError, Graph, Module, interpret, type_of
from coilc.ir.opdef import STRUCTURAL

from .ops import Case, awkward, cases, draw, edges, graph_of, name

# One tolerance per element type: relative to the largest magnitude of the result, and to each element.
TOLERANCE = {"f64": 1e-12, "f32": 4e-6, "f16": 2e-3, "bf16": 2e-2}


CLAIMS = parse_target("native").claims


def is_lowered(case: Case) -> bool:
    """Complex numbers are split into pairs, and structure is resolved, before code generation."""
    op, _ = case
    has_kernel = op.is_core or op.name in CLAIMS
    return has_kernel and STRUCTURAL not in op.traits and not any(t.startswith("c") for t in _all_types(case))


def _all_types(case: Case) -> list[str]:
    op, example = case
    if op.name == "complex":
        return ["c64"]
    attrs = [str(v) for v in example.attrs.values()]
    return [*example.types, *attrs]


CASES = [case for case in cases() if is_lowered(case)]
AWKWARD = [case for case in CASES if awkward(*case)]
EDGES = [(case, edge, arrays) for case in CASES if case[0].name in CLAIMS for edge, arrays in edges(*case)]


def body_of(case: Case, arrays: list[np.ndarray]) -> Graph:
    return graph_of(case[0], [type_of(a) for a in arrays], dict(case[1].attrs)).entries["main"]


@cache
def kernels() -> Kernels:
    """All cases in one object; what cannot be lowered is left for its own test to report."""
    bodies: dict[str, Graph] = {f"edge{i}": body_of(case, arrays) for i, (case, _, arrays) in enumerate(EDGES)}
    for i, case in enumerate(CASES):
        bodies[f"draw{i}"] = body_of(case, draw(case[1]))
        values = awkward(*case)
        if values:
            bodies[f"awkward{i}"] = body_of(case, values)
    return Kernels({n: body for n, body in bodies.items() if _can_lower(body)})


def _can_lower(body: Graph) -> bool:
    try:
        lower_body(body, "probe", parse_target("native"))
    except CoilError:
        return False
    return True


def check(kernel: str, case: Case, arrays: list[np.ndarray]) -> None:
    body = body_of(case, arrays)
    if kernel not in kernels().bodies:
        lower_body(body, kernel, parse_target("native"))  # raises
    inputs = {f"x{i}": a for i, a in enumerate(arrays)}
    with np.errstate(invalid="ignore"):
        expected = list(interpret(Module({"main": body}), inputs).values())
    for actual, wanted, value in zip(kernels().run(kernel, *arrays), expected, body.results, strict=True):
        agree(actual, wanted, value.type.dtype.name)


def agree(actual: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    if dtype not in TOLERANCE:
        np.testing.assert_array_equal(actual, expected)
        return
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.abs(expected[np.isfinite(expected)])
    scale = min(float(finite.max(initial=0.0)), 1.0)
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_kernel_agrees_with_reference(case: Case) -> None:
    check(f"draw{CASES.index(case)}", case, draw(case[1]))


@pytest.mark.parametrize("case", AWKWARD, ids=name)
def test_kernel_agrees_with_reference_on_awkward_values(case: Case) -> None:
    values = awkward(*case)
    assert values is not None
    check(f"awkward{CASES.index(case)}", case, values)


@pytest.mark.parametrize("place", range(len(EDGES)), ids=lambda i: f"{name(EDGES[i][0])}-{EDGES[i][1]}")
def test_kernel_agrees_with_reference_at_the_edges(place: int) -> None:
    case, _, arrays = EDGES[place]
    check(f"edge{place}", case, arrays)


@pytest.mark.parametrize("target", TARGETS)
def test_every_core_op_has_a_lowering(target: str) -> None:
    missing = []
    for case in CASES:
        if not (case[0].is_core or case[0].name in TARGETS[target].claims):
            continue
        try:
            lower_body(body_of(case, draw(case[1])), "probe", TARGETS[target])
        except CoilError as error:
            missing.append(f"{case[0].name}: {error.message}")
    assert not missing, "\n".join(missing)


def test_all_core_and_claimed_ops_are_covered() -> None:
    covered = {op.name for op, _ in CASES}
    expected = {op.name for op in OPS.values() if op.is_core and STRUCTURAL not in op.traits} | CLAIMS
    assert expected - covered <= {"complex", "real", "imag"}
