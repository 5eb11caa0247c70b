"""Products of integers: exact sums at the ends of their range, whatever instruction adds them; scales, tails, epilogues."""

from __future__ import annotations

import re

import numpy as np
import pytest

from coilc.codegen.target import TARGETS, cpu_features, parse_target

from .harness import Compiled

ROWS = (1, 2, 3, 5, 8, 9, 40)
FORMATS = {"int8": ("i8", 4), "int4": ("u8", 8)}
LEVELS = [name for name, t in TARGETS.items() if name.startswith("x86") and t.features <= cpu_features()] or ["native"]
PLAIN = """def kernel(x: i8[M, {k}], w: {t}[{p}, {q}, 32, 4], s: f16[{p}, {g}, 32]):
    y: f32[M, {n}] = quantized_matmul(x, w, s, columns={n})
    return {{"y": y}}
"""
EPILOGUE = """def kernel(x: i8[B, L, 64], w: i8[2, 16, 32, 4], s: f16[2, 1, 32], step: f32[B, L, 1], bias: f32[40]):
    v0: f32[B, L, 40] = quantized_matmul(x, w, s, columns=40)
    v1: f32[B, L, 40] = broadcast(step, dims=(B, L, 40))
    v2: f32[B, L, 40] = mul(v0, v1)
    v3: f32[B, L, 40] = broadcast(bias, dims=(B, L, 40))
    y: f32[B, L, 40] = add(v2, v3)
    return {"y": y}
"""
TURNED = """def kernel(x: i8[64, M], w: i8[1, 16, 32, 4], s: f16[1, 1, 32]):
    v0: i8[M, 64] = transpose(x, perm=(1, 0))
    y: f32[M, 32] = quantized_matmul(v0, w, s, columns=32)
    return {"y": y}
"""


def plain(form: str, k: int, n: int, groups: int) -> str:
    stored, together = FORMATS[form]
    return PLAIN.format(t=stored, k=k, n=n, p=-(-n // 32), q=k // together, g=groups)


def integers(form: str, k: int, n: int, rows: int, groups: int = 1) -> list[np.ndarray]:
    """Random operands with the largest numbers there are among them, and scales of 1."""
    rng, (stored, together) = np.random.default_rng(rows), FORMATS[form]
    shape = (-(-n // 32), k // together, 32, 4)
    w = (
        rng.integers(-127, 128, shape)
        if stored == "i8"
        else rng.integers(1, 16, shape) + 16 * rng.integers(1, 16, shape)
    )
    x = rng.integers(-127, 128, (rows, k)).astype(np.int8)
    x[0], w[:, :, 0] = -127, -127 if stored == "i8" else 0x11  # the largest sums, of either sign
    w[:, :, 1] = 127 if stored == "i8" else 0xFF
    scale = np.ones((shape[0], groups, 32), np.float16)
    return [x, w.astype(np.int8 if stored == "i8" else np.uint8), scale]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("form", FORMATS)
def test_sums_are_exact_on_every_level(form: str, level: str) -> None:
    kernel = Compiled(plain(form, 128, 40, 1), parse_target(level))
    for rows in ROWS:
        arrays = integers(form, 128, 40, rows)
        np.testing.assert_array_equal(kernel(*arrays)[0], kernel.expected(arrays)[0])


@pytest.mark.parametrize(("form", "k", "n", "groups"), [("int4", 96, 100, 3), ("int8", 68, 32, 1), ("int8", 64, 16, 4)])
def test_groups_have_scales_of_their_own(form: str, k: int, n: int, groups: int) -> None:
    kernel = Compiled(plain(form, k, n, groups))
    for rows in ROWS:
        x, w, scale = integers(form, k, n, rows, groups)
        kernel.check(x, w, np.random.default_rng(rows).uniform(0.01, 1, scale.shape).astype(np.float16))


def test_what_follows_is_computed_in_the_kernel() -> None:
    kernel = Compiled(EPILOGUE)
    for batch, length in ((1, 1), (2, 3), (1, 37)):
        kernel.check_random(B=batch, L=length)


def test_an_operand_may_be_a_view() -> None:
    kernel = Compiled(TURNED)
    for rows in (1, 5, 8):
        kernel.check_random(M=rows)


INSTRUCTIONS = {
    "x86-64-v4+vnni": {"vpdpbusd"},
    "aarch64": {"smull", "sadalp"},
    "aarch64+dotprod": {"sdot"},
    "aarch64+dotprod+i8mm": {"sdot", "smmla"},  # for one row and for more
}


@pytest.mark.parametrize("level", INSTRUCTIONS)
@pytest.mark.parametrize("form", FORMATS)
def test_the_instructions_are_used(form: str, level: str) -> None:
    assembly = Compiled(plain(form, 64, 32, 1), parse_target(level)).library.inspect_source("asm")
    assert set(re.findall(r"\b(?:vpdpbusd|sdot|smmla|smull|sadalp)\b", assembly)) == INSTRUCTIONS[level]


def test_a_row_alone_needs_no_tile_for_more() -> None:
    one = Compiled(plain("int8", 64, 32, 1).replace("M,", "1,"), parse_target("aarch64+dotprod+i8mm"))
    assert "smmla" not in one.library.inspect_source("asm")
