"""Templates of recurrences, as they run on a device: every form that the sizes choose, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulation.gpu import EmulatedGPU

import coilc
from coilc.ir import Module, interpret, parse_graph
from coilc.runtime import Model

STATES = (3, 4, 16, 64)  # over 1, 1, 4 and 16 lanes
OPTIONS = {3: ("h0", "mask"), 4: (), 16: ("D", "z", "dt_bias"), 64: ("D", "z", "dt_bias", "h0", "mask")}
CHANNELS, GROUPS = 10, 2


def operands(n: int) -> dict[str, str]:
    """The types of one scan's operands by name."""
    types = {
        "x": f"f32[B, L, {CHANNELS}]",
        "dt": f"f32[B, L, {CHANNELS}]",
        "a": f"f32[{n}, {CHANNELS}]",
        "b": f"f32[B, L, {GROUPS}, {n}]",
        "c": f"f32[B, L, {GROUPS}, {n}]",
    }
    extra = {
        "D": f"f32[{CHANNELS}]",
        "z": f"f32[B, L, {CHANNELS}]",
        "dt_bias": f"f32[{CHANNELS}]",
        "h0": f"f32[B, {n}, {CHANNELS}]",
        "mask": "bool[B, L]",
    }
    return types | {name: extra[name] for name in OPTIONS[n]}


def program() -> Module:
    """One scan per size of the state; the values of one pass through a product on their way in, and one on their way out."""
    inputs = [f"{name}{n}: {type_}" for n in STATES for name, type_ in operands(n).items()]
    lines, results = [f"def main({', '.join(inputs)}, *, B: dim[1:9], L: dim[1:999]):"], []
    for n in STATES:
        lines.append(f"    u{n}: f32[B, L, {CHANNELS}] = mul(x{n}, x{n})")
        names = [f"u{n}", *(f"{name}{n}" for name in list(operands(n))[1:])]
        lines.append(
            f"    y{n}, h{n} = selective_scan({', '.join(names)}, optional={OPTIONS[n]}, softplus={bool(OPTIONS[n])})"
        )
        lines.append(f"    o{n}: f32[B, L, {CHANNELS}] = neg(y{n})")
        results += [f'"o{n}": o{n}, "h{n}": h{n}'] if n != 64 else [f'"o{n}": o{n}']
    return Module({"main": parse_graph("\n".join([*lines, f"    return {{{', '.join(results)}}}", ""]))})


CONVOLUTIONS = {"plain": ((), "none"), "whole": (("bias", "state"), "silu")}


@pytest.fixture(scope="module")
def convolutions(gpu: EmulatedGPU | None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("convolutions") / "convolutions.coil"
    return coilc.load(coilc.compile(convolution_program(), path, "cuda:sm_90a"))


def convolution_program() -> Module:
    lines = [
        "def main(x: f32[B, L, 130], w: f32[4, 130], bias: f32[130], state: f32[B, 3, 130], *, B: dim[1:9], L: dim[1:999]):"
    ]
    for name, (optional, activation) in CONVOLUTIONS.items():
        given = ", ".join(("x", "w", *optional))
        attrs = f'optional={optional}, activation="{activation}"'
        lines.append(f"    {name}, s_{name} = causal_conv1d({given}, {attrs})")
    results = ", ".join(f'"{name}": {name}, "s_{name}": s_{name}' for name in CONVOLUTIONS)
    return Module({"main": parse_graph("\n".join([*lines, f"    return {{{results}}}", ""]))})


@pytest.mark.parametrize("length", [1, 2, 16, 37])
def test_convolutions_compute_the_reference(convolutions: Model, rng: np.random.Generator, length: int) -> None:
    arrays = {}
    for value in convolution_program().entries["main"].inputs:
        dims = [{"B": 2, "L": length}.get(str(dim), dim) for dim in value.dims]
        arrays[value.node.attrs["name"]] = rng.standard_normal(dims, dtype=np.float32)
    expected, actual = interpret(convolution_program(), arrays), convolutions(**arrays)
    for name, wanted in expected.items():
        np.testing.assert_allclose(actual[name], wanted, rtol=4e-6, atol=4e-6, err_msg=name)


@pytest.fixture(scope="module")
def model(gpu: EmulatedGPU | None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path: Path = tmp_path_factory.mktemp("scans") / "scans.coil"
    return coilc.load(coilc.compile(program(), path, "cuda:sm_90a", algorithm="sequential"))


@pytest.mark.parametrize(("batch", "length"), [(2, 1), (1, 5), (2, 64), (1, 131)])
def test_selective_scans_compute_the_reference(model: Model, rng: np.random.Generator, batch: int, length: int) -> None:
    arrays = {}
    for value in program().entries["main"].inputs:
        dims = [{"B": batch, "L": length}.get(str(dim), dim) for dim in value.dims]
        array = rng.standard_normal(dims, dtype=np.float32)
        name = value.node.attrs["name"]
        array = -np.exp(array) if name.startswith("a") else np.abs(array) / 2 if name.startswith("dt") else array
        arrays[name] = array > 0 if name.startswith("mask") else array
    expected = interpret(program(), arrays)
    actual = model(**arrays)
    for name, wanted in expected.items():
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(actual[name], wanted, rtol=4e-6, atol=4e-6 * scale, err_msg=name)
