"""The inner loops of the large kernels keep everything in NEON's 32 registers and call nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from coilc.codegen.target import TARGETS

from . import (
    test_attention,
    test_causal_conv1d,
    test_delta_rule,
    test_gated_linear_attention,
    test_matmul,
    test_packed_matmul,
    test_selective_scan,
)
from .harness import Compiled

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks" / "arm"))

import report
from loops import Loop, hot_loops

KERNELS = {
    "packed_matmul": test_packed_matmul.EPILOGUE,
    "matmul": test_matmul.HEADS,
    **{f"selective_scan_{n}": test_selective_scan.FULL.format(d=1536, n=n, g=1) for n in (1, 2, 4, 5, 8, 16, 64)},
    **{
        f"selective_scan_{n}_of_{length}": test_selective_scan.FULL.format(d=1536, n=n, g=1).replace(
            "B, L", f"B, {length}"
        )
        for n, length in ((1, 64), (4, 64), (8, 1), (8, 64))
    },
    "causal_conv1d": test_causal_conv1d.FULL.format(d=1536, k=4, s=3),
    "gated_linear_attention": test_gated_linear_attention.PER_HEAD.format(h=8, g=1, n=128, p=64),
    "gated_delta_rule": test_delta_rule.PER_HEAD.format(h=8, g=4, n=128, p=128),
    "attention": test_attention.PLAIN.format(h=4, g=2, e=64, f=64, causal=True),
    "decoding": test_attention.DECODING,
    "generalized_delta_rule": test_delta_rule.GENERALIZED.format(h=8, g=8, n=64, p=64),
}
RELOADS = {"matmul": 2}  # addresses, once per tile: LLVM has written out the loop over an inner dimension this small


def check(loops: list[Loop], reloads: int = 0) -> None:
    assert loops
    for loop in loops:
        assert len(loop.spills) <= reloads, "\n".join(loop.code)
        assert not any(re.match(r"\S+ [qdsv]\d", text) for text in loop.spills), "\n".join(loop.code)
        assert not loop.calls, "\n".join(loop.code)


@pytest.mark.parametrize("name", KERNELS)
def test_hot_loops_neither_spill_nor_call(name: str) -> None:
    check(hot_loops(Compiled(KERNELS[name], TARGETS["aarch64"]).library.inspect_source("asm")), RELOADS.get(name, 0))


@pytest.mark.parametrize("name", report.KERNELS)
def test_nor_do_those_of_the_report(name: str) -> None:
    check(report.loops_of(report.KERNELS[name]))


def test_a_frame_pointer_is_not_always_one() -> None:
    """x29 is an ordinary register where no frame is set up, and then a load through it is no reload."""
    body = "f:\n{frame}.L1:\n\tldr\tq0, [x29, #16]\n\tstr\tq0, [{base}]\n" + "\tfmla\tv0.4s, v1.4s, v2.4s\n" * 12
    text = body + "\tb.ne\t.L1\n\tret\n"
    framed = "\tstp\tx29, x30, [sp, #-16]!\n\tmov\tx29, sp\n"
    for frame, base, expected in (("", "x0", 0), ("", "sp, #8", 1), (framed, "x0", 1), (framed, "sp", 2)):
        (loop,) = hot_loops(text.format(frame=frame, base=base))
        assert len(loop.spills) == expected
