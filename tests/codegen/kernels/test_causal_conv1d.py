"""Causal convolution: state in and out, lengths below the number of taps, channel tails."""

from __future__ import annotations

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
