"""What the device's compiler makes of templates: nothing is spilled."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tvm

from coilc.codegen.lower import lower_body
from coilc.codegen.target import TARGETS
from coilc.codegen.tir_passes import build_launchers
from coilc.ir import parse_graph

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")

SCAN = """
def body(x: {t}[B, L, 2048], dt: {t}[B, L, 2048], a: f32[{n}, 2048], b: {t}[B, L, 1, {n}], c: {t}[B, L, 1, {n}],
         d: f32[2048], z: {t}[B, L, 2048], bias: f32[2048]):
    y, h = selective_scan(x, dt, a, b, c, d, z, bias, optional=("D", "z", "dt_bias"), softplus=True)
    return {{"y": y, "h": h}}
"""


def compiler_report(text: str, folder: Path) -> str:
    """What ptxas says of a body's kernels for sm_90a."""
    target = TARGETS["cuda:sm_90a"]
    module = tvm.IRModule({"k": lower_body(parse_graph(text), "k", target)}).with_attr("system_lib_prefix", "")
    source = build_launchers(module, tvm.target.Target(dict(target.tvm)), early=True)[2].inspect_source()
    (folder / "k.cu").write_text(source)
    flags = ["-std=c++17", "-O3", "-diag-suppress=177", "-cubin", "-arch=sm_90a", "-Xptxas", "-v"]
    command = ["nvcc", *flags, "-o", "k.cubin", "k.cu"]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stderr


@pytest.mark.parametrize("n", [4, 16, 32, 40, 64, 128])
@pytest.mark.parametrize("t", ["f32", "bf16"])
def test_a_selective_scan_spills_nothing(n: int, t: str, tmp_path: Path) -> None:
    """Kernels for sequences and one for steps; movers and the lanes that compute each have enough registers."""
    said = compiler_report(SCAN.format(n=n, t=t), tmp_path)
    assert set(re.findall(r"(\d+) bytes spill stores", said)) == {"0"}
    registers = map(int, re.findall(r"Used (\d+) registers", said))
    assert n > 16 or max(registers) <= 128
