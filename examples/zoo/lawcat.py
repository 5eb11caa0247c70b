"""LAWCAT: attention distilled into linear attention with convolutions across time (Liu et al., 2025, arXiv 2509.18467).

Queries and keys pass through a short causal convolution along time, then a positive feature map phi. The softmax of the
teacher becomes gated linear attention that keeps its normaliser (section 3)::

    S_t = a_t S_(t-1) + phi(k_t)^T v_t
    z_t = a_t z_(t-1) + phi(k_t)
    o_t = phi(q_t) S_t / (phi(q_t) . z_t)

with a gate ``a_t`` per head in (0, 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class CausalConvolution(nn.Module):
    """Depthwise along time, over [B, L, C]; a token sees itself and those before it."""

    def __init__(self, channels: int, taps: int = 4) -> None:
        super().__init__()
        self.taps = taps
        self.conv = nn.Conv1d(channels, channels, taps, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x.transpose(1, 2), (self.taps - 1, 0))).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.q_conv, self.k_conv = CausalConvolution(width), CausalConvolution(width)
        self.gate = nn.Linear(width, heads)
        self.out_proj = nn.Linear(width, width, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """[B, L, C] to positive [B, heads, L, N]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.features(self.q_conv(self.q_proj(x))), self.features(self.k_conv(self.k_proj(x)))
        v = self.v_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        a = torch.sigmoid(self.gate(x)).transpose(1, 2)  # [B, heads, L]
        state = torch.zeros_like(k[:, :, 0, :, None] * v[:, :, 0, None, :])
        total = torch.zeros_like(k[:, :, 0])
        outputs = []
        for t in range(x.shape[1]):
            keep = a[:, :, t, None]
            state = keep[..., None] * state + k[:, :, t, :, None] * v[:, :, t, None, :]
            total = keep * total + k[:, :, t]
            weighted = (q[:, :, t, :, None] * state).sum(2)
            outputs.append(weighted / (q[:, :, t] * total).sum(-1, keepdim=True))
        return self.out_proj(torch.stack(outputs, dim=1).flatten(2))


class LAWCAT(nn.Module):
    """A decoder layer of the teacher, with its attention replaced."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.gate = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


HOLDS = {"gated_linear_attention": 1, "linear_scan": 1, "causal_conv1d": 2, "scan": 0}
CAUSAL = True
LENGTHS = (1, 2, 29)
EXPORT = {"lengths": (7, 11)}


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return LAWCAT().eval(), (torch.randn(2, 11, 24),), {}, {"x": {0: "B", 1: "L"}}
