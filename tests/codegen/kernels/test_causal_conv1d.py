"""Causal convolution: state in and out, lengths below the number of taps, channel tails."""

from __future__ import annotations

import numpy as np
import pytest

from .harness import Compiled

FULL = """def kernel(x: f32[B, L, {d}], w: f32[{k}, {d}], bias: f32[{d}], state: f32[B, {s}, {d}]):
    y, last = causal_conv1d(
        x, w, bias, state, optional=("bias", "state"), activation="silu"
    )
    return {{"y": y, "last": last}}
"""
PLAIN = """def kernel(xz: f32[B, L, 20], w: f32[4, 10]):
    x: f32[B, L, 10] = slice(xz, starts=(0, 0, 10), stops=(B, L, 20), steps=(1, 1, 1))
    y, last = causal_conv1d(x, w, optional=(), activation="none")
    return {"y": y, "last": last}
"""


@pytest.mark.parametrize(("d", "k"), [(1, 4), (3, 2), (5, 1), (64, 4), (100, 3), (130, 4), (16, 11)])
def test_state_bias_and_activation(d: int, k: int) -> None:
    kernel = Compiled(FULL.format(d=d, k=k, s=k - 1))
    for batch, length in ((1, 1), (2, 2), (3, 7), (2, 37), (1, 130)):
        kernel.check_random(B=batch, L=length)


def test_without_options_on_a_slice() -> None:
    kernel = Compiled(PLAIN)
    for batch, length in ((1, 1), (2, 3), (1, 65)):
        kernel.check_random(B=batch, L=length)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("operand", [0, 1])
def test_values_that_are_no_numbers_are_those_of_the_definition(operand: int, value: float) -> None:
    """Padding is zeros, and zero times an infinite weight is NaN."""
    kernel = Compiled(PLAIN)
    arrays = kernel.draw(0, {}, {"B": 1, "L": 7})
    arrays[operand][..., 0, 13 if operand == 0 else 3] = value
    with np.errstate(invalid="ignore"):
        expected = kernel.expected(arrays)
    for found, wanted in zip(kernel(*arrays), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert not np.isfinite(expected[0]).all()
