"""What ``coilc doctor`` looks at."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from coilc import settings

# Packages without which nothing compiles; a version where only that one works.
PACKAGES = {
    "apache-tvm": "0.27.0.post1",
    "apache-tvm-ffi": "0.1.14.post1",
    "torch": "2.13.0",
    "numpy": "",
    "ml_dtypes": "",
    "networkx": "",
    "safetensors": "",
    "ziglang": "",
}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; ``ok`` is None where there is nothing to judge."""

    what: str
    found: str
    ok: bool | None = None
    fix: str = ""


def examine(quick: bool) -> list[Finding]:
    """Look at everything; ``quick`` skips the trial compilation."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _packages, _machine, _threads, _settings)
    findings = [finding for check in checks for finding in check()]
    return findings if quick else [*findings, _trial()]


def _python() -> Iterator[Finding]:
    ok = sys.version_info >= (3, 10)
    yield Finding("Python", platform.python_version(), ok, "" if ok else "coilc needs Python 3.10 or newer")


def _packages() -> Iterator[Finding]:
    for name, pin in PACKAGES.items():
        wanted = f"{name}=={pin}" if pin else name
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "not installed", False, f"pip install {wanted}")
            continue
        ok = not pin or version.split("+")[0] == pin
        yield Finding(name, version, ok, "" if ok else f"pip install {wanted}; coilc is tested with this version alone")


def _machine() -> Iterator[Finding]:
    from coilc.codegen.target import parse_target
    from coilc.ir import CoilError

    try:
        target = parse_target("native")
    except CoilError as error:
        yield Finding("CPU", _cpu_name(), False, error.message)
        return
    yield Finding("CPU", f"{_cpu_name()}; target {target.name}, {target.vector_bits}-bit vectors", True)
    compiler = settings.CC.get() or "ziglang package"
    yield Finding("linker", compiler, None)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _threads() -> Iterator[Finding]:
    usable, chosen = len(os.sched_getaffinity(0)), settings.THREADS.get()
    fix = "" if chosen <= usable else f"more threads than usable cores slow a run down; COILC_THREADS={usable}"
    yield Finding("threads", f"{chosen} by default, {usable} usable of {os.cpu_count()} cores", chosen <= usable, fix)


def _settings() -> Iterator[Finding]:
    for setting in settings.SETTINGS:
        if os.environ.get(setting.name):
            try:
                yield Finding(setting.name, str(setting.get()))
            except ValueError as error:
                yield Finding(setting.name, os.environ[setting.name], False, str(error))


def _trial() -> Finding:
    """Compile, load and run a graph of one line, the shortest proof that all parts work here."""
    import numpy as np

    from coilc.codegen.compile import compile
    from coilc.ir import Module, parse_graph
    from coilc.runtime import load

    graph = parse_graph("def main(x: f32[L], *, L: dim[1:64]):\n    v0: f32[L] = add(x, x)\n    return {'y': v0}\n")
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = compile(Module({"main": graph}), Path(folder) / "trial.coil")
            outputs = load(path)(x=np.arange(5, dtype=np.float32))
    except Exception as error:  # the diagnosis is the place where every failure is an answer
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        return Finding("trial", f"{type(error).__name__}: {reason}", False, "COILC_DEBUG=1 coilc compile shows more")
    right = bool((outputs["y"] == 2 * np.arange(5)).all())
    return Finding("trial", "compiled and ran a small graph" if right else "a small graph gave wrong numbers", right)
