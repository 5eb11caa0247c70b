"""SpaceTime: companion state spaces (Zhang, Saab, Poli, Dao, Goel, Re, 2023, arXiv 2303.09489, sections 3.1 and 3.3).

The state matrix is a companion matrix: a shift, plus a last column that is learned. It expresses autoregressive processes
of any coefficients, as no diagonal matrix does::

    A = S + a e_d^T,   x_t = A x_(t-1) + B u_t,   y_t = C x_t + D u_t

Its kernel K_j = C A^j B is found in O(d + L): at a root of unity z of order L, with C~ = C (I - A^L),

    K^(z) = q(C~, B) + q(C~, a) q(e_d, B) / (conj(z) - q(e_d, a)),   q(u, v) = u^T (I - z S)^-1 v

and q is the Fourier transform of a correlation, since S shifts (algorithm 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class CompanionKernel(nn.Module):
    """K [H, L] of H companion state spaces of size d."""

    def __init__(self, channels: int, state: int, length: int) -> None:
        super().__init__()
        self.length, self.state = length, state
        self.a, self.B, self.C = (nn.Parameter(torch.randn(channels, state) / state) for _ in range(3))

    def forward(self) -> Tensor:
        a = self.a / self.a.abs().sum(-1, keepdim=True)  # bounds the powers of A
        d, length = self.state, self.length
        e = functional.one_hot(torch.tensor(d - 1), d).to(a.dtype)
        shift = torch.diag(torch.ones(d - 1, dtype=a.dtype), -1)
        A = shift + a[:, :, None] * e  # [H, d, d]
        C = self.C - (self.C[:, None] @ torch.linalg.matrix_power(A, length))[:, 0]
        z_conj = torch.exp(2j * math.pi / length * torch.arange(length // 2 + 1, dtype=a.dtype))

        def q(u: Tensor, v: Tensor) -> Tensor:
            lags = torch.fft.rfft(u, n=2 * d) * torch.fft.rfft(v, n=2 * d).conj()
            return torch.fft.rfft(torch.fft.irfft(lags, n=2 * d)[..., :d], n=length)

        k = q(C, self.B) + q(C, a) * q(e, self.B) / (z_conj - q(e, a))
        return torch.fft.irfft(k, n=length)


class SpaceTimeLayer(nn.Module):
    """Over [B, L, H] of a fixed length: convolution with skip, and a mixing of channels."""

    def __init__(self, channels: int, state: int, length: int) -> None:
        super().__init__()
        self.kernel = CompanionKernel(channels, state, length)
        self.D = nn.Parameter(torch.randn(channels))
        self.mix = nn.Sequential(nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        u = x.transpose(1, 2)
        length = u.shape[-1]
        k = torch.fft.rfft(self.kernel(), n=2 * length)
        y = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * k, n=2 * length)[..., :length]
        return self.mix((y + u * self.D[:, None]).transpose(1, 2))


class Model(nn.Module):
    """An encoder of residual layers, and a projection to the values of the time series."""

    def __init__(self, length: int, series: int = 3, channels: int = 12, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(series, channels)
        self.layers = nn.ModuleList(SpaceTimeLayer(channels, 8, length) for _ in range(depth))
        self.readout = nn.Linear(channels, series)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.readout(x)


HOLDS = {"long_conv": 2}
CAUSAL = True
LENGTHS = ()
TOKENS = 60


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return Model(TOKENS).eval(), (torch.randn(2, TOKENS, 3),), {}, {"x": {0: "B"}}
