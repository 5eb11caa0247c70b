"""VMamba: Liu, Tian, Zhao, Yu, Xie, Wang, Ye, Jiao and Liu, 2024, arXiv 2401.10166, section 4.3 and figure 3.

The 2-D selective scan (SS2D) visits the grid along four routes: rows, columns, and both backwards. Each route has its own
projections, A and D; the four outputs are put back on the grid and summed:

    xs_k      = tokens of x in the order of route k                            k = 0..3
    dt, B, C  = W_k xs_k;   dt = softplus(W'_k dt + b_k)
    ys_k      = S6(xs_k, dt, A_k, B, C, D_k)
    y         = norm(sum over k of ys_k back in place)

A block is x + W_out SS2D(silu(dwconv3x3(W_in norm(x)))), then x + MLP(norm(x)). The four routes are four groups of one
selective scan.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"selective_scan": 2}
CAUSAL = False
LENGTHS: tuple[int, ...] = ()
TOKENS = 30


def selective_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t,  y_t = C_t h_t + D u_t, for every route k.

    u, dt [B, K, D, L], a [K, D, N], b and c [B, K, N, L], d [K, D].
    """
    decay = torch.exp(torch.einsum("bkdl,kdn->bkdln", dt, a))
    inflow = torch.einsum("bkdl,bknl,bkdl->bkdln", dt, b, u)
    h, ys = torch.zeros_like(decay[:, :, :, 0]), []
    for t in range(u.shape[3]):
        h = decay[:, :, :, t] * h + inflow[:, :, :, t]
        ys.append(torch.einsum("bkdn,bkn->bkd", h, c[..., t]))
    return torch.stack(ys, dim=3) + d[:, :, None] * u


def cross_scan(x: Tensor) -> Tensor:
    """The tokens of a grid along rows, columns, and both backwards: [B, D, H, W] to [B, 4, D, H*W]."""
    ahead = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)
    return torch.cat([ahead, ahead.flip(-1)], dim=1)


def cross_merge(ys: Tensor, height: int, width: int) -> Tensor:
    """The sum of the four routes, back on the grid: [B, 4, D, H*W] to [B, D, H*W]."""
    rows, columns = (ys[:, :2] + ys[:, 2:].flip(-1)).unbind(1)
    return rows + columns.unflatten(2, (width, height)).transpose(2, 3).flatten(2)


class SS2D(nn.Module):
    """[B, H, W, M] to [B, H, W, M]."""

    def __init__(self, width: int, states: int, expand: int = 2, routes: int = 4) -> None:
        super().__init__()
        channels, rank = expand * width, -(-width // 16)
        self.states, self.rank = states, rank
        self.in_proj = nn.Linear(width, channels, bias=False)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.x_proj = nn.Parameter(torch.randn(routes, rank + 2 * states, channels) * channels**-0.5)
        self.dt_proj = nn.Parameter(torch.randn(routes, channels, rank) * rank**-0.5)
        self.dt_bias = nn.Parameter(torch.randn(routes, channels) - 3)
        self.a_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(routes * channels, 1))
        self.d = nn.Parameter(torch.ones(routes, channels))
        self.norm = nn.LayerNorm(channels)
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(self.in_proj(x).permute(0, 3, 1, 2)))
        height, width = x.shape[2:]
        xs = cross_scan(x)
        parts = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj)
        dt, b, c = parts.split([self.rank, self.states, self.states], dim=2)
        dt = F.softplus(torch.einsum("bkrl,kdr->bkdl", dt, self.dt_proj) + self.dt_bias[:, :, None])
        a = -torch.exp(self.a_log).unflatten(0, self.d.shape)
        y = cross_merge(selective_scan(xs, dt, a, b, c, self.d), height, width)
        return self.out_proj(self.norm(y.transpose(1, 2)).unflatten(1, (height, width)))


class Block(nn.Module):
    """[B, H, W, M] to [B, H, W, M]."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = SS2D(width, states)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VMamba(nn.Module):
    """Image [B, 3, H, W] to logits [B, classes]; one stage."""

    def __init__(self, width: int, states: int, depth: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.Sequential(*(Block(width, states) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.embed(image).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean(dim=(1, 2)))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example image: a grid of 6 x 5 tokens."""
    torch.manual_seed(0)
    model = VMamba(width=24, states=4, depth=2, classes=10).eval()
    return model, (torch.randn(2, 3, 24, 20),), {}, {"image": {0: "B"}}
