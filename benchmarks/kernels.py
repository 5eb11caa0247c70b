"""Kernels against torch, one thread: ``taskset -c 0 python benchmarks/kernels.py [name ...]``.

Every candidate is checked against the reference before it is timed; times are medians of interleaved rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from timing import random, report  # first: it sets the number of threads

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from tests.codegen.kernels.harness import Compiled

from coilc.ir import Graph


def compiled(text: str | Graph, arrays: list[np.ndarray], *, check: bool = True) -> Callable[[], object]:
    start = time.perf_counter()
    kernel = Compiled(text)
    print(f"compiled in {time.perf_counter() - start:.2f} s; ", end="")
    if check:
        kernel.check(*arrays)
    return kernel.prepare(arrays)[1]


def gemm() -> None:
    for rows, inner, columns in ((512, 768, 3072), (2048, 1536, 768), (1, 2048, 8192), (1, 768, 3072), (7, 768, 3072)):
        x, w = random(rows, inner), random(inner, columns)
        packed = np.ascontiguousarray(w.reshape(inner, -1, 32).transpose(1, 0, 2))
        text = f"""def kernel(x: f32[M, {inner}], w: f32[{columns // 32}, {inner}, 32]):
    y: f32[M, {columns}] = packed_matmul(x, w, columns={columns})
    return {{"y": y}}
"""
        ours = compiled(text, [x, packed])
        a, b = torch.from_numpy(x), torch.from_numpy(w)
        by_rows = torch.from_numpy(np.ascontiguousarray(w.T))
        candidates = {
            "coilc": ours,
            "torch.mm": lambda a=a, b=b: torch.mm(a, b),
            "torch linear": lambda a=a, w=by_rows: torch.nn.functional.linear(a, w),
        }
        report(f"GEMM {rows}x{inner}x{columns}", candidates, 2 * rows * inner * columns, "GFLOP/s")


def products() -> None:
    for rows, keys in ((512, 512), (1, 2048)):
        q, k = random(12, rows, 64), random(12, keys, 64)
        text = """def kernel(q: f32[H, L, 64], k: f32[H, S, 64]):
    t: f32[H, 64, S] = transpose(k, perm=(0, 2, 1))
    y: f32[H, L, S] = matmul(q, t)
    return {"y": y}
"""
        a, b = torch.from_numpy(q), torch.from_numpy(k).transpose(1, 2)
        candidates = {"coilc": compiled(text, [q, k]), "torch": lambda a=a, b=b: torch.matmul(a, b)}
        report(f"scores 12x{rows}x64x{keys}", candidates, 2 * 12 * rows * 64 * keys, "GFLOP/s")
        p, v = random(12, rows, keys), random(12, keys, 64)
        text = """def kernel(p: f32[H, L, S], v: f32[H, S, 64]):
    y: f32[H, L, 64] = matmul(p, v)
    return {"y": y}
"""
        a, b = torch.from_numpy(p), torch.from_numpy(v)
        candidates = {"coilc": compiled(text, [p, v]), "torch": lambda a=a, b=b: torch.matmul(a, b)}
        report(f"values 12x{rows}x{keys}x64", candidates, 2 * 12 * rows * 64 * keys, "GFLOP/s")


def attention() -> None:
    for rows, keys, causal in ((512, 512, True), (2048, 2048, True), (512, 512, False), (1, 2048, False)):
        q, k, v = random(1, 12, rows, 64), random(1, 4, keys, 64), random(1, 4, keys, 64)
        text = f"""def kernel(q: f32[B, 12, L, 64], k: f32[B, 4, S, 64], v: f32[B, 4, S, 64]):
    o = attention(q, k, v, causal={causal})
    return {{"o": o}}
"""
        ours = compiled(text, [q, k, v], check=rows < 2048)
        a, b, c = map(torch.from_numpy, (q, k, v))

        def eager(a=a, b=b, c=c, causal=causal) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return torch.nn.functional.scaled_dot_product_attention(a, b, c, is_causal=causal, enable_gqa=True)

        work = 4 * 12 * rows * keys * 64 / (2 if causal else 1)
        report(f"attention 12x{rows}x{keys} causal={causal}", {"coilc": ours, "torch": eager}, work, "GFLOP/s", 4)


BENCHMARKS = (gemm, products, attention)

if __name__ == "__main__":
    for benchmark in BENCHMARKS:
        if len(sys.argv) == 1 or benchmark.__name__ in sys.argv[1:]:
            benchmark()
