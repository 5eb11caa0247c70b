"""Stands in for nvcc: compiles CUDA C++ for this processor. What it writes instead of a fatbin is a shared object, which
the emulated driver loads: ``COILC_NVCC="python tests/emulation/nvcc.py"``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
_FLAGS = (
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-w",
    "-fvisibility=hidden",
    "-fno-sanitize=undefined",
    "-ffp-contract=off",
)
_KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(")
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:(?:__align__|alignas)\(\d+\)\s+)?(\w[\w\s]*?)\s+(\w+)\[\];")


def translate(source: str) -> str:
    """The source for an ordinary C++ compiler, with a table of its kernels behind it."""
    names = list(dict.fromkeys(_KERNEL.findall(source)))
    source = re.sub(r"__shared__ (alignas\(\d+\))", r"\1 __shared__", source)  # where this compiler takes it
    source = _DYNAMIC.sub(r"\1 *\2 = reinterpret_cast<\1 *>(emulated_now->shared);", source)
    rows = "".join(f'    Entry<&{name}>::row("{name}"),\n' for name in names)
    return f"""#include "cuda.h"
{source}
thread *emulated_now;
__shared__ char emulated_some[16] __attribute__((used, retain));  // so that the section exists
extern "C" unsigned char __start_emulated_shared[], __stop_emulated_shared[];
static const kernel_entry kernels[] = {{
{rows}    {{}},
}};
extern "C" __attribute__((visibility("default"))) const module_entry emulated_module = {{
    &emulated_now, kernels, __start_emulated_shared, __stop_emulated_shared}};
"""


def main(arguments: list[str]) -> int:
    if "--version" in arguments:
        print("Cuda compilation tools, release 13.0, emulated")
        return 0
    source = next(Path(argument) for argument in arguments if argument.endswith(".cu"))
    output = arguments[arguments.index("-o") + 1]
    with TemporaryDirectory(prefix="coilc-") as folder:
        translated = Path(folder) / "kernels.cc"
        translated.write_text(translate(source.read_text()))
        zig, compiled = [sys.executable, "-m", "ziglang"], str(translated.with_suffix(".o"))
        compiler = [*zig, "c++", "-c", *_FLAGS, f"-I{HERE / 'include'}"]
        linker = [*zig, "cc", "-shared"]  # of the C++ library, headers are all that is used
        done = subprocess.run([*compiler, str(translated), "-o", compiled])
        return done.returncode or subprocess.run([*linker, compiled, "-o", output]).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
