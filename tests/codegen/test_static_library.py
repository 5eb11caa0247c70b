"""A model linked into programs of other languages, and what such a program asks of the system."""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import byte_model
import pytest

from coilc.codegen.bundle import write_static_library
from coilc.runtime import load
from coilc.runtime.generate import generate

ROOT = Path(__file__).resolve().parents[2]
EMBED = ROOT / "examples" / "embed"
ALLOCATIONS = ROOT / "tests" / "runtime" / "allocations.c"
LINKED = ("-lm", "-pthread")
ZIG = [sys.executable, "-m", "ziglang"]
GUARDED = (
    "malloc",
    "calloc",
    "mmap",
    "open",
    "pthread_create",
    "pthread_mutex_init",
    "pthread_mutex_lock",
    "pthread_cond_broadcast",
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_model.build(tmp_path_factory.mktemp("library") / "model.coil")


@pytest.fixture(scope="module")
def embedded(artifact: Path) -> Path:
    """A folder with the library, which holds its weights."""
    return write_static_library(artifact, artifact.with_name("model"), embed_weights=True)


def expected(artifact: Path, prompt: bytes, count: int) -> list[int]:
    return list(islice(generate(load(artifact, threads=1), list(prompt), temperature=0), count))


def compile_c(source: Path, library: Path, output: Path, *flags: str) -> Path:
    """With the system's compiler, else with zig."""
    plus = source.suffix == ".cpp"
    compiler = [found] if (found := shutil.which("g++" if plus else "gcc")) else [*ZIG, "c++" if plus else "cc"]
    standard = "-std=c++17" if plus else "-std=c11"
    command = [*compiler, standard, "-O1", "-Wall", "-Wextra", "-Werror", *flags, str(source), f"-I{library}"]
    subprocess.run([*command, str(library / "libmodel.a"), *LINKED, "-o", str(output)], check=True, timeout=300)
    return output


def output_of(*command: object) -> bytes:
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_a_folder_for_other_programs(artifact: Path, embedded: Path, tmp_path: Path) -> None:
    assert {path.name for path in embedded.iterdir()} == {"libmodel.a", "coil.h"}
    library = write_static_library(artifact, tmp_path / "lib")
    assert {path.name for path in library.iterdir()} == {"libmodel.a", "coil.h", "weights.safetensors"}


def test_c_without_malloc_threads_and_files(artifact: Path, embedded: Path, tmp_path: Path) -> None:
    program = compile_c(EMBED / "bare.c", embedded, tmp_path / "bare")
    assert output_of(program, "xy") == bytes([*expected(artifact, b"xy", 64), ord("\n")])


def test_c_plus_plus(artifact: Path, embedded: Path, tmp_path: Path) -> None:
    program = compile_c(EMBED / "continue.cpp", embedded, tmp_path / "continue", f"-I{EMBED}")
    text = bytes([*expected(artifact, b"xy", 64), ord("\n")])
    assert output_of(program, "", "xy") == text
    assert output_of(program, artifact / "weights.safetensors", "xy") == text
    done = subprocess.run([program, tmp_path / "absent", "xy"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"cannot read {tmp_path}/absent: No such file or directory\n")


@pytest.mark.skipif(not shutil.which("rustc"), reason="no rustc here")
def test_rust(artifact: Path, embedded: Path, tmp_path: Path) -> None:
    flags = ["-O", "-Dwarnings", "-L", f"native={embedded}", "-l", "static=model", "-o", str(tmp_path / "bare")]
    subprocess.run(["rustc", str(EMBED / "bare.rs"), *flags], check=True, timeout=300)
    text = bytes(expected(artifact, b"xy", 64)).decode(errors="replace") + "\n"
    assert output_of(tmp_path / "bare", "xy").decode() == text


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake here")
def test_cmake(embedded: Path, tmp_path: Path) -> None:
    quiet = {"check": True, "timeout": 300, "stdout": subprocess.DEVNULL}
    subprocess.run(["cmake", "-S", EMBED, "-B", tmp_path, f"-DCOIL_MODEL={embedded}"], **quiet)
    subprocess.run(["cmake", "--build", tmp_path], **quiet)
    assert output_of(tmp_path / "bare", "xy") == output_of(tmp_path / "continue", "", "xy")


@pytest.mark.parametrize("when", ["loaded", "never"])
def test_memory_is_asked_for_when_it_may(artifact: Path, embedded: Path, tmp_path: Path, when: str) -> None:
    """``loaded``: nothing is allocated after the first call; ``never``: not even before, in the caller's memory."""
    wrapped = [f"-Wl,--wrap={name}" for name in GUARDED]
    program = compile_c(ALLOCATIONS, embedded, tmp_path / "allocations", *wrapped)
    assert list(map(int, output_of(program, when).split())) == expected(artifact, b"x", 32)
