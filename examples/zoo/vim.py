"""Vim: Zhu, Liao, Zhang, Wang, Liu and Wang, "Vision Mamba", 2024, arXiv 2401.09417.

A block reads its tokens in both directions (Algorithm 1). The two branches share the projection in and out, and each has
its own causal convolution, step size, B, C, A and D:

    x, z  = W_in norm(T)
    x_o   = silu(conv1d_o(flip_o(x)));  dt_o, B_o, C_o = W_o x_o            o: forward, backward
    y_o   = flip_o(S6_o(x_o, dt_o, A_o, B_o, C_o, D_o)) * silu(z)
    T     = T + W_out(y_forward + y_backward)

A class token stands in the middle of the sequence. Each direction is one selective scan.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"selective_scan": 4}
CAUSAL = False
LENGTHS: tuple[int, ...] = ()
TOKENS = 26  # position embeddings fix the number of patches


def selective_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """h_t = exp(dt_t A) h_(t-1) + dt_t B_t u_t,  y_t = C_t h_t + D u_t; u, dt [B, D, L], a [D, N], b and c [B, N, L]."""
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, a))
    inflow = torch.einsum("bdl,bnl,bdl->bdln", dt, b, u)
    h, ys = torch.zeros_like(decay[:, :, 0]), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + inflow[:, :, t]
        ys.append(torch.einsum("bdn,bn->bd", h, c[:, :, t]))
    return torch.stack(ys, dim=2) + d[:, None] * u


class Direction(nn.Module):
    """One branch: causal convolution, input-dependent parameters, selective scan. [B, D, L] to [B, D, L]."""

    def __init__(self, channels: int, states: int, rank: int, taps: int = 4) -> None:
        super().__init__()
        self.states, self.rank = states, rank
        self.conv = nn.Conv1d(channels, channels, taps, groups=channels, padding=taps - 1)
        self.x_proj = nn.Linear(channels, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.a_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(channels, 1))
        self.d = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv(x)[..., : x.shape[2]])
        dt, b, c = self.x_proj(x.transpose(1, 2)).split([self.rank, self.states, self.states], dim=2)
        dt = F.softplus(self.dt_proj(dt)).transpose(1, 2)
        return selective_scan(x, dt, -torch.exp(self.a_log), b.transpose(1, 2), c.transpose(1, 2), self.d)


class Block(nn.Module):
    """Norm, two directions, gate, residual. [B, L, M] to [B, L, M]."""

    def __init__(self, width: int, states: int, expand: int = 2) -> None:
        super().__init__()
        channels = expand * width
        self.norm = nn.RMSNorm(width)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.ahead = Direction(channels, states, -(-width // 16))
        self.back = Direction(channels, states, -(-width // 16))
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(self.norm(tokens)).transpose(1, 2).chunk(2, dim=1)
        y = self.ahead(x) * F.silu(z) + (self.back(x.flip(-1)) * F.silu(z.flip(-1))).flip(-1)
        return tokens + self.out_proj(y.transpose(1, 2))


class Vim(nn.Module):
    """Image [B, 3, S, S] to logits [B, classes]."""

    def __init__(self, size: int, patch: int, width: int, states: int, depth: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(0.1 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, states) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.embed(image).flatten(2).transpose(1, 2)
        middle = patches.shape[1] // 2
        cls = self.cls.expand(image.shape[0], -1, -1)
        tokens = torch.cat([patches[:, :middle], cls, patches[:, middle:]], dim=1) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)[:, middle])


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example image."""
    torch.manual_seed(0)
    model = Vim(size=20, patch=4, width=24, states=4, depth=2, classes=10).eval()
    return model, (torch.randn(2, 3, 20, 20),), {}, {"image": {0: "B"}}
