"""Mamba: a selective state-space model (Gu and Dao, 2023, arXiv 2312.00752, sections 3.2 to 3.4, Algorithm 2).

The S6 recurrence, per channel d with a state of N numbers, where B, C and the step size depend on the token::

    dt_t = softplus(W_dt (W_r x_t) + b)
    h_t  = exp(dt_t A) * h_(t-1) + dt_t B_t x_t         A = -exp(A_log)  [D, N]
    y_t  = C_t . h_t + D x_t

The block around it: two projections, one through a short causal convolution and the recurrence, the other a gate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelectiveSSM(nn.Module):
    """The S6 recurrence over [B, L, D]."""

    def __init__(self, channels: int, state: int = 8, rank: int = 2) -> None:
        super().__init__()
        self.split = (rank, state, state)
        self.x_proj = nn.Linear(channels, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        step, b, c = self.x_proj(x).split(self.split, dim=-1)
        dt = functional.softplus(self.dt_proj(step))
        decay = torch.exp(dt[..., None] * -torch.exp(self.A_log))  # [B, L, D, N]
        enter = dt[..., None] * b[:, :, None, :] * x[..., None]
        h = torch.zeros_like(enter[:, 0])
        outputs = []
        for t in range(x.shape[1]):
            h = decay[:, t] * h + enter[:, t]
            outputs.append((h * c[:, t, None, :]).sum(-1))
        return torch.stack(outputs, dim=1) + self.D * x


class MambaBlock(nn.Module):
    """Figure 3 of the paper, after its normalisation."""

    def __init__(self, width: int, expand: int = 2, taps: int = 4) -> None:
        super().__init__()
        inner = expand * width
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv = nn.Conv1d(inner, inner, taps, groups=inner, padding=taps - 1)
        self.ssm = SelectiveSSM(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return self.out_proj(self.ssm(functional.silu(x)) * functional.silu(z))


class Mamba(nn.Module):
    def __init__(self, width: int = 20, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MambaBlock(width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for norm, block in zip(self.norms, self.blocks):
            x = x + block(norm(x))
        return x


HOLDS = {"selective_scan": 2, "causal_conv1d": 2}
CAUSAL = True
LENGTHS = (1, 2, 29)
EXPORT = {"lengths": (7, 11)}


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return Mamba().eval(), (torch.randn(2, 7, 20),), {}, {"x": {0: "B", 1: "L"}}
