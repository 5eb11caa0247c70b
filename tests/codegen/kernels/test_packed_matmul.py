"""Packed matmul: every row remainder, column tails, symbolic leading dims, epilogues and a sliced operand."""

from __future__ import annotations

import pytest

from .harness import Compiled

PLAIN = """def kernel(x: f32[M, {k}], w: f32[{p}, {k}, 32]):
    y: f32[M, {n}] = packed_matmul(x, w, columns={n})
    return {{"y": y}}
"""
EPILOGUE = """def kernel(x: f32[B, L, 40], w: f32[4, 40, 32], bias: f32[100], residual: f32[B, L, 100]):
    v0: f32[B, L, 100] = packed_matmul(x, w, columns=100)
    v1: f32[B, L, 100] = broadcast(bias, dims=(B, L, 100))
    v2: f32[B, L, 100] = add(v0, v1)
    v3: f32[B, L, 100] = sigmoid(v2)
    v4: f32[B, L, 100] = mul(v2, v3)
    y: f32[B, L, 100] = add(v4, residual)
    return {"y": y}
"""
SLICED = """def kernel(x: f32[B, L, 80], w: f32[1, 24, 32]):
    v0: f32[B, L, 24] = slice(x, starts=(0, 0, 48), stops=(B, L, 72), steps=(1, 1, 1))
    y: f32[B, L, 32] = packed_matmul(v0, w, columns=32)
    return {"y": y}
"""
HALF = """def kernel(x: bf16[M, 33], w: bf16[2, 33, 32]):
    y: bf16[M, 40] = packed_matmul(x, w, columns=40)
    return {"y": y}
"""
WIDENED = """def kernel(x: {t}[M, 300], w: {t}[2, 300, 32], bias: f32[40]):
    v0: f32[M, 300] = cast(x, dtype=f32)
    v1: f32[2, 300, 32] = cast(w, dtype=f32)
    v2: f32[M, 40] = packed_matmul(v0, v1, columns=40)
    v3: f32[M, 40] = broadcast(bias, dims=(M, 40))
    y: f32[M, 40] = add(v2, v3)
    return {{"y": y}}
"""


@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 5), (64, 64), (37, 130), (130, 100)])
def test_every_number_of_rows(k: int, n: int) -> None:
    kernel = Compiled(PLAIN.format(k=k, n=n, p=-(-n // 32)))
    for rows in (1, 2, 3, 4, 5, 7, 8, 9, 37, 257):
        kernel.check_random(M=rows)


def test_epilogue_over_batch_and_length() -> None:
    kernel = Compiled(EPILOGUE)
    for batch, length in ((1, 1), (2, 3), (3, 7), (2, 37)):
        kernel.check_random(B=batch, L=length)


def test_operand_is_a_slice_of_wider_rows() -> None:
    kernel = Compiled(SLICED)
    for batch, length in ((1, 1), (2, 5), (1, 37)):
        kernel.check_random(B=batch, L=length)


def test_bf16_is_accumulated_in_f32() -> None:
    kernel = Compiled(HALF)
    for rows in (1, 5, 8):
        kernel.check_random(M=rows)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_weights_are_widened_for_every_tile_or_once_for_many_rows(dtype: str) -> None:
    kernel = Compiled(WIDENED.format(t=dtype))
    for rows in (1, 5, 31, 32, 33, 300):
        kernel.check_random(M=rows)
