"""Linking generated plan, kernels and the native runtime into a library or a program, by ziglang or a C compiler."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import coilc.runtime
from coilc.ir import CoilError
from coilc.runtime.artifact import sha256_of
from coilc.settings import CC

from .emit_plan import DEVICE_CODE

NATIVE = Path(coilc.runtime.__file__).parent / "native"
_GLIBC = "2.28"  # the oldest system that an artifact runs on: Debian 10, RHEL 8
FLAGS = (
    "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-fPIC", "-pthread",
    "-ffunction-sections", "-fdata-sections", "-fno-sanitize=undefined",
)  # fmt: skip
LIBRARIES = {"cpu": ("-lm",), "cuda": ("-lm", "-ldl")}  # what the runtime needs of the system, by the target's kind
_EXPORTS = "{ global: coil_*; local: *; };\n"


def runtime_sources(kind: str) -> list[Path]:
    """The C files of the native runtime for targets of a kind."""
    return [*sorted(NATIVE.glob("*.c")), *sorted((NATIVE / kind).glob("*.c"))]


def embed(symbol: str, file: Path, digest: str, folder: Path) -> Path:
    """Write an assembly file to ``folder`` with the content of ``file`` between ``symbol`` and ``symbol_end``.

    Args:
        digest: of the content, for the compiler's cache, which does not look into the file.
    """
    source = folder / f"{symbol}.S"
    source.write_text(_EMBEDDED.format(symbol=symbol, digest=digest, path=file.resolve()))
    return source


_EMBEDDED = """/* {digest} */
.section .rodata.{symbol}, "a", %progbits
.balign 64
.globl {symbol}, {symbol}_end
.hidden {symbol}, {symbol}_end
{symbol}:
.incbin "{path}"
{symbol}_end:
.section .note.GNU-stack, "", %progbits
"""


def link_library(
    plan_source: Path,
    objects: Sequence[Path],
    output: Path,
    triple: str,
    compiler: str = "",
    kind: str = "cpu",
    device_code: Path | None = None,
) -> None:
    """Compile the plan and the runtime and link them with the kernels into a stripped shared library.

    Args:
        plan_source: C file from ``emit_plan``.
        triple: target of the kernels, ``x86_64-linux-gnu`` or ``aarch64-linux-gnu``.
        kind: of the target, which chooses the runtime's device.
        device_code: what the kernels launch on it.
        compiler: command of a C compiler for that target; empty takes ``COILC_CC``, else ziglang.

    Raises:
        CoilError: the compiler is missing, refuses the input or takes longer than five minutes.
    """
    sources = [plan_source, *runtime_sources(kind), *objects]
    with TemporaryDirectory(prefix="coilc-") as scratch:
        if device_code is not None:
            sources.append(embed(DEVICE_CODE, device_code, sha256_of(device_code), Path(scratch)))
        exports = Path(scratch) / "exports.map"
        exports.write_text(_EXPORTS)
        linker = ["-shared", "-s", "-Wl,--gc-sections", f"-Wl,--version-script={exports}", *LIBRARIES[kind]]
        compilation = [*FLAGS, f"-I{NATIVE}", *map(str, sources)]
        _run([*_compiler(f"{triple}.{_GLIBC}", compiler), *compilation, *linker, "-o", str(output)])


def link_program(
    inputs: Sequence[Path],
    output: Path,
    triple: str,
    folders: Sequence[Path],
    flags: Sequence[str] = (),
    compiler: str = "",
    kind: str = "cpu",
) -> None:
    """Compile and link C files and objects into a stripped executable.

    On a CPU it is static and needs no library of the system; a GPU's driver is a shared library, which takes the
    system's C library to load.

    Args:
        triple: target of the objects, as in ``link_library``; ziglang brings musl for it.
        folders: where headers are.
        flags: of the compiler, besides its usual ones.
        kind: of the target.

    Raises:
        CoilError: as ``link_library``.
    """
    static = kind == "cpu"
    linker = [*(["-static"] if static else []), "-s", "-Wl,--gc-sections", *LIBRARIES[kind]]
    compilation = [*FLAGS, *flags, *(f"-I{folder}" for folder in folders), *map(str, inputs)]
    command = _compiler(triple.replace("-gnu", "-musl") if static else f"{triple}.{_GLIBC}", compiler)
    _run([*command, *compilation, *linker, "-o", str(output)])


def link_archive(
    inputs: Sequence[Path], output: Path, triple: str, folders: Sequence[Path], flags: Sequence[str] = ()
) -> None:
    """Compile C files and put them and objects into a static library, for the system's C library; as ``link_program``.

    The objects are linked into one first, which any linker then takes whole.
    """
    with TemporaryDirectory(prefix="coilc-") as scratch:
        whole = Path(scratch) / "model.o"
        compilation = [*FLAGS, *flags, *(f"-I{folder}" for folder in folders), *map(str, inputs)]
        _run([*_compiler(f"{triple}.{_GLIBC}", ""), *compilation, "-g0", "-r", "-o", str(whole)])
        _run([sys.executable, "-m", "ziglang", "ar", "rcsD", str(output), str(whole)])


def _compiler(target: str, compiler: str) -> list[str]:
    chosen = compiler or CC.get()
    if chosen:
        return shlex.split(chosen)
    return [sys.executable, "-m", "ziglang", "cc", "-target", target]


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        raise CoilError(f"the C compiler '{command[0]}' was not found; install it or unset COILC_CC") from None
    except subprocess.TimeoutExpired:
        raise CoilError(f"linking with '{command[0]}' took longer than 300 s and was stopped") from None
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-12:])
        raise CoilError(f"linking failed: '{' '.join(command[:4])} ...' ended with code {done.returncode}\n{said}")
