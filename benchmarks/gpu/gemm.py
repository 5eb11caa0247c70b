"""Matrix products on a GPU against torch: compiled where the compilers are, timed where the GPU is.

    python benchmarks/gpu/gemm.py build FOLDER [cuda:sm_90a]
    python benchmarks/gpu/gemm.py run FOLDER

The second command needs NumPy, torch and this repository, but no compiler. Every product is first compared with one in
float64. Then both sides take turns; times are medians, by events on the GPU, of one recorded graph of products with different
right operands, so many that none is in the cache and the host does not count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from events import medians

# By entry: how many products, columns, inner extent, whether the right operands are [N, K], and the rows to try.
PRODUCTS = {
    "gemv": (16, 8192, 8192, False, (1,)),
    "gemv_turned": (16, 8192, 8192, True, (1,)),
    "wide": (32, 8192, 4096, False, (16, 64, 256, 4096)),
    "wide_turned": (32, 8192, 4096, True, (16, 64, 256, 4096)),
    "square": (2, 8192, 8192, True, (8192,)),
}


def build(path: Path, target: str) -> None:
    """One artifact with an entry per product, whose number of rows is a symbol."""
    import coilc
    from coilc.ir import Module, parse_graph

    entries = {}
    for name, (count, columns, inner, turned, _) in PRODUCTS.items():
        shape = f"[{columns}, {inner}]" if turned else f"[{inner}, {columns}]"
        rights = ", ".join(f"w{i}: bf16{shape}" for i in range(count))
        lines = [f"def {name}(x: bf16[M, {inner}], {rights}, *, M: dim[1:]):"]
        for i in range(count):
            if turned:
                lines.append(f"    t{i}: bf16[{inner}, {columns}] = transpose(w{i}, perm=(1, 0))")
            lines.append(f"    y{i}: bf16[M, {columns}] = matmul(x, {'t' if turned else 'w'}{i})")
        results = ", ".join(f"'y{i}': y{i}" for i in range(count))
        entries[name] = parse_graph("\n".join([*lines, f"    return {{{results}}}\n"]))
    coilc.compile(Module(entries), path, target)


def run(path: Path) -> None:
    import torch

    import coilc

    model = coilc.load(path)
    torch.manual_seed(0)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16; errors are relative, in the 2-norm")
    for name, (count, columns, inner, turned, many) in PRODUCTS.items():
        shape = (columns, inner) if turned else (inner, columns)
        rights = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(count)]
        given = {f"w{i}": w for i, w in enumerate(rights)}
        for rows in many:
            x = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
            matrices = [w.T if turned else w for w in rights]
            expected = x[:256].double() @ matrices[-1].double()
            found = model.run(name, {"x": x, **given})[f"y{count - 1}"][:256].double()
            error = float((found - expected).norm() / expected.norm())
            assert error < 4e-3, f"{name} with {rows} rows is off by {error:.1e}"
            rival = recorded(lambda x=x, ws=matrices: [torch.mm(x, w) for w in ws])
            times = medians({"coilc": lambda n=name, x=x, ws=given: model.run(n, {"x": x, **ws}), "torch": rival})
            ours, theirs = (times[side] / count for side in ("coilc", "torch"))
            flops = 2 * rows * columns * inner / 1e12
            print(
                f"{name:12} {rows:5} x {inner} x {columns}  coilc {ours * 1e6:7.1f} us {flops / ours:6.1f} TF/s "
                f"{columns * inner * 2 / ours / 1e12:5.2f} TB/s of weights  torch {theirs * 1e6:7.1f} us "
                f"{flops / theirs:6.1f} TF/s  ratio {theirs / ours:5.2f}  error {error:.1e}"
            )


def recorded(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a graph, which the GPU runs without the host."""
    import torch

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


if __name__ == "__main__":
    command, folder, *target = sys.argv[1:]
    artifact = Path(folder) / "gemm.coil"
    build(artifact, *(target or ["cuda:sm_90a"])) if command == "build" else run(artifact)
