"""The linear scan on every axis, in both directions, with an epilogue on the states."""

from __future__ import annotations

import pytest

from .harness import Compiled

PLAIN = """def kernel(a: f32[B, L, {d}], b: f32[B, L, {d}], h0: f32[B, {d}]):
    h, last = linear_scan(a, b, h0, axis=1, reverse={reverse})
    return {{"h": h, "last": last}}
"""
FIRST_AXIS = """def kernel(a: f64[L], b: f64[L], h0: f64[()]):
    h, last = linear_scan(a, b, h0, axis=0, reverse=False)
    return {"h": h, "last": last}
"""
LAST_AXIS = """def kernel(a: f32[3, 7, L], b: f32[3, 7, L], h0: f32[3, 7], z: f32[3, 7, L]):
    h, last = linear_scan(a, b, h0, axis=2, reverse=True)
    y = mul(h, z)
    return {"y": y}
"""
RANGES = {"a": (0.0, 1.0)}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("d", [1, 3, 5, 64, 100, 130])
def test_channels_in_lanes(d: int, reverse: bool) -> None:
    kernel = Compiled(PLAIN.format(d=d, reverse=reverse))
    for batch, length in ((1, 1), (2, 2), (3, 7), (1, 37)):
        kernel.check_random(ranges=RANGES, B=batch, L=length)


@pytest.mark.parametrize("text", [FIRST_AXIS, LAST_AXIS], ids=["first", "last"])
def test_other_axes(text: str) -> None:
    kernel = Compiled(text)
    for length in (1, 2, 7, 37):
        kernel.check_random(ranges=RANGES, L=length)
