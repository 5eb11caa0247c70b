"""Vector functions against float64 NumPy over their whole range, and without the C library."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from native_kernels import Kernels

from coilc.codegen.build import build_object
from coilc.codegen.target import TARGETS, cpu_features
from coilc.ir import parse_graph

COUNT = 20011
erf = np.vectorize(math.erf)
Range = tuple[float, float]
WIDE: Range = (-1e3, 1e3)

# op: the reference, and ranges to sample evenly
FUNCTIONS: dict[str, tuple[Callable[..., np.ndarray], tuple[Range, ...]]] = {
    "exp": (np.exp, ((-87.3, 88.7), (-1, 1), (-1e-3, 1e-3))),
    "expm1": (np.expm1, ((-100, 88), (-1, 1), (-1e-5, 1e-5))),
    "log": (np.log, ((1e-6, 10), (0.5, 2), (1, 3e38))),
    "log1p": (np.log1p, ((-0.999, 10), (-0.1, 0.1), (-1e-5, 1e-5), (1, 3e38))),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), ((-80, 80), (-3, 3))),
    "tanh": (np.tanh, ((-20, 20), (-1, 1), (-1e-4, 1e-4))),
    "erf": (erf, ((-6, 6), (-1, 1), (-1e-4, 1e-4))),
    "atan": (np.arctan, (WIDE, (-1, 1))),
    "sqrt": (np.sqrt, ((0, 1e6),)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), ((1e-6, 1e6),)),
}
ABSOLUTE = {"sin": np.sin, "cos": np.cos}


@cache
def kernels() -> Kernels:
    def body(op: str) -> str:
        return f'def k(x0: f32[N]):\n    v0: f32[N] = {op}(x0)\n    return {{"y0": v0}}\n'

    power = 'def k(x0: f32[N], x1: f32[N]):\n    v0: f32[N] = pow(x0, x1)\n    return {"y0": v0}\n'
    names = (*FUNCTIONS, *ABSOLUTE, "tan")
    return Kernels({**{op: parse_graph(body(op)) for op in names}, "pow": parse_graph(power)})


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    normal = (np.abs(expected) > 2e-38) & (np.abs(expected) < 3.4e38)
    return float((np.abs(actual - expected) / np.maximum(np.abs(expected), 1e-300))[normal].max())


@pytest.mark.parametrize("op", FUNCTIONS)
def test_error_is_below_one_millionth(op: str) -> None:
    reference, ranges = FUNCTIONS[op]
    for low, high in ranges:
        x = np.linspace(low, high, COUNT, dtype=np.float32)
        (y,) = kernels().run(op, x)
        with np.errstate(all="ignore"):
            assert relative_error(y, reference(x.astype(np.float64))) < 1e-6, (low, high)


@pytest.mark.parametrize("op", ABSOLUTE)
@pytest.mark.parametrize("reach", [4.0, 1e3, 1e7])
def test_angles_of_any_size(op: str, reach: float) -> None:
    x = np.linspace(-reach, reach, COUNT, dtype=np.float32)
    (y,) = kernels().run(op, x)
    assert np.abs(y - ABSOLUTE[op](x.astype(np.float64))).max() < 2e-7


def test_power() -> None:
    generator = np.random.default_rng(0)
    x = generator.uniform(0, 30, COUNT).astype(np.float32)
    y = generator.uniform(-25, 25, COUNT).astype(np.float32)
    (z,) = kernels().run("pow", x, y)
    with np.errstate(all="ignore"):
        assert relative_error(z, x.astype(np.float64) ** y.astype(np.float64)) < 1e-6


@pytest.mark.parametrize("op", ["exp", "sigmoid", "tanh", "log", "log1p", "expm1", "erf"])
def test_limits(op: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1000.0, -1000.0], np.float32)
    (y,) = kernels().run(op, x)
    reference = FUNCTIONS[op][0]
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(y, reference(x.astype(np.float64)).astype(np.float32), rtol=1e-6, atol=1e-37)


@cache
def widths() -> Kernels:
    body = 'def k(x0: f32[{n}]):\n    v0: f32[{n}] = exp(x0)\n    return {{"y0": v0}}\n'
    bodies = {f"k{n}": parse_graph(body.format(n=n)) for n in (1, 2, 3, 8, 16, 23, 64)}
    return Kernels(bodies, TARGETS["x86-64-v4"])


def test_exponents_have_an_instruction_for_vectors_of_any_width() -> None:
    """Narrow ones are filled up, wide ones cut."""
    compiled = widths()
    listing = subprocess.run(["objdump", "-d", str(compiled.object)], check=True, capture_output=True, text=True).stdout
    assert {found[1] for found in re.finditer(r"vscalefps .*%([xyz])mm", listing)} == set("xyz")
    if TARGETS["x86-64-v4"].features <= cpu_features():
        x = np.linspace(-80, 88, 64, dtype=np.float32)
        for name, graph in compiled.bodies.items():
            some = x[: graph.inputs[0].dims[0]]
            (y,) = compiled.run(name, some)
            assert relative_error(y, np.exp(some.astype(np.float64))) < 1e-6, name


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.kind == "cpu"])
def test_no_call_of_the_c_library(target: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp(target) / "kernels.o"
    build_object(kernels().bodies, TARGETS[target], path)
    listing = subprocess.run(["nm", "--undefined-only", str(path)], check=True, capture_output=True, text=True).stdout
    undefined = {line.split()[-1] for line in listing.splitlines()}
    assert {name for name in undefined if not name.startswith(("TVM", "__tvm"))} <= {"memset", "memcpy"}
