"""The multi-dimensional damped moving average of Mega (Ma et al., 2022, arXiv 2209.10655, sections 3.1 and 3.2).

Each channel is expanded to N, each with its weight alpha and damping delta, and contracted again::

    u_t = beta x_t
    h_t = alpha * u_t + (1 - alpha * delta) * h_(t-1)
    y_t = eta . h_t

Written as a convolution with K_j = sum over n of eta alpha beta (1 - alpha delta)^j (appendix A), by Fourier transform,
followed by the residual connection and activation of Mega's gated attention, which reads the result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class DampedEMA(nn.Module):
    """Over [B, L, D], each channel expanded to N."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.scale = expanded**-0.5
        self.alpha = nn.Parameter(torch.randn(channels, expanded, 1) * 0.2)
        self.delta = nn.Parameter(torch.randn(channels, expanded, 1) * 0.2)
        self.beta = nn.Parameter(torch.randn(channels, expanded, 1) * 0.02 + 1)
        self.eta = nn.Parameter(torch.randn(channels, expanded))
        self.omega = nn.Parameter(torch.randn(channels))

    def kernel(self, length: int) -> Tensor:
        p = torch.sigmoid(self.alpha)
        q = 1.0 - p * torch.sigmoid(self.delta)
        taps = torch.arange(length, device=p.device).view(1, 1, length) * torch.log(q)
        return torch.einsum("dnl,dn->dl", (p * self.beta) * torch.exp(taps), self.eta * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        residual = x * self.omega
        u = x.transpose(1, 2)
        length = u.shape[-1]
        k = torch.fft.rfft(self.kernel(length), n=2 * length)
        y = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * k, n=2 * length)[..., 0:length]
        return functional.silu(y.transpose(1, 2) + residual)


class Model(nn.Module):
    """Averages and feed-forward networks in turn."""

    def __init__(self, channels: int = 12, expanded: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.averages = nn.ModuleList(DampedEMA(channels, expanded) for _ in range(depth))
        self.feed = nn.ModuleList(nn.Linear(channels, channels) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for norm, average, feed in zip(self.norms, self.averages, self.feed):
            x = x + feed(average(norm(x)))
        return x


HOLDS = {"lti_scan": 2}
CAUSAL = True
LENGTHS = (1, 2, 33, 200)


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return Model().eval(), (torch.randn(2, 9, 12),), {}, {"x": {0: "B", 1: "L"}}
