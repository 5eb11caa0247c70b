"""Selective scan: all optional operands, groups, channel tails, prologues and epilogues, half precision."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.codegen.target import TARGETS
from coilc.ir.interpret import evaluate_body

from .harness import Compiled

FULL = """def kernel(
    x: f32[B, L, {d}], dt: f32[B, L, {d}], a: f32[{n}, {d}], b: f32[B, L, {g}, {n}], c: f32[B, L, {g}, {n}],
    skip: f32[{d}], z: f32[B, L, {d}], bias: f32[{d}], h0: f32[B, {n}, {d}], mask: bool[B, L]
):
    y, h = selective_scan(
        x, dt, a, b, c, skip, z, bias, h0, mask, optional=("D", "z", "dt_bias", "h0", "mask"), softplus=True
    )
    return {{"y": y, "h": h}}
"""
# As a fused Mamba mixer reads it: B and C are slices of one row, A is -exp(A_log), and a residual is added.
FUSED = """def kernel(
    xz: f32[B, L, 12], dt: f32[B, L, 6], a_log: f32[4, 6], bc: f32[B, L, 11], residual: f32[B, L, 6]
):
    x: f32[B, L, 6] = slice(xz, starts=(0, 0, 0), stops=(B, L, 6), steps=(1, 1, 1))
    e: f32[4, 6] = exp(a_log)
    a: f32[4, 6] = neg(e)
    b0: f32[B, L, 4] = slice(bc, starts=(0, 0, 3), stops=(B, L, 7), steps=(1, 1, 1))
    b: f32[B, L, 1, 4] = reshape(b0, dims=(B, L, 1, 4))
    c0: f32[B, L, 4] = slice(bc, starts=(0, 0, 7), stops=(B, L, 11), steps=(1, 1, 1))
    c: f32[B, L, 1, 4] = reshape(c0, dims=(B, L, 1, 4))
    y0, h = selective_scan(x, dt, a, b, c, optional=(), softplus=True)
    y: f32[B, L, 6] = add(y0, residual)
    return {"y": y}
"""
HALF = """def kernel(x: bf16[B, L, 5], dt: bf16[B, L, 5], a: f32[3, 5], b: bf16[B, L, 1, 3], c: bf16[B, L, 1, 3]):
    y, h = selective_scan(x, dt, a, b, c, optional=(), softplus=True)
    return {"y": y, "h": h}
"""
RANGES = {"dt": (-3.0, 1.0), "a": (-2.0, -0.1), "bias": (-3.0, 0.0)}


@pytest.mark.parametrize(("d", "n", "g"), [(1, 1, 1), (3, 5, 1), (5, 2, 1), (64, 16, 1), (100, 3, 2), (130, 4, 1)])
def test_all_operands(d: int, n: int, g: int) -> None:
    kernel = Compiled(FULL.format(d=d, n=n, g=g))
    for batch, length in ((1, 1), (2, 2), (3, 7), (1, 37)):
        kernel.check_random(ranges=RANGES, B=batch, L=length)


@pytest.mark.parametrize(("body", "rows"), [(FULL.format(d=16, n=4, g=1), 3), (FUSED, 2)])
def test_rows_are_prefetched_through_prologues(body: str, rows: int) -> None:
    """x, dt and z, one cache line each."""
    listing = Compiled(body, TARGETS["x86-64-v4"]).library.inspect_source("asm")
    assert listing.count("prefetcht0") in (rows, 2 * rows)  # the loop on this thread, and that on the pool


def test_prologue_and_epilogue() -> None:
    kernel = Compiled(FUSED)
    for batch, length in ((1, 1), (2, 7)):
        kernel.check_random(ranges={"dt": (-3.0, 1.0)}, B=batch, L=length)


def test_half_precision_keeps_the_state_in_f32() -> None:
    kernel = Compiled(HALF)
    for length in (1, 37):
        kernel.check_random(ranges={"dt": (-3.0, 0.0), "a": (-2.0, -0.1)}, B=2, L=length)


AWKWARD = (0.0, 1e-30, 88.0, -88.0, 100.0, -100.0, np.inf, -np.inf, np.nan)


@pytest.mark.parametrize("operand", range(5))
def test_awkward_values_are_those_of_the_loop(operand: int) -> None:
    """In fp32, where both are finite; and where the loop is not, neither is the kernel."""
    kernel = Compiled(FULL.format(d=16, n=4, g=1))
    for seed, value in enumerate(AWKWARD):
        arrays = kernel.draw(seed, RANGES, {"B": 1, "L": 5})
        arrays[operand].ravel()[np.random.default_rng(seed).integers(arrays[operand].size)] = value
        with np.errstate(all="ignore"):
            expected = evaluate_body(kernel.body.substitute(kernel.bindings(arrays)), arrays)
        for found, wanted in zip(kernel(*arrays), expected, strict=True):
            np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted), f"{value}")
            finite = np.isfinite(wanted)
            np.testing.assert_allclose(found[finite], wanted[finite], rtol=1e-4, atol=1e-5, err_msg=f"{value}")
