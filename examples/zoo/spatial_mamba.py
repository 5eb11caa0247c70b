"""Spatial-Mamba: structure-aware state fusion (Xiao, Li, Zhang, Hong, Zhang, 2024, arXiv 2410.15091, section 4.1, equation 7).

One scan in raster order gives the state of every token. Before they are read, states that are neighbours on the grid are
fused by dilated 3 x 3 depthwise convolutions::

    x_t  = exp(dt_t A) x_(t-1) + dt_t B_t u_t             one number per channel (N = 1)
    h    = sum over dilations k of  alpha_k * dwconv_k(x)  on the grid, k in 1, 3, 5
    y_t  = C_t h_t + D u_t
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class StateFusion(nn.Module):
    """The state space with fused states over u [B, D, H, W]."""

    def __init__(self, channels: int, rank: int = 2, dilations: tuple[int, ...] = (1, 3, 5)) -> None:
        super().__init__()
        self.split = (rank, 1, 1)
        self.x_proj = nn.Linear(channels, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.linspace(0.0, 1.0, channels))
        self.D = nn.Parameter(torch.ones(channels))
        self.alpha = nn.Parameter(torch.randn(len(dilations), channels, 1, 1))
        self.fuse = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=k, dilation=k, groups=channels, bias=False) for k in dilations
        )

    def forward(self, u: Tensor) -> Tensor:
        tokens = u.flatten(2).transpose(1, 2)  # [B, L, D]
        step, b, c = self.x_proj(tokens).split(self.split, dim=-1)
        dt = functional.softplus(self.dt_proj(step))
        decay, enter = torch.exp(-dt * torch.exp(self.A_log)), dt * b * tokens
        state, states = torch.zeros_like(tokens[:, 0]), []
        for t in range(tokens.shape[1]):
            state = decay[:, t] * state + enter[:, t]
            states.append(state)
        grid = torch.stack(states, dim=-1).reshape(u.shape)
        fused = sum(alpha * conv(grid) for alpha, conv in zip(self.alpha, self.fuse))
        y = c * fused.flatten(2).transpose(1, 2) + self.D * tokens
        return y.transpose(1, 2).reshape(u.shape)


class SpatialMamba(nn.Module):
    """One block over a grid [B, H, W, C]: position encoding, mixer with its gate, feed-forward network."""

    def __init__(self, width: int = 10, expand: int = 2) -> None:
        super().__init__()
        inner = expand * width
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2, self.out_norm = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(inner)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.mixer = StateFusion(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        u, z = self.in_proj(self.norm1(x)).chunk(2, dim=-1)
        y = self.mixer(functional.silu(self.conv(u.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
        x = x + self.out_proj(self.out_norm(y) * functional.silu(z))
        return x + self.mlp(self.norm2(x))


HOLDS = {"linear_scan": 1, "scan": 0}
CAUSAL = False
LENGTHS = ()
TOKENS = 42


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return SpatialMamba().eval(), (torch.randn(2, 6, 7, 10),), {}, {"x": {0: "B"}}
