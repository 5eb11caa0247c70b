"""Three matrices are multiplied in the cheaper order; what stays is explained."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import pytest

from coilc.ir import Module, parse_graph
from coilc.passes import explain, reassociate_products

Check = Callable[..., Module]


def test_a_normalised_product(check: Check) -> None:
    check(
        reassociate_products,
        """
        def main(q: f32[B, L, 8], k: f32[B, 8, L], v: f32[B, L, 6], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, L, L] = matmul(q, k)
            v1: f32[B, L, 1] = sum(v0, axes=(2,), keepdims=True)
            v2: f32[B, L, L] = broadcast(v1, dims=(B, L, L))
            v3: f32[B, L, L] = div(v0, v2)
            v4: f32[B, L, 6] = matmul(v3, v)
            return {"y": v4}
        """,
        """
        def main(q: f32[B, L, 8], k: f32[B, 8, L], v: f32[B, L, 6], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, 8, 6] = matmul(k, v)
            v1: f32[B, L, 6] = matmul(q, v0)
            v2: f32[B, 8, 1] = sum(k, axes=(2,), keepdims=True)
            v3: f32[B, L, 1] = matmul(q, v2)
            v4: f32[B, L, 6] = broadcast(v3, dims=(B, L, 6))
            v5: f32[B, L, 6] = div(v1, v4)
            return {"y": v5}
        """,
    )


def test_scales_and_gates_of_rows_move_to_the_result(check: Check) -> None:
    check(
        reassociate_products,
        """
        def main(q: f32[B, L, 8], k: f32[B, 8, L], v: f32[B, L, 6], g: f32[B, L, 1], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, L, L] = matmul(q, k)
            v1: f32[()] = constant(value=array(f32, 0.5))
            v2: f32[B, L, L] = broadcast(v1, dims=(B, L, L))
            v3: f32[B, L, L] = mul(v0, v2)
            v4: f32[B, L, L] = broadcast(g, dims=(B, L, L))
            v5: f32[B, L, L] = mul(v4, v3)
            v6: f32[B, L, 6] = matmul(v5, v)
            v7: f32[B, L] = mean(v3, axes=(2,), keepdims=False)
            return {"y": v6, "m": v7}
        """,
        """
        def main(q: f32[B, L, 8], k: f32[B, 8, L], v: f32[B, L, 6], g: f32[B, L, 1], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, 8, 6] = matmul(k, v)
            v1: f32[B, L, 6] = matmul(q, v0)
            v2: f32[()] = constant(value=array(f32, 0.5))
            v3: f32[B, L, 6] = broadcast(v2, dims=(B, L, 6))
            v4: f32[B, L, 6] = mul(v1, v3)
            v5: f32[B, L, 6] = broadcast(g, dims=(B, L, 6))
            v6: f32[B, L, 6] = mul(v4, v5)
            v7: f32[B, 8, 1] = mean(k, axes=(2,), keepdims=True)
            v8: f32[B, L, 1] = matmul(q, v7)
            v9: f32[B, L, 1] = broadcast(v2, dims=(B, L, 1))
            v10: f32[B, L, 1] = mul(v8, v9)
            v11: f32[B, L] = reshape(v10, dims=(B, L))
            return {"y": v6, "m": v11}
        """,
    )


WEIGHTS = """
    def main(q: f32[B, L, 8], k: f32[B, 8, L], v: f32[B, L, 6], m: f32[B, 1, L], *, B: dim[1:], L: dim[1:]):
        v0: f32[B, L, L] = matmul(q, k)
        v1: f32[B, L, L] = broadcast(m, dims=(B, L, L))
        v2: f32[B, L, L] = {op}
        v3: f32[B, L, 6] = matmul(v2, v)
        return {{"y": v3}}
"""


@pytest.mark.parametrize("op", ["mul(v0, v1)", "div(v1, v0)", "exp(v0)", "add(v0, v1)", "softmax(v0, axis=2)"])
def test_what_is_no_factor_of_rows_keeps_the_matrix(op: str) -> None:
    text = dedent(WEIGHTS.format(op=op)).strip()
    found = reassociate_products(Module({"main": parse_graph(text)}))
    assert found.entries["main"] == parse_graph(text)


@pytest.mark.parametrize("limits", ["1:8", "1:"])
def test_a_short_sequence_keeps_its_order(limits: str) -> None:
    text = f"""
        def main(q: f32[B, L, 16], k: f32[B, 16, L], v: f32[B, L, 16], *, B: dim[1:], L: dim[{limits}]):
            v0: f32[B, L, L] = matmul(q, k)
            v1: f32[B, L, 16] = matmul(v0, v)
            return {{"y": v1}}
    """
    declined = explain(Module({"main": parse_graph(dedent(text).strip())}), "reassociate_products").declined
    if limits == "1:":
        assert not declined
    else:
        assert declined[0].reason.startswith("(q k) v takes 2048 multiplications per sample and q (k v) takes 4096")
