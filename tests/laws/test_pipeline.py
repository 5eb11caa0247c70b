"""Laws of the pipeline over every op and each of its examples: the scheduled graph computes what the reference does."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pytest

from coilc.ir import Graph, Module, interpret, ops, type_of
from coilc.ir.opdef import STRUCTURAL
from coilc.passes import run_pipeline

from .ops import Case, agree, cases, draw, name, run

ORDINARY = [case for case in cases() if STRUCTURAL not in case[0].traits]
CLAIMS = frozenset(
    {"packed_matmul", "causal_conv1d", "selective_scan", "gated_linear_attention", "linear_scan", "attention"}
)


def pairs(array: np.ndarray) -> np.ndarray:
    """Complex numbers as the boundary of a lowered graph has them: real and imaginary parts along a last axis."""
    if array.dtype.kind != "c":
        return array
    return np.ascontiguousarray(array).view(array.real.dtype).reshape(*array.shape, 2)


def scheduled(case: Case, arrays: list[np.ndarray], claims: Collection[str], *, constant: bool) -> Module:
    op, example = case
    kind = ops.weight if constant else ops.input_
    operands = [kind(name=f"x{i}", type=type_of(a)) for i, a in enumerate(arrays)]
    results = op.node(*operands, **example.attrs).results
    outputs = tuple((f"y{i}", value) for i, value in enumerate(results))
    weights = {f"x{i}": a for i, a in enumerate(arrays)} if constant else {}
    return run_pipeline(Module({"main": Graph("main", () if constant else tuple(operands), outputs)}, weights), claims)


def compare(case: Case, claims: Collection[str], *, constant: bool = False) -> None:
    arrays = draw(case[1])
    expected = run(case, arrays)
    module = scheduled(case, arrays, claims, constant=constant)
    found = interpret(module, {} if constant else {f"x{i}": pairs(a) for i, a in enumerate(arrays)})
    for actual, reference in zip(found.values(), expected, strict=True):
        lowered = reference.dtype.kind == "c" and actual.dtype.kind != "c"
        agree(actual, pairs(reference) if lowered else reference)


@pytest.mark.parametrize("case", ORDINARY, ids=name)
def test_schedule_agrees_with_reference(case: Case) -> None:
    compare(case, frozenset())


@pytest.mark.parametrize("case", [case for case in ORDINARY if case[0].name in CLAIMS], ids=name)
def test_schedule_of_claimed_ops_agrees_with_reference(case: Case) -> None:
    compare(case, CLAIMS)


@pytest.mark.parametrize("case", ORDINARY, ids=name)
def test_folding_agrees_with_reference(case: Case) -> None:
    compare(case, frozenset(), constant=True)
