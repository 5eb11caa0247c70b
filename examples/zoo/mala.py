"""MALA: magnitude-aware linear attention (Fan, Huang, He, 2025, arXiv 2507.00698, section 3.3, equations 8 to 11).

Linear attention divides the length of a query out. Here a query scales the weights by beta and shifts them by gamma, chosen
so that they still sum to one. With phi = elu + 1, z = phi(q) . sum of phi(k) and L tokens::

    weights = beta phi(q) phi(k)^T - gamma       beta = 1 + 1 / z,  gamma = z / L
    o       = beta rope(q) (rope(k)^T v) - gamma (sum of v)

The rest of the layer is RALA's.
"""

from __future__ import annotations

import torch
from rala import Block, LinearAttention, rotate
from torch import Tensor, nn


class MagnitudeAware(LinearAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor) -> Tensor:
        length, size = q.shape[2:]
        scale = size**-0.5
        z = q @ k.mean(2, keepdim=True).transpose(2, 3) * scale
        summary = (rotate(k, angles).transpose(2, 3) * (scale / length) ** 0.5) @ (v * (scale / length) ** 0.5)
        return rotate(q, angles) @ summary * (1 + 1 / (z + 1e-6)) - z * v.mean(2, keepdim=True)


HOLDS = {"matmul": 3, "attention": 0}  # the normaliser, the summary, and what is read from it
CAUSAL = False
LENGTHS = ({"H": 1, "W": 1}, {"H": 5, "W": 9})


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    model = Block(MagnitudeAware(width=24, heads=3), width=24).eval()
    return model, (torch.randn(2, 24, 4, 6),), {}, {"x": {0: "B", 2: "H", 3: "W"}}
