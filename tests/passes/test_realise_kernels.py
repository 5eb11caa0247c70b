"""Kernels that few states have as their response become recurrences, up to rounding; others keep their inputs."""

from __future__ import annotations

from textwrap import dedent

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coilc.ir import Module, interpret, parse_graph, print_graph
from coilc.passes import tracing
from coilc.passes.extract_state import extract_state
from coilc.passes.fold_constants import WeightTable
from coilc.passes.lattice import FIT, SINGLE, NotRealised, realise
from coilc.passes.realise_kernels import realise_kernels

TAPS = 40
TEXT = f"""
    def main(x: f32[B, L, 2], *, B: dim[1:8], L: dim[1:{TAPS}]):
        v0: f32[{TAPS}, 2] = weight(name="k", type=f32[{TAPS}, 2])
        v1: f32[B, L, 2] = long_conv(x, v0, optional=())
        return {{"y": v1}}
    """
GRAPH = parse_graph(dedent(TEXT).strip())
J = np.arange(TAPS)
KERNEL = np.stack([0.9**J * np.cos(0.3 * J), 0.5**J - 2 * (-0.8) ** J], 1).astype(np.float32)


def response(A: np.ndarray, b: np.ndarray, c: np.ndarray, taps: int) -> np.ndarray:
    """c A^j b."""
    found = []
    for _ in range(taps):
        found.append(c @ b)
        b = A @ b
    return np.array(found)


@given(st.integers(1, 12), st.integers(0, 2**32), st.sampled_from([0.3, 0.9, 0.98]))
def test_the_response_of_any_stable_states_is_found_again(states: int, seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((states, states))
    A *= radius / np.abs(np.linalg.eigvals(A)).max()
    if np.linalg.norm(A, 2) > 3:  # a transient that rounding of the kernel hides the rest behind
        A = np.linalg.qr(A)[0] * radius
    kernel = response(A, rng.standard_normal(states), rng.standard_normal(states), 120)[:, None]
    found, _ = realise(kernel)
    assert found.states <= states
    off = found.response(120, np.float64) - kernel
    assert np.abs(off).max() <= 1.01 * FIT * np.abs(kernel).max()


def test_one_step_neither_grows_nor_shrinks_what_it_turns() -> None:
    chain, _ = realise(KERNEL)
    cosine = 1 - chain.versine
    np.testing.assert_allclose(chain.sine**2 + cosine**2, 1, rtol=1e-12)


def test_a_slow_kernel_that_has_not_decayed_yet() -> None:
    kernel = (1 - J / TAPS + 0.3 * np.cos(0.01 * J))[:, None]
    found, _ = realise(kernel)
    off = found.response(TAPS, np.float32) - kernel
    assert found.states <= 4
    assert np.linalg.norm(off) <= SINGLE * np.linalg.norm(kernel)


def test_a_kernel_whose_own_states_are_lost_in_rounding_is_a_network(rng: np.random.Generator) -> None:
    """S4's, of 64 states at a step of 0.001 (arXiv 2111.00396, equations 2 and 3): a fit of its shift matrix grows."""
    scale, one = np.sqrt(2 * np.arange(64) + 1.0), np.eye(64)
    A = np.diag(np.arange(64)) - np.tril(np.outer(scale, scale))
    frequencies, modes = np.linalg.eigh(-1j * (A + np.outer(scale, scale) / 2 + one / 2))
    readout = (
        modes[:, frequencies > 0].conj() @ (rng.standard_normal((32, 4)) + 1j * rng.standard_normal((32, 4)))
    ).real
    solve = np.linalg.inv(one - 0.0005 * A)
    kernel = response(solve @ (one + 0.0005 * A), 0.001 * solve @ scale, readout.T, 1024).astype(np.float32)
    found, others = realise(kernel)
    assert not len(others)
    assert 40 < found.states < 100
    np.testing.assert_array_equal(found.gain[found.sine[0] != 0], 1)
    off = found.response(1024, np.float32) - kernel
    assert np.all(np.linalg.norm(off, axis=0) <= SINGLE * np.linalg.norm(kernel, axis=0))


def test_channels_of_any_number_of_states_stand_side_by_side() -> None:
    kernel = np.concatenate([np.zeros((TAPS, 1)), KERNEL, np.eye(TAPS)[:, :1]], 1)
    found, _ = realise(kernel)
    assert found.states == 2
    np.testing.assert_allclose(found.response(TAPS, np.float64), kernel, atol=1e-6)


def test_channels_without_states_are_silent(rng: np.random.Generator) -> None:
    kernel = np.concatenate([KERNEL[:, :1], rng.standard_normal((TAPS, 1)), KERNEL[:, 1:]], 1)
    found, others = realise(kernel, 24)
    assert list(others) == [1]
    np.testing.assert_allclose(found.response(TAPS, np.float64), kernel * [1, 0, 1], atol=2e-6)


def test_a_free_kernel_has_no_states(rng: np.random.Generator) -> None:
    with pytest.raises(NotRealised, match="not the response of 24 states or fewer"):
        realise(rng.standard_normal((TAPS, 2)), 24)


def test_before_and_after() -> None:
    after = print_graph(realise_kernels(GRAPH, WeightTable({"k": KERNEL})), locations=False)
    assert after[after.index("    def step_0") :].strip() == STEP.strip()


STEP = """
    def step_0(g: f32[B, 2, 2], x: f32[B, 2], s: f32[2, 2], w: f32[2, 2], c: f32[2, 2]):
        v0: f32[B, 1, 2] = slice(g, starts=(0, 0, 0), stops=(B, 1, 2), steps=(1, 1, 1))
        v1: f32[B, 2] = reshape(v0, dims=(B, 2))
        v2: f32[()] = constant(value=array(f32, 0.0))
        v3: f32[B, 2] = broadcast(v2, dims=(B, 2))
        v4: f32[B, 1, 2] = slice(g, starts=(0, 1, 0), stops=(B, 2, 2), steps=(1, 1, 1))
        v5: f32[B, 1, 2] = reshape(x, dims=(B, 1, 2))
        v6: f32[B, 2, 2] = concat(v4, v5, axis=1)
        v7: f32[2, B, 2] = transpose(v6, perm=(1, 0, 2))
        def turn_0(v: f32[B, 2], y: f32[B, 2], z: f32[B, 2], s: f32[2], w: f32[2], c: f32[2]):
            v0: f32[B, 2] = broadcast(s, dims=(B, 2))
            v1: f32[B, 2] = mul(v0, v)
            v2: f32[B, 2] = broadcast(w, dims=(B, 2))
            v3: f32[B, 2] = mul(v2, z)
            v4: f32[B, 2] = add(v1, v3)
            v5: f32[B, 2] = sub(z, v4)
            v6: f32[B, 2] = broadcast(c, dims=(B, 2))
            v7: f32[B, 2] = mul(v0, z)
            v8: f32[B, 2] = mul(v2, v)
            v9: f32[B, 2] = sub(v7, v8)
            v10: f32[B, 2] = add(v, v9)
            v11: f32[B, 2] = mul(v6, v10)
            v12: f32[B, 2] = add(y, v11)
            return {"v": v5, "y": v12, "g": v10}
        v8, v9, v10 = scan(v1, v3, v7, s, w, c, body=turn_0, carries=2, sequences=4, axis=0, reverse=False)
        v11: f32[B, 2, 2] = transpose(v10, perm=(1, 0, 2))
        return {"g": v11, "y": v9}
    v5, v6 = scan(v1, x, v2, v3, v4, body=step_0, carries=1, sequences=1, axis=1, reverse=False)
    return {"y": v6}
"""


@pytest.mark.parametrize("pieces", [[TAPS], [1] * TAPS, [17, 1, 1, 21]])
def test_a_sequence_in_pieces_is_the_convolution(pieces: list[int], rng: np.random.Generator) -> None:
    module = Module({"main": GRAPH}, {"k": KERNEL})
    derived = extract_state(module, ("main", "prefill"))
    x = rng.standard_normal((3, TAPS, 2)).astype(np.float32)
    (state,) = derived.entries["prefill"].inputs[1:]
    assert state.dims[1:] == (2, 2)
    now, found = np.zeros((3, 2, 2), np.float32), []
    for piece in np.split(x, np.cumsum(pieces)[:-1], 1):
        y, now = interpret(derived, {"x": piece, state.node.attrs["name"]: now}, "prefill").values()
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, 1), interpret(module, {"x": x})["y"], rtol=1e-5, atol=2e-5)


def test_channels_without_states_keep_their_inputs(rng: np.random.Generator) -> None:
    kernel = np.stack([rng.standard_normal(TAPS), KERNEL[:, 0]], 1).astype(np.float32)
    module = Module({"main": GRAPH}, {"k": kernel})
    derived = extract_state(module, ("main", "prefill"))
    states = {v.node.attrs["name"]: v.dims[1:] for v in derived.entries["prefill"].inputs[1:]}
    assert sorted(states.values()) == [(2, 2), (TAPS - 1, 1)]
    x = rng.standard_normal((3, TAPS, 2)).astype(np.float32)
    now, found = {name: np.zeros((3, *dims), np.float32) for name, dims in states.items()}, []
    for piece in np.split(x, [17, 18], 1):
        y, *after = interpret(derived, {"x": piece, **now}, "prefill").values()
        now = dict(zip(states, after, strict=True))
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, 1), interpret(module, {"x": x})["y"], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("text", "kernel", "reason"), [
    (TEXT, np.random.default_rng(0).standard_normal((TAPS, 2)), "needs its last 39 inputs: its taps are not"),
    (TEXT.replace(f"dim[1:{TAPS}]", "dim[1:50]"), KERNEL, "more steps than the 40"),
    (TEXT.replace("f32", "f64"), KERNEL, "not looked for in a kernel of f64"),
])  # fmt: skip
def test_why_a_window_of_inputs_stays(text: str, kernel: np.ndarray, reason: str) -> None:
    graph = parse_graph(dedent(text).strip())
    with tracing() as trace:
        kept = realise_kernels(graph, WeightTable({"k": kernel.astype(np.float32)}))
    assert kept == graph
    assert reason in trace.declined[0].reason
