"""A graph over a sequence of known length takes any shorter one, and so runs piece by piece, if it is causal."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch

import coilc
from coilc.ir import Module, UnsupportedError, interpret, parse_graph, print_graph
from coilc.passes.shorten_sequences import shorten_sequences

ZOO = Path(__file__).resolve().parents[2] / "examples" / "zoo"
FIXED = """
    def main(x: f32[B, 6, 4], *, B: dim[1:8]):
        v0: f32[4] = weight(name="gain", type=f32[4])
        v1: f32[B, 6, 4] = broadcast(v0, dims=(B, 6, 4))
        v2: f32[B, 6, 4] = mul(x, v1)
        v3: f32[6, 4] = weight(name="k", type=f32[6, 4])
        v4: f32[B, 6, 4] = long_conv(v2, v3, optional=())
        v5: f32[6, 4] = weight(name="place", type=f32[6, 4])
        v6: f32[B, 6, 4] = broadcast(v5, dims=(B, 6, 4))
        v7: f32[B, 6, 4] = add(v4, v6)
        v8: f32[B, 6, 2, 2] = reshape(v7, dims=(B, 6, 2, 2))
        v9: f32[B, 6, 2] = sum(v8, axes=(3,), keepdims=False)
        return {"y": v9}
    """


def test_before_and_after() -> None:
    short = """
        def main(x: f32[B, L, 4], *, B: dim[1:8], L: dim[1:6]):
            v0: f32[4] = weight(name="gain", type=f32[4])
            v1: f32[B, L, 4] = broadcast(v0, dims=(B, L, 4))
            v2: f32[B, L, 4] = mul(x, v1)
            v3: f32[6, 4] = weight(name="k", type=f32[6, 4])
            v4: f32[B, L, 4] = long_conv(v2, v3, optional=())
            v5: f32[6, 4] = weight(name="place", type=f32[6, 4])
            v6: f32[L, 4] = slice(v5, starts=(0, 0), stops=(L, 4), steps=(1, 1))
            v7: f32[B, L, 4] = broadcast(v6, dims=(B, L, 4))
            v8: f32[B, L, 4] = add(v4, v7)
            v9: f32[B, L, 2, 2] = reshape(v8, dims=(B, L, 2, 2))
            v10: f32[B, L, 2] = sum(v9, axes=(3,), keepdims=False)
            return {"y": v10}
        """
    assert print_graph(_shortened(FIXED)).strip() == dedent(short).strip()


def test_whole_chunks_take_any_length() -> None:
    text = """
        def main(x: f32[B, 4*C, 2], *, B: dim[1:8], C: dim[1:9]):
            v0: f32[4*C, 2] = iota(dims=(4*C, 2), axis=0, dtype=f32)
            v1: f32[B, 4*C, 2] = broadcast(v0, dims=(B, 4*C, 2))
            v2: f32[B, 4*C, 2] = add(x, v1)
            w: f32[3, 2] = weight(name="w", type=f32[3, 2])
            v3, v4 = causal_conv1d(v2, w, optional=(), activation="none")
            return {"y": v3}
        """
    short = _shortened(text)
    assert dict(short.symbols) == {"B": (1, 8), "L": (1, 36)}
    weights = {"w": np.arange(6, dtype="f4").reshape(3, 2)}
    x = np.random.default_rng(0).normal(size=(2, 12, 2)).astype("f4")
    whole = interpret(Module({"main": parse_graph(dedent(text).strip())}, weights), {"x": x})["y"]
    found = interpret(Module({"main": short}, weights), {"x": x[:, :9]})["y"]
    np.testing.assert_array_equal(found, whole[:, :9])


def test_what_counts_the_chunks_is_listed() -> None:
    text = """
        def main(x: f32[B, 4*C, 2], *, B: dim[1:8], C: dim[1:9]):
            w: f32[3, 2] = weight(name="w", type=f32[3, 2])
            v3, v4 = causal_conv1d(x, w, optional=(), activation="none")
            n: f32[()] = extent(dim=C, dtype=f32)
            v1: f32[B, 4*C, 2] = broadcast(n, dims=(B, 4*C, 2))
            y: f32[B, 4*C, 2] = add(v3, v1)
            return {"y": y}
        """
    with pytest.raises(UnsupportedError, match=r"extent has an extent that depends on 4\*C"):
        _shortened(text)


def _shortened(text: str) -> coilc.ir.Graph:
    return shorten_sequences(parse_graph(dedent(text).strip()), "L")


@pytest.mark.parametrize("length", [1, 2, 5, 6])
def test_a_shorter_sequence_gives_the_first_results(length: int, rng: np.random.Generator) -> None:
    weights = {name: rng.standard_normal(dims) for name, dims in (("gain", 4), ("k", (6, 4)), ("place", (6, 4)))}
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    x = rng.standard_normal((2, 6, 4)).astype(np.float32)
    whole = interpret(Module({"main": parse_graph(dedent(FIXED).strip())}, weights), {"x": x})["y"]
    short = interpret(Module({"main": _shortened(FIXED)}, weights), {"x": x[:, :length]})["y"]
    np.testing.assert_allclose(short, whole[:, :length], rtol=1e-6)


@pytest.mark.parametrize(("was", "becomes", "reason"), [
    ("v9: f32[B, 6, 2] = sum(v8, axes=(3,)", "v9: f32[B, 2, 2] = sum(v8, axes=(1,)", "sum mixes all times"),
    ("long_conv(v2, v3, optional=())", 'long_conv(v2, v3, v3, optional=("future",))', "long_conv looks ahead"),
    ("add(v4, v6)", "flip(v4, axes=(1,))", "flip has no rule"),
])  # fmt: skip
def test_what_needs_it_whole_is_listed(was: str, becomes: str, reason: str) -> None:
    text = FIXED.replace(was, becomes)
    with pytest.raises(UnsupportedError, match=reason):
        _shortened(text)


@pytest.mark.parametrize(("name", "states"), [("s4", 16), ("dss", 32), ("spacetime", 8)])
def test_state_spaces_of_known_length_run_step_by_step(name: str, states: int, tmp_path: Path) -> None:
    sys.path.insert(0, str(ZOO))
    try:
        file = importlib.import_module(name)
    finally:
        sys.path.remove(str(ZOO))
    model, args, kwargs, dynamic = file.build()
    program = coilc.export(model, args, kwargs, dynamic_shapes=dynamic)
    compiled = coilc.load(coilc.compile(program, tmp_path / "m.coil", entries=("prefill", "step")))
    kept = [state["dims"][1] for state in compiled.describe()["states"]]
    assert len(kept) == 2
    assert max(kept) <= states, "the states of the model, not a window of inputs"
    x = torch.randn(2, file.TOKENS, args[0].shape[-1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.double()(x.double()).numpy()
    session = compiled.session()
    pieces = [session.prefill(x=x[:, :17].numpy())]
    pieces += [session.step(x=x[:, t : t + 1].numpy()) for t in range(17, file.TOKENS)]
    assert off(pieces, expected) <= 1e-5
    for cut in range(1, 37):
        session.reset()
        pieces = [session.prefill(x=piece.numpy()) for piece in (x[:, :cut], x[:, cut:37])]
        assert off(pieces, expected[:, :37]) <= 1e-5


def off(pieces: list[dict[str, np.ndarray]], expected: np.ndarray) -> float:
    """The relative error of the pieces' only output."""
    actual = np.concatenate([next(iter(piece.values())) for piece in pieces], 1)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
