"""Algorithms of recurrences: each definition and each rewrite equals the op, at every length; the model's choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coilc.ir import DTYPES, Dims, Graph, InputError, Module, TensorType, Value, interpret, ops, parse_graph, symbol
from coilc.ir import dims as d
from coilc.passes.choose_algorithms import choices, choose_algorithms, describe_choices
from coilc.passes.chunk_gated_linear_attention import (
    chunk_gated_linear_attention,
    chunk_gated_linear_attention_in_numpy,
)
from coilc.passes.cost_model import Machine
from coilc.passes.split_linear_scan import (
    split_cumsum,
    split_cumsum_in_numpy,
    split_linear_scan,
    split_linear_scan_in_numpy,
)
from coilc.passes.split_selective_scan import split_selective_scan, split_selective_scan_in_numpy

L = symbol("L")
LENGTHS = st.integers(1, 21)
CHUNKS = st.integers(1, 6)
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


def inputs(*dims: Dims) -> tuple[Value, ...]:
    return tuple(ops.input_(name=f"x{i}", type=TensorType(DTYPES["f64"], x)) for i, x in enumerate(dims))


def draw(values: Sequence[Value], length: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal([d.evaluate(dim, {"L": length}) for dim in v.dims]) for v in values]


def run(values: Sequence[Value], results: Any, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Interpret a rewrite that was built once for every length."""
    results = (results,) if isinstance(results, Value) else results
    graph = Graph("main", tuple(values), tuple((f"y{i}", v) for i, v in enumerate(results)), (("L", (1, None)),))
    return list(interpret(Module({"main": graph}), {v.node.attrs["name"]: a for v, a in zip(values, arrays)}).values())


def agree(*candidates: Any) -> None:
    first, *rest = ([c] if isinstance(c, np.ndarray) else list(c) for c in candidates)
    for other in rest:
        assert len(first) == len(other)
        for expected, found in zip(first, other, strict=True):
            np.testing.assert_allclose(found, expected, **TOLERANCE)


@settings(deadline=None)
@given(LENGTHS, CHUNKS, st.sampled_from(((), (1,), (2, 3))), st.booleans(), st.integers(0, 9))
def test_linear_scan_in_chunks(length: int, chunks: int, inner: tuple[int, ...], reverse: bool, seed: int) -> None:
    values = inputs((2, L, *inner), (2, L, *inner), (2, *inner))
    arrays = draw(values, length, seed)
    arrays[0][:, length // 2] = 0
    attrs = {"axis": 1, "reverse": reverse}
    agree(
        ops.linear_scan.reference(*arrays, **attrs),
        split_linear_scan_in_numpy(*arrays, axis=1, reverse=reverse, chunks=chunks),
        run(values, split_linear_scan(*values, axis=1, reverse=reverse, chunks=chunks), arrays),
    )


@settings(deadline=None)
@given(LENGTHS, CHUNKS, st.booleans(), st.integers(0, 9))
def test_cumsum_in_chunks(length: int, chunks: int, reverse: bool, seed: int) -> None:
    values = inputs((3, L))
    arrays = draw(values, length, seed)
    agree(
        ops.cumsum.reference(*arrays, axis=1, reverse=reverse),
        split_cumsum_in_numpy(*arrays, axis=1, reverse=reverse, chunks=chunks),
        run(values, split_cumsum(*values, axis=1, reverse=reverse, chunks=chunks), arrays),
    )


@settings(deadline=None)
@given(LENGTHS, CHUNKS, st.booleans(), st.integers(0, 9))
def test_selective_scan_in_chunks(length: int, chunks: int, everything: bool, seed: int) -> None:
    values = inputs((2, L, 6), (2, L, 6), (4, 6), (2, L, 2, 4), (2, L, 2, 4), (6,), (2, L, 6), (6,), (2, 4, 6))
    optional = ("D", "z", "dt_bias", "h0") if everything else ("h0",)
    values = values if everything else (*values[:5], values[8])
    arrays = draw(values, length, seed)
    arrays[1], arrays[2] = np.abs(arrays[1]), -np.abs(arrays[2])
    attrs: dict[str, Any] = {"optional": optional, "softplus": everything}
    expected = ops.selective_scan.reference(*arrays, **attrs)
    agree(expected, run(values, split_selective_scan(*values, **attrs, chunks=chunks), arrays))
    if not everything:
        agree(expected, split_selective_scan_in_numpy(*arrays, chunks=chunks))


@settings(deadline=None)
@given(
    LENGTHS,
    CHUNKS,
    st.sampled_from(((1, 4), (2, 4), (3, 3))),
    st.sampled_from(("head", "channel", "none")),
    st.sampled_from((0.1, 30.0)),
    st.integers(0, 9),
)
def test_gated_linear_attention_in_chunks(
    length: int, chunk: int, groups: tuple[int, int], decay: str, strength: float, seed: int
) -> None:
    g, h = groups
    values = inputs((2, L, g, 3), (2, L, g, 3), (2, L, h, 5), (2, L, h, 3) if decay == "channel" else (2, L, h))
    arrays = draw((*values, *inputs((2, h, 3, 5))), length, seed)
    arrays[3] = -np.abs(arrays[3]) * strength
    arrays[3][:, length // 3 :: 4] = -np.inf  # a reset, also twice in a chunk
    if decay == "none":
        values = (*values[:3], ops.zeros(values[3].type))
        arrays[3][:] = 0
    first = ops.input_(name="x4", type=TensorType(DTYPES["f64"], (2, h, 3, 5)))
    attrs: dict[str, Any] = {"optional": ("h0",), "scale": 0.5}
    q, k = (np.repeat(x, h // g, axis=2) for x in arrays[:2])
    per_channel = arrays[3] if decay == "channel" else arrays[3][..., None]
    results = chunk_gated_linear_attention(*values, first, **attrs, chunk=chunk)
    named = [(v, a) for v, a in zip((*values, first), arrays) if v.op is ops.input_]
    agree(
        ops.gated_linear_attention.reference(*arrays, **attrs),
        chunk_gated_linear_attention_in_numpy(q, k, arrays[2], per_channel, arrays[4], scale=0.5, chunk=chunk),
        run([v for v, _ in named], results, [a for _, a in named]),
    )


LINEAR = """def main(a: f32[1, L, 16], b: f32[1, L, 16], h: f32[1, 16], *, L: dim[1:]):
    y, last = linear_scan(a, b, h, axis=1)
    return {"y": y, "last": last}
"""
GATED = """def main(q: bf16[B, L, 1, 64], k: bf16[B, L, 1, 64], v: bf16[B, L, 4, 64], g: f32[B, L, 4], *, B: dim[1:], L: dim[1:]):
    o, s = gated_linear_attention(q, k, v, g, optional=(), scale=0.5)
    return {"o": o, "s": s}
"""
STEP = """def main(a: f32[1, 1, 16], b: f32[1, 1, 16], h: f32[1, 16]):
    y, last = linear_scan(a, b, h, axis=1)
    return {"y": y, "last": last}
"""
BONUS = GATED.replace(", *", ", u: bf16[4, 64], *").replace("g, optional=()", 'g, u, optional=("bonus",)')
LOOP = """def main(h: f32[16], x: f32[L, 16], *, L: dim[1:]):
    def step(h: f32[16], x: f32[16]):
        v0: f32[16] = add(h, x)
        v1: f32[16] = tanh(v0)
        return {"h": v1, "y": v1}
    last, y = scan(h, x, body=step, carries=1, sequences=1, axis=0, reverse=False)
    return {"y": y}
"""
FEW, MANY, MATRIX = Machine(cores=1), Machine(cores=16), Machine(cores=64, lanes=32, products=16, memory_bytes=500)


@pytest.mark.parametrize(
    ("text", "machine", "algorithm"),
    [
        (LINEAR, FEW, "sequential"),
        (LINEAR, MANY, "associative"),
        (GATED, FEW, "sequential"),
        (GATED, MATRIX, "chunked"),
        (STEP, MANY, "sequential"),
    ],
)
def test_the_model_chooses(text: str, machine: Machine, algorithm: str) -> None:
    (choice,) = choices(parse_graph(text), machine).values()
    assert choice.algorithm == algorithm, choice.reason


def test_a_choice_has_a_reason() -> None:
    (choice,) = choices(parse_graph(LINEAR), MANY).values()
    assert choice.reason.startswith("chunks 4: 1.") or "x fewer cycles than sequential at length 2048" in choice.reason
    (choice,) = choices(parse_graph(GATED), FEW).values()
    assert "x more cycles at length 2048 on 1 cores by the model" in choice.reason


@pytest.mark.parametrize(
    ("text", "forced", "message"),
    [
        (LINEAR, "chunked", r"--algorithm chunked does not fit .* \(linear_scan: it has no chunked form\)"),
        (GATED, "associative", r"\(gated_linear_attention: it has no associative form\)"),
        (BONUS, "chunked", r"\(gated_linear_attention: its outputs read the state before the update\)"),
        (LOOP, "chunked", r"\(scan: it has no chunked form\)"),
        (LINEAR, "parallel", "there is no algorithm 'parallel'; there are sequential, chunked, associative"),
    ],
)
def test_an_algorithm_that_does_not_fit_is_refused(text: str, forced: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose_algorithms(Module({"main": parse_graph(text)}), FEW, forced)


def test_only_what_has_a_choice_is_described() -> None:
    loop, linear = (Module({"main": parse_graph(text)}) for text in (LOOP, LINEAR))
    assert list(describe_choices(loop, FEW)) == []
    (row,) = describe_choices(linear, FEW)
    assert (row["op"], row["algorithm"]) == ("linear_scan", "sequential")


def test_one_step_stays_whatever_is_asked_for() -> None:
    module = Module({"main": parse_graph(STEP)})
    assert choose_algorithms(module, MANY, "associative") == module


@pytest.mark.parametrize(
    ("text", "forced"), [(LINEAR, "associative"), (GATED.replace("bf16", "f64").replace("f32", "f64"), "chunked")]
)
def test_forced_and_chosen_forms_keep_the_meaning(text: str, forced: str, preserves: Callable[..., Module]) -> None:
    result = preserves(lambda module: choose_algorithms(module, FEW, forced), text)
    assert len(result.entries["main"].nodes) > 10
