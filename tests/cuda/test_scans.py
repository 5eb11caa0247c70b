"""Templates of recurrences, as they run on a device: every form that the sizes choose, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulation.gpu import EmulatedGPU

import coilc
from coilc.codegen.kernels.gpu import selective_scan
from coilc.ir import Module, interpret, parse_graph
from coilc.runtime import Model

STATES = (3, 4, 16, 40, 64)  # over 1, 1, 4, 8 and 16 lanes; 4 and 16 over twice as many where channels are few
OPTIONS = {3: ("h0", "mask"), 4: (), 16: ("D", "z", "dt_bias"), 40: ("z",), 64: ("D", "z", "dt_bias", "h0", "mask")}
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
    main = "\n".join([*lines, f"    return {{{', '.join(results)}}}", ""])
    return Module({"main": parse_graph(main), "halves": parse_graph(in_halves())})


def in_halves() -> str:
    """A scan whose sequences are in bf16."""
    types = {name: type_.replace("f32[B, L", "bf16[B, L") for name, type_ in operands(16).items()}
    given = ", ".join(f"{name}: {type_}" for name, type_ in types.items())
    return f"""
def halves({given}, *, B: dim[1:9], L: dim[1:999]):
    y, h = selective_scan({", ".join(types)}, optional={OPTIONS[16]}, softplus=True)
    return {{"y": y, "h": h}}
"""


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


@pytest.fixture(scope="module", params=[0, -1], ids=["many channels", "few channels"])
def model(gpu: EmulatedGPU | None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Model:
    """The program with one form of each scan, whatever the sizes."""
    path, forms_of = tmp_path_factory.mktemp("scans") / "scans.coil", selective_scan.forms_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selective_scan, "forms_of", lambda states: [forms_of(states)[request.param]])
        coilc.compile(program(), path, "cuda:sm_90a", algorithm="sequential")
    return coilc.load(path)


def drawn(entry: str, rng: np.random.Generator, batch: int, length: int) -> dict[str, np.ndarray]:
    """Operands of an entry: rates are negative, steps positive."""
    arrays = {}
    for value in program().entries[entry].inputs:
        dims = [{"B": batch, "L": length}.get(str(dim), dim) for dim in value.dims]
        array = rng.standard_normal(dims, dtype=np.float32)
        name = value.node.attrs["name"]
        array = -np.exp(array) if name.startswith("a") else np.abs(array) / 2 if name.startswith("dt") else array
        arrays[name] = array.astype(value.type.dtype.numpy) if not name.startswith("mask") else array > 0
    return arrays


LENGTHS = pytest.mark.parametrize(("batch", "length"), [(2, 1), (1, 5), (2, 64), (1, 131), (1, 300)])


@LENGTHS
def test_selective_scans_compute_the_reference(model: Model, rng: np.random.Generator, batch: int, length: int) -> None:
    arrays = drawn("main", rng, batch, length)
    expected = interpret(program(), arrays)
    actual = model(**arrays)
    for name, wanted in expected.items():
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(actual[name], wanted, rtol=4e-6, atol=4e-6 * scale, err_msg=name)


@LENGTHS
def test_a_scan_of_bf16_rounds_its_result_alone(
    model: Model, rng: np.random.Generator, batch: int, length: int
) -> None:
    arrays = drawn("halves", rng, batch, length)
    expected = interpret(program(), arrays, "halves")
    actual = model.run("halves", arrays)
    for name, step in (("y", 2**-7), ("h", 4e-6)):
        wanted = expected[name].astype(np.float32)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(np.float32(actual[name]), wanted, rtol=step, atol=4e-6 * scale, err_msg=name)
