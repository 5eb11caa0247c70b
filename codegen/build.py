"""From kernel bodies to one relocatable object file."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import tvm
import tvm_ffi
from tvm import tirx

from coilc.ir import CoilError, Graph
from coilc.settings import NVCC

from .lower import lower_body
from .target import Device, Target
from .tir_passes import build_launchers, build_module

EARLY = "tirx.use_programtic_dependent_launch"  # TVM's name of a launch before the kernel ahead has ended
STACK_LIMIT = 1024  # the code generator takes larger local buffers from the runtime's workspace


@dataclass(frozen=True)
class Launch:
    """A kernel of a device, as the host's code launches it.

    Attributes:
        name: in the device code.
        params: how many arguments it takes, pointers and 64-bit integers.
        maps: which of them are descriptions of tensors, 128 bytes that are passed by value and given by address.
        tags: what the launcher gives after them, by TVM's names: extents of the grid and of a block, shared memory.
    """

    name: str
    params: int
    tags: tuple[str, ...]
    maps: tuple[int, ...] = ()


@dataclass(frozen=True)
class BuildInfo:
    """What the runtime must provide for an object file.

    Attributes:
        scratch_bytes: the most workspace that one task of one kernel holds at a time.
        symbols: kernel name to C symbol.
        launches: the kernels of the device, if the target has one.
        driver: the oldest driver that loads their code: 1000*major + 10*minor of a toolkit's version.
    """

    scratch_bytes: int
    symbols: Mapping[str, str]
    launches: tuple[Launch, ...] = ()
    driver: int = 0


def build_object(
    kernels: Mapping[str, Graph], target: Target, path: Path, progress: Callable[[str], None] | None = None
) -> BuildInfo:
    """Compile every body under its name into ``path``, a position-independent object.

    A device's code is written beside it, as a ``.fatbin``.

    Args:
        progress: called with each kernel's name before it is lowered.

    Raises:
        CoilError: the compiler of the device is missing, or refuses its input.
    """
    functions: dict[str, tirx.PrimFunc] = {}
    for name, body in kernels.items():
        if progress:
            progress(name)
        functions[name] = lower_body(body, name, target)
    # An empty prefix makes calls into the runtime direct; without it they go through pointers only TVM's loader fills.
    module = tvm.IRModule(functions).with_attr("system_lib_prefix", "")
    described, symbols = tvm.target.Target(dict(target.tvm)), {name: f"__tvm_ffi_{name}" for name in kernels}
    if target.device is None:
        build_module(module, described).write_to_file(str(path), "o")
        return BuildInfo(max(map(scratch_bytes, functions.values()), default=0), symbols)
    host, device, source = build_launchers(module, described, early=target.device.early_launch)
    host.write_to_file(str(path), "o")
    compile_device_code(source.inspect_source(), target.device, path.with_suffix(".fatbin"))
    early = (EARLY,) if target.device.early_launch else ()
    launches = tuple(_launch(kernel, early) for kernel in device.functions.values())
    return BuildInfo(0, symbols, launches, oldest_driver())


def _launch(kernel: tirx.PrimFunc, properties: tuple[str, ...]) -> Launch:
    attrs = kernel.attrs
    maps = tuple(i for i, param in enumerate(kernel.params) if _is_map(param))
    tags = (*map(str, attrs["tirx.kernel_launch_params"]), *properties)
    return Launch(str(attrs["global_symbol"]), len(kernel.params), tags, maps)


def _is_map(param: tirx.Var) -> bool:
    return isinstance(param.ty, tvm.ir.PointerType) and isinstance(param.ty.element_type, tirx.type.TensorMapType)


def oldest_driver() -> int:
    """Machine code loads with every driver of the compiler's major version or a later one.

    Raises:
        CoilError: the compiler is missing, or does not say its version.
    """
    compiler = _device_compiler()
    found = re.search(r"release (\d+)\.", _run([*compiler, "--version"]).stdout)
    if found is None:
        raise CoilError(f"'{compiler[0]} --version' names no release: set COILC_NVCC to the nvcc of a CUDA toolkit")
    return int(found[1]) * 1000


def _device_compiler() -> list[str]:
    return shlex.split(NVCC.get()) or [shutil.which("nvcc") or "nvcc"]


def compile_device_code(source: str, device: Device, path: Path) -> None:
    """Machine code for a device, and nothing that its driver would have to compile.

    Raises:
        CoilError: nvcc is missing or refuses the source.
    """
    compiler = _device_compiler()
    virtual = device.arch.replace("sm_", "compute_")
    with TemporaryDirectory(prefix="coilc-") as folder:
        (Path(folder) / "kernels.cu").write_text(source)
        flags = [
            "-std=c++17",
            "-O3",
            "-diag-suppress=177",
            "--fatbin",
            "-gencode",
            f"arch={virtual},code={device.arch}",
        ]
        done = _run([*compiler, *flags, "-o", str(path), str(Path(folder) / "kernels.cu")])
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[:12])
        raise CoilError(
            f"compiling for {device.arch} failed: '{compiler[0]}' ended with code {done.returncode}\n{said}"
        )


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise CoilError(
            f"'{command[0]}' was not found: install the CUDA toolkit, whose nvcc compiles the kernels, or set COILC_NVCC"
        ) from None


def scratch_bytes(function: tirx.PrimFunc) -> int:
    """Workspace of one task: local buffers above the stack limit, each rounded up to a cache line.

    Buffers of sibling scopes are counted as if they lived at the same time.
    """
    sizes: list[int] = []

    def visit(statement: tirx.AllocBuffer) -> None:
        sizes.append(_bytes(statement.buffer))

    tvm_ffi.structural_walk(function.body, (tirx.AllocBuffer, visit))
    return sum(-(-size // 64) * 64 for size in sizes if size >= STACK_LIMIT)


def _bytes(buffer: tirx.Buffer) -> int:
    elements = 1
    for extent in buffer.shape:
        elements *= int(extent)
    return elements * (tvm.DataType(str(buffer.dtype)).bits // 8)
