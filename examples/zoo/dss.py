"""DSS: diagonal state spaces with a normalised kernel (Gupta, Gu, Berant, 2022, arXiv 2203.14343, proposition 1).

DSS-softmax: the powers of each mode are divided by their sum over the L taps, so that modes may grow as well as decay::

    K = Re(w / Lambda * softmax over j of (Lambda_n j dt)),  w [H, N], j = 0..L-1
    y = K * x + D x

The softmax is one of complex numbers; the largest real part is taken out first (appendix A.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def complex_softmax(x: Tensor, epsilon: float = 1e-7) -> Tensor:
    """exp(x) / sum(exp(x)) along the last axis, safe where the sum is near 0."""
    largest = x.gather(-1, x.real.argmax(-1, keepdim=True))
    powers = torch.exp(x - largest)
    total = powers.sum(-1, keepdim=True)
    return powers * (total.conj() / (total * total.conj() + epsilon))


class DSS(nn.Module):
    """One layer over [B, L, H] of a fixed length; all channels share the modes, each has its step."""

    def __init__(self, channels: int, length: int, state: int = 16) -> None:
        super().__init__()
        self.length = length
        self.log_dt = nn.Parameter(torch.linspace(math.log(0.01), math.log(0.1), channels))
        self.Lambda_log_re = nn.Parameter(torch.log(0.5 * torch.ones(state)))
        self.Lambda_im = nn.Parameter(math.pi * torch.arange(state).float())
        self.W = nn.Parameter(torch.randn(channels, state, 2))
        self.D = nn.Parameter(torch.randn(channels))
        self.out = nn.Linear(channels, channels)

    def kernel(self) -> Tensor:
        Lambda = torch.complex(-torch.exp(self.Lambda_log_re), self.Lambda_im)
        dt = torch.exp(self.log_dt)
        taps = torch.arange(self.length, device=dt.device)
        P = (Lambda * dt[:, None])[..., None] * taps  # [H, N, L]
        W = torch.view_as_complex(self.W) / Lambda
        return torch.einsum("hn,hnl->hl", W, complex_softmax(P)).real

    def forward(self, x: Tensor) -> Tensor:
        u = x.transpose(1, 2)
        length = u.shape[-1]
        k = torch.fft.rfft(self.kernel(), n=2 * length)
        y = torch.fft.irfft(k * torch.fft.rfft(u, n=2 * length), n=2 * length)[..., :length]
        return self.out(functional.gelu((y + self.D[:, None] * u).transpose(1, 2)))


class Model(nn.Module):
    """Residual layers with normalisation behind."""

    def __init__(self, length: int, channels: int = 12, depth: int = 2) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(depth))
        self.layers = nn.ModuleList(DSS(channels, length) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers):
            x = norm(x + layer(x))
        return x


HOLDS = {"long_conv": 2}
CAUSAL = True
LENGTHS = ()
TOKENS = 300


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return Model(TOKENS).eval(), (torch.randn(2, TOKENS, 12),), {}, {"x": {0: "B"}}
