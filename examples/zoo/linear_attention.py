"""Causal linear attention as running sums.

Katharopoulos et al., "Transformers are RNNs", 2020, arXiv 2006.16236. Equations 9 to 12 with the feature map of
equation 7, phi(x) = elu(x) + 1:

    S_i = S_(i-1) + phi(k_i) v_i^T        z_i = z_(i-1) + phi(k_i)        y_i = phi(q_i)^T S_i / (phi(q_i)^T z_i)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"gated_linear_attention": 1, "cumsum": 1}  # the sum of outer products, and the normaliser
CAUSAL = True
LENGTHS = (1, 2, 7, 33)


class LinearAttention(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m.unflatten(-1, (self.heads, -1)) for m in self.qkv(x).chunk(3, -1))  # [B, L, H, E]
        q, k = F.elu(q) + 1, F.elu(k) + 1
        states = torch.cumsum(k[..., :, None] * v[..., None, :], dim=1)
        above = torch.einsum("blhd,blhde->blhe", q, states)
        below = torch.einsum("blhd,blhd->blh", q, torch.cumsum(k, dim=1))
        return self.out((above / below[..., None]).flatten(2))


class Block(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norms = LinearAttention(size, heads), nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.feed = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.feed(self.norms[1](x))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    torch.manual_seed(0)
    return Block(12, 3).eval(), (torch.randn(2, 9, 12),), {}, {"x": {0: "B", 1: "L"}}
