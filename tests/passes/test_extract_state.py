"""Prefill over any split, and step by step, equal the full sequence; what cannot be split is refused with its line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import zoo

from coilc.frontend.torch_export import export
from coilc.ir import InputError, Module, UnsupportedError, VerifyError, interpret, parse_graph, print_graph, verify
from coilc.passes.extract_state import extract_state
from coilc.passes.pipeline import run_pipeline

LENGTH = 37
HEAD = "def main(x: f32[B, L, 4], *, B: dim[1:8], L: dim[1:64]):\n"
CAUSAL = {
    "convolution": """
        w: f32[3, 4] = weight(name="w3", type=f32[3, 4])
        v0, v1 = causal_conv1d(x, w, optional=(), activation="silu")
        return {"y": v0, "last": v1}""",
    "token shift": """
        v0: f32[B, L - 1, 4] = slice(x, starts=(0, 0, 0), stops=(B, L - 1, 4), steps=(1, 1, 1))
        v1: f32[B, L, 4] = pad(v0, low=(0, 1, 0), high=(0, 0, 0), value=0.0)
        v2: f32[B, L, 4] = sub(x, v1)
        return {"y": v2}""",
    "padded with ones": """
        v0: f32[B, L + 2, 4] = pad(x, low=(0, 2, 0), high=(0, 0, 0), value=1.0)
        v1: f32[B, L + 2, 4] = tanh(v0)
        v2: f32[B, L, 4] = slice(v1, starts=(0, 1, 0), stops=(B, L + 1, 4), steps=(1, 1, 1))
        return {"y": v2}""",
    "full convolution, padded on both sides": """
        w: f32[5, 4, 3] = weight(name="w", type=f32[5, 4, 3])
        b: f32[5] = weight(name="b", type=f32[5])
        v0: f32[B, 4, L] = transpose(x, perm=(0, 2, 1))
        v1: f32[B, 5, L + 4] = conv(v0, w, strides=(1,), padding=((4, 4),), dilation=(2,), groups=1)
        v2: f32[5, 1] = reshape(b, dims=(5, 1))
        v3: f32[B, 5, L + 4] = broadcast(v2, dims=(B, 5, L + 4))
        v4: f32[B, 5, L + 4] = add(v1, v3)
        v5: f32[B, 5, L] = slice(v4, starts=(0, 0, 0), stops=(B, 5, L), steps=(1, 1, 1))
        return {"y": v5}""",
    "flattened rows": """
        v0: f32[B*L, 4] = reshape(x, dims=(B*L, 4))
        v1: f32[B*L, 4] = softmax(v0, axis=1)
        v2: f32[B, L, 2, 2] = reshape(v1, dims=(B, L, 2, 2))
        v3: f32[B, L, 2] = sum(v2, axes=(3,), keepdims=False)
        return {"y": v3}""",
    "running sum and positions": """
        v0: f32[B, L, 4] = cumsum(x, axis=1, reverse=False)
        v1: f32[B, L, 4] = iota(dims=(B, L, 4), axis=1, dtype=f32)
        v2: f32[B, L, 4] = mul(v0, v1)
        return {"y": v2}""",
    "running products and maxima": """
        v0: f32[B, L, 4] = sigmoid(x)
        v1: f32[B, L, 4] = cumprod(v0, axis=1, reverse=False)
        v2: f32[B, L, 4] = cummax(x, axis=1, reverse=False)
        v3: f32[B, L, 4] = add(v1, v2)
        return {"y": v3}""",
    "running log-sum-exp from a first term": """
        v0: f32[B, L + 1, 4] = pad(x, low=(0, 1, 0), high=(0, 0, 0), value=0.5)
        v1: f32[B, L + 1, 4] = logcumsumexp(v0, axis=1, reverse=False)
        v2: f32[B, L, 4] = slice(v1, starts=(0, 1, 0), stops=(B, L + 1, 4), steps=(1, 1, 1))
        return {"y": v2}""",
    "loop from ones": """
        c: f32[()] = constant(value=array(f32, 1.0))
        h: f32[B, 4] = broadcast(c, dims=(B, 4))
        def body_0(h: f32[B, 4], x: f32[B, 4]):
            v0: f32[B, 4] = mul(h, x)
            v1: f32[B, 4] = tanh(v0)
            return {"h": v1, "y": v1}
        v0, v1 = scan(h, x, body=body_0, carries=1, sequences=1, axis=1, reverse=False)
        return {"y": v1, "last": v0}""",
    "linear scan": """
        c: f32[()] = constant(value=array(f32, 0.0))
        h: f32[B, 4] = broadcast(c, dims=(B, 4))
        a: f32[B, L, 4] = sigmoid(x)
        v0, v1 = linear_scan(a, x, h, axis=1, reverse=False)
        return {"y": v0}""",
    "attention within one time": """
        v0: f32[B*L, 1, 4, 1] = reshape(x, dims=(B*L, 1, 4, 1))
        v1: f32[B*L, 1, 4, 1] = attention(v0, v0, v0, scale=1.0, causal=False)
        v2: f32[B, L, 4] = reshape(v1, dims=(B, L, 4))
        return {"y": v2}""",
    "attention with a bonus": """
        k0: f32[B, L, 4] = softmax(x, axis=2)
        k: f32[B, L, 1, 4] = reshape(k0, dims=(B, L, 1, 4))
        v: f32[B, L, 2, 2] = reshape(x, dims=(B, L, 2, 2))
        g: f32[B, L, 2] = slice(x, starts=(0, 0, 0), stops=(B, L, 2), steps=(1, 1, 1))
        g1: f32[B, L, 2] = logsigmoid(g)
        u: f32[2, 4] = weight(name="u", type=f32[2, 4])
        o, h = gated_linear_attention(k, k, v, g1, u, optional=("bonus",), scale=1.0)
        return {"y": o, "last": h}""",
    "attention to everything": """
        h0: f32[B, L, 2, 2] = reshape(x, dims=(B, L, 2, 2))
        q: f32[B, 2, L, 2] = transpose(h0, perm=(0, 2, 1, 3))
        k: f32[B, 1, L, 2] = slice(q, starts=(0, 0, 0, 0), stops=(B, 1, L, 2), steps=(1, 1, 1, 1))
        o: f32[B, 2, L, 2] = attention(q, k, k, causal=True, window=None)
        h1: f32[B, L, 2, 2] = transpose(o, perm=(0, 2, 1, 3))
        y: f32[B, L, 4] = reshape(h1, dims=(B, L, 4))
        return {"y": y}""",
    "attention in a window": """
        h0: f32[B, L, 2, 2] = reshape(x, dims=(B, L, 2, 2))
        q: f32[B, 2, L, 2] = transpose(h0, perm=(0, 2, 1, 3))
        k: f32[B, 1, L, 2] = slice(q, starts=(0, 0, 0, 0), stops=(B, 1, L, 2), steps=(1, 1, 1, 1))
        o: f32[B, 2, L, 2] = attention(q, k, k, causal=True, window=5)
        h1: f32[B, L, 2, 2] = transpose(o, perm=(0, 2, 1, 3))
        y: f32[B, L, 4] = reshape(h1, dims=(B, L, 4))
        return {"y": y}""",
    "attention to itself": """
        h0: f32[B, L, 2, 2] = reshape(x, dims=(B, L, 2, 2))
        q: f32[B, 2, L, 2] = transpose(h0, perm=(0, 2, 1, 3))
        k: f32[B, 1, L, 2] = slice(q, starts=(0, 0, 0, 0), stops=(B, 1, L, 2), steps=(1, 1, 1, 1))
        o: f32[B, 2, L, 2] = attention(q, k, k, causal=True, window=1)
        h1: f32[B, L, 2, 2] = transpose(o, perm=(0, 2, 1, 3))
        y: f32[B, L, 4] = reshape(h1, dims=(B, L, 4))
        return {"y": y}""",
    "table of positions": """
        w: f32[64, 4] = weight(name="w64", type=f32[64, 4])
        t: f32[L, 4] = slice(w, starts=(0, 0), stops=(L, 4), steps=(1, 1))
        t1: f32[B, L, 4] = broadcast(t, dims=(B, L, 4))
        y: f32[B, L, 4] = add(x, t1)
        return {"y": y}""",
    "delta rule": """
        k0: f32[B, L, 4] = softmax(x, axis=2)
        k: f32[B, L, 1, 4] = reshape(k0, dims=(B, L, 1, 4))
        v: f32[B, L, 2, 2] = reshape(x, dims=(B, L, 2, 2))
        g: f32[B, L, 2] = slice(x, starts=(0, 0, 0), stops=(B, L, 2), steps=(1, 1, 1))
        g1: f32[B, L, 2] = logsigmoid(g)
        beta: f32[B, L, 2] = sigmoid(g)
        h0: f32[2, 4, 2] = weight(name="h0", type=f32[2, 4, 2])
        h1: f32[B, 2, 4, 2] = broadcast(h0, dims=(B, 2, 4, 2))
        o, h = gated_delta_rule(k, k, v, g1, beta, h1, optional=("h0",), scale=1.0)
        return {"y": o, "last": h}""",
    "generalised delta rule": """
        k0: f32[B, L, 4] = softmax(x, axis=2)
        k: f32[B, L, 1, 4] = reshape(k0, dims=(B, L, 1, 4))
        v: f32[B, L, 1, 4] = reshape(x, dims=(B, L, 1, 4))
        g: f32[B, L, 1, 4] = logsigmoid(v)
        o, h = generalized_delta_rule(k, k, v, g, k, k, optional=(), scale=1.0)
        return {"y": o, "last": h}""",
    "wkv": """
        w: f32[4] = weight(name="w4", type=f32[4])
        decay: f32[4] = logsigmoid(w)
        y, num, den, top = wkv(x, x, decay, w, optional=())
        return {"y": y, "num": num, "den": den}""",
    "gate from a loop over what does not change": """
        w: f32[4] = weight(name="w4", type=f32[4])
        def small(g: f32[4]):
            v0: f32[()] = sum(g, axes=(0,), keepdims=False)
            v1: f32[()] = constant(value=array(f32, 50.0))
            v2: bool[()] = lt(v0, v1)
            return {"go": v2}
        def grow(g: f32[4]):
            v0: f32[4] = exp(g)
            return {"g": v0}
        g0: f32[4] = exp(w)
        g = while_loop(g0, condition=small, body=grow, carries=1)
        g1: f32[B, L, 4] = broadcast(g, dims=(B, L, 4))
        y: f32[B, L, 4] = mul(x, g1)
        return {"y": y}""",
    "last element": """
        v0: f32[B, 1, 4] = slice(x, starts=(0, L - 1, 0), stops=(B, L, 4), steps=(1, 1, 1))
        v1: f32[B, 1, 4] = tanh(v0)
        return {"last": v1}""",
}  # fmt: skip
REFUSED = {
    "sum mixes all times": "v0: f32[B, 4] = sum(x, axes=(1,), keepdims=False)",
    "flip mixes all times": "v0: f32[B, L, 4] = flip(x, axes=(1,))",
    "slice picks single times": "v0: f32[B, (L + 1)//2, 4] = slice(x, starts=(0, 0, 0), stops=(B, L, 4), steps=(1, 2, 1))",
    "slice looks ahead in time": """v1: f32[B, L + 1, 4] = pad(x, low=(0, 0, 0), high=(0, 1, 0), value=0.0)
        v0: f32[B, L, 4] = slice(v1, starts=(0, 1, 0), stops=(B, L + 1, 4), steps=(1, 1, 1))""",
    "attention lets every time see all others": """v1: f32[B, 1, L, 4] = reshape(x, dims=(B, 1, L, 4))
        v0: f32[B, 1, L, 4] = attention(v1, v1, v1, scale=1.0, causal=False)""",
    "attention has a mask over pairs of times": """v1: f32[B, 1, L, 4] = reshape(x, dims=(B, 1, L, 4))
        m0: f32[B, 1, L, 1] = sum(v1, axes=(3,), keepdims=True)
        m: f32[B, 1, 1, L] = reshape(m0, dims=(B, 1, 1, L))
        v0: f32[B, 1, L, 4] = attention(v1, v1, v1, m, optional=("mask",), scale=1.0, causal=True)""",
    "scan runs backwards": """
        c: f32[()] = constant(value=array(f32, 1.0))
        h: f32[B, 4] = broadcast(c, dims=(B, 4))
        v1, v0 = linear_scan(x, x, h, axis=1, reverse=True)""",
    "while_loop counts its steps over all times": """
        def small(x: f32[B, L, 4]):
            v0: f32[()] = sum(x, axes=(0, 1, 2), keepdims=False)
            v1: f32[()] = constant(value=array(f32, 50.0))
            v2: bool[()] = lt(v0, v1)
            return {"go": v2}
        def grow(x: f32[B, L, 4]):
            v0: f32[B, L, 4] = exp(x)
            return {"x": v0}
        v0 = while_loop(x, condition=small, body=grow, carries=1)""",
    "scan has a body that depends on the length": """
        c: f32[()] = constant(value=array(f32, 1.0))
        h: f32[B, 4] = broadcast(c, dims=(B, 4))
        def step(h: f32[B, 4], x: f32[B, 4]):
            v0: f32[()] = extent(dim=L, dtype=f32)
            v1: f32[B, 4] = broadcast(v0, dims=(B, 4))
            v2: f32[B, 4] = div(x, v1)
            v3: f32[B, 4] = add(h, v2)
            return {"h": v3, "y": v3}
        v1, v0 = scan(h, x, body=step, carries=1, sequences=1, axis=1, reverse=False)""",
    "matmul multiplies every time with every other": """
        v1: f32[B, 4, L] = transpose(x, perm=(0, 2, 1))
        v0: f32[B, L, L] = matmul(x, v1)""",
}  # fmt: skip


def module(body: str) -> Module:
    lines = [line[4:] if line.startswith("        ") else f"    {line}" for line in body.strip("\n").splitlines()]
    graph = parse_graph(HEAD + "\n".join(lines) + "\n")
    rng = np.random.default_rng(1)
    types = {n.attrs["name"]: n.types[0] for n in graph.nodes if n.op.name == "weight"}
    return Module({"main": graph}, {name: rng.normal(size=t.dims).astype("f4") for name, t in types.items()})


def zeros(derived: Module, batch: int) -> dict[str, np.ndarray]:
    graph = derived.entries["prefill"]
    inputs = {v.node.attrs["name"]: v.type for v in graph.inputs}
    shapes = {n: tuple(d if isinstance(d, int) else batch for d in inputs[n].dims) for n, _ in graph.states}
    return {name: np.zeros(shape, inputs[name].dtype.numpy) for name, shape in shapes.items()}


def pieces(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for length in lengths:
        yield start, start + length
        start += length


def run_pieces(derived: Module, name: str, x: np.ndarray, lengths: Sequence[int], wide: bool) -> dict[str, np.ndarray]:
    """Outputs joined along time; of what has no time axis (named 'last') the last."""
    graph, state, parts = derived.entries["prefill"], zeros(derived, x.shape[0]), []
    for start, stop in pieces(lengths):
        entry = "step" if stop - start == 1 else "prefill"
        result = interpret(derived, {name: x[:, start:stop], **state}, entry, wide=wide)
        state = {before: result[after] for before, after in graph.states}
        parts.append(result)
    axes = {n: [i for i, d in enumerate(v.dims) if str(d) == "L"] for n, v in derived.entries["main"].outputs}
    return {n: np.concatenate([p[n] for p in parts], a[0]) if a else parts[-1][n] for n, a in axes.items()}


def assert_law(derived: Module, name: str, x: np.ndarray, lengths: Sequence[int], *, wide: bool) -> None:
    full: Mapping[str, np.ndarray] = interpret(derived, {name: x}, wide=wide)
    found = run_pieces(derived, name, x, lengths, wide)
    for output, expected in full.items():
        bound = (1e-12 if wide else 1e-5) * np.abs(expected).max()
        np.testing.assert_allclose(found[output], expected, rtol=0, atol=bound, err_msg=output)


@st.composite
def splits(draw: st.DrawFn) -> list[int]:
    cuts = sorted(draw(st.sets(st.integers(1, LENGTH - 1))))
    return [b - a for a, b in zip([0, *cuts], [*cuts, LENGTH], strict=True)]


@pytest.mark.parametrize("body", CAUSAL.values(), ids=CAUSAL.keys())
def test_pieces_equal_the_whole(body: str) -> None:
    derived = extract_state(module(body), ("main", "prefill", "step"))
    verify.any_graph(derived)
    x = np.random.default_rng(0).normal(size=(2, LENGTH, 4)).astype("f4")

    @given(splits())
    def law(lengths: list[int]) -> None:
        assert_law(derived, "x", x, lengths, wide=False)

    law()
    assert_law(derived, "x", x, [1] * LENGTH, wide=True)


@pytest.mark.parametrize("body", CAUSAL.values(), ids=CAUSAL.keys())
def test_states_are_in_the_text(body: str) -> None:
    for graph in extract_state(module(body)).entries.values():
        assert parse_graph(print_graph(graph)) == graph


@pytest.mark.parametrize("message", REFUSED)
def test_refuses_what_is_not_causal(message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        extract_state(module(REFUSED[message] + '\n        return {"y": v0}'))


def test_needs_a_length() -> None:
    graph = parse_graph('def main(x: f32[B, 4], *, B: dim[1:8]):\n    v0: f32[B, 4] = exp(x)\n    return {"y": v0}\n')
    with pytest.raises(InputError, match="entry 'main' has no symbol 'L'"):
        extract_state(Module({"main": graph}))
    with pytest.raises(InputError, match="derived from the entry 'other', which the program does not have"):
        extract_state(Module({"main": graph}), source="other")
    with pytest.raises(InputError, match="has no entry 'stepp'; it has main"):
        extract_state(Module({"main": graph}), ["stepp"])


def test_states_need_successors() -> None:
    text = 'def step(x: f32[4], h: f32[4] = "h"):\n    v0: f32[4] = add(x, h)\n    return {"%s": v0}\n'
    verify.any_graph(Module({"step": parse_graph(text % "h")}))
    with pytest.raises(VerifyError, match="state 'h' needs an output 'h' of its type"):
        verify.any_graph(Module({"step": parse_graph(text % "y")}))


def test_lists_every_refusal() -> None:
    body = """
        v0: f32[B, L, 4] = flip(x, axes=(1,))  # model.py:3 in layers.0
        v1: f32[B, 4] = sum(x, axes=(1,), keepdims=False)  # model.py:9
        v2: f32[B, L, 4] = tanh(v0)
        return {"y": v2, "z": v1}"""
    with pytest.raises(UnsupportedError) as caught:
        extract_state(module(body))
    assert [str(place) for _, place in caught.value.places] == ["model.py:3 in layers.0", "model.py:9"]


MIXER = {f"backbone.layers.{i}.mixer.{kind}" for i in (0, 1) for kind in ("conv", "scan")}
RWKV = {f"rwkv.blocks.{i}.{part}.time_shift.window" for i in (0, 1) for part in ("attention", "feed_forward")} | {
    f"rwkv.blocks.{i}.attention.{kind}" for i in (0, 1) for kind in ("num", "den", "max")
}


@pytest.mark.parametrize(
    ("case", "states"),
    [(zoo.mamba, MIXER), (zoo.mamba2, MIXER), (zoo.falcon_mamba, MIXER), (zoo.rwkv, {*RWKV, "position"})],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_models_step_by_step(case: Callable[[], zoo.Case], states: set[str]) -> None:
    example = case()
    exported = export(example.module, example.args, example.kwargs, dynamic_shapes=example.dynamic_shapes)
    derived = extract_state(run_pipeline(exported, stop_after="recognise"), ("main", "prefill", "step"))
    assert {name for _, name in derived.entries["step"].states} == states
    ids = example.make_inputs(B=2, L=LENGTH)["input_ids"].numpy()
    for cut in range(1, LENGTH):
        assert_law(derived, "input_ids", ids, [cut, LENGTH - cut], wide=cut % 2 == 0)
    assert_law(derived, "input_ids", ids, [1] * LENGTH, wide=False)
