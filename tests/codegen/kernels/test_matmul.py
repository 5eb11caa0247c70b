"""Products of two activations: every dim symbolic or fixed, plain and transposed right operands, all number types."""

from __future__ import annotations

import pytest

from .harness import Compiled

PLAIN = """def kernel(x: {t}[B, {m}, {k}], y: {t}[B, {k}, {n}]):
    z: {t}[B, {m}, {n}] = matmul(x, y)
    return {{"z": z}}
"""
TRANSPOSED = """def kernel(x: {t}[B, {m}, {k}], y: {t}[B, {n}, {k}]):
    v: {t}[B, {k}, {n}] = transpose(y, perm=(0, 2, 1))
    z: {t}[B, {m}, {n}] = matmul(x, v)
    return {{"z": z}}
"""
SIZES = ((1, 1, 1, 1), (2, 3, 5, 7), (1, 9, 33, 31), (2, 130, 300, 65), (1, 4, 64, 100), (3, 1, 37, 33), (1, 129, 1, 2))
HEADS = """def kernel(q: f32[B, L, 2, 24], k: f32[B, S, 2, 24], bias: f32[L, S]):
    q1: f32[B, 2, L, 24] = transpose(q, perm=(0, 2, 1, 3))
    k1: f32[B, 2, 24, S] = transpose(k, perm=(0, 2, 3, 1))
    s: f32[B, 2, L, S] = matmul(q1, k1)
    b: f32[B, 2, L, S] = broadcast(bias, dims=(B, 2, L, S))
    y: f32[B, 2, L, S] = add(s, b)
    return {"y": y}
"""


@pytest.mark.parametrize("dtype", ["f32", "f64", "i64", "i32"])
@pytest.mark.parametrize("text", [PLAIN, TRANSPOSED], ids=["plain", "transposed"])
def test_symbolic_dims(text: str, dtype: str) -> None:
    kernel = Compiled(text.format(t=dtype, m="M", k="K", n="N"))
    for batch, m, k, n in SIZES:
        kernel.check_random(B=batch, M=m, K=k, N=n)


@pytest.mark.parametrize("text", [PLAIN, TRANSPOSED], ids=["plain", "transposed"])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (1, 64, 37), (5, 3, 130), (37, 100, 64)])
def test_fixed_dims(text: str, m: int, k: int, n: int) -> None:
    kernel = Compiled(text.format(t="f32", m=m, k=k, n=n))
    kernel.check_random(B=2)


def test_bf16_is_accumulated_in_f32() -> None:
    kernel = Compiled(TRANSPOSED.format(t="bf16", m="M", k=33, n="N"))
    for m, n in ((1, 5), (9, 40)):
        kernel.check_random(B=2, M=m, N=n)


def test_attention_scores_read_heads_in_place() -> None:
    kernel = Compiled(HEADS)
    for batch, length, keys in ((1, 1, 37), (2, 7, 7), (1, 37, 3)):
        kernel.check_random(B=batch, L=length, S=keys)
