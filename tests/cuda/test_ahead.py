"""Which addresses kernels ask for before they wait: here asking adds one to what is there, which the results show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulation.gpu import EmulatedGPU

import coilc
from coilc.codegen import ahead
from coilc.ir import Module, parse_graph

from .conftest import emulated

ADDS_ONE = """
static __forceinline__ __device__ void coil_prefetch(const void *x) { ++*(float *)x; }
"""
LINE = ahead.LINE // 4  # elements

# An input, the size that it has, and how many of its elements are asked for, a line at a time.
CASES = {
    "as many as there are at least": ("x: f32[B, 40], *, B: dim[1:]", (5, 40), 40),
    "to the end": ("x: f32[300]", (300,), 300),
    "a line": ("x: f32[32]", (32,), 32),
    "less than a line": ("x: f32[31]", (31,), 0),
    "the largest": ("x: f32[131072]", (131072,), 131072),
    "larger": ("x: f32[131073]", (131073,), 0),
    "perhaps none": ("x: f32[B, 40], *, B: dim[0:]", (5, 40), 0),
}


@emulated
@pytest.mark.parametrize("case", CASES)
def test_small_inputs_are_asked_for(
    case: str, gpu: EmulatedGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_PREFETCH", ADDS_ONE)
    head, size, asked = CASES[case]
    kind = head[3 : head.index("]") + 1]
    module = Module({"main": parse_graph(f"def main({head}):\n    y: {kind} = neg(x)\n    return {{'y': y}}\n")})
    model = coilc.load(coilc.compile(module, tmp_path / "neg.coil", "cuda:sm_90a"))
    expected = np.zeros(size, np.float32)
    expected.reshape(-1)[:asked:LINE] = -1
    np.testing.assert_array_equal(model(x=np.zeros(size, np.float32))["y"], expected)
