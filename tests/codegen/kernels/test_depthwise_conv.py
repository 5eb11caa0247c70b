"""Depthwise convolution: windows larger than the padded edge, strides, dilation, channel tails, a bias behind it."""

from __future__ import annotations

import numpy as np
import pytest

from .harness import Compiled

PLANE = """def kernel(x: f32[B, H, W, {c}], w: f32[{k}, {c}], bias: f32[{c}]):
    v0: f32[B, H, W, {c}] = depthwise_conv(
        x, w, strides=(1, 1), padding=(({p}, {p}), ({p}, {p})), dilation=({d}, {d})
    )
    v1: f32[B, H, W, {c}] = broadcast(bias, dims=(B, H, W, {c}))
    v2: f32[B, H, W, {c}] = add(v0, v1)
    v3: f32[B, H, W, {c}] = sigmoid(v2)
    return {{"y": v3}}
"""
LINE = """def kernel(x: f32[B, 17, {c}], w: f32[4, {c}]):
    v0: f32[B, 9, {c}] = depthwise_conv(x, w, strides=(2,), padding=((1, 3),), dilation=(1,))
    return {{"y": v0}}
"""


@pytest.mark.parametrize(("c", "k", "p", "d"), [(1, 3, 1, 1), (5, 7, 3, 1), (64, 3, 1, 1), (100, 3, 2, 2)])
def test_planes(c: int, k: int, p: int, d: int) -> None:
    kernel = Compiled(PLANE.format(c=c, k=f"{k}, {k}", p=p, d=d))
    for height, width in ((1, 1), (2, 5), (9, 8)):
        kernel.check_random(B=2, H=height, W=width)


@pytest.mark.parametrize("c", [1, 7, 33])
def test_strides(c: int) -> None:
    Compiled(LINE.format(c=c)).check_random(B=3)


def test_a_tap_on_the_padding_adds_nothing_even_if_it_is_infinite() -> None:
    kernel = Compiled(LINE.format(c=1))
    (x, w) = kernel.draw(0, {"x": (0.1, 1.0)}, {"B": 1})
    expected = kernel.expected([x, np.where(np.arange(4)[:, None] == 0, 0, w).astype(np.float32)])[0]
    w[0] = np.inf
    (found,) = kernel(x, w)
    assert found[0, 0] == pytest.approx(expected[0, 0])
    assert (found[0, 1:] == np.inf).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(kernel.expected([x, w])[0][0, 0])
