"""LinFusion: generalised linear attention for diffusion models (Liu, Yu, Tan, Wang, 2024, arXiv 2409.02097, section 3.3).

What takes the place of self-attention in a diffusion network. Queries and keys are corrected by a small network before a
positive feature map, and the weights of a token are normalised to sum to one, which lets it run at sizes never seen::

    q = elu(W_q (x + f_q(x))) + 1        k = elu(W_k (x + f_k(x))) + 1
    y = (M / (sum of each row of M)) v   M = q k^T

The equations have the L x L matrix M, and so has this file; the image is what makes L large.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Correction(nn.Sequential):
    """f in the equations: a network with a bottleneck."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, width // 2), nn.LayerNorm(width // 2), nn.LeakyReLU(), nn.Linear(width // 2, width)
        )


class GeneralisedLinearAttention(nn.Module):
    """The mixer over tokens [B, L, C]; every token sees all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_fix, self.k_fix = Correction(width), Correction(width)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.split(functional.elu(self.q_proj(x + self.q_fix(x))) + 1)
        k = self.split(functional.elu(self.k_proj(x + self.k_fix(x))) + 1)
        weights = q @ k.transpose(2, 3)  # [B, heads, L, L]
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-4)
        return self.out_proj((weights @ self.split(self.v_proj(x))).transpose(1, 2).flatten(2))


class LinFusion(nn.Module):
    """A residual block over images [B, C, H, W], as in a diffusion network's middle."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(4, width)
        self.norm = nn.LayerNorm(width)
        self.attention = GeneralisedLinearAttention(width, heads)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(self.norm(tokens))
        return x + self.proj(tokens.transpose(1, 2).reshape(x.shape))


HOLDS = {"matmul": 3, "attention": 0}  # the normaliser, the summary, and what is read from it
CAUSAL = False
LENGTHS = ({"H": 1, "W": 1}, {"H": 3, "W": 17})


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return LinFusion().eval(), (torch.randn(2, 24, 4, 6),), {}, {"x": {0: "B", 2: "H", 3: "W"}}
