"""Long convolutions with free kernels (Fu, Epstein, Nguyen, Thomas, Zhang, Dao, Rudra, Re, 2023, arXiv 2302.06646, section 3).

The kernel is the parameter, as long as the sequence, and made smooth by one regularisation that is part of the model::

    squash(K) = sign(K) max(|K| - lambda, 0)
    y = K * x + D x

A second kernel for the future makes a layer bidirectional: it is flipped and put behind the first, and one transform of
twice the length serves both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class LongConv(nn.Module):
    """One layer over [B, L, H] of a fixed length, causal or bidirectional."""

    def __init__(self, channels: int, length: int, bidirectional: bool, threshold: float = 0.05) -> None:
        super().__init__()
        self.threshold = threshold
        self.kernels = nn.Parameter(torch.randn(2 if bidirectional else 1, channels, length) * 0.2)
        self.D = nn.Parameter(torch.randn(channels))
        self.out = nn.Linear(channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        u = x.transpose(1, 2)
        length = u.shape[-1]
        k = torch.sign(self.kernels) * functional.relu(self.kernels.abs() - self.threshold)
        if len(k) == 2:
            kernel = functional.pad(k[0], (0, length)) + functional.pad(k[1].flip(-1), (length, 0))
        else:
            kernel = k[0]
        k_f = torch.fft.rfft(kernel, n=2 * length)
        u_f = torch.fft.rfft(u, n=2 * length)
        y = torch.fft.irfft(torch.einsum("bhl,hl->bhl", u_f, k_f), n=2 * length)[..., :length]
        y = y + u * self.D.unsqueeze(-1)
        return functional.glu(self.out(functional.gelu(y.transpose(1, 2))), dim=-1)


class Model(nn.Module):
    """A causal layer, then a bidirectional one."""

    def __init__(self, length: int, channels: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LongConv(channels, length, bidirectional) for bidirectional in (False, True))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in self.layers)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers):
            x = x + layer(norm(x))
        return x


HOLDS = {"long_conv": 2}
CAUSAL = False
LENGTHS = ()
TOKENS = 75


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return Model(TOKENS).eval(), (torch.randn(2, TOKENS, 12),), {}, {"x": {0: "B"}}
