"""Gated linear attention: decay per head and per key channel, groups, state in and out, steps that do not fill a block."""

from __future__ import annotations

import pytest

from .harness import Compiled

PER_HEAD = """def kernel(q: f32[B, L, {g}, {n}], k: f32[B, L, {g}, {n}], v: f32[B, L, {h}, {p}], decay: f32[B, L, {h}]):
    o, s = gated_linear_attention(q, k, v, decay, optional=(), scale=1.0)
    return {{"o": o, "s": s}}
"""
PER_CHANNEL = """def kernel(
    q: f32[B, L, {g}, {n}], k: f32[B, L, {g}, {n}], v: f32[B, L, {h}, {p}], decay: f32[B, L, {h}, {n}],
    h0: f32[B, {h}, {n}, {p}]
):
    o, s = gated_linear_attention(q, k, v, decay, h0, optional=("h0",), scale=0.25)
    return {{"o": o, "s": s}}
"""
BONUS = """def kernel(
    q: f32[B, L, {g}, {n}], k: f32[B, L, {g}, {n}], v: f32[B, L, {h}, {p}], decay: f32[B, L, {h}, {n}], u: f32[{h}, {n}]
):
    o, s = gated_linear_attention(q, k, v, decay, u, optional=("bonus",), scale=1.0)
    return {{"o": o, "s": s}}
"""
HALF = """def kernel(
    q: bf16[B, L, 1, 3], k: bf16[B, L, 1, 3], v: bf16[B, L, 2, 5], decay: f32[B, L, 2], gate: bf16[B, L, 2, 5]
):
    o, s = gated_linear_attention(q, k, v, decay, optional=(), scale=1.0)
    y = mul(o, gate)
    return {"y": y, "s": s}
"""
RANGES = {"decay": (-2.0, 0.0)}


@pytest.mark.parametrize("text", [PER_HEAD, PER_CHANNEL, BONUS], ids=["per-head", "per-channel", "bonus"])
@pytest.mark.parametrize(
    ("h", "g", "n", "p"), [(1, 1, 1, 1), (4, 2, 3, 5), (2, 1, 64, 64), (3, 3, 7, 100), (2, 2, 33, 130)]
)
def test_every_length(text: str, h: int, g: int, n: int, p: int) -> None:
    kernel = Compiled(text.format(h=h, g=g, n=n, p=p))
    for batch, length in ((1, 1), (2, 2), (1, 7), (1, 37)):
        kernel.check_random(ranges=RANGES, B=batch, L=length)


def test_half_precision_with_a_gate() -> None:
    kernel = Compiled(HALF)
    for length in (1, 37):
        kernel.check_random(ranges=RANGES, B=2, L=length)
