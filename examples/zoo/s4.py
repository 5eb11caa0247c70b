"""S4: structured state spaces (Gu, Goel, Re, 2021, arXiv 2111.00396, section 3 and appendix C).

The HiPPO-LegS matrix is normal plus rank one, so it is unitarily similar to Lambda - P P*. Discretised by the bilinear
rule, its convolution kernel is found through the generating function, taken at the roots of unity w of order L::

    g(w) = 2 / dt * (1 - w) / (1 + w),   k_uv(w) = sum over n of conj(u_n) v_n / (g(w) - Lambda_n)       Cauchy
    K^(w) = 2 / (1 + w) * (k_CB - k_CP (1 + k_PP)^-1 k_PB)                                             Woodbury
    K     = real part of the inverse Fourier transform of K^,   y = K * x + D x

C stands for C~ = C (I - Abar^L), which is the parameter that is learned. All of K depends on weights alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def hippo_dplr(state: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lambda, P and B of HiPPO-LegS, each [N] complex (appendix C.1, theorem 1)."""
    n = torch.arange(state, dtype=torch.float64)
    scale = torch.sqrt(2 * n + 1)
    A = -torch.tril(scale[:, None] * scale) + torch.diag(n)
    P, B = torch.sqrt(n + 0.5), scale
    normal = A + P[:, None] * P
    decay = torch.diagonal(normal).mean()
    frequencies, V = torch.linalg.eigh(normal * -1j)  # skew-symmetric but for its diagonal
    back = V.conj().T
    return torch.complex(decay.expand(state), frequencies), back @ P.to(V.dtype), back @ B.to(V.dtype)


def real_parameter(x: Tensor) -> nn.Parameter:
    """A complex parameter, stored as pairs."""
    return nn.Parameter(torch.view_as_real(x.to(torch.complex64)).clone())


class DPLRKernel(nn.Module):
    """K [H, L] of a state space per channel."""

    def __init__(self, channels: int, state: int, length: int) -> None:
        super().__init__()
        self.length = length
        Lambda, P, B = (x.repeat(channels, 1) for x in hippo_dplr(state))
        self.log_dt = nn.Parameter(torch.linspace(math.log(0.01), math.log(0.1), channels))
        self.Lambda, self.P, self.B = map(real_parameter, (Lambda, P, B))
        self.C = real_parameter(torch.randn(channels, state, dtype=torch.complex64) * state**-0.5)

    def forward(self) -> Tensor:
        Lambda, P, B, C = (torch.view_as_complex(x) for x in (self.Lambda, self.P, self.B, self.C))
        dt = torch.exp(self.log_dt)[:, None]
        turns = torch.arange(self.length, dtype=dt.dtype) * (2 * math.pi / self.length)
        omega = torch.exp(-1j * turns)
        g = 2 / dt * (1 - omega) / (1 + omega)  # [H, L]

        def cauchy(u: Tensor, v: Tensor) -> Tensor:
            return ((u.conj() * v)[:, None, :] / (g[..., None] - Lambda[:, None, :])).sum(-1)

        k_cb, k_cp, k_pb, k_pp = cauchy(C, B), cauchy(C, P), cauchy(P, B), cauchy(P, P)
        at_roots = 2 / (1 + omega) * (k_cb - k_cp * (1 / (1 + k_pp)) * k_pb)
        return torch.fft.ifft(at_roots).real


class S4(nn.Module):
    """One layer over [B, L, H] of a fixed length."""

    def __init__(self, channels: int, length: int, state: int = 16) -> None:
        super().__init__()
        self.kernel = DPLRKernel(channels, state, length)
        self.D = nn.Parameter(torch.randn(channels))
        self.mix = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        u = x.transpose(-1, -2)
        length = u.shape[-1]
        k = torch.fft.rfft(self.kernel(), n=2 * length)
        y = torch.fft.irfft(torch.einsum("bhl,hl->bhl", torch.fft.rfft(u, n=2 * length), k), n=2 * length)
        y = y[..., :length] + u * self.D[:, None]
        return functional.glu(self.mix(functional.gelu(y.transpose(-1, -2))), dim=-1)


class Model(nn.Module):
    """Residual layers with normalisation in front."""

    def __init__(self, length: int, channels: int = 12, depth: int = 2) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(depth))
        self.layers = nn.ModuleList(S4(channels, length) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers):
            x = x + layer(norm(x))
        return x


HOLDS = {"long_conv": 2}
CAUSAL = True
LENGTHS = ()
TOKENS = 97


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return Model(TOKENS).eval(), (torch.randn(2, TOKENS, 12),), {}, {"x": {0: "B"}}
