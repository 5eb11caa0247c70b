"""The long convolution against its reference: any number of taps and steps, odd channel counts, the future."""

from __future__ import annotations

import numpy as np
import pytest

from .harness import Compiled

CAUSAL = """def kernel(x: f32[B, L, {d}], k: f32[K, {d}]):
    y: f32[B, L, {d}] = long_conv(x, k, optional=())
    return {{"y": y}}
"""
BOTH = """def kernel(x: f32[B, L, {d}], k: f32[K, {d}], r: f32[R, {d}]):
    y: f32[B, L, {d}] = long_conv(x, k, r, optional=("future",))
    return {{"y": y}}
"""


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3, 16, 37])
def test_any_number_of_taps(channels: int) -> None:
    kernel = Compiled(CAUSAL.format(d=channels))
    for length in (1, 2, 7, 8, 9, 130, 150):
        for taps in (1, 5, 8, 64, length, 200):
            kernel.check(random(2, length, channels), random(taps, channels) / taps)


def test_the_future() -> None:
    kernel = Compiled(BOTH.format(d=5))
    for length in (1, 2, 9, 40):
        for ahead in (1, 8, 50):
            kernel.check(random(2, length, 5), random(6, 5), random(ahead, 5) / ahead)
