"""Convolutions of single channels."""

from __future__ import annotations

from collections.abc import Callable

from coilc.ir import Module
from coilc.passes.convolve_channels_last import convolve_channels_last

Check = Callable[..., Module]


def test_one_filter_per_channel(check: Check) -> None:
    check(
        convolve_channels_last,
        """
        def main(x: f32[B, 8, 5, 4], w: f32[8, 1, 3, 2], *, B: dim[1:]):
            v0: f32[B, 8, 5, 4] = conv(x, w, strides=(1, 1), padding=((1, 1), (1, 0)), dilation=(1, 1), groups=8)
            return {"y": v0}
        """,
        """
        def main(x: f32[B, 8, 5, 4], w: f32[8, 1, 3, 2], *, B: dim[1:]):
            v0: f32[B, 5, 4, 8] = transpose(x, perm=(0, 2, 3, 1))
            v1: f32[8, 3, 2] = reshape(w, dims=(8, 3, 2))
            v2: f32[3, 2, 8] = transpose(v1, perm=(1, 2, 0))
            v3: f32[B, 5, 4, 8] = depthwise_conv(v0, v2, strides=(1, 1), padding=((1, 1), (1, 0)), dilation=(1, 1))
            v4: f32[B, 8, 5, 4] = transpose(v3, perm=(0, 3, 1, 2))
            return {"y": v4}
        """,
    )


def test_shared_filters_stay(check: Check) -> None:
    text = """
        def main(x: f32[B, 8, 5], w: f32[8, 2, 3], *, B: dim[1:]):
            v0: f32[B, 8, 3] = conv(x, w, strides=(1,), padding=((0, 0),), dilation=(1,), groups=4)
            return {"y": v0}
        """
    check(convolve_channels_last, text, text)
