"""The model that the tests of this folder run: ``python tests/cuda/block.py block.coil`` compiles it, to be carried to a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import coilc

TARGET = "cuda:sm_90a"


class Block(torch.nn.Module):
    """A running sum and attention over everything: states that are exchanged, a cache that grows, a position."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.enter, self.leave = torch.nn.Linear(size, 3 * size), torch.nn.Linear(size, size)
        self.norm = torch.nn.RMSNorm(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.enter(self.norm(x))[:, None].chunk(3, -1)
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
        return x + self.leave(seen + torch.cumsum(x, 1))


def make_block() -> Block:
    torch.manual_seed(0)
    return Block().eval()


def compile_block(path: Path, target: str) -> Path:
    x = torch.zeros(2, 5, 8)
    program = coilc.export(make_block(), (x,), dynamic_shapes={"x": {0: "B", 1: "L"}})
    return coilc.compile(program, path, target, entries=("main", "prefill", "step"), context=64)


if __name__ == "__main__":
    print(compile_block(Path(sys.argv[1]), TARGET))
