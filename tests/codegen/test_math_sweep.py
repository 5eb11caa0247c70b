"""Vector functions over all of fp32: every exponent, both signs, subnormals, infinities and NaN.

The bound is 1e-6 relative, in normal results. Subnormal results may be zero, and one that rounds to the largest number may be
infinite. ``silu`` is ``x * sigmoid(x)``, so it may be zero where the sigmoid is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from native_kernels import Kernels

from coilc.codegen.target import TARGETS, cpu_features, parse_target
from coilc.ir import Graph, Module, parse_graph
from coilc.passes import decompose

BOUND, TINY, LARGEST = 1e-6, float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
SAMPLED, DENSE = 1021, 127  # strides through the 2**32 representations, both odd: no exponent or low bit is left out


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sigmoid": lambda x: np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x))),
    "silu": lambda x: x * FUNCTIONS["sigmoid"](x),
    "softplus": _softplus,
    "tanh": np.tanh,
}
FLUSHED = dict.fromkeys(FUNCTIONS, TINY) | {"silu": 88 * TINY}  # below these, results may be zero
# Those with instructions for exponents, and those without.
LEVELS = [name for name in ("x86-64-v3", "x86-64-v4") if TARGETS[name].features <= cpu_features()] or ["native"]


@cache
def kernels(level: str) -> Kernels:
    target = parse_target(level)

    def body(op: str) -> Graph:
        graph = parse_graph(f'def k(x0: f32[N]):\n    v0: f32[N] = {op}(x0)\n    return {{"y0": v0}}\n')
        return decompose(Module({"k": graph}), target.claims).entries["k"]

    return Kernels({op: body(op) for op in FUNCTIONS}, target)


def worst(level: str, op: str, x: np.ndarray) -> float:
    """The largest relative error, after the special values are checked."""
    (y,) = kernels(level).run(op, x)
    with np.errstate(all="ignore"):
        expected = FUNCTIONS[op](x.astype(np.float64))
        rounded = expected.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(rounded))
    infinite = np.isinf(rounded)
    np.testing.assert_array_equal(y[infinite], rounded[infinite])
    small = np.abs(expected) < FLUSHED[op]
    assert np.all(np.abs(y[small]) <= FLUSHED[op])
    normal = np.isfinite(rounded) & ~small & (np.abs(expected) < LARGEST * (1 - BOUND))
    return float((np.abs(y[normal] - expected[normal]) / np.abs(expected[normal])).max(initial=0.0))


def representations(stride: int, first: int, count: int) -> np.ndarray:
    """``count`` numbers by their bits, from the ``first``-th of the sweep on."""
    bits = (first + np.arange(count, dtype=np.uint64)) * np.uint64(stride)
    return bits[bits < 2**32].astype(np.uint32).view(np.float32)


def sweep(level: str, op: str, stride: int) -> float:
    chunk, total = 1 << 21, 2**32 // stride + 1
    return max(worst(level, op, representations(stride, first, chunk)) for first in range(0, total, chunk))


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_exponent(level: str, op: str) -> None:
    assert sweep(level, op, SAMPLED) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_densely(level: str, op: str) -> None:
    assert sweep(level, op, DENSE) <= BOUND


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_special_values(level: str, op: str) -> None:
    tiny = np.float32(1e-45)
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, tiny, -tiny, TINY, -TINY, LARGEST, -LARGEST], np.float32)
    assert worst(level, op, np.concatenate([x, np.nextafter(x[7:9], np.float32(0))])) <= BOUND
