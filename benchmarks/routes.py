"""Blocks that scan a grid along several routes, one thread: ``taskset -c 0 python benchmarks/routes.py [vim|vmamba]``.

Against the same module in eager PyTorch, whose scan is a loop in Python, and against this compiler without the passes that
fold routes into addresses. Every candidate is checked against the module in double precision before it is timed.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "zoo"))

import torch
import vim
import vmamba
from kernels import report
from torch import Tensor, nn

import coilc

GRID = 8
BLOCKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "vim": lambda: (vim.Block(192, 16), torch.randn(1, GRID * GRID, 192)),
    "vmamba": lambda: (vmamba.SS2D(96, 16), torch.randn(1, GRID, GRID, 96)),
}


def compiled(program: coilc.Module, folder: str, name: str) -> Callable[[Tensor], Tensor]:
    """The block as a function of its one input."""
    session = coilc.load(coilc.compile(program, Path(folder) / name), threads=1)
    (argument,) = (value.node.attrs["name"] for value in program.entries["main"].inputs)
    return lambda x: next(iter(session(**{argument: x}).values()))


def main(names: list[str]) -> None:
    for name in names or BLOCKS:
        torch.manual_seed(0)
        block, x = BLOCKS[name]()
        program = coilc.export(block.eval(), (x,))
        with tempfile.TemporaryDirectory() as folder:
            routed = compiled(program, folder, "routed.coil")
            same = lambda module: module
            page = "coilc.passes.pipeline."
            with patch(page + "tabulate_routes", same), patch(page + "convolve_channels_last", same):
                plain = compiled(program, folder, "plain.coil")
            exact = copy.deepcopy(block).double()(x.double())
            for run in (routed, plain):
                torch.testing.assert_close(run(x).double(), exact, rtol=1e-4, atol=1e-5)
            runs = {"coilc": routed, "no routes": plain, "eager loop": block}
            candidates = {run: partial(call, x) for run, call in runs.items()}
            report(f"{name}: {GRID} x {GRID} tokens, {tuple(x.shape)}", candidates, x.numel(), "Gelement/s")


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1:])
