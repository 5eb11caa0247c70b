"""S5: simplified state space layers (Smith, Warrington, Linderman, 2022, arXiv 2208.04933, sections 3.1 to 3.3).

One state space with many inputs and outputs in place of one per channel, diagonal and complex, of which half of the
conjugate pairs are kept::

    x_t = Lambda_bar x_(t-1) + B_bar u_t,   y_t = 2 Re(C x_t) + D u_t
    Lambda_bar = exp(Lambda dt),  B_bar = (Lambda_bar - 1) / Lambda B          zero-order hold, a step per state

Initialised with the eigenvalues of HiPPO's normal part, in blocks. Here the recurrence is the loop that defines it; the
authors compute it as an associative scan.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def hippo_frequencies(state: int) -> Tensor:
    """Imaginary parts of the eigenvalues of the normal part of HiPPO-LegS, the positive ones: [N/2]."""
    n = torch.arange(state, dtype=torch.float64)
    scale = torch.sqrt(n + 0.5)
    skew = -torch.tril(scale[:, None] * scale, -1)
    return torch.linalg.eigvalsh((skew - skew.T) * -1j)[state // 2 :].float()


class S5(nn.Module):
    """One layer over [B, L, H] with P complex states, of which the conjugates are left out."""

    def __init__(self, channels: int, states: int, blocks: int = 2) -> None:
        super().__init__()
        half = states // 2
        self.Lambda_re = nn.Parameter(torch.full((half,), -0.5))
        self.Lambda_im = nn.Parameter(hippo_frequencies(states // blocks).repeat(blocks))
        self.B = nn.Parameter(torch.randn(half, channels, 2) * channels**-0.5)
        self.C = nn.Parameter(torch.randn(channels, half, 2) * half**-0.5)
        self.D = nn.Parameter(torch.randn(channels))
        self.log_dt = nn.Parameter(torch.linspace(math.log(0.001), math.log(0.1), half))
        self.gate = nn.Linear(channels, channels)

    def ssm(self, u: Tensor) -> Tensor:
        Lambda = torch.complex(self.Lambda_re, self.Lambda_im)
        Lambda_bar = torch.exp(Lambda * torch.exp(self.log_dt))
        B_bar = ((Lambda_bar - 1) / Lambda)[:, None] * torch.view_as_complex(self.B)
        Bu = u.to(B_bar.dtype) @ B_bar.T  # [B, L, P]
        x, states = torch.zeros_like(Bu[:, 0]), []
        for t in range(u.shape[1]):
            x = Lambda_bar * x + Bu[:, t]
            states.append(x)
        y = torch.stack(states, 1) @ torch.view_as_complex(self.C).T
        return 2 * y.real + self.D * u

    def forward(self, u: Tensor) -> Tensor:
        y = functional.gelu(self.ssm(u))
        return y * torch.sigmoid(self.gate(y))


class Model(nn.Module):
    """Residual layers with normalisation in front."""

    def __init__(self, channels: int = 12, states: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(depth))
        self.layers = nn.ModuleList(S5(channels, states) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers):
            x = x + layer(norm(x))
        return x


HOLDS = {"linear_scan": 2}
CAUSAL = True
LENGTHS = (1, 2, 33)
EXPORT = {"lengths": (7, 11)}


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return Model().eval(), (torch.randn(2, 7, 12),), {}, {"x": {0: "B", 1: "L"}}
