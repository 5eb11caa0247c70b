"""Written-out forms become composites, and numbers stay."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent, indent

import numpy as np
import pytest

from coilc.ir import DTYPES, Graph, Module, TensorType, interpret, literal, ops, parse_graph, print_graph
from coilc.ir.dims import symbol
from coilc.passes import (
    PASSES,
    explain,
    recognise_activations,
    recognise_attention,
    recognise_convolutions,
    recognise_masks,
    recognise_norms,
)
from coilc.passes.dump import name_of

Check = Callable[..., Module]

EPS = "c: f32[()] = constant(value=array(f32, 1e-05))\ne: f32[B, 1] = broadcast(c, dims=(B, 1))"
ONE = "c: f32[()] = constant(value=array(f32, 1.0))\none: f32[B, 8] = broadcast(c, dims=(B, 8))"
HALF = f"{ONE}\nh: f32[()] = constant(value=array(f32, 0.5))\nhalf: f32[B, 8] = broadcast(h, dims=(B, 8))"

NORMS = {
    "rms_norm(x, w, eps=1e-05)": f"""
        {EPS}
        v0: f32[B, 8] = mul(x, x)
        v1: f32[B, 1] = mean(v0, axes=(1,), keepdims=True)
        v2: f32[B, 1] = add(v1, e)
        v3: f32[B, 1] = rsqrt(v2)
        v4: f32[B, 8] = broadcast(v3, dims=(B, 8))
        v5: f32[B, 8] = mul(x, v4)
        v6: f32[B, 8] = broadcast(w, dims=(B, 8))
        y: f32[B, 8] = mul(v6, v5)""",
    "rms_norm(x, eps=1e-05)": f"""
        {EPS}
        v0: f32[B, 8] = square(x)
        v1: f32[B] = mean(v0, axes=(1,), keepdims=False)
        v2: f32[B, 1] = reshape(v1, dims=(B, 1))
        v3: f32[B, 1] = add(e, v2)
        v4: f32[B, 1] = sqrt(v3)
        v5: f32[B, 8] = broadcast(v4, dims=(B, 8))
        y: f32[B, 8] = div(x, v5)""",
    "layer_norm(x, w, w, eps=1e-05)": f"""
        {EPS}
        m: f32[B, 1] = mean(x, axes=(1,), keepdims=True)
        n: f32[B, 8] = broadcast(m, dims=(B, 8))
        d: f32[B, 8] = sub(x, n)
        v1: f32[B, 1] = var(x, axes=(1,), keepdims=True, correction=0)
        v2: f32[B, 1] = add(v1, e)
        v3: f32[B, 1] = rsqrt(v2)
        v4: f32[B, 8] = broadcast(v3, dims=(B, 8))
        v5: f32[B, 8] = mul(d, v4)
        v6: f32[B, 8] = broadcast(w, dims=(B, 8))
        v7: f32[B, 8] = mul(v5, v6)
        y: f32[B, 8] = add(v7, v6)""",
    "softmax(x, axis=1)": """
        m: f32[B, 1] = max(x, axes=(1,), keepdims=True)
        n: f32[B, 8] = broadcast(m, dims=(B, 8))
        d: f32[B, 8] = sub(x, n)
        v1: f32[B, 8] = exp(d)
        v2: f32[B, 1] = sum(v1, axes=(1,), keepdims=True)
        v3: f32[B, 8] = broadcast(v2, dims=(B, 8))
        y: f32[B, 8] = div(v1, v3)""",
}
ACTIVATIONS = {
    "silu(x)": "v0: f32[B, 8] = sigmoid(x)\ny: f32[B, 8] = mul(v0, x)",
    "sigmoid(x)": f"{ONE}\nv0: f32[B, 8] = neg(x)\nv1: f32[B, 8] = exp(v0)\nv2: f32[B, 8] = add(v1, one)\ny: f32[B, 8] = div(one, v2)",
    "softplus(x)": f"{ONE}\nv0: f32[B, 8] = exp(x)\nv1: f32[B, 8] = add(one, v0)\ny: f32[B, 8] = log(v1)",
    'gelu(x, approximate="none")': f"""
        {HALF}
        r: f32[()] = constant(value=array(f32, 1.4142135))
        root: f32[B, 8] = broadcast(r, dims=(B, 8))
        v0: f32[B, 8] = div(x, root)
        v1: f32[B, 8] = erf(v0)
        v2: f32[B, 8] = add(v1, one)
        v3: f32[B, 8] = mul(half, x)
        y: f32[B, 8] = mul(v3, v2)""",
    'gelu(x, approximate="tanh")': f"""
        {HALF}
        p: f32[()] = constant(value=array(f32, 0.044715))
        pb: f32[B, 8] = broadcast(p, dims=(B, 8))
        q: f32[()] = constant(value=array(f32, 0.7978846))
        qb: f32[B, 8] = broadcast(q, dims=(B, 8))
        s: f32[B, 8] = mul(x, x)
        v0: f32[B, 8] = mul(s, x)
        v1: f32[B, 8] = mul(pb, v0)
        v2: f32[B, 8] = add(x, v1)
        v3: f32[B, 8] = mul(qb, v2)
        v4: f32[B, 8] = tanh(v3)
        v5: f32[B, 8] = add(one, v4)
        v6: f32[B, 8] = mul(x, half)
        y: f32[B, 8] = mul(v6, v5)""",
}


def flat(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


def graph_text(header: str, body: str) -> str:
    return f'def main({header}):\n{indent(flat(body), "    ")}\n    return {{"y": y}}'


@pytest.mark.parametrize("expected", NORMS)
def test_norms(expected: str, preserves: Check) -> None:
    found = preserves(recognise_norms, graph_text("x: f32[B, 8], w: f32[8], *, B: dim[1:]", NORMS[expected]))
    assert_is(found, expected)


@pytest.mark.parametrize("expected", ACTIVATIONS)
def test_activations(expected: str, preserves: Check) -> None:
    found = preserves(recognise_activations, graph_text("x: f32[B, 8], *, B: dim[1:]", ACTIVATIONS[expected]))
    assert_is(found, expected)


def assert_is(module: Module, expected: str) -> None:
    """The module's graph is one statement."""
    graph = module.entries["main"]
    parameters = ", ".join(f"{v.node.attrs['name']}: {v.type}" for v in graph.inputs)
    call = f"def main({parameters}, *, B: dim[1:]):\n    y: f32[B, 8] = {expected}\n    return {{'y': y}}"
    assert parse_graph(call).results == graph.results


def test_a_gain_that_is_not_a_vector_is_explained() -> None:
    text = graph_text(
        "x: f32[B, 8], g: f32[B, 8], *, B: dim[1:]", "n: f32[B, 8] = rms_norm(x, eps=1e-05)\ny: f32[B, 8] = mul(n, g)"
    )
    (event,) = explain(Module({"main": parse_graph(text)}), "recognise_norms").declined
    assert event.reason == "the gain f32[B, 8] is not one vector along the last axis"


def test_attention(check: Check) -> None:
    check(
        recognise_attention,
        """
        def main(q: f32[B, 4, L, 8], k: f32[B, 2, L, 8], v: f32[B, 2, L, 8], m: f32[L, L], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, 2, 1, L, 8] = reshape(k, dims=(B, 2, 1, L, 8))
            v1: f32[B, 2, 2, L, 8] = broadcast(v0, dims=(B, 2, 2, L, 8))
            v2: f32[B, 4, L, 8] = reshape(v1, dims=(B, 4, L, 8))
            v3: f32[B, 4, 8, L] = transpose(v2, perm=(0, 1, 3, 2))
            v4: f32[B, 4, L, L] = matmul(q, v3)
            v5: f32[()] = constant(value=array(f32, 0.25))
            v6: f32[B, 4, L, L] = broadcast(v5, dims=(B, 4, L, L))
            v7: f32[B, 4, L, L] = mul(v4, v6)
            v8: f32[B, 4, L, L] = broadcast(m, dims=(B, 4, L, L))
            v9: f32[B, 4, L, L] = add(v7, v8)
            v10: f32[B, 4, L, L] = softmax(v9, axis=3)
            v11: f32[B, 2, 1, L, 8] = reshape(v, dims=(B, 2, 1, L, 8))
            v12: f32[B, 2, 2, L, 8] = broadcast(v11, dims=(B, 2, 2, L, 8))
            v13: f32[B, 4, L, 8] = reshape(v12, dims=(B, 4, L, 8))
            v14: f32[B, 4, L, 8] = matmul(v10, v13)
            return {"y": v14}
        """,
        """
        def main(q: f32[B, 4, L, 8], k: f32[B, 2, L, 8], v: f32[B, 2, L, 8], m: f32[L, L], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, 2, 1, L, 8] = reshape(k, dims=(B, 2, 1, L, 8))
            v1: f32[B, 2, L, 8] = reshape(v0, dims=(B, 2, L, 8))
            v2: f32[B, 2, 1, L, 8] = reshape(v, dims=(B, 2, 1, L, 8))
            v3: f32[B, 2, L, 8] = reshape(v2, dims=(B, 2, L, 8))
            v4: f32[B, 4, L, 8] = attention(q, v1, v3, m, optional=("mask",), scale=0.25, causal=False, window=None)
            return {"y": v4}
        """,
    )


MASKS = {
    "le(c, r)": ("causal=True", "None"),
    "gt(r, c)": None,
    "ge(r, c)": ("causal=True", "None"),
    "bitwise_and(le(c, r), gt(c, sub(r, three)))": ("causal=True", "3"),
    "logical_and(lt(sub(r, three), c), le(c, r))": ("causal=True", "3"),
    "where(ge(r, c), zero, low)": ("causal=True", "None"),
    "where(ge(r, c), zero, ten)": None,
    "ge(r, r)": None,
    "le(c, add(r, three))": None,
}


@pytest.mark.parametrize("mask", MASKS)
def test_masks_of_positions(mask: str) -> None:
    dims = (4, symbol("L"), symbol("L"))
    r, c = (ops.iota(dims=dims, axis=axis, dtype=DTYPES["i64"]) for axis in (1, 2))
    names = {"r": r, "c": c, "three": 3, "zero": literal(0.0), "low": literal(-3e38), "ten": literal(-10.0)}
    value = eval(mask, {**vars(ops), **names})
    q = ops.input_(name="q", type=TensorType(DTYPES["f32"], (1, 4, symbol("L"), 8)))
    o = ops.attention(q, q, q, value, optional=("mask",))
    graph = Graph("main", (q,), (("o", o),), (("L", (1, None)),))
    after = recognise_masks(Module({"main": graph}))
    wanted = MASKS[mask]
    found = print_graph(after.entries["main"], locations=False)
    if wanted is None:
        assert "causal=False" in found
    else:
        assert f"optional=(), scale=None, {wanted[0]}, window={wanted[1]})" in found
    x = {"q": np.random.default_rng(0).normal(size=(1, 4, 6, 8)).astype("f4")}
    before = interpret(Module({"main": graph}), x, wide=True)["o"]
    np.testing.assert_allclose(interpret(after, x, wide=True)["o"], before, atol=1e-12)


def test_repeated_heads(check: Check) -> None:
    check(
        recognise_attention,
        """
        def main(q: f32[B, 4, L, 8], k: f32[B, 2, 1, L, 8], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, 2, 2, L, 8] = broadcast(k, dims=(B, 2, 2, L, 8))
            v1: f32[B, 4, L, 8] = reshape(v0, dims=(B, 4, L, 8))
            v2: f32[B, 4, L, 8] = attention(q, v1, v1, optional=(), scale=0.25, causal=True, window=None)
            return {"y": v2}
        """,
        """
        def main(q: f32[B, 4, L, 8], k: f32[B, 2, 1, L, 8], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, 2, L, 8] = reshape(k, dims=(B, 2, L, 8))
            v1: f32[B, 4, L, 8] = attention(q, v0, v0, optional=(), scale=0.25, causal=True, window=None)
            return {"y": v1}
        """,
    )


def test_rotary(check: Check) -> None:
    check(
        recognise_attention,
        """
        def main(x: f32[B, L, 8], c: f32[L, 8], s: f32[L, 8], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, L, 8] = broadcast(c, dims=(B, L, 8))
            v1: f32[B, L, 8] = mul(x, v0)
            v2: f32[B, L, 4] = slice(x, starts=(0, 0, 4), stops=(B, L, 8), steps=(1, 1, 1))
            v3: f32[B, L, 4] = neg(v2)
            v4: f32[B, L, 4] = slice(x, starts=(0, 0, 0), stops=(B, L, 4), steps=(1, 1, 1))
            v5: f32[B, L, 8] = concat(v3, v4, axis=2)
            v6: f32[B, L, 8] = broadcast(s, dims=(B, L, 8))
            v7: f32[B, L, 8] = mul(v5, v6)
            v8: f32[B, L, 8] = add(v1, v7)
            return {"y": v8}
        """,
        """
        def main(x: f32[B, L, 8], c: f32[L, 8], s: f32[L, 8], *, B: dim[1:], L: dim[1:]):
            v0: f32[B, L, 8] = rotary(x, c, s)
            return {"y": v0}
        """,
    )


CAUSAL = """
    def main(x: f32[B, 8, L], w: f32[8, 1, 4], b: f32[8], *, B: dim[1:], L: dim[1:]):
        v0: f32[B, 8, L + 3] = conv(x, w, strides=(1,), padding=((3, 3),), dilation=(1,), groups=8)
        v1: f32[8, 1] = reshape(b, dims=(8, 1))
        v2: f32[B, 8, L + 3] = broadcast(v1, dims=(B, 8, L + 3))
        v3: f32[B, 8, L + 3] = add(v0, v2)
        v4: f32[B, 8, L] = slice(v3, starts=(0, 0, 0), stops=(B, 8, L), steps=(1, 1, 1))
        return {"y": v4}
    """


def test_causal_convolution(preserves: Check) -> None:
    found = preserves(recognise_convolutions, CAUSAL)
    names = {node.op.name for node in found.entries["main"].nodes}
    assert "causal_conv1d" in names
    assert "conv" not in names


def test_bias_and_activation_join_the_convolution(check: Check) -> None:
    check(
        recognise_convolutions,
        """
        def main(x: f32[B, L, 8], w: f32[4, 8], b: f32[8], *, B: dim[1:], L: dim[1:]):
            v0, v1 = causal_conv1d(x, w, optional=(), activation="none")
            v2: f32[B, L, 8] = broadcast(b, dims=(B, L, 8))
            v3: f32[B, L, 8] = add(v0, v2)
            v4: f32[B, L, 8] = silu(v3)
            return {"y": v4}
        """,
        """
        def main(x: f32[B, L, 8], w: f32[4, 8], b: f32[8], *, B: dim[1:], L: dim[1:]):
            v0, v1 = causal_conv1d(x, w, b, optional=("bias",), activation="silu")
            return {"y": v0}
        """,
    )


PADDED = """
    def main(x: f32[B, L, 8], w: f32[8, 1, 4], *, B: dim[1:], L: dim[1:]):
        v0: f32[B, 8, L] = transpose(x, perm=(0, 2, 1))
        v1: f32[B, 8, L + 3] = pad(v0, low=(0, 0, 3), high=(0, 0, 0), value=0.0)
        v2: f32[B, 8, L] = conv(v1, w, strides=(1,), padding=((0, 0),), dilation=(1,), groups=8)
        return {"y": v2}
    """
PADDED_FIRST = """
    def main(x: f32[B, L, 8], w: f32[8, 1, 4], *, B: dim[1:], L: dim[1:]):
        v0: f32[B, L + 3, 8] = pad(x, low=(0, 3, 0), high=(0, 0, 0), value=0.0)
        v1: f32[B, 8, L + 3] = transpose(v0, perm=(0, 2, 1))
        v2: f32[B, 8, L] = conv(v1, w, strides=(1,), padding=((0, 0),), dilation=(1,), groups=8)
        return {"y": v2}
    """


@pytest.mark.parametrize("text", [PADDED, PADDED_FIRST])
def test_a_pad_before_a_convolution_is_its_padding(text: str, preserves: Check) -> None:
    found = preserves(recognise_convolutions, text)
    names = [node.op.name for node in found.entries["main"].nodes]
    assert "causal_conv1d" in names
    assert "pad" not in names


OF_ONES = PADDED_FIRST.replace("value=0.0", "value=1.0")
OF_CHANNELS = PADDED_FIRST.replace("x: f32[B, L, 8]", "x: f32[B, L, 7]").replace("(0, 3, 0)", "(0, 3, 1)")


@pytest.mark.parametrize("text", [OF_ONES, OF_CHANNELS])
def test_a_pad_that_is_no_padding_stays(text: str, preserves: Check) -> None:
    found = preserves(recognise_convolutions, text)
    assert "pad" in [node.op.name for node in found.entries["main"].nodes]


def test_a_convolution_that_sees_the_future_is_left_and_explained() -> None:
    text = (
        dedent(CAUSAL)
        .replace("stops=(B, 8, L)", "stops=(B, 8, L)")
        .replace("((3, 3),)", "((1, 2),)")
        .replace("L + 3", "L")
    )
    event = explain(Module({"main": parse_graph(text)}), "recognise_convolutions").declined[0]
    assert event.reason == "padded by 1 before and 2 after"


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_is_listed_by_its_own_name(name: str) -> None:
    assert name_of(PASSES[name]) == name
