"""What the compiler of the device makes of matrix products: the instructions they were written for, and no spills."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from coilc.codegen.build import build_object
from coilc.codegen.target import TARGETS
from coilc.ir import Graph, parse_graph

_FOUND = sorted(Path(sysconfig.get_path("platlib")).glob("nvidia/*/bin/cuobjdump"))
pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None or not _FOUND, reason="needs nvcc and the test extra")


@dataclass(frozen=True)
class Code:
    """One kernel: how often each instruction occurs in it, its registers, and its bytes of stack."""

    instructions: tuple[str, ...]
    registers: int
    stack: int

    def has(self, *names: str) -> bool:
        return all(any(i.startswith(name) for i in self.instructions) for name in names)


def product(rows: int, dtype: str, *, inner: int = 4096, prologue: bool = False, turned: bool = False) -> Graph:
    """x @ w + bias, 512 columns; the weight perhaps [N, K], the left operand perhaps computed."""
    weight, right = (f"[512, {inner}]", "w") if turned else (f"[{inner}, 512]", "x1")
    lines = [
        *([f"v: {dtype}[{rows}, {inner}] = neg(x0)"] if prologue else []),
        *([f"w: {dtype}[{inner}, 512] = transpose(x1, perm=(1, 0))"] if turned else []),
        f"v0: {dtype}[{rows}, 512] = matmul({'v' if prologue else 'x0'}, {right})",
        f"v1: {dtype}[{rows}, 512] = broadcast(x2, dims=({rows}, 512))",
        f"y: {dtype}[{rows}, 512] = add(v0, v1)",
    ]
    head = f"def body(x0: {dtype}[{rows}, {inner}], x1: {dtype}{weight}, x2: {dtype}[512]):\n"
    return parse_graph(head + "".join(f"    {line}\n" for line in lines) + "    return {'y': y}\n")


BODIES = {
    "large": product(65536, "bf16"),
    "large_turned": product(65536, "f16", turned=True),
    "middle": product(512, "bf16"),
    "low": product(64, "bf16"),
    "computed": product(65536, "bf16", prologue=True),
    "odd": product(512, "f16", inner=4099),
    "one": product(1, "bf16"),
    "one_turned": product(1, "bf16", turned=True),
    "exact": product(65536, "f32"),
}


@pytest.fixture(scope="module", params=[name for name, target in TARGETS.items() if target.device])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, dict[str, Code]]:
    """Whether the device has warpgroups, and the only kernel of every body."""
    target = TARGETS[request.param]
    assert target.device is not None
    path = tmp_path_factory.mktemp("code") / "kernels.o"
    build_object(BODIES, target, path)
    dump = subprocess.run(
        [_FOUND[-1], "-sass", "-res-usage", path.with_suffix(".fatbin")],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": str(_FOUND[-1].parent)},
    ).stdout
    usage = {m[1]: (int(m[2]), int(m[3])) for m in re.finditer(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)", dump)}
    codes = {}
    for part in re.split(r"\bFunction : ", dump)[1:]:
        name = part.split()[0]
        instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", part)
        codes[name.removesuffix("_kernel")] = Code(tuple(instructions), *usage[name])
    assert codes.keys() == BODIES.keys()
    return target.device.warpgroups, codes


def test_no_kernel_spills(compiled: tuple[bool, dict[str, Code]]) -> None:
    """Except for one register of the low tiles of ``mma.sync``, for which a fifth block fits on a multiprocessor."""
    stacks = {name: code.stack for name, code in compiled[1].items() if code.stack}
    assert all(name in ("low", "middle") and size <= 8 for name, size in stacks.items()), stacks


def test_products_of_16_bits_use_the_tensor_cores(compiled: tuple[bool, dict[str, Code]]) -> None:
    warpgroups, codes = compiled
    for name in ("large", "large_turned", "middle", "low"):
        assert codes[name].has(*(("HGMMA", "UTMALDG") if warpgroups else ("HMMA.16816.F32", "LDSM"))), name
    for name in ("computed", "odd"):
        assert codes[name].has("HMMA.16816.F32", "LDSM"), name
    assert codes["large"].registers <= 168  # of 65536, for 288 threads
    assert codes["computed"].registers <= 128  # two blocks of 256 threads at a time


def test_one_row_reads_the_weight_in_vectors(compiled: tuple[bool, dict[str, Code]]) -> None:
    for name in ("one", "one_turned"):
        assert compiled[1][name].has("LDG.E.128"), name


def test_exact_products_read_shared_memory_in_vectors(compiled: tuple[bool, dict[str, Code]]) -> None:
    code = compiled[1]["exact"]
    assert code.has("LDS.128", "FFMA")
    assert code.registers <= 128  # two blocks of 256 threads at a time
