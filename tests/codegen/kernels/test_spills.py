"""The inner loops of the large kernels keep everything in NEON's 32 registers and call nothing."""

from __future__ import annotations

import re

import pytest

from coilc.codegen.target import TARGETS

from . import (
    test_causal_conv1d,
    test_delta_rule,
    test_gated_linear_attention,
    test_matmul,
    test_packed_matmul,
    test_selective_scan,
)
from .harness import Compiled

KERNELS = {
    "packed_matmul": test_packed_matmul.EPILOGUE,
    "matmul": test_matmul.HEADS,
    "selective_scan": test_selective_scan.FULL.format(d=1536, n=16, g=1),
    "causal_conv1d": test_causal_conv1d.FULL.format(d=1536, k=4, s=3),
    "gated_linear_attention": test_gated_linear_attention.PER_HEAD.format(h=8, g=1, n=128, p=64),
    "gated_delta_rule": test_delta_rule.PER_HEAD.format(h=8, g=4, n=128, p=128),
    "generalized_delta_rule": test_delta_rule.GENERALIZED.format(h=8, g=8, n=64, p=64),
}
MULTIPLY_ADDS = 12  # a loop with as many is one that the time goes to
RELOADS = {"causal_conv1d": 1}  # a constant of silu, in the loop over the first steps


def inner_loops(assembly: str) -> list[list[str]]:
    """The instructions of every loop that holds no other loop."""
    labels: dict[str, int] = {}
    code: list[str] = []
    for line in assembly.splitlines():
        if match := re.match(r"([.\w$]+):", line):
            labels[match[1]] = len(code)
        elif re.match(r"\t[a-z]", line):
            code.append(line.split("//")[0].strip())
    jumps = [
        (labels.get(text.split()[-1], len(code)), i)
        for i, text in enumerate(code)
        if re.match(r"b\b|b\.|[ct]bn?z", text)
    ]
    loops = [(first, last) for first, last in jumps if first <= last]
    inner = [loop for loop in loops if not any(o != loop and loop[0] <= o[0] and o[1] <= loop[1] for o in loops)]
    return [code[first : last + 1] for first, last in inner]


@pytest.mark.parametrize("name", KERNELS)
def test_hot_loops_neither_spill_nor_call(name: str) -> None:
    loops = inner_loops(Compiled(KERNELS[name], TARGETS["aarch64"]).library.inspect_source("asm"))
    hot = [loop for loop in loops if sum("fmla" in text for text in loop) >= MULTIPLY_ADDS]
    assert hot
    for loop in hot:
        spilled = [text for text in loop if re.match(r"(ld|st)[ru]?[rp]\s+[qd]\d.*\[(sp|x29)", text)]
        assert len(spilled) <= RELOADS.get(name, 0), "\n".join(loop)
        assert not any(text.startswith("bl") for text in loop)
