"""``coilc generate``: seeded, streaming, and one sentence about what is no language model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coilc.codegen.compile import compile
from coilc.ir import Module, parse_graph
from coilc.runtime import load
from coilc.runtime.generate import choose, generate

from .conftest import Cli

PROGRAM = """
def main(ids: i64[B, L], *, B: dim[1:4], L: dim[1:64]):
    table: f32[{V}, 8] = weight(name="table", type=f32[{V}, 8])
    taps: f32[3, 8] = weight(name="taps", type=f32[3, 8])
    v0: f32[B, L, 8] = take(table, ids, axis=0)
    v1, v2 = causal_conv1d(v0, taps, optional=(), activation="silu")
    v3: f32[B, L, {V}] = linear(v1, table)
    return {{"logits": v3}}
"""


def build(path: Path, size: int) -> Path:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((n, 8), dtype=np.float32) for name, n in (("table", size), ("taps", 3))}
    module = Module({"main": parse_graph(PROGRAM.format(V=size))}, weights)
    return compile(module, path, entries=("main", "prefill", "step"))


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("language") / "m.coil", 256)


def test_greedy_tokens_are_those_of_the_whole_sequence(language: Path) -> None:
    model, seen = load(language, threads=1), list(b"hello")
    for _, token in zip(range(20), generate(model, seen, temperature=0), strict=False):
        assert token == int(np.argmax(model(ids=[seen])["logits"][0, -1]))
        seen = [*seen, token]


def test_text_is_seeded(cli: Cli, language: Path) -> None:
    runs = [cli("generate", str(language), "-p", "hello", "-n", "12", "--seed", seed, "--json") for seed in "112"]
    texts = [json.loads(done.out) for done in runs]
    assert texts[0]["text"] == texts[1]["text"] != texts[2]["text"]
    assert (texts[0]["prompt_tokens"], texts[0]["tokens"]) == (5, 12)


def test_rates_come_last(cli: Cli, language: Path) -> None:
    done = cli("generate", str(language), "-p", "hello", "-n", "3")
    assert done.code == 0
    assert "5 tokens of prompt at" in done.err


def test_refusals(cli: Cli, language: Path, scale: Path, tmp_path: Path) -> None:
    small = str(build(tmp_path / "small.coil", 61))
    for args, sentence in (
        ((str(scale), "-p", "x"), "is no language model that runs step by step"),
        ((small, "-p", "x"), "knows 61 tokens and has no tokenizer.json"),
        ((str(language), "-p", ""), "the prompt is empty"),
        ((str(language), "-p", "x", "--top-p", "0"), "top_p lies above 0"),
    ):
        done = cli("generate", *args)
        assert done.code == 2
        assert sentence in done.err


def test_choices_keep_to_the_likeliest() -> None:
    rng, logits = np.random.default_rng(0), np.log(np.array([0.05, 0.5, 0.15, 0.3]))
    draw = [[choose(logits, 1.0, k, p, rng) for _ in range(4000)] for k, p in ((0, 1.0), (2, 1.0), (0, 0.7), (1, 1.0))]
    np.testing.assert_allclose(np.bincount(draw[0]) / 4000, np.exp(logits), atol=0.03)
    assert [set(d) for d in draw[1:]] == [{1, 3}, {1, 3}, {1}]
