"""Every op that has a kernel computes on AArch64 what its reference says; all of them are entries of one program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from laws.ops import Case, agree, awkward, cases, draw, graph_of, name

from coilc.codegen.compile import write_artifact
from coilc.codegen.plan import make_plan
from coilc.codegen.target import TARGETS
from coilc.ir import Graph, Module, interpret, ops, type_of
from coilc.ir.opdef import STRUCTURAL

from .emulate import Device

pytestmark = [pytest.mark.arm, pytest.mark.slow]
TARGET = TARGETS["aarch64"]


def has_kernel(case: Case) -> bool:
    """Complex numbers are split into pairs, and structure is resolved, before code generation."""
    op, example = case
    values = [*example.types, *map(str, example.attrs.values())]
    is_complex = op.name == "complex" or any(text.startswith("c") for text in values)
    return (op.is_core or op.name in TARGET.claims) and STRUCTURAL not in op.traits and not is_complex


CASES = [case for case in cases() if has_kernel(case)]


def arrays_of(case: Case) -> list[np.ndarray]:
    """Random operands, and for elementwise ops of floats the awkward ones."""
    return awkward(*case) or draw(case[1])


def module_of(case: Case) -> Module:
    return graph_of(case[0], [type_of(array) for array in arrays_of(case)], dict(case[1].attrs))


def scheduled(case: Case) -> Graph:
    """The op as one fused group."""
    body = module_of(case).entries["main"]
    results = ops.fused(*body.inputs, body=body)
    results = results if isinstance(results, tuple) else (results,)
    return Graph("main", body.inputs, tuple((f"y{i}", value) for i, value in enumerate(results)))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    entries = {f"case{i}": scheduled(case) for i, case in enumerate(CASES)}
    return Device(write_artifact(make_plan(Module(entries)), TARGET, tmp_path_factory.mktemp("arm") / "kernels.coil"))


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_kernel_agrees_with_the_reference(case: Case, device: Device, tmp_path: Path) -> None:
    inputs = {f"x{i}": array for i, array in enumerate(arrays_of(case))}
    found = device.run(inputs, tmp_path, entry=f"case{CASES.index(case)}")
    for key, expected in interpret(module_of(case), inputs).items():
        agree(found[key].view(expected.dtype), expected)
