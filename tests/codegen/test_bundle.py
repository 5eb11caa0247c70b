"""Bundles: what is in the archive, and coil-run on good and bad input, on this machine."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coilc.codegen.bundle import README, bundle, write_static_library
from coilc.codegen.compile import compile
from coilc.ir import InputError, Module, interpret, parse_graph
from coilc.runtime import ArtifactError

MAIN = """
def main(x: f32[B, L, 8], flags: bool[B], *, B: dim[1:4], L: dim[1:]):
    v0: f32[8] = weight(name="w", type=f32[8])
    v1: f32[B, L, 8] = broadcast(v0, dims=(B, L, 8))
    v2: f32[B, L, 8] = mul(x, v1)
    v3: bf16[B, L, 8] = cast(v2, dtype=bf16)
    v4: bool[B] = logical_not(flags)
    return {"y": v2, "half": v3, "off": v4}
"""
STEP = 'def step(h: f64[3]):\n    v0: f64[3] = mul(h, h)\n    return {"h": v0}\n'


@pytest.fixture(scope="module")
def module() -> Module:
    entries = {"main": parse_graph(MAIN), "step": parse_graph(STEP)}
    return Module(entries, {"w": np.arange(8, dtype=np.float32)})


@pytest.fixture(scope="module")
def artifact(module: Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile(module, tmp_path_factory.mktemp("bundle") / "m.coil")


@pytest.fixture(scope="module")
def archive(artifact: Path) -> Path:
    return bundle(artifact, artifact.with_name("m.tar.gz"))


@pytest.fixture(scope="module")
def device(archive: Path) -> Path:
    """The folder that a device unpacks."""
    with tarfile.open(archive) as packed:
        packed.extractall(
            archive.parent, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )  # from 3.11.4
    return archive.with_name("m")


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def coil_run(device: Path, tmp_path: Path) -> Run:
    """``coil_run("describe")`` runs the program in an empty folder with nothing in its environment."""

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        command = [str(device / "coil-run"), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env={})

    return run


@pytest.fixture
def inputs(tmp_path: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays of entry main, saved as NAME.npy."""
    arrays = {"x": rng.standard_normal((2, 5, 8), dtype=np.float32), "flags": np.array([True, False])}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    return arrays


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the archive ----------------------------------------------------------------------------------------------------


def test_the_archive_holds_a_program_and_weights(archive: Path, artifact: Path) -> None:
    with tarfile.open(archive) as packed:
        modes = {entry.name: entry.mode for entry in packed.getmembers()}
        readme = packed.extractfile("m/README")
        assert readme
        assert readme.read().decode() == README
        weights = packed.extractfile("m/weights.safetensors")
        assert weights
        assert weights.read() == (artifact / "weights.safetensors").read_bytes()
    assert modes == {"m/README": 0o644, "m/coil-run": 0o755, "m/weights.safetensors": 0o644}
    assert README.count("\n") == 1


def test_the_program_is_small_and_needs_nothing(device: Path) -> None:
    program = (device / "coil-run").read_bytes()
    assert len(program) < 150_000
    assert b"ld-linux" not in program
    assert b"ld-musl" not in program


def test_bundling_twice_gives_the_same_bytes(archive: Path, artifact: Path, tmp_path: Path) -> None:
    again = bundle(artifact, tmp_path / "again.tar.gz")
    assert gzip.decompress(again.read_bytes()) == gzip.decompress(archive.read_bytes())
    assert again.read_bytes() == archive.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.tar.gz"]


def test_the_name_of_a_bundle(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m\.zip: a bundle's name ends in \.tar\.gz"):
        bundle(artifact, tmp_path / "m.zip")


def test_a_place_that_cannot_be_written(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write '.*/there/m\.tar\.gz': there is no folder '.*there'"):
        bundle(artifact, tmp_path / "there" / "m.tar.gz")
    with pytest.raises(InputError, match=r"cannot write '/proc/m\.tar\.gz': "):
        bundle(artifact, "/proc/m.tar.gz")
    with pytest.raises(InputError, match="cannot write '/proc/m': "):
        write_static_library(artifact, "/proc/m")


@pytest.mark.parametrize("name", ["kernels.o", "plan.c", "weights.safetensors"])
def test_a_damaged_artifact_is_not_bundled(artifact: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(artifact, tmp_path / "copy.coil"))
    (copy / name).write_bytes((copy / name).read_bytes()[:-1] + b"?")
    with pytest.raises(ArtifactError, match=f"{name}' is damaged: its content does not match its sha256"):
        bundle(copy, tmp_path / "m.tar.gz")
    assert not (tmp_path / "m.tar.gz").exists()


# --- coil-run -------------------------------------------------------------------------------------------------------


def test_describe(coil_run: Run, device: Path) -> None:
    found = answer(coil_run("describe"))
    main, step = found["entries"]
    assert [tensor["type"] for tensor in main["inputs"]] == ["f32[B, L, 8]", "bool[B]"]
    assert [tensor["name"] for tensor in main["outputs"]] == ["y", "half", "off"]
    assert main["dims"] == [{"name": "B", "low": 1, "high": 4}, {"name": "L", "low": 1}]
    assert step["dims"] == []
    assert found["weights_bytes"] == (device / "weights.safetensors").stat().st_size
    assert "memory" not in main
    assert step["memory"]["peak"] >= found["weights_bytes"]


def test_describe_adds_up_the_memory(coil_run: Run) -> None:
    memory = answer(coil_run("describe", "--dim", "B=2", "--dim", "L=9"))["entries"][0]["memory"]
    assert memory["peak"] == sum(memory[part] for part in ("weights", "arena", "states", "scratch", "tables"))
    assert memory["weights"] == 256


def test_run_agrees_with_the_interpreter(
    coil_run: Run, module: Module, inputs: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = answer(
        coil_run("run", "--input", "x=x.npy", "--input", "flags=flags.npy", "--output", "out", "--threads", 2)
    )
    assert [(row["name"], row["shape"]) for row in found["outputs"]] == [
        ("y", [2, 5, 8]),
        ("half", [2, 5, 8]),
        ("off", [2]),
    ]
    expected = interpret(module, inputs)
    y, half, off = (np.load(tmp_path / "out" / f"{name}.npy") for name in ("y", "half", "off"))
    np.testing.assert_allclose(y, expected["y"], rtol=1e-6)
    np.testing.assert_array_equal(half.view(expected["half"].dtype), expected["half"])
    np.testing.assert_array_equal(off, expected["off"])


def test_another_entry_and_weights_elsewhere(coil_run: Run, device: Path, tmp_path: Path) -> None:
    h = np.array([1.0, -2.0, 3.0])
    np.save(tmp_path / "h.npy", h)
    weights = shutil.copy(device / "weights.safetensors", tmp_path / "w")
    args = ("--entry", "step", "--weights", weights, "--input", "h=h.npy", "--output", ".")
    answer(coil_run("run", *args))
    np.testing.assert_array_equal(np.load(tmp_path / "h.npy"), h * h)


def test_bench(coil_run: Run) -> None:
    found = answer(coil_run("bench", "--dim", "B=1", "--dim", "L=64", "--runs", 3, "--threads", 1))
    assert 0 < found["fastest_seconds"] <= found["median_seconds"] <= found["slowest_seconds"]
    assert found["runs"] == 3


X, FLAGS = "--input x=x.npy", "--input flags=flags.npy"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("fly", "there is no command 'fly'; there are describe, run, generate and bench"),
        ("run --fast 1", "there is no option '--fast'; coil-run --help lists them"),
        ("run --threads", "--threads needs a value"),
        ("run --threads 0", "--threads takes a number from 1 to 1024, not '0'"),
        ("bench --runs many", "--runs takes a number from 1 to 1000000, not 'many'"),
        ("run --runs 3", "run takes no --runs; coil-run --help says who does"),
        ("generate --entry step", "generate takes no --entry; coil-run --help says who does"),
        ("run --entry decode", "there is no entry 'decode'; coil-run describe lists them"),
        ("run --input x", "--input takes NAME=VALUE, not 'x'"),
        (f"run {X} {X}", "--input x is given twice"),
        (f"run {X}", "entry 'main' needs --input flags=FILE.npy"),
        (f"run {X} --input z=x.npy", "entry 'main' has no input 'z'; coil-run describe lists them"),
        (f"run {FLAGS} --input x=absent.npy", "cannot read absent.npy: No such file or directory"),
        (f"run {FLAGS} --input x=.", "cannot read .: it is no file"),
        (f"run {FLAGS} --input x=flags.npy", "flags.npy holds |b1 of rank 1; input 'x' is f32[B, L, 8]"),
        (f"run {FLAGS} --input x=narrow.npy", "input 'x' has extent 7 at axis 2; f32[B, L, 8] needs 8 here"),
        (f"run {FLAGS} --input x=three.npy", "input 'flags' has extent 2 at axis 0; bool[B] needs 3 here"),
        (f"run {FLAGS} --input x=five.npy", "entry 'main': B = 5 is outside 1 to 4"),
        (f"run {FLAGS} --input x=fortran.npy", "cannot use fortran.npy: it is in Fortran order; save it with numpy.ascontiguousarray"),
        (f"run {FLAGS} --input x=big.npy", "cannot use big.npy: it is big endian"),
        (f"run {FLAGS} --input x=cut.npy", "cannot use cut.npy: its size does not match its shape"),
        (f"run {FLAGS} --input x=text.npy", "cannot use text.npy: it is not an .npy file"),
        (f"run {FLAGS} --input x=empty.npy", "cannot use empty.npy: it is not an .npy file"),
        (f"run {FLAGS} --input x=objects.npy", "cannot use objects.npy: its elements have a type that no model takes"),
        (f"run {X} {FLAGS} --output x.npy", "cannot write x.npy/y.npy: Not a directory"),
        ("bench --dim B=1", "entry 'main' needs --dim L=NUMBER"),
        ("bench --dim B=1 --dim L=x", "--dim L takes a number, not 'x'"),
        ("bench --dim B=1 --dim L=1 --dim T=1", "entry 'main' has no dim 'T'"),
        ("describe --dim T=1", "no entry has a dim 'T'"),
        ("describe --dim B=9 --dim L=1", "entry 'main': B = 9 is outside 1 to 4"),
        ("run --state x.npy", "entry 'main' has no states"),
        ("generate --prompt x", "this is no language model that runs step by step: that takes entries 'prefill' and 'step' with one "
         "input of tokens i64[B, L] and logits f32[B, L, V]"),
        ("generate --prompt x --top-p 2", "--top-p takes a number from 0 to 1, not '2'"),
        ("generate", "generate takes either --prompt TEXT or --ids NUMBER,..."),
        ("bench --dim B=9 --dim L=1", "entry 'main': B = 9 is outside 1 to 4"),
        ("bench --dim B=1 --dim L=-1", "entry 'main': L = -1 is below 1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(
    coil_run: Run, inputs: dict[str, np.ndarray], tmp_path: Path, args: str, message: str
) -> None:
    x = inputs["x"]
    for name, array in {"narrow": x[..., :7], "three": np.ones((3, 5, 8)), "five": np.ones((5, 5, 8))}.items():
        np.save(tmp_path / f"{name}.npy", np.ascontiguousarray(array, np.float32))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(x))
    np.save(tmp_path / "big.npy", x.astype(">f4"))
    np.save(tmp_path / "objects.npy", np.array(["a"]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    (tmp_path / "text.npy").write_text("these are not numbers\n")
    (tmp_path / "empty.npy").touch()
    done = coil_run(*args.split())
    assert done.stderr == f"coil-run: {message}\n"
    assert done.returncode == 2
    assert done.stdout == ""


def test_the_wrong_weights_are_refused(coil_run: Run, inputs: dict[str, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"1234")
    done = coil_run("run", *X.split(), *FLAGS.split(), "--weights", "w")
    assert done.returncode == 4
    assert done.stderr.startswith("coil-run: w has 4 bytes, this model needs ")


def test_help(coil_run: Run) -> None:
    done = coil_run("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: coil-run describe")
    assert coil_run().returncode == 2
