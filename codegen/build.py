"""From kernel bodies to one relocatable object file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi
from tvm import tirx

from coilc.ir import Graph

from .lower import lower_body
from .target import Target
from .tir_passes import build_module

STACK_LIMIT = 1024  # the code generator takes larger local buffers from the runtime's workspace


@dataclass(frozen=True)
class BuildInfo:
    """What the runtime must provide for an object file.

    Attributes:
        scratch_bytes: the most workspace that one task of one kernel holds at a time.
        symbols: kernel name to C symbol.
    """

    scratch_bytes: int
    symbols: Mapping[str, str]


def build_object(
    kernels: Mapping[str, Graph], target: Target, path: Path, progress: Callable[[str], None] | None = None
) -> BuildInfo:
    """Compile every body under its name into ``path``, a position-independent object.

    Args:
        progress: called with each kernel's name before it is lowered.
    """
    functions: dict[str, tirx.PrimFunc] = {}
    for name, body in kernels.items():
        if progress:
            progress(name)
        functions[name] = lower_body(body, name, target)
    # An empty prefix makes calls into the runtime direct; without it they go through pointers only TVM's loader fills.
    module = tvm.IRModule(functions).with_attr("system_lib_prefix", "")
    build_module(module, tvm.target.Target(dict(target.tvm))).write_to_file(str(path), "o")
    scratch = max(map(scratch_bytes, functions.values()), default=0)
    return BuildInfo(scratch, {name: f"__tvm_ffi_{name}" for name in kernels})


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
