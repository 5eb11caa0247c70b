"""Building and loading the emulated driver."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import coilc.runtime

HERE = Path(__file__).parent
NATIVE = Path(coilc.runtime.__file__).parent / "native"
NVCC = f"{sys.executable} {HERE / 'nvcc.py'}"
LAUNCHES, GRAPHS, KERNELS, BYTES = range(4)  # what ``count`` counts


def build(folder: Path) -> Path:
    """Compile the driver into ``folder``."""
    library = folder / "libcuda.so.1"
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    sources = [str(HERE / name) for name in ("driver.c", "grid.c")]
    folders = [f"-I{NATIVE / 'cuda'}", f"-I{HERE}"]
    linker = ["-Wl,-soname,libcuda.so.1", "-ldl", "-pthread", "-o", str(library)]
    compiler = [sys.executable, "-m", "ziglang", "cc", "-fno-sanitize=undefined"]
    subprocess.run([*compiler, *flags, *folders, *sources, *linker], check=True, timeout=300)
    return library


class EmulatedGPU:
    """The driver, loaded into this process; whoever asks for ``libcuda.so.1`` afterwards gets it."""

    def __init__(self, library: Path) -> None:
        self.path, self.native = library, ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self.native.emulated_gpu_count.restype = ctypes.c_uint64

    def count(self, what: int) -> int:
        """Kernels launched one by one, graphs launched, kernels run; bytes in use."""
        return int(self.native.emulated_gpu_count(what))
