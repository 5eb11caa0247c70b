"""Static evidence of speed on AArch64, as there may be no such machine at hand: ``python benchmarks/arm/report.py``.

Writes ``report.md`` beside this file. Needs llvm-mca (``apt-get install llvm-19``).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tvm

sys.path.insert(0, str(Path(__file__).parent))

from loops import Loop, analyzer, cycles, inner_loops

from coilc.codegen.lower import lower_body
from coilc.codegen.target import parse_target
from coilc.codegen.tir_passes import build_module
from coilc.ir import parse_graph

REPORT = Path(__file__).parent / "report.md"
MODELS = {"cortex-a76": "neoverse-n1", "neoverse-v1": "neoverse-v1"}  # LLVM gives the A76 the tables of the A57
PORTS = {"cortex-a76": 2, "neoverse-v1": 4}  # 128-bit pipes for floating point
WITH_I8MM = {"neoverse-v1"}


@dataclass(frozen=True)
class Kernel:
    """A kernel by its body, and what its elements are: ``each`` per lane of the instructions that match ``pattern``.

    ``extensions`` are those of the target beyond ``aarch64``.
    """

    body: str
    element: str
    pattern: str
    each: int = 1
    extensions: str = ""


def _kernel(signature: str, call: str, results: str = "y") -> str:
    outputs = ", ".join(f'"{name}": {name}' for name in results.split(", "))
    return f"def kernel({signature}):\n    {results} = {call}\n    return {{{outputs}}}\n"


_ADD = ("multiply-add", r"fml[as]")
_HALF = """def kernel(x: {t}[M, 768], w: {t}[24, 768, 32]):
    v0 = cast(x, dtype=f32)
    v1 = cast(w, dtype=f32)
    y = packed_matmul(v0, v1, columns=768)
    return {{"y": y}}
"""
_PANELS = {"int8": "i8[24, 192, 32, 4], s: f16[24, 1, 32]", "int4": "u8[24, 96, 32, 4], s: f16[24, 24, 32]"}
_SCAN = ("x: f32[B, L, 1536], dt: f32[B, L, 1536], A: f32[{n}, 1536], Bm: f32[B, L, 1, {n}], Cm: f32[B, L, 1, {n}]",
         "selective_scan(x, dt, A, Bm, Cm, softplus=True)", "y, h")  # fmt: skip
_GATED = "q: f32[B, L, 4, 128], k: f32[B, L, 4, 128], v: f32[B, L, 8, 128], a: f32[B, L, 8]"
_NORM = """def kernel(x: f32[B, L, 1536], w: f32[1536]):
    v0 = mul(x, x)
    v1 = sum(v0, axes=(2,), keepdims=True)
    v2 = rsqrt(v1)
    v3 = broadcast(v2, dims=(B, L, 1536))
    v4 = mul(x, v3)
    v5 = broadcast(w, dims=(B, L, 1536))
    y = mul(v4, v5)
    return {"y": y}
"""
KERNELS = {
    "GEMM, fp32": Kernel(_kernel("x: f32[M, 768], w: f32[24, 768, 32]", "packed_matmul(x, w, columns=768)"), *_ADD),
    **{f"GEMM, {name}": Kernel(_HALF.format(t=name.replace("p", "")), *_ADD) for name in ("bf16", "fp16")},
    "GEMV, fp32": Kernel(_kernel("x: f32[1, 768], w: f32[24, 768, 32]", "packed_matmul(x, w, columns=768)"), *_ADD),
    **{
        f"{name}, {bits}{extension}": Kernel(
            _kernel(f"x: i8[{rows}, 768], w: {panels}", "quantized_matmul(x, w, s, columns=768)"), "quad", pattern, each,
            extension,
        )
        for bits, panels in _PANELS.items()
        for extension, pattern, each in (("", r"sadalp", 1), ("+dotprod", r"sdot", 1), ("+dotprod+i8mm", r"smmla", 2))
        for name, rows in (("GEMM", "M"), ("GEMV", "1"))
        if (name, pattern) != ("GEMV", "smmla")
    },
    "matmul of activations": Kernel(_kernel("x: f32[B, L, 64], y: f32[B, 64, S]", "matmul(x, y)", "z"), *_ADD),
    **{
        f"selective scan, N = {n}": Kernel(_kernel(_SCAN[0].format(n=n), *_SCAN[1:]), "state", r"shl v\d+\.4s.*#23")
        for n in (4, 5, 16)
    },
    "causal conv, 4 taps": Kernel(
        _kernel("x: f32[B, L, 1536], w: f32[4, 1536]", 'causal_conv1d(x, w, activation="silu")', "y, s"),
        "output", r"st[rp] q",
    ),
    "conv, 3 x 3": Kernel(
        _kernel("x: f32[B, 64, 56, 56], w: f32[64, 64, 3, 3]",
                "conv(x, w, strides=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1)"), *_ADD
    ),
    "depthwise conv, 3 x 3": Kernel(
        _kernel("x: f32[B, 56, 56, 96], w: f32[3, 3, 96]",
                "depthwise_conv(x, w, strides=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1))"), *_ADD
    ),
    "RMS norm": Kernel(_NORM, "element", r"(?:ld[rp] q\d+.*\[x|ld1 )"),
    "gated linear attention": Kernel(
        _kernel(_GATED, 'gated_linear_attention(q, k, v, a, scale=1.0)', "o, h"), *_ADD
    ),
    "attention": Kernel(
        _kernel("q: f32[B, 4, L, 64], k: f32[B, 2, S, 64], v: f32[B, 2, S, 64]", "attention(q, k, v, causal=True)", "o"),
        *_ADD,
    ),
    "gated delta rule": Kernel(
        _kernel(f"{_GATED}, beta: f32[B, L, 8]", "gated_delta_rule(q, k, v, a, beta, scale=1.0)", "o, h"), *_ADD
    ),
}  # fmt: skip


def assembly(body: str, target: str = "aarch64") -> str:
    """What LLVM makes of the kernel of a body."""
    chosen = parse_target(target)
    function = lower_body(parse_graph(body), "kernel", chosen)
    module = build_module(tvm.IRModule({"kernel": function}), tvm.target.Target(dict(chosen.tvm)))
    return str(module.inspect_source("asm"))


def loops_of(kernel: Kernel) -> list[Loop]:
    """The loops that a kernel's time goes to, the largest first: those of remainders have half the arithmetic or less."""
    text = assembly(kernel.body, f"aarch64{kernel.extensions}")
    found = [loop for loop in inner_loops(text) if loop.lanes(kernel.pattern) and loop.arithmetic]
    most = max(loop.arithmetic for loop in found)
    return sorted((loop for loop in found if 2 * loop.arithmetic > most), key=lambda loop: -loop.arithmetic)


def _row(name: str, kernel: Kernel, loop: Loop, tool: str) -> str:
    size, elements = len(loop.code), loop.lanes(kernel.pattern) * kernel.each
    scalar = size - loop.vector - loop.memory
    cells = [name, size, loop.arithmetic, loop.vector - loop.arithmetic, loop.memory, scalar, loop.width]
    cells += [len(loop.spills), len(loop.calls), f"{elements} {kernel.element}s"]
    for cpu, ports in PORTS.items():
        if "i8mm" in kernel.extensions and cpu not in WITH_I8MM:
            cells += ["-"] * 3
            continue
        found, bound = cycles(loop, MODELS[cpu], tool), loop.arithmetic / ports
        cells += [f"{found / elements:.3f}", f"{bound / elements:.3f}", f"{bound / found:.0%}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def rows(tool: str) -> Iterator[str]:
    for name, kernel in KERNELS.items():
        for i, loop in enumerate(loops_of(kernel)):
            yield _row(name if not i else "", kernel, loop, tool)


def main() -> None:
    tool = analyzer()
    if tool is None:
        sys.exit("llvm-mca is not installed: apt-get install llvm-19")
    version = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.split("version ")[
        1
    ]
    heads = [
        "kernel",
        "instructions",
        "vector fp",
        "other vector",
        "loads, stores",
        "scalar",
        "bits",
        "spills",
        "calls",
    ]
    heads += ["elements"]
    for cpu in PORTS:
        heads += [f"{cpu}: cycles per element", "bound", "of bound"]
    text = HEADER.format(version=version.split()[0], command="python benchmarks/arm/report.py")
    text += "| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads) + "\n" + "\n".join(rows(tool)) + "\n"
    REPORT.write_text(text)
    print(text)


HEADER = """# Inner loops on AArch64

Generated by `{command}` from the code for target `aarch64` (NEON, 128 bits, 32 registers); nothing here was measured on a
machine. A row is a loop that holds no other loop; those with half the arithmetic of a kernel's largest, or less, are left out:
they finish what is no multiple of a block.

Cycles are llvm-mca's ({version}), for an endless run of the loop with every load a hit in the nearest cache. For the
Cortex-A76 they are those of the Neoverse N1, which is the same core for servers: LLVM itself has only the tables of the
Cortex-A57 for it, whose pipes are half as wide. llvm-mca takes a store and the loads of the next round as independent. The bound is arithmetic alone: vector instructions of floating point, and products of
integers, over the pipes for them (2 and 4 of 128 bits), as if everything else were free and a division cost as much as a sum. A quad is four products of bytes
and their sum; the A76 has no `smmla`.

"""

if __name__ == "__main__":
    main()
