"""RWKV-4 (Peng et al., 2023, arXiv 2305.13048, equations 11 to 20, and appendix D for the form that cannot overflow).

Attention without queries: a token weighs every earlier value by exp(key), faded by a rate per channel, and its own by
exp(u + key)::

    wkv_t = (sum over i < t of exp(-(t - 1 - i) w + k_i) v_i + exp(u + k_t) v_t) / (the same sums without v)

The numerator a and denominator b are kept relative to the largest exponent p so far. Each layer mixes time, then
channels; both look at their input and at the input of the token before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def before(x: Tensor) -> Tensor:
    """The token shift: every token sees the one before it, the first one zeros."""
    return nn.functional.pad(x, (0, 0, 1, -1))


class TimeMixing(nn.Module):
    """[B, L, D] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(-5.0, 1.0, width))
        self.first = nn.Parameter(torch.linspace(-1.0, 1.0, width))
        self.mix_k, self.mix_v, self.mix_r = (nn.Parameter(torch.rand(width)) for _ in range(3))
        self.key, self.value, self.receptance, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        last = before(x)
        k = self.key(x * self.mix_k + last * (1 - self.mix_k))
        v = self.value(x * self.mix_v + last * (1 - self.mix_v))
        r = torch.sigmoid(self.receptance(x * self.mix_r + last * (1 - self.mix_r)))
        return self.output(r * self.wkv(k, v))

    def wkv(self, k: Tensor, v: Tensor) -> Tensor:
        """Keys and values [B, L, D] to averages of values."""
        w = -torch.exp(self.decay)
        a = b = torch.zeros_like(k[:, 0])
        p = torch.full_like(a, -1e38)
        outputs = []
        for t in range(k.shape[1]):
            q = torch.maximum(p, self.first + k[:, t])
            past, now = torch.exp(p - q), torch.exp(self.first + k[:, t] - q)
            outputs.append((past * a + now * v[:, t]) / (past * b + now))
            q = torch.maximum(p + w, k[:, t])
            past, now = torch.exp(p + w - q), torch.exp(k[:, t] - q)
            a, b, p = past * a + now * v[:, t], past * b + now, q
        return torch.stack(outputs, dim=1)


class ChannelMixing(nn.Module):
    """[B, L, D] to the same: squared ReLU between two products, gated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix_k, self.mix_r = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.key, self.value = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        last = before(x)
        k = self.key(x * self.mix_k + last * (1 - self.mix_k))
        r = self.receptance(x * self.mix_r + last * (1 - self.mix_r))
        return torch.sigmoid(r) * self.value(torch.relu(k) ** 2)


class RWKV4(nn.Module):
    """Layers of time and channel mixing, each after a norm and with a residual."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.mixers = nn.ModuleList((TimeMixing, ChannelMixing)[i % 2](width) for i in range(2 * layers))

    def forward(self, x: Tensor) -> Tensor:
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return x


HOLDS = {"wkv": 2}
CAUSAL = True
LENGTHS = (1, 2, 19, 37)
EXPORT = {"lengths": (7, 11)}


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return RWKV4(width=9, layers=2).eval(), (torch.randn(2, 7, 9),), {}, {"x": {0: "B", 1: "L"}}
