"""Delta rules: decay per head and per key channel, groups, state in and out, a removal key of its own, odd sizes."""

from __future__ import annotations

import numpy as np
import pytest

from .harness import Compiled

PER_HEAD = """def kernel(
    q: f32[B, L, {g}, {n}], k: f32[B, L, {g}, {n}], v: f32[B, L, {h}, {p}], decay: f32[B, L, {h}], beta: f32[B, L, {h}]
):
    o, s = gated_delta_rule(q, k, v, decay, beta, optional=(), scale=1.0)
    return {{"o": o, "s": s}}
"""
PER_CHANNEL = """def kernel(
    q: f32[B, L, {g}, {n}], k: f32[B, L, {g}, {n}], v: f32[B, L, {h}, {p}], decay: f32[B, L, {h}, {n}],
    beta: f32[B, L, {h}], h0: f32[B, {h}, {n}, {p}]
):
    o, s = gated_delta_rule(q, k, v, decay, beta, h0, optional=("h0",), scale=0.25)
    return {{"o": o, "s": s}}
"""
GENERALIZED = """def kernel(
    q: f32[B, L, {g}, {n}], k: f32[B, L, {g}, {n}], v: f32[B, L, {h}, {p}], decay: f32[B, L, {h}, {n}],
    erase: f32[B, L, {h}, {n}], write: f32[B, L, {h}, {n}], h0: f32[B, {h}, {n}, {p}]
):
    o, s = generalized_delta_rule(q, k, v, decay, erase, write, h0, optional=("h0",), scale=0.25)
    return {{"o": o, "s": s}}
"""
HALF = """def kernel(
    q: bf16[B, L, 1, 3], k: bf16[B, L, 1, 3], v: bf16[B, L, 2, 5], decay: f32[B, L, 2], beta: bf16[B, L, 2],
    gate: bf16[B, L, 2, 5]
):
    o, s = gated_delta_rule(q, k, v, decay, beta, optional=(), scale=1.0)
    y = mul(o, gate)
    return {"y": y, "s": s}
"""


def ranges(n: int) -> dict[str, tuple[float, float]]:
    """Keys of length at most one, so that a step does not amplify the state."""
    unit = (-(n**-0.5), n**-0.5)
    return {"decay": (-2.0, 0.0), "beta": (0.0, 1.0), "k": unit, "erase": unit, "write": unit}


@pytest.mark.parametrize("text", [PER_HEAD, PER_CHANNEL, GENERALIZED], ids=["per-head", "per-channel", "generalized"])
@pytest.mark.parametrize(
    ("h", "g", "n", "p"), [(1, 1, 1, 1), (4, 2, 3, 5), (2, 1, 64, 64), (3, 3, 7, 100), (2, 2, 33, 130)]
)
def test_every_length(text: str, h: int, g: int, n: int, p: int) -> None:
    kernel = Compiled(text.format(h=h, g=g, n=n, p=p))
    for batch, length in ((1, 1), (2, 2), (1, 7), (1, 37)):
        kernel.check_random(ranges=ranges(n), B=batch, L=length)


def test_half_precision_with_a_gate() -> None:
    kernel = Compiled(HALF)
    for length in (1, 37):
        kernel.check_random(ranges=ranges(3), B=2, L=length)


@pytest.mark.parametrize(("decay", "beta"), [(-np.inf, 0.5), (0.0, 1.0), (0.0, 0.0), (-1e4, 1.0)])
def test_rates_at_their_limits(decay: float, beta: float) -> None:
    """A state that is forgotten at once, never, overwritten, or never written."""
    kernel = Compiled(PER_HEAD.format(h=2, g=1, n=4, p=6))
    q, k, v, *_ = kernel.draw(0, ranges(4), {"B": 1, "L": 7})
    rates = [np.full((1, 7, 2), x, np.float32) for x in (decay, beta)]
    kernel.check(q, k, v, *rates)
