"""The transform kernel against its definition: every radix, real and complex, odd numbers of sequences."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.codegen.target import TARGETS, cpu_features

from .harness import Compiled

TEXT = """def kernel(x: f32[B, {given}, {n}, {d}], w: f32[2, {n}], enter: f32[2, {n}], leave: f32[2, {n}]):
    y: f32[B, {parts}, {n}, {d}] = dft(x, w, enter, leave, parts={parts})
    return {{"y": y}}
"""


def table(n: int, turns: float) -> np.ndarray:
    waves = np.exp(2j * np.pi * turns * np.arange(n) / n)
    return np.stack([waves.real, waves.imag]).astype(np.float32)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 30, 64, 75, 512])
@pytest.mark.parametrize(("given", "parts", "channels"), [(2, 2, 5), (1, 2, 16), (2, 1, 37), (1, 1, 1)])
def test_against_the_definition(n: int, given: int, parts: int, channels: int) -> None:
    kernel = Compiled(TEXT.format(n=n, given=given, parts=parts, d=channels))
    x = np.random.default_rng(n).standard_normal((2, given, n, channels)).astype(np.float32) / n
    for sign in (-1, 1):
        kernel.check(x, table(n, sign), table(n, 0.25), table(n, -0.25))


def test_narrower_machines() -> None:
    text = TEXT.format(n=60, given=2, parts=2, d=37)
    assert "fmla" in Compiled(text, TARGETS["aarch64"]).library.inspect_source("asm")
    target = TARGETS["x86-64-v3"]
    if not target.features <= cpu_features():
        pytest.skip("this machine has no AVX2")
    x = np.random.default_rng(0).standard_normal((2, 2, 60, 37)).astype(np.float32) / 60
    Compiled(text, target).check(x, table(60, -1), table(60, 0.25), table(60, 0))
