"""Every template on narrower machines: computed on AVX2, compiled for NEON."""

from __future__ import annotations

import pytest

from coilc.codegen.target import TARGETS, cpu_features

from . import (
    test_attention,
    test_causal_conv1d,
    test_gated_linear_attention,
    test_linear_scan,
    test_long_conv,
    test_matmul,
    test_packed_matmul,
    test_scan,
    test_selective_scan,
)
from .harness import Compiled

KERNELS = {
    "packed_matmul": (test_packed_matmul.EPILOGUE, {"B": 2, "L": 13}),
    "matmul": (test_matmul.HEADS, {"B": 2, "L": 13, "S": 37}),
    "selective_scan": (test_selective_scan.FULL.format(d=100, n=5, g=2), {"B": 2, "L": 13}),
    "causal_conv1d": (test_causal_conv1d.FULL.format(d=100, k=4, s=3), {"B": 2, "L": 70}),
    "long_conv": (test_long_conv.BOTH.format(d=37), {"B": 2, "L": 70, "K": 50, "R": 9}),
    "scan": (test_scan.RECURRENT.format(d=20, reverse=False), {"B": 2, "L": 13}),
    "spiking": (test_scan.SPIKING.format(reverse=True), {"B": 2, "L": 13}),
    "linear_scan": (test_linear_scan.PLAIN.format(d=100, reverse=False), {"B": 2, "L": 13}),
    "gated_linear_attention": (test_gated_linear_attention.PER_CHANNEL.format(h=4, g=2, n=7, p=33), {"B": 2, "L": 13}),
    "attention": (test_attention.PLAIN.format(h=4, g=2, e=20, f=33, causal=True), {"B": 2, "L": 13, "S": 70}),
}
RANGES = {"dt": (-3.0, 1.0), "a": (-2.0, -0.1), "decay": (-2.0, 0.0)}


@pytest.mark.parametrize("name", KERNELS)
def test_avx2(name: str) -> None:
    target = TARGETS["x86-64-v3"]
    if not target.features <= cpu_features():
        pytest.skip("this machine has no AVX2")
    text, symbols = KERNELS[name]
    ranges = RANGES | ({"a": (0.0, 1.0)} if name == "linear_scan" else {})
    Compiled(text, target).check_random(ranges=ranges, **symbols)


@pytest.mark.parametrize("name", KERNELS)
def test_neon_compiles(name: str) -> None:
    assert "fmla" in Compiled(KERNELS[name][0], TARGETS["aarch64"]).library.inspect_source("asm")
