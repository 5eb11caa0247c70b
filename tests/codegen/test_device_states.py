"""coil-run with states: texts are those of ``coilc generate``, saved states those of sessions."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import byte_model
import numpy as np
import pytest

from coilc.codegen.bundle import link_device_program
from coilc.runtime import Model, load
from coilc.runtime.artifact import read_manifest
from coilc.runtime.generate import generate

Done = subprocess.CompletedProcess[bytes]
Run = Callable[..., Done]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_model.build(tmp_path_factory.mktemp("states") / "m.coil")


@pytest.fixture(scope="module")
def program(artifact: Path) -> Path:
    """With its weights inside."""
    output = artifact.with_name("coil-run")
    link_device_program(artifact, read_manifest(artifact), output, embed_weights=True)
    return output


@pytest.fixture
def coil_run(program: Path, tmp_path: Path) -> Run:
    def run(*args: object) -> Done:
        return subprocess.run([program, *map(str, args)], capture_output=True, timeout=60, cwd=tmp_path, env={})

    return run


@pytest.fixture
def model(artifact: Path) -> Model:
    return load(artifact, threads=1)


SAMPLING = [
    {"temperature": 0.0},
    {"seed": 0},
    {"seed": 2**40 + 7},
    {"seed": 3, "temperature": 0.7, "top_k": 20},
    {"seed": 4, "top_p": 0.6},
    {"seed": 5, "temperature": 1.3, "top_k": 100, "top_p": 0.9},
    {"seed": 6, "top_k": 1},
]


@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_equal_seeds_give_equal_texts(coil_run: Run, model: Model, options: dict[str, float]) -> None:
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    done = coil_run("generate", "--prompt", "hello", "--tokens", 100, *flags)
    assert done.returncode == 0, done.stderr
    expected = bytes(islice(generate(model, list(b"hello"), **options), 100))  # type: ignore[arg-type]
    assert done.stdout == expected + b"\n"
    rates = json.loads(done.stderr)
    assert (rates["prompt_tokens"], rates["tokens"]) == (5, 100)


def test_ids_go_in_and_out(coil_run: Run, model: Model) -> None:
    done = coil_run("generate", "--ids", "104,101", "--tokens", 9, "--temperature", 0)
    assert list(map(int, done.stdout.split())) == list(islice(generate(model, list(b"he"), temperature=0), 9))


def test_a_text_ends_behind_the_stop(coil_run: Run, model: Model) -> None:
    text = bytes(islice(generate(model, list(b"hello"), temperature=0), 40))
    stop = next(text[i : i + 2] for i in range(5, 30) if text[i : i + 2].isascii() and 0 not in text[i : i + 2])
    done = coil_run("generate", "--prompt", "hello", "--tokens", 40, "--temperature", 0, "--stop", stop.decode())
    assert done.stdout == text[: text.index(stop) + 2] + b"\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("--prompt x --ids 1", "generate takes either --prompt TEXT or --ids NUMBER,..."),
        ("--ids 1,x", "--ids takes numbers with commas between them"),
        ("--ids 256", "token 256 is outside 0 to 255"),
        ("--ids 1 --stop x", "--stop is for text; --ids has none"),
        ("--prompt x --top-p 0", "--top-p lies above 0 and at most at 1"),
        ("--prompt x --temperature nan", "--temperature takes a number from 0 to 1000000, not 'nan'"),
    ],
)
def test_bad_options_are_one_sentence(coil_run: Run, args: str, sentence: str) -> None:
    done = coil_run("generate", *args.split())
    assert (done.returncode, done.stdout, done.stderr.decode()) == (2, b"", f"coil-run: {sentence}\n")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "tokenizer"), [(61, False), (300, True)])
def test_text_that_is_not_bytes_is_refused(tmp_path: Path, size: int, tokenizer: bool) -> None:
    artifact = byte_model.build(tmp_path / "m.coil", size)
    if tokenizer:
        (artifact / "tokenizer.json").write_text("{}")
    link_device_program(artifact, read_manifest(artifact), tmp_path / "run", embed_weights=True)
    done = subprocess.run([tmp_path / "run", "generate", "--prompt", "x"], capture_output=True, text=True, timeout=60)
    reason = "is cut by its tokenizer.json, which this program does not read" if tokenizer else "so text cannot be cut"
    assert done.returncode == 2
    assert reason in done.stderr
    assert "give --ids" in done.stderr


def test_states_continue_where_they_were_saved(coil_run: Run, model: Model, tmp_path: Path) -> None:
    """A state goes from a program to a session of Python and back."""
    ids, session = np.array([list(b"hello wor")], np.int64), model.session()
    whole = model(input_ids=ids)["logits"]
    for name, part in {"a": ids[:, :5], "b": ids[:, 5:6], "c": ids[:, 6:]}.items():
        np.save(tmp_path / f"{name}.npy", part)
    coil_run("run", "--entry", "prefill", "--input", "input_ids=a.npy", "--save-state", "a.state")
    session.load(tmp_path / "a.state")
    np.testing.assert_allclose(session.step(input_ids=ids[:, 5:6])["logits"], whole[:, 5:6], atol=1e-6)
    done = coil_run(
        "run", "--entry", "step", "--input", "input_ids=b.npy", "--state", "a.state", "--save-state", "b.state"
    )
    assert [row["name"] for row in json.loads(done.stdout)["outputs"]] == ["logits"]
    session.save(tmp_path / "python.state")
    assert (tmp_path / "python.state").read_bytes() == (tmp_path / "b.state").read_bytes()
    state = ("--state", "python.state", "--output", "out")
    assert coil_run("run", "--entry", "prefill", "--input", "input_ids=c.npy", *state).returncode == 0
    np.testing.assert_allclose(np.load(tmp_path / "out" / "logits.npy"), whole[:, 6:], atol=1e-6)


def test_damaged_states_are_refused(coil_run: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 1), np.int64))
    (tmp_path / "x.state").write_bytes(b"coil?")
    done = coil_run("run", "--entry", "step", "--input", "input_ids=a.npy", "--state", "x.state")
    assert (done.returncode, done.stderr.decode()) == (2, "coil-run: cannot use x.state: it is no saved state\n")


def test_bench_starts_anew_every_time(coil_run: Run) -> None:
    done = coil_run("bench", "--entry", "step", "--dim", "B=2", "--runs", 5)
    assert json.loads(done.stdout)["runs"] == 5, done.stderr


def test_embedded_weights_need_no_file(coil_run: Run, program: Path) -> None:
    assert not program.with_name("weights.safetensors").exists()
    assert coil_run("bench", "--dim", "B=1", "--dim", "L=3").returncode == 0
