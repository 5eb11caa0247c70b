"""Hydra: Hwang, Lahoti, Dao and Gu, 2024, arXiv 2407.09941, section 3 and listing 1.

A bidirectional mixer whose matrix is quasiseparable: one SSD per direction, shifted by one step so that the diagonal
belongs to neither, plus a diagonal that depends on the input:

    y = shift(SSD(x)) + flip(shift(SSD(flip x))) + (x W_D + D) x,       shift(y)_t = y_(t-1), 0 at the first step

Both directions are one batch of 2B sequences with shared A; dt, B and C of each come from one projection. Before it, a
depthwise convolution that sees both sides; after it, a norm gated by silu(z).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"gated_linear_attention": 1}
CAUSAL = False
LENGTHS = (1, 2, 33)
EXPORT = {"lengths": (7, 11)}


def ssd(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """S_t = exp(log_decay_t) S_(t-1) + b_t x_t', y_t = c_t S_t; x [B, L, H, P], log_decay [B, L, H], b and c [B, L, N]."""
    state = x.new_zeros(x.shape[0], x.shape[2], b.shape[2], x.shape[3])
    ys = []
    for t in range(x.shape[1]):
        inflow = b[:, t, None, :, None] * x[:, t, :, None, :]
        state = torch.exp(log_decay[:, t, :, None, None]) * state + inflow
        ys.append(torch.einsum("bn,bhnp->bhp", c[:, t], state))
    return torch.stack(ys, dim=1)


class Hydra(nn.Module):
    """[B, L, M] to [B, L, M]."""

    def __init__(self, width: int, states: int, heads: int, expand: int = 2, taps: int = 7) -> None:
        super().__init__()
        self.channels, self.states, self.heads = expand * width, states, heads
        mixed = self.channels + 4 * states
        self.in_proj = nn.Linear(width, self.channels + mixed + 2 * heads, bias=False)
        self.conv = nn.Conv1d(mixed, mixed, taps, groups=mixed, padding=taps // 2)
        self.dt_bias = nn.Parameter(torch.randn(heads))
        self.a_log = nn.Parameter(torch.log(torch.rand(heads) + 1))
        self.d = nn.Parameter(torch.ones(heads))
        self.d_proj = nn.Linear(self.channels, heads, bias=False)
        self.norm = nn.RMSNorm(self.channels)
        self.out_proj = nn.Linear(self.channels, width, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        z, mixed, dt = self.in_proj(u).split([self.channels, self.channels + 4 * self.states, 2 * self.heads], dim=2)
        mixed = F.silu(self.conv(mixed.transpose(1, 2)).transpose(1, 2))
        x, b, b_back, c, c_back = mixed.split([self.channels, *[self.states] * 4], dim=2)
        dt, dt_back = F.softplus(dt.unflatten(2, (2, self.heads)) + self.dt_bias).unbind(2)
        both = lambda ahead, back: torch.cat([ahead, back.flip(1)], dim=0)
        dts, values = both(dt, dt_back), x.unflatten(2, (self.heads, -1))
        ys = ssd(both(values, values) * dts[..., None], -torch.exp(self.a_log) * dts, both(b, b_back), both(c, c_back))
        shifted, batch = F.pad(ys, (0, 0, 0, 0, 1, 0))[:, :-1], u.shape[0]
        diagonal = self.d_proj(x) + self.d
        y = shifted[:batch] + shifted[batch:].flip(1) + diagonal[..., None] * values
        return self.out_proj(self.norm(y.flatten(2)) * F.silu(z))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded layer and example tokens."""
    torch.manual_seed(0)
    layer = Hydra(width=16, states=4, heads=4).eval()
    return layer, (torch.randn(2, 7, 16),), {}, {"u": {0: "B", 1: "L"}}
