"""NaLaFormer: norm-aware linear attention (Meng, Luo, Huo, Wang, Li, Zhang, 2025, arXiv 2506.21137, section 4).

Queries and keys are split into a norm and a direction d. The norm of a query sets how spiky its weights are, as a power;
the cosine and sine of the direction keep the features positive in their products without losing signs::

    phi(q) = |d|^p(||q||) * [cos d, sin d]             p(n) = lambda (1/2 + tanh n)
    phi(k) = ||k|| |d|^lambda * [cos d, sin d]
    o      = phi(q) (phi(k)^T v) / (phi(q) . sum of phi(k))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def direction(x: Tensor) -> tuple[Tensor, Tensor]:
    """The norm over the last axis, and the vector of length one."""
    norm = x.norm(dim=-1, keepdim=True)
    return norm, x / (norm + 1e-6)


def features(d: Tensor, power: Tensor | float) -> Tensor:
    """|d|^power, once times the cosine and once times the sine: [..., 2 d]."""
    size = torch.pow(d.abs() + 1e-6, power)
    return torch.cat([size * d.cos(), size * d.sin()], dim=-1)


class NormAwareAttention(nn.Module):
    """The mixer over tokens [B, L, C]; every token sees all."""

    def __init__(self, width: int, heads: int, power: float = 3.0) -> None:
        super().__init__()
        self.heads, self.power = heads, power
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        (q_norm, q_way), (k_norm, k_way) = direction(q), direction(k)
        q = features(q_way, self.power * (0.5 + torch.tanh(q_norm)))
        k = k_norm * features(k_way, self.power)
        normaliser = q @ k.sum(2, keepdim=True).transpose(2, 3)
        o = q @ (k.transpose(2, 3) @ v) / (normaliser + 1e-6)
        return self.out_proj(o.transpose(1, 2).flatten(2))


class NaLaFormer(nn.Module):
    """One block: attention and a gated feed-forward network."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = NormAwareAttention(width, heads)
        self.up, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


HOLDS = {"matmul": 3, "attention": 0}  # the normaliser, the summary, and what is read from it
CAUSAL = False
LENGTHS = (1, 2, 29)


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return NaLaFormer().eval(), (torch.randn(2, 9, 24),), {}, {"x": {0: "B", 1: "L"}}
