"""Products of integers on AArch64: exact, whatever instructions add them up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from codegen.kernels.test_quantized_matmul import integers, plain

from coilc.codegen.compile import write_artifact
from coilc.codegen.plan import make_plan
from coilc.codegen.target import parse_target
from coilc.ir import Graph, Module, interpret, ops, parse_graph

from .emulate import Device

pytestmark = pytest.mark.arm
TARGETS = ("aarch64", "aarch64+dotprod", "aarch64+i8mm", "aarch64+dotprod+i8mm")
ROWS = (1, 2, 3, 13)
# Format, K, N, groups: with tails of columns, with groups that are no multiple of eight rows, of eight or sixteen.
CASES = {
    "int8": ("int8", 144, 40, 1),
    "odd": ("int8", 68, 32, 1),
    "groups": ("int8", 48, 32, 2),
    "int4": ("int4", 96, 100, 3),
}


def kernel(text: str) -> Graph:
    body = parse_graph(text)
    return Graph("main", body.inputs, (("y", ops.fused(*body.inputs, body=body)),), symbols=(("M", (1, None)),))


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Device]:
    """A program for each target, whose entries are the cases."""
    plan = make_plan(Module({name: kernel(plain(*case)) for name, case in CASES.items()}))
    folder = tmp_path_factory.mktemp("integers")
    return {name: Device(write_artifact(plan, parse_target(name), folder / f"{name}.coil")) for name in TARGETS}


@pytest.mark.parametrize("name", CASES)
def test_results_are_exact(name: str, devices: dict[str, Device], tmp_path: Path) -> None:
    """Scales are powers of two, so that nothing is rounded."""
    form, k, n, groups = CASES[name]
    module = Module({"main": parse_graph(plain(form, k, n, groups))})
    for rows in ROWS:
        x, w, ones = integers(form, k, n, rows, groups)
        inputs = {"x": x, "w": w, "s": ones / np.random.default_rng(rows).integers(1, 3, ones.shape).astype(np.float16)}
        expected = interpret(module, inputs)["y"]
        for device in devices.values():
            np.testing.assert_array_equal(device.run(inputs, tmp_path, name)["y"], expected)
