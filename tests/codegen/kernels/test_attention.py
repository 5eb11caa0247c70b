"""Attention: grouped heads, causal and explicit masks, rows where everything is masked, decoding, odd sizes."""

from __future__ import annotations

import numpy as np
import pytest

from .harness import Compiled

PLAIN = """def kernel(q: f32[B, {h}, L, {e}], k: f32[B, {g}, S, {e}], v: f32[B, {g}, S, {f}]):
    o = attention(q, k, v, causal={causal})
    return {{"o": o}}
"""
MASKED = """def kernel(q: f32[B, 2, L, 5], k: f32[B, 1, S, 5], v: f32[B, 1, S, 33], mask: {type}):
    o = attention(q, k, v, mask, optional=("mask",), scale=0.25, causal=False)
    return {{"o": o}}
"""
DECODING = """def kernel(q: f32[B, 4, 1, 64], k: f32[B, 2, S, 64], v: f32[B, 2, S, 64], gate: f32[B, 4, 1, 64]):
    o = attention(q, k, v, causal=False)
    y = mul(o, gate)
    return {"y": y}
"""
CACHED = """def kernel(q: f32[B, 4, L, 8], k: f32[B, 2, S, 8], v: f32[B, 2, S, 5], seen: bool[S], offset: i64[()]):
    o = attention(q, k, v, seen, offset, optional=("mask", "offset"), causal=True, window={window})
    return {{"o": o}}
"""
HALF = """def kernel(q: bf16[B, 2, L, 16], k: bf16[B, 2, L, 16], v: bf16[B, 2, L, 16]):
    o = attention(q, k, v, causal=True)
    return {"o": o}
"""
SIZES = ((1, 1, 1), (2, 3, 2), (1, 7, 7), (1, 37, 64), (2, 33, 130), (1, 70, 65))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("h", "g", "e", "f"), [(1, 1, 1, 1), (4, 2, 3, 5), (2, 2, 64, 64), (3, 1, 33, 100)])
def test_heads_and_lengths(h: int, g: int, e: int, f: int, causal: bool) -> None:
    kernel = Compiled(PLAIN.format(h=h, g=g, e=e, f=f, causal=causal))
    for batch, length, keys in SIZES:
        kernel.check_random(ranges={"q": (-4.0, 4.0)}, B=batch, L=length, S=keys)


@pytest.mark.parametrize("type_", ["bool[B, 1, L, S]", "f32[L, S]", "bool[B, 2, L, 1]", "f32[B, 1, 1, S]"])
def test_masks(type_: str) -> None:
    kernel = Compiled(MASKED.format(type=type_))
    for batch, length, keys in SIZES:
        kernel.check_random(B=batch, L=length, S=keys)


@pytest.mark.parametrize("window", [None, 1, 5, 100])
def test_a_window_that_ends_at_an_offset(window: int | None) -> None:
    kernel = Compiled(CACHED.format(window=window))
    for batch, length, keys in ((1, 1, 1), (2, 1, 70), (1, 7, 200), (2, 70, 130)):
        *arrays, _ = kernel.draw(0, {}, {"B": batch, "L": length, "S": keys})
        for offset in (0, 1, 6, 63, 200):
            kernel.check(*arrays, np.array(offset))


def test_decoding_with_an_epilogue() -> None:
    kernel = Compiled(DECODING)
    for keys in (1, 63, 64, 200):
        kernel.check_random(B=2, S=keys)


def test_half_precision() -> None:
    kernel = Compiled(HALF)
    for length in (1, 37):
        kernel.check_random(B=1, L=length)
