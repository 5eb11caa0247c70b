"""H3: hungry hungry hippos (Fu, Dao, Saab, Thomas, Rudra, Re, 2022, arXiv 2212.14052, section 3.1 and algorithm 1).

Two state spaces and two products in place of attention: a shift, which remembers the last tokens one by one, and a
diagonal one, which remembers for long::

    y = q * diag(shift(k) * v)

The shift matrix moves the state down by one place, so with B = e_1 its kernel is C itself, as long as the state. The
diagonal kernel is that of S4D. Heads have one channel here; both have a skip D.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def fft_conv(u: Tensor, k: Tensor, D: Tensor) -> Tensor:
    """y = k * u + D u for u [B, H, L] and k [H, taps]."""
    length = u.shape[-1]
    n = length + k.shape[-1]
    y = torch.fft.irfft(torch.fft.rfft(u, n=n) * torch.fft.rfft(k, n=n), n=n)[..., :length]
    return y + D[:, None] * u


class ShiftSSM(nn.Module):
    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        self.C = nn.Parameter(torch.randn(channels, state) * state**-0.5)
        self.D = nn.Parameter(torch.randn(channels))

    def forward(self, u: Tensor) -> Tensor:
        return fft_conv(u, self.C, self.D)


class DiagonalSSM(nn.Module):
    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        half = state // 2
        self.log_dt = nn.Parameter(torch.linspace(math.log(0.01), math.log(0.1), channels))
        self.log_A_real = nn.Parameter(torch.log(0.5 * torch.ones(channels, half)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(half).float().repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(channels, half, 2) * half**-0.5)
        self.D = nn.Parameter(torch.randn(channels))

    def forward(self, u: Tensor) -> Tensor:
        A = torch.complex(-torch.exp(self.log_A_real), self.A_imag)
        dtA = A * torch.exp(self.log_dt)[:, None]
        C = torch.view_as_complex(self.C) * (torch.exp(dtA) - 1) / A
        vandermonde = torch.exp(dtA[..., None] * torch.arange(u.shape[-1], device=u.device))
        k = 2 * (C[..., None] * vandermonde).sum(1).real
        return fft_conv(u, k, self.D)


class H3(nn.Module):
    """One layer over [B, L, H]."""

    def __init__(self, channels: int, state: int = 16) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(channels, channels) for _ in range(4))
        self.shift = ShiftSSM(channels, state)
        self.diagonal = DiagonalSSM(channels, state)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (proj(x).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = q * self.diagonal(self.shift(k) * v)
        return self.out_proj(y.transpose(1, 2))


class Model(nn.Module):
    """Residual blocks: H3, then a feed-forward network."""

    def __init__(self, channels: int = 12, depth: int = 2) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(H3(channels) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2 * depth))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for i, (mixer, feed) in enumerate(zip(self.mixers, self.feed)):
            x = x + mixer(self.norms[2 * i](x))
            x = x + feed(self.norms[2 * i + 1](x))
        return x


HOLDS = {"causal_conv1d": 2, "lti_scan": 2}
CAUSAL = True
LENGTHS = (1, 2, 15, 70)


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return Model().eval(), (torch.randn(2, 9, 12),), {}, {"x": {0: "B", 1: "L"}}
