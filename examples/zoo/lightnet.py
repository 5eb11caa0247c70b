"""LightNet: additive linear recurrence, one scan for data of several dimensions (Qin et al., 2024, arXiv 2405.21022).

A decay that is a ratio of running sums, ``(sum before t) / (sum until t)``, telescopes: what a token weighs in the end does
not depend on the way to it. So the state of all tokens of a grid is one softmax-weighted sum, in whatever order they are
visited (section 3.2)::

    causal      z_t = logcumsumexp(k)_t,   S_t = exp(z_(t-1) - z_t) S_(t-1) + exp(k_t - z_t)^T v_t
    on a grid   S = softmax over all tokens of (k)^T v
    o_t         = silu(q_t) S_t

Position comes from elsewhere (section 3.3). MD-TPE smooths the embedding along every axis of the grid with an exponential
Toeplitz kernel, which is a recurrence over rows and one over columns; MD-LRPE multiplies queries and keys by the cosines and
sines of their position, per axis. Here the first half of the channels takes rows and the second takes columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Toeplitz(nn.Module):
    """MD-TPE along one axis of [B, L, ..., C]: ``y_t = sum over s <= t of decay^(t - s) b x_s``, plus ``x``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.log_decay = nn.Parameter(torch.linspace(-2.0, 2.0, width))
        self.b = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        decay = torch.sigmoid(self.log_decay)
        h, outputs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = decay * h + self.b * x[:, t]
            outputs.append(h)
        return x + torch.stack(outputs, dim=1)


def relative(x: Tensor, rows: int, columns: int) -> Tensor:
    """MD-LRPE: features [B, heads, rows * columns, d] times cosine and sine of their position, [..., 2 d]."""
    half = x.shape[-1] // 2
    turns = 1.0 / 10000 ** torch.linspace(0, 1, half)
    by_row = (torch.arange(rows)[:, None, None] * turns).expand(rows, columns, half)
    by_column = (torch.arange(columns)[None, :, None] * turns).expand(rows, columns, half)
    angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    return torch.cat([x * angles.cos(), x * angles.sin()], dim=-1)


class AdditiveAttention(nn.Module):
    """The mixer over a grid [B, H, W, C], with a low-rank output gate."""

    def __init__(self, width: int, heads: int, rank: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.gate = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False))
        self.norm, self.out_proj = nn.RMSNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        _, rows, columns, _ = x.shape
        q, k, v = (
            part.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )  # [B, heads, L, d]
        q = relative(functional.silu(q), rows, columns)
        k = relative(k.softmax(2), rows, columns)
        o = q @ (k.transpose(2, 3) @ v)
        o = o.transpose(1, 2).reshape(x.shape)
        return self.out_proj(self.norm(o) * torch.sigmoid(self.gate(x)))


class LightNet(nn.Module):
    """Position encoding and one block: mixer and gated linear unit."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.over_rows, self.over_columns = Toeplitz(width), Toeplitz(width)
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mixer = AdditiveAttention(width, heads)
        self.up, self.gate = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.over_rows(x)
        x = self.over_columns(x.transpose(1, 2)).transpose(1, 2)
        x = x + self.mixer(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


HOLDS = {"linear_scan": 2, "matmul": 2, "softmax": 1, "scan": 0}  # rows and columns; the summary and what reads it
CAUSAL = False
LENGTHS = ()
TOKENS = 35


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return LightNet().eval(), (torch.randn(2, 5, 7, 24),), {}, {"x": {0: "B"}}
