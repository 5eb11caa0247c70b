"""The C API from C, under sanitizers, for both architectures."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import handmade
import pytest

from coilc.codegen.emit_plan import emit_plan
from coilc.codegen.link import FLAGS, NATIVE, runtime_sources
from coilc.codegen.weights import plan_layout, write_weights

DRIVER = Path(__file__).parent / "driver.c"
SANITIZERS = ("address,undefined", "thread")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the generated plan and its weights."""
    folder = tmp_path_factory.mktemp("native")
    plan = handmade.make_plan()
    layout = plan_layout(plan.weights)
    (folder / "plan.c").write_text(emit_plan(plan, layout, handmade.SCRATCH_BYTES))
    write_weights(folder / "weights", plan.weights, layout)
    return folder


def compile_driver(compiler: list[str], sources: Path, output: Path, *extra: str) -> None:
    files = [sources / "plan.c", handmade.KERNELS, DRIVER, *runtime_sources("cpu")]
    command = [*compiler, *FLAGS, *extra, f"-I{NATIVE}", *map(str, files), "-o", str(output)]
    subprocess.run(command, check=True, timeout=300)


def run_driver(command: list[str], sources: Path) -> None:
    done = subprocess.run([*command, str(sources / "weights")], capture_output=True, text=True, timeout=120)
    assert done.stdout == "ok\n", (done.stdout + done.stderr)[-4000:]
    assert done.returncode == 0


def supports(sanitizer: str, folder: Path) -> bool:
    """Whether gcc has the sanitizer and its programs start here (some kernels' address layouts stop it)."""
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    command = ["gcc", f"-fsanitize={sanitizer}", str(folder / "empty.c"), "-o", str(folder / "empty")]
    if not shutil.which("gcc") or subprocess.run(command, capture_output=True, timeout=60).returncode:
        return False
    return not subprocess.run([str(folder / "empty")], capture_output=True, timeout=60).returncode


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_sanitizers_find_nothing(sources: Path, tmp_path: Path, sanitizer: str) -> None:
    if not supports(sanitizer, tmp_path):
        pytest.skip(f"no gcc with -fsanitize={sanitizer} that works here")
    flags = (f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g")
    compile_driver(["gcc"], sources, tmp_path / "driver", *flags)
    run_driver([str(tmp_path / "driver")], sources)


@pytest.mark.slow  # the first time, ziglang builds its C library
def test_a_static_program_with_ziglang(sources: Path, tmp_path: Path) -> None:
    """What a device gets: no shared library, no compiler."""
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-musl"]
    compile_driver(compiler, sources, tmp_path / "driver", "-static", "-s")
    assert (tmp_path / "driver").stat().st_size < 150_000
    run_driver([str(tmp_path / "driver")], sources)


@pytest.mark.arm
def test_aarch64(sources: Path, tmp_path: Path) -> None:
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl"]
    compile_driver(compiler, sources, tmp_path / "driver", "-static")
    emulator = ["qemu-aarch64"] if platform.machine() != "aarch64" else []
    run_driver([*emulator, str(tmp_path / "driver")], sources)


def test_aarch64_compiles(sources: Path, tmp_path: Path) -> None:
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28"]
    compile_driver(compiler, sources, tmp_path / "driver")


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ here")
def test_the_header_is_also_c_plus_plus(tmp_path: Path) -> None:
    (tmp_path / "user.cc").write_text('#include "coil.h"\nint main() { return coil_abi_version() == 0; }\n')
    command = ["g++", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-fsyntax-only", str(tmp_path / "user.cc")]
    subprocess.run(command, check=True, timeout=60)


def test_only_the_api_is_exported(artifact: Path) -> None:
    if not shutil.which("nm"):
        pytest.skip("no nm here")
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", artifact / "code.so"], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert names == {
        "coil_abi_version", "coil_close", "coil_describe", "coil_error_message", "coil_open", "coil_session_advance", "coil_session_advance_all",
        "coil_session_bind", "coil_session_bind_shapes", "coil_session_bytes", "coil_session_close", "coil_session_dims",
        "coil_session_memory", "coil_session_open", "coil_session_open_in", "coil_session_run", "coil_session_stream", "coil_session_trace", "coil_session_wait",
        "coil_state_bytes", "coil_state_close", "coil_state_fork", "coil_state_load", "coil_state_memory",
        "coil_state_open", "coil_state_open_in", "coil_state_reset", "coil_state_rewind", "coil_state_save",
    }  # fmt: skip


def test_the_library_is_small(artifact: Path) -> None:
    assert (artifact / "code.so").stat().st_size < 52_000
