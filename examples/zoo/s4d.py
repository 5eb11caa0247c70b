"""S4D: diagonal state spaces (Gu, Gupta, Goel, Re, 2022, arXiv 2206.11893, sections 3 and 4).

The state matrix of S4 without its low-rank part. Each channel has N complex modes, of which those with a positive
imaginary part are kept, since the others are their conjugates::

    A_n = -exp(a_n) + i b_n,  Abar = exp(dt A),  Bbar = (Abar - 1) / A              S4D-Lin: A_n = -1/2 + i pi n
    K_j = 2 Re(sum over n of C_n Bbar_n Abar_n^j)                                   a Vandermonde product
    y   = K * x + D x

The convolution runs through the Fourier transform, over any length.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class DiagonalKernel(nn.Module):
    """K [H, L] from the diagonal state space of every channel."""

    def __init__(self, channels: int, state: int, dt_min: float = 0.01, dt_max: float = 0.1) -> None:
        super().__init__()
        modes = state // 2
        steps = torch.linspace(math.log(dt_min), math.log(dt_max), channels)
        self.log_dt = nn.Parameter(steps)
        self.C = nn.Parameter(torch.randn(channels, modes, 2) * 0.5**0.5)
        self.log_A_real = nn.Parameter(torch.log(0.5 * torch.ones(channels, modes)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(modes).float().repeat(channels, 1))

    def forward(self, length: int) -> Tensor:
        dt = torch.exp(self.log_dt)
        A = torch.complex(-torch.exp(self.log_A_real), self.A_imag)
        dtA = A * dt[:, None]
        C = torch.view_as_complex(self.C) * (torch.exp(dtA) - 1.0) / A
        powers = torch.exp(dtA[..., None] * torch.arange(length, device=dt.device))  # [H, N/2, L]
        return 2 * torch.einsum("hn,hnl->hl", C, powers).real


class S4D(nn.Module):
    """One layer over [B, L, H]: convolution, skip, activation, and a gated mixing of channels."""

    def __init__(self, channels: int, state: int = 16) -> None:
        super().__init__()
        self.kernel = DiagonalKernel(channels, state)
        self.D = nn.Parameter(torch.randn(channels))
        self.mix = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        u = x.transpose(-1, -2)  # [B, H, L]
        length = u.shape[-1]
        k = torch.fft.rfft(self.kernel(length), n=2 * length)
        y = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * k, n=2 * length)[..., :length]
        y = y + u * self.D[:, None]
        return functional.glu(self.mix(functional.gelu(y.transpose(-1, -2))), dim=-1)


class Model(nn.Module):
    """Residual layers with normalisation in front."""

    def __init__(self, channels: int = 12, depth: int = 2) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(depth))
        self.layers = nn.ModuleList(S4D(channels) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers):
            x = x + layer(norm(x))
        return x


HOLDS = {"lti_scan": 2}
CAUSAL = True
LENGTHS = (1, 2, 33, 200)


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return Model().eval(), (torch.randn(2, 9, 12),), {}, {"x": {0: "B", 1: "L"}}
