"""RetNet: retention in its parallel form.

Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models", 2023, arXiv 2307.08621.
Equation 5, with the rotations of equation 4 (xPos without its scale) on queries and keys and one decay per head, eq. 8:

    Q = (X W_Q) . Theta   K = (X W_K) . conj(Theta)   V = X W_V      D_nm = gamma^(n - m) for n >= m, else 0
    Retention(X) = (Q K^T . D) V                                    gamma_h = 1 - 2^(-5 - h)

Equation 8 norms every head and gates: MSR(X) = (swish(X W_G) . GroupNorm(heads)) W_O; equation 9 adds a feed-forward net.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"gated_linear_attention": 2}
CAUSAL = True
LENGTHS = (1, 2, 7, 33)


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn pairs of channels of x [B, H, L, E] by angle [L, E / 2]."""
    even, odd = x[..., ::2], x[..., 1::2]
    sin, cos = angle.sin(), angle.cos()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Retention(nn.Module):
    """Multi-scale retention."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads, self.key = heads, size // heads
        self.q, self.k = (nn.Linear(size, size, bias=False) for _ in range(2))
        self.v, self.gate = (nn.Linear(size, 2 * size, bias=False) for _ in range(2))
        self.out = nn.Linear(2 * size, size, bias=False)
        self.register_buffer("gamma", 1 - 2.0 ** (-5 - torch.arange(heads).float()))
        self.register_buffer("theta", 10000.0 ** -torch.linspace(0, 1, self.key // 2))

    def decay(self, length: int) -> Tensor:
        """D [H, L, L]"""
        n = torch.arange(length)
        distance = n[:, None] - n[None, :]
        return torch.where(distance >= 0, self.gamma[:, None, None] ** distance, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        angle = torch.arange(length)[:, None] * self.theta
        q, k = rotate(q, angle), rotate(k, angle) * self.key**-0.5
        y = (q @ k.mT * self.decay(length)) @ v
        y = F.layer_norm(y.transpose(1, 2), (y.shape[-1],)).flatten(2)
        return self.out(F.silu(self.gate(x)) * y)


class Block(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.retention, self.norms = Retention(size, heads), nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.feed = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.retention(self.norms[0](x))
        return x + self.feed(self.norms[1](x))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    torch.manual_seed(0)
    model = nn.Sequential(Block(12, 3), Block(12, 3))
    return model.eval(), (torch.randn(2, 9, 12),), {}, {"input": {0: "B", 1: "L"}}
