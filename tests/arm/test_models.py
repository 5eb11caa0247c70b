"""Whole models: the same module compiled for AArch64 agrees with the interpreter, from one token to many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import zoo

from coilc.codegen.compile import compile
from coilc.codegen.target import parse_target
from coilc.frontend.torch_export import export
from coilc.ir import Module, interpret, parse_graph
from coilc.passes import run_pipeline

from .emulate import Device

pytestmark = pytest.mark.arm
TOLERANCE = 1e-5  # of the largest magnitude of an output


def export_case(case: zoo.Case) -> Module:
    return export(case.module, case.args, case.kwargs, dynamic_shapes=case.dynamic_shapes)


def check(device: Device, module: Module, inputs: dict[str, np.ndarray], folder: Path) -> None:
    found = device.run(inputs, folder)
    for name, expected in interpret(module, inputs).items():
        error = np.abs(found[name] - expected).max() / np.abs(expected).max()
        assert error <= TOLERANCE, f"{name}: {error:.1e}"


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_model_agrees_with_the_interpreter(name: str, tmp_path: Path) -> None:
    case = getattr(zoo, name)()
    module = export_case(case)
    device = Device(compile(module, tmp_path / "m.coil", target="aarch64"))
    assert device.program.stat().st_size < 200_000
    for size in case.sizes:
        check(device, module, {key: tensor.numpy() for key, tensor in case.make_inputs(**size).items()}, tmp_path)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_the_same_there(precision: str, tmp_path: Path) -> None:
    """The interpreter runs the graph that was compiled, casts included; a rounding may fall the other way."""
    case = zoo.mamba()
    module = export_case(case)
    device = Device(compile(module, tmp_path / "m.coil", target="aarch64", precision=precision))
    inputs = {key: tensor.numpy() for key, tensor in case.make_inputs(B=2, L=9).items()}
    narrow = run_pipeline(module, parse_target("aarch64").claims, precision=precision)
    found, expected = (run["logits"] for run in (device.run(inputs, tmp_path), interpret(narrow, inputs)))
    step = {"bf16": 2.0**-8, "fp16": 2.0**-11}[precision]
    assert np.linalg.norm(found - expected) <= step / 2 * np.linalg.norm(expected)


LINEAR = """def main(x: f32[B, 64], *, B: dim[1:]):
    v0: f32[40, 64] = weight(name="w", type=f32[40, 64])
    v1: f32[B, 40] = linear(x, v0)
    return {"y": v1}
"""


@pytest.mark.parametrize("target", ["aarch64", "aarch64+dotprod", "aarch64+dotprod+i8mm"])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_integers_are_the_same_there(form: str, target: str, tmp_path: Path) -> None:
    """Rows of integers up to 127 are not rounded, so all that remains is exact."""
    rng = np.random.default_rng(0)
    module = Module({"main": parse_graph(LINEAR)}, {"w": rng.standard_normal((40, 64)).astype(np.float32)})
    device = Device(compile(module, tmp_path / "m.coil", target=target, quantize=form))
    integers = run_pipeline(module, parse_target(target).claims, quantize=form)
    for rows in (1, 9):
        x = rng.integers(-127, 128, (rows, 64)).astype(np.float32)
        x[:, 0] = 127
        found, expected = device.run({"x": x}, tmp_path)["y"], interpret(integers, {"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_every_extension_runs_where_it_is_there(tmp_path: Path) -> None:
    """qemu's processor has them all; coil-run asks before it runs."""
    case = zoo.mamba()
    module = export_case(case)
    device = Device(compile(module, tmp_path / "m.coil", target="aarch64+dotprod+fp16+i8mm+bf16"))
    check(device, module, {key: tensor.numpy() for key, tensor in case.make_inputs(B=1, L=9).items()}, tmp_path)
