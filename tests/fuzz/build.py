"""Build the fuzz targets and run them: ``python tests/fuzz/build.py session --seconds 3600``.

With clang it is libFuzzer, guided by coverage. With gcc alone it is ``replay.c``, which knows nothing of coverage: it runs
the corpus and random changes of it. Both under the address and undefined behaviour sanitizers.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent))

import model

import coilc.runtime
from coilc.codegen.bundle import EMBEDDED
from coilc.codegen.link import embed, runtime_sources

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
NATIVE, DEVICE = (Path(coilc.runtime.__file__).parent / name for name in ("native", "device"))
TARGETS = tuple(sorted(path.stem.removeprefix("target_") for path in HERE.glob("target_*.c")))
_FLAGS = ("-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-fno-sanitize-recover=all")
_DEVICE = {"npy": "npy.c", "options": "options.c", "program": "*.c", "sampling": "sampling.c"}  # coil-run's own files
_DEFINES = {
    "options": ("-Dexit=fuzz_exit",),
    "plan": ("-Dcoil_plan=(*fuzz_plan)",),
    "program": (EMBEDDED, "-include", "sandbox.h"),
}


def compiler() -> tuple[str, ...] | None:
    """The command of a compiler whose sanitized programs start here; clang comes first. ``None``: there is none."""
    candidates = (("clang", "-fsanitize=fuzzer,address,undefined"), ("gcc", "-fsanitize=address,undefined"))
    return next((command for command in candidates if shutil.which(command[0]) and _works(command)), None)


def _works(command: tuple[str, ...]) -> bool:
    with TemporaryDirectory(prefix="coilc-") as scratch:
        source, program = Path(scratch) / "empty.c", Path(scratch) / "empty"
        entry = "int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return !d && n; }\n"
        source.write_text(entry + ("" if command[0] == "clang" else "int main(void) { return 0; }\n"))
        if subprocess.run([*command, source, "-o", program], capture_output=True, timeout=60).returncode:
            return False
        return not subprocess.run([program, "-runs=1"], capture_output=True, timeout=60).returncode


def build(target: str, folder: Path, command: tuple[str, ...], *extra: str) -> Path:
    """Compile one target into ``folder``, where the plan is written too."""
    model.write(folder)
    runtime = [path for path in runtime_sources("cpu") if path.name != "memory.c"]  # fuzz.c has its own
    sources = [HERE / f"target_{target}.c", HERE / "fuzz.c", *runtime]
    sources += [HERE / "kernels.c"] if target == "plan" else [HERE / "kernels.c", folder / "plan.c"]
    sources += sorted(DEVICE.glob(_DEVICE[target])) if target in _DEVICE else []
    sources += [embed("coil_weights", folder / "weights", "fuzz", folder)] if target == "program" else []
    sources += [] if command[0] == "clang" else [HERE / "replay.c"]
    program = folder / target
    flags = (*_FLAGS, *_DEFINES.get(target, ()), f"-I{HERE}", f"-I{NATIVE}", f"-I{DEVICE}", *extra)
    subprocess.run([*command, *flags, *map(str, sources), "-lm", "-o", str(program)], check=True, timeout=300)
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="where the program and what it finds are kept")
    options = parser.parse_args()
    command = compiler()
    if command is None:
        sys.exit("neither clang nor gcc can build sanitized programs here")
    with TemporaryDirectory(prefix="coilc-") as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        found = folder / f"{options.target}.corpus"
        found.mkdir(parents=True, exist_ok=True)
        program = build(options.target, folder, command)
        limits = [f"-max_total_time={options.seconds}", "-max_len=1024", "-print_final_stats=1"]
        sys.exit(subprocess.run([program, *limits, found, CORPUS / options.target], cwd=folder).returncode)


if __name__ == "__main__":
    main()
