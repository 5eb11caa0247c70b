"""``coilc generate``: seeded, streaming, and one sentence about what is no language model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from byte_model import ATTENTION, build

from coilc.ir import CoilError
from coilc.runtime import load
from coilc.runtime.generate import choose, generate

from .conftest import Cli


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("language") / "m.coil", 256)


def test_greedy_tokens_are_those_of_the_whole_sequence(language: Path) -> None:
    model, seen = load(language, threads=1), list(b"hello")
    for _, token in zip(range(20), generate(model, seen, temperature=0), strict=False):
        assert token == int(np.argmax(model(input_ids=[seen])["logits"][0, -1]))
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


def test_the_prompt_comes_first_and_stop_ends(cli: Cli, language: Path) -> None:
    text = json.loads(cli("generate", str(language), "-p", "hello", "-n", "12", "--top-k", "60", "--json").out)["text"]
    word = text[5]
    done = cli("generate", str(language), "-p", "hello", "-n", "12", "--top-k", "60", "--stop", word, "--stop", "\0\0")
    assert done.out == "hello" + text[: text.index(word) + 1] + "\n"


def test_a_tokenizer_travels_in_the_artifact(cli: Cli, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    reader = tokenizers.Tokenizer(tokenizers.models.BPE())
    reader.pre_tokenizer, reader.decoder = tokenizers.pre_tokenizers.ByteLevel(), tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    reader.train_from_iterator(
        ["hello world, hello \N{LATIN SMALL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE}"] * 9, trainer
    )
    reader.save(str(tmp_path / "mine.json"))
    size = reader.get_vocab_size()
    artifact = build(tmp_path / "m.coil", size, tokenizer=tmp_path / "mine.json")
    ids = reader.encode("hello world").ids
    assert len(ids) < len("hello world")
    wanted = [token for _, token in zip(range(9), generate(load(artifact), ids, seed=3), strict=False)]
    done = json.loads(cli("generate", str(artifact), "-p", "hello world", "-n", "9", "--seed", "3", "--json").out)
    assert done["prompt_tokens"] == len(ids)
    assert reader.decode(wanted).startswith(done["text"])  # an unfinished character is not shown
    with pytest.raises(CoilError, match=r"none.json is no tokenizer.json"):
        build(tmp_path / "n.coil", size, tokenizer=tmp_path / "none.json")


def test_refusals(cli: Cli, language: Path, scale: Path, tmp_path: Path) -> None:
    small = str(build(tmp_path / "small.coil", 61))
    for args, sentence in (
        ((str(scale), "-p", "x"), "is no language model that runs step by step"),
        ((small, "-p", "x"), "knows 61 tokens and has no tokenizer.json"),
        ((str(language), "-p", ""), "the prompt is empty"),
        ((str(language), "-p", os.fsdecode(b"\xff")), "the prompt is no text in UTF-8"),
        ((str(language), "-p", "x", "--top-p", "0"), "top_p lies above 0"),
        ((str(language), "-p", "x", "--seed", "-1"), "seed must not be negative"),
        ((str(language), "-p", "x", "--temperature", "nan"), "temperature, top_k and seed must not be negative"),
        ((str(language), "-p", "x", "--stop", ""), "--stop needs a text"),
    ):
        done = cli("generate", *args)
        assert done.code == 2
        assert sentence in done.err


def test_a_context_has_room_for_all_tokens_or_none_is_shown(cli: Cli, tmp_path: Path) -> None:
    artifact = str(build(tmp_path / "m.coil", program=ATTENTION))
    assert cli("generate", artifact, "-p", "hello", "-n", "60").code == 0
    done = cli("generate", artifact, "-p", "hello", "-n", "61")
    assert done.code == 2
    assert "5 tokens of prompt and 61 more need room for 65" in done.err
    assert "has it for 64; ask for fewer --tokens, or compile it with a larger --context" in done.err
    assert not done.out


def test_choices_keep_to_the_likeliest() -> None:
    rng, logits = np.random.default_rng(0), np.log(np.array([0.05, 0.5, 0.15, 0.3]))
    draw = [[choose(logits, 1.0, k, p, rng) for _ in range(4000)] for k, p in ((0, 1.0), (2, 1.0), (0, 0.7), (1, 1.0))]
    np.testing.assert_allclose(np.bincount(draw[0]) / 4000, np.exp(logits), atol=0.03)
    assert [set(d) for d in draw[1:]] == [{1, 3}, {1, 3}, {1}]
