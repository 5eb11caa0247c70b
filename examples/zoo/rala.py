"""RALA: rank-augmented linear attention (Fan, Huang, He, 2024, arXiv 2411.07635, section 3.2, equations 6 to 9).

The summary that all queries of linear attention read has too low a rank. Keys are weighted by what the average query asks
for, and the output is modulated by the tokens themselves. With phi = elu + 1 and L tokens::

    q, k = phi(W_q x), phi(W_k x)
    a    = L softmax over L of (mean(q) . k / sqrt(d))
    k    = a * k
    o    = rope(q) (rope(k)^T v / L) / (q . mean(k))
    y    = W ((o + dwconv5x5(v)) * W_o x)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def grid_angles(rows: int, columns: int, size: int) -> Tensor:
    """Angles of rotary encoding on a grid, [rows * columns, size / 2]: half of the pairs turn by row, half by column."""
    frequencies = 1.0 / 10000 ** torch.linspace(0, 1, size // 4)
    by_row = torch.arange(rows)[:, None, None] * frequencies
    by_column = torch.arange(columns)[None, :, None] * frequencies
    grid = (rows, columns, size // 4)
    return torch.cat([by_row.expand(grid), by_column.expand(grid)], dim=-1).flatten(0, 1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn neighbouring channels of x [B, heads, L, size] as pairs, by angles [L, size / 2]."""
    even, odd = x[..., ::2], x[..., 1::2]
    sin, cos = angles.sin(), angles.cos()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)


class LinearAttention(nn.Module):
    """What RALA and MALA share over images [B, C, H, W]: projections, positions, the modulated output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkvo = nn.Conv2d(width, 4 * width, 1)
        self.local = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.proj = nn.Conv2d(width, width, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor) -> Tensor:
        """Positive features q, k [B, heads, L, d] and values v of the same shape to what each token reads."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        _, width, rows, columns = x.shape
        q, k, v, gate = self.qkvo(x).chunk(4, dim=1)
        local = self.local(v)
        q, k, v = (part.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for part in (q, k, v))
        angles = grid_angles(rows, columns, width // self.heads)
        o = self.attend(functional.elu(q) + 1, functional.elu(k) + 1, v, angles)
        return self.proj((o.transpose(2, 3).reshape(x.shape) + local) * gate)


class RankAugmented(LinearAttention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor) -> Tensor:
        length, size = q.shape[2:]
        asked = q.mean(2, keepdim=True) @ k.transpose(2, 3) * size**-0.5  # [B, heads, 1, L]
        k = k * (length * asked.softmax(-1)).transpose(2, 3)
        normaliser = q @ k.mean(2, keepdim=True).transpose(2, 3)
        summary = rotate(k, angles).transpose(2, 3) @ v / length
        return rotate(q, angles) @ summary / (normaliser + 1e-6)


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Convolutional position encoding, attention, and feed-forward network."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)
        self.attention = attention
        self.mlp = nn.Sequential(nn.Conv2d(width, 3 * width, 1), nn.GELU(), nn.Conv2d(3 * width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


HOLDS = {"matmul": 4, "softmax": 1, "attention": 0}  # two for the weights and the normaliser, two for the summary
CAUSAL = False
LENGTHS = ({"H": 1, "W": 1}, {"H": 5, "W": 9})


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    model = Block(RankAugmented(width=24, heads=3), width=24).eval()
    return model, (torch.randn(2, 24, 4, 6),), {}, {"x": {0: "B", 2: "H", 3: "W"}}
