"""Builds bodies into a shared library with a stub runtime and calls them on NumPy arrays."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from coilc.codegen.build import build_object
from coilc.codegen.plan import in_place, kernel_symbols
from coilc.codegen.target import Target, parse_target
from coilc.ir import Graph
from coilc.ir import dims as d
from coilc.ir.interpret import bind_symbols

# Bound symbolically: a process that has loaded TVM exports the same names. Parallel loops run as three tasks in turn; workspaces come from the heap, poisoned.
STUB = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
typedef struct { void *sync; int32_t tasks; } group;
typedef int (*task_function)(int, group *, void *);
int launches;
int TVMBackendParallelLaunch(task_function f, void *data, int tasks) {
    group g = {0, 3};
    launches++;
    for (int i = 0; i < g.tasks; i++) if (f(i, &g, data)) return -1;
    return 0;
}
void *TVMBackendAllocWorkspace(int t, int i, uint64_t bytes, int c, int b) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    memset(memory, 0xff, bytes);
    return memory;
}
int TVMBackendFreeWorkspace(int t, int i, void *memory) { free(memory); return 0; }
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) { }
int TVMFFIEnvModRegisterSystemLibSymbol(const char *name, void *symbol) { return 0; }
"""


class Argument(ctypes.Structure):
    """TVMFFIAny: an opaque pointer is kind 4, an integer kind 1."""

    _fields_ = (("kind", ctypes.c_int32), ("padding", ctypes.c_int32), ("payload", ctypes.c_int64))


class Kernels:
    """Compiled bodies by name."""

    def __init__(self, bodies: Mapping[str, Graph], target: Target | None = None) -> None:
        self.bodies = bodies
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self.object = folder / "kernels.o"
        self.info = build_object(bodies, target or parse_target("native"), self.object)
        self._link(folder)

    def _link(self, folder: Path) -> None:
        (folder / "stub.c").write_text(STUB)
        command = ["gcc", "-shared", "-O1", "-fPIC", "-Wl,-Bsymbolic", "stub.c", "kernels.o", "-lm", "-o", "kernels.so"]
        subprocess.run(command, cwd=folder, check=True, timeout=60)

    @cached_property
    def library(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(self.object.with_suffix(".so")))

    def prepare(self, name: str, arrays: Sequence[np.ndarray]) -> tuple[object, list[Argument], list[np.ndarray]]:
        """The function, its arguments, and the outputs, poisoned with NaN or a large number."""
        body = self.bodies[name]
        shapes = {f"x{i}": (v.type, a.shape) for i, (v, a) in enumerate(zip(body.inputs, arrays, strict=True))}
        symbols = bind_symbols(shapes)
        outputs = [poisoned(tuple(d.evaluate(x, symbols) for x in v.dims), v.type.dtype.numpy) for v in body.results]
        for result, operand in in_place(body).items():
            outputs[result][...] = arrays[operand]
        pointers = [Argument(4, 0, a.ctypes.data) for a in (*arrays, *outputs)]
        integers = [Argument(1, 0, symbols[s]) for s in kernel_symbols(body)]
        return getattr(self.library, self.info.symbols[name]), [*pointers, *integers], outputs

    def run(self, name: str, *arrays: np.ndarray) -> list[np.ndarray]:
        """Outputs of the kernel on these arrays."""
        arrays = tuple(np.ascontiguousarray(a) if a.ndim else a for a in arrays)
        function, arguments, outputs = self.prepare(name, arrays)
        packed, result = (Argument * len(arguments))(*arguments), Argument()
        if function(None, packed, len(arguments), ctypes.byref(result)):  # type: ignore[operator]
            raise RuntimeError(f"kernel {name} failed")
        return outputs


def poisoned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that shows which elements were not written: NaN, or all bits set but the lowest."""
    array = np.empty(shape, dtype)
    if dtype.kind == "b":
        array.view(np.uint8)[...] = 0x5A
    elif dtype.kind in "iu":
        array[...] = np.iinfo(dtype).max - 1
    else:
        array[...] = np.nan
    return array
