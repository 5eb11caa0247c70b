"""Caches that grow become states: pieces equal the whole, whatever the window; what reads them otherwise is refused."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.ir import InputError, Module, UnsupportedError, interpret, parse_graph, print_graph, verify
from coilc.passes.extract_state import extract_state
from coilc.passes.recognise_masks import recognise_masks
from coilc.passes.simplify import simplify

LENGTH = 11
HEAD = """
def main(q: f32[B, 4, {n}, 8], k: f32[B, 2, {n}, 8], v: f32[B, 2, {n}, 6], past: f32[B, 2, P, 8] = "present",
         past_v: f32[B, 2, P, 6] = "present_v", *, B: dim[1:8], L: dim[1:64], P: dim[0:64]):
    keys: f32[B, 2, P + {n}, 8] = concat(past, k, axis=2)
    values: f32[B, 2, P + {n}, 6] = concat(past_v, v, axis=2)
    row0: i64[{n}] = iota(dims=({n},), axis=0, dtype=i64)
    size: i64[()] = extent(dim=P, dtype=i64)
    size1: i64[{n}] = broadcast(size, dims=({n},))
    row1: i64[{n}] = add(row0, size1)
    row2: i64[{n}, 1] = reshape(row1, dims=({n}, 1))
    row: i64[{n}, P + {n}] = broadcast(row2, dims=({n}, P + {n}))
    column: i64[{n}, P + {n}] = iota(dims=({n}, P + {n}), axis=1, dtype=i64)
    c: i64[()] = constant(value=array(i64, 4))
    c1: i64[{n}, P + {n}] = broadcast(c, dims=({n}, P + {n}))
    seen: bool[{n}, P + {n}] = le(column, row)
    first: i64[{n}, P + {n}] = sub(row, c1)
    near: bool[{n}, P + {n}] = gt(column, first)
    both: bool[{n}, P + {n}] = logical_and(seen, near)
"""
CAUSAL = """
    y: f32[B, 4, {n}, 6] = attention(q, keys, values, seen, optional=("mask",), causal=False)
    return {{"y": y, "present": keys, "present_v": values}}
"""
WINDOW = CAUSAL.replace("seen,", "both,")
TABLE = """
    t: f32[75, 6] = weight(name="t", type=f32[75, 6])
    rows: f32[{n}, 6] = slice(t, starts=(P, 0), stops=(P + {n}, 6), steps=(1, 1))
    rows1: f32[B, 4, {n}, 6] = broadcast(rows, dims=(B, 4, {n}, 6))
    y0: f32[B, 4, {n}, 6] = attention(q, keys, values, seen, optional=("mask",), causal=False)
    y: f32[B, 4, {n}, 6] = add(y0, rows1)
    return {{"y": y, "present": keys, "present_v": values}}
"""


def program(body: str, n: str = "L") -> Module:
    text = " ".join((HEAD + body).format(n=n).split("\n         ")).strip() + "\n"
    graph = parse_graph(text.replace(", L: dim[1:64]", "") if n == "1" else text)
    table = np.random.default_rng(5).normal(size=(75, 6)).astype("f4")
    weights = {"t": table} if "weight" in body else {}
    return recognise_masks(simplify(Module({"main": graph}, weights)))


def operands(batch: int = 2) -> dict[str, np.ndarray]:
    shapes = {"q": (batch, 4, LENGTH, 8), "k": (batch, 2, LENGTH, 8), "v": (batch, 2, LENGTH, 6)}
    rng = np.random.default_rng(3)
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def by_hand(module: Module) -> np.ndarray:
    """What the program gives step by step when its caller keeps the cache."""
    given, caches, found = operands(), {"past": np.zeros((2, 2, 0, 8)), "past_v": np.zeros((2, 2, 0, 6))}, []
    for t in range(LENGTH):
        step = {name: x[:, :, t : t + 1] for name, x in given.items()}
        result = interpret(module, {**step, **caches}, wide=True)
        caches = {"past": result["present"], "past_v": result["present_v"]}
        found.append(result["y"])
    return np.concatenate(found, 2)


def in_pieces(derived: Module, entry: str, cuts: list[int]) -> np.ndarray:
    graph, found = derived.entries[entry], []
    types = {v.node.attrs["name"]: v.type for v in graph.inputs}
    states = {n: np.zeros([d if isinstance(d, int) else 2 for d in types[n].dims], "f8") for n, _ in graph.states}
    states["position"] = np.zeros((), "i8")
    for start, stop in zip([0, *cuts], [*cuts, LENGTH], strict=True):
        piece = {name: x[:, :, start:stop] for name, x in operands().items()}
        result = interpret(derived, {**piece, **states}, entry, wide=True)
        states = {before: result[after] for before, after in graph.states}
        found.append(result["y"])
    return np.concatenate(found, 2)


@pytest.mark.parametrize("body", [CAUSAL, WINDOW, TABLE], ids=["everything", "window", "table of positions"])
def test_pieces_equal_what_the_caller_would_keep(body: str) -> None:
    module = program(body)
    derived = extract_state(module, ("main", "prefill", "step"), context=16)
    verify.any_graph(derived)
    assert not derived.entries["main"].states
    assert all(
        parse_graph(print_graph(graph)) == graph for graph in (*derived.entries.values(), module.entries["main"])
    )
    expected = by_hand(module)
    for cuts in ([], [4], [1, 2, 9]):
        np.testing.assert_allclose(in_pieces(derived, "prefill", cuts), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(in_pieces(derived, "step", [*range(1, LENGTH)]), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("body", [CAUSAL, WINDOW, TABLE], ids=["everything", "window", "table of positions"])
def test_a_model_of_one_step(body: str) -> None:
    module = program(body, "1")
    derived = extract_state(module, ("step",), context=16)
    verify.any_graph(derived)
    found = in_pieces(derived, "step", [*range(1, LENGTH)])
    np.testing.assert_allclose(found, by_hand(module), rtol=1e-9, atol=1e-12)
    with pytest.raises(InputError, match="or ask for 'step' alone, which is what 'main' does"):
        extract_state(module, ("prefill", "step"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("z: f32[B, 2, P + L, 8] = tanh(keys)", "tanh reads a cache, which only attention may"),
        ("z: f32[B, 2, 8] = sum(keys, axes=(2,), keepdims=False)", "sum reads a cache, which only attention may"),
        (
            "z: f32[B, 4, L, 6] = attention(q, keys, values, causal=False)",
            "attention sees other elements of the cache than those up to its own",
        ),
        (
            "other: f32[B, 2, L, 8] = tanh(k)\n    unkept: f32[B, 2, P + L, 8] = concat(past, other, axis=2)\n    "
            'z: f32[B, 4, L, 6] = attention(q, unkept, values, seen, optional=("mask",), causal=False)',
            "concat reads a cache, which only attention may",
        ),
        (
            'm: f32[P + L] = weight(name="m", type=f32[P + L])\n    '
            'z: f32[B, 4, L, 6] = attention(q, keys, values, m, optional=("mask",), causal=True)',
            "attention has a mask over the cache",
        ),
    ],
)
def test_refusals(line: str, message: str) -> None:
    body = f"\n    {line}\n" + '    return {{"y": z, "present": keys, "present_v": values}}\n'
    with pytest.raises(UnsupportedError) as caught:
        extract_state(program(body), ("prefill", "step"))
    assert message in str(caught.value)


def test_caches_of_different_lengths() -> None:
    text = """
def main(x: f32[L, 4], a: f32[P, 4] = "a1", b: f32[Q, 4] = "b1", *, L: dim[1:9], P: dim[1:9], Q: dim[1:9]):
    v0: f32[P + L, 4] = concat(a, x, axis=0)
    v1: f32[Q + L, 4] = concat(b, x, axis=0)
    return {"y": x, "a1": v0, "b1": v1}
"""
    with pytest.raises(InputError, match="grow together, but these do not: 'a' from P by L, 'b' from Q by L"):
        extract_state(Module({"main": parse_graph(text)}), ("step",))
