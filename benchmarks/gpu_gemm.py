"""Matrix products on a GPU against torch: compiled where the compilers are, timed where the GPU is.

    python benchmarks/gpu_gemm.py build FOLDER [cuda:sm_90a]
    python benchmarks/gpu_gemm.py run FOLDER

The second command needs NumPy, torch and this repository, but no compiler. Every product is first compared with one in
float64. Then both sides take turns; times are medians, by events on the GPU, of calls that follow one another, with so many
right operands in turn that none is in the cache. Our calls include what the runtime does on the host, where it takes longer.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

CACHE_BYTES = 50 << 20  # of an H200
ROUNDS, CALLS = 9, 10
# By entry: columns, inner extent, whether the right operand is [N, K], and the rows to try.
PRODUCTS = {
    "gemv": (8192, 8192, False, (1,)),
    "gemv_turned": (8192, 8192, True, (1,)),
    "wide": (8192, 4096, False, (16, 64, 256, 4096)),
    "wide_turned": (8192, 4096, True, (16, 64, 256, 4096)),
    "square": (8192, 8192, True, (8192,)),
}


def build(path: Path, target: str) -> None:
    """One artifact with an entry per product, whose number of rows is a symbol."""
    import coilc
    from coilc.ir import Module, parse_graph

    entries = {}
    for name, (columns, inner, turned, _) in PRODUCTS.items():
        shape = f"[{columns}, {inner}]" if turned else f"[{inner}, {columns}]"
        turn = f"    t: bf16[{inner}, {columns}] = transpose(w, perm=(1, 0))\n" if turned else ""
        entries[name] = parse_graph(
            f"def {name}(x: bf16[M, {inner}], w: bf16{shape}, *, M: dim[1:]):\n{turn}"
            f"    y: bf16[M, {columns}] = matmul(x, {'t' if turned else 'w'})\n    return {{'y': y}}\n"
        )
    coilc.compile(Module(entries), path, target)


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds on the GPU of each, in turns."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(CALLS):
                call()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end) / CALLS / 1e3)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def run(path: Path) -> None:
    import torch

    import coilc

    model = coilc.load(path)
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16; errors are relative, in the 2-norm")
    for name, (columns, inner, turned, many) in PRODUCTS.items():
        shape = (columns, inner) if turned else (inner, columns)
        copies = 2 + 2 * CACHE_BYTES // (columns * inner * 2)
        rights = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
        for rows in many:
            x = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
            w = rights[0].T if turned else rights[0]
            expected = x[:256].double() @ w.double()
            found = model.run(name, {"x": x, "w": rights[0]})["y"][:256].double()
            error = float((found - expected).norm() / expected.norm())
            assert error < 4e-3, f"{name} with {rows} rows is off by {error:.1e}"
            ours, theirs = cycle(rights), cycle(w.T if turned else w for w in rights)
            times = medians(
                {
                    "coilc": lambda n=name, x=x, ws=ours: model.run(n, {"x": x, "w": next(ws)}),
                    "torch": lambda x=x, ws=theirs: torch.mm(x, next(ws)),
                }
            )
            rate = {side: f"{2 * rows * columns * inner / t / 1e12:6.1f} TF/s" for side, t in times.items()}
            bandwidth = columns * inner * 2 / times["coilc"] / 1e12
            print(
                f"{name:12} {rows:5} x {inner} x {columns}  coilc {times['coilc'] * 1e6:7.1f} us {rate['coilc']} "
                f"{bandwidth:5.2f} TB/s of weights  torch {times['torch'] * 1e6:7.1f} us {rate['torch']}  "
                f"ratio {times['torch'] / times['coilc']:5.2f}  error {error:.1e}"
            )


if __name__ == "__main__":
    command, folder, *target = sys.argv[1:]
    artifact = Path(folder) / "gpu_gemm.coil"
    build(artifact, *(target or ["cuda:sm_90a"])) if command == "build" else run(artifact)
