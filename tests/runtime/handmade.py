"""An artifact made without a compiler: a plan written by hand over the kernels of ``kernels.c``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from coilc.codegen.build import BuildInfo
from coilc.codegen.compile import write_artifact
from coilc.codegen.link import NATIVE
from coilc.codegen.plan import COPY, UNBOUNDED, Call, EntryPlan, Plan, Ref, Result, Symbol
from coilc.codegen.target import Target, parse_target
from coilc.ir import Graph, Location
from coilc.ir.dims import symbol
from coilc.ir.text import parse_type

KERNELS = Path(__file__).parent / "kernels.c"
SCRATCH_BYTES = 256
B, L, N = symbol("B"), symbol("L"), symbol("N")
ROWS, VECTOR = parse_type("f32[B, L, 64]"), parse_type("f32[N]")


def _call(kernel: str, *args: Ref, dims: tuple[object, ...], source: str = "") -> Call:
    type_ = VECTOR if N in dims else ROWS
    location = Location("model.py", 3, "block.0", source) if source else None
    return Call(kernel, args, dims, (Result(type_, location),))  # type: ignore[arg-type]


def make_plan(weight: float = 0.5) -> Plan:
    """``main``: x -> y = 2*(x*w), and z, a copy of y. ``refuse`` and ``hungry``: kernels that may fail."""
    x, w, slot, y, z = Ref("input", 0), Ref("weight", 0), Ref("slot", 0), Ref("output", 0), Ref("output", 1)
    main = EntryPlan(
        "main",
        (Symbol("B", 1, 8, 0, 0), Symbol("L", 0, UNBOUNDED, 0, 1)),
        (("x", ROWS),),
        (("y", ROWS), ("z", ROWS)),
        ((ROWS.bytes, L * 4),),
        (
            _call("scale", x, w, slot, dims=(B, L), source="mul"),
            _call("double_rows", slot, y, dims=(B, L), source="add"),
            _call(COPY, y, z, dims=(ROWS.bytes,)),
        ),
    )
    others = [
        EntryPlan(
            name,
            (Symbol("N", 1, 4096, 0, 0),),
            (("x", VECTOR),),
            (("y", VECTOR),),
            (),
            (_call(name, x, y, dims=(N,)),),
        )
        for name in ("refuse", "hungry")
    ]
    kernels = dict.fromkeys(("scale", "double_rows", "refuse", "hungry"), Graph("by_hand", (), ()))
    return Plan((main, *others), {"w": np.full(64, weight, np.float32)}, kernels)


def build(kernels: Mapping[str, object], target: Target, path: Path) -> BuildInfo:
    """Compile ``kernels.c`` instead of generated kernels."""
    command = [sys.executable, "-m", "ziglang", "cc", "-target", target.triple, "-std=c11", "-O1", "-fPIC"]
    subprocess.run([*command, f"-I{NATIVE}", "-c", str(KERNELS), "-o", str(path)], check=True, timeout=300)
    return BuildInfo(SCRATCH_BYTES, {})


def write(path: Path, weight: float = 0.5) -> Path:
    """Write the artifact to ``path``."""
    return write_artifact(make_plan(weight), parse_target("native"), path, text="# by hand\n", build=build)
