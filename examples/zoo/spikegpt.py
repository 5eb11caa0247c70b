"""SpikeGPT: Zhu, Zhao, Li and Eshraghian, "SpikeGPT: generative pre-trained language model with spiking neural networks",
2023, arXiv 2302.13939.

RWKV's mixers, whose outputs pass through leaky integrate-and-fire neurons that live along the tokens:

    spiking RWKV   y_t = (num_(t-1) + e^(u + k_t) v_t) / (den_(t-1) + e^(u + k_t)),  then  W_o (sigmoid(r_t) * y_t)
                   num_t = e^(-e^w) num_(t-1) + e^(k_t) v_t;  den_t likewise without v
    spiking RFFN   sigmoid(W_r x_t) * W_v relu(W_k x_t)^2
    LIF            h_t = v_(t-1) + (x_t - v_(t-1)) / tau;  s_t = [h_t >= 1];  v_t = (1 - s_t) h_t

The neuron resets to zero where it fires: a recurrence that is neither linear nor associative.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"scan": 4, "wkv": 2}
CAUSAL = True
LENGTHS = (1, 2, 33)
EXPORT = {"lengths": (7, 11)}


class LIF(nn.Module):
    """Spikes [B, L, D] of membranes driven by x [B, L, D]."""

    def __init__(self, tau: float = 2.0, threshold: float = 1.0) -> None:
        super().__init__()
        self.tau, self.threshold = tau, threshold

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[:, 0])
        spikes = []
        for t in range(x.shape[1]):
            h = v + (x[:, t] - v) / self.tau
            s = (h >= self.threshold).to(x.dtype)
            v = (1 - s) * h
            spikes.append(s)
        return torch.stack(spikes, dim=1)


def shifted(x: Tensor, mix: Tensor) -> Tensor:
    """Every token mixed with the one before it; mix [D]."""
    return x * mix + F.pad(x, (0, 0, 1, -1)) * (1 - mix)


class SpikingRWKV(nn.Module):
    """x [B, L, D] to [B, L, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(3, width))
        self.decay = nn.Parameter(torch.randn(width))
        self.bonus = nn.Parameter(torch.randn(width))
        self.r, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        r, k, v = (f(shifted(x, m)) for f, m in zip((self.r, self.k, self.v), self.mix, strict=True))
        w = -torch.exp(self.decay)
        num, den, top = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], -1e38)
        ys = []
        for t in range(x.shape[1]):
            now = self.bonus + k[:, t]
            most = torch.maximum(top, now)
            old, new = torch.exp(top - most), torch.exp(now - most)
            ys.append((old * num + new * v[:, t]) / (old * den + new))
            most = torch.maximum(top + w, k[:, t])
            old, new = torch.exp(top + w - most), torch.exp(k[:, t] - most)
            num, den, top = old * num + new * v[:, t], old * den + new, most
        return self.out(torch.sigmoid(r) * torch.stack(ys, dim=1))


class SpikingRFFN(nn.Module):
    """x [B, L, D] to [B, L, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(2, width))
        self.r, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, hidden, bias=False)
        self.v = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        r, k = (f(shifted(x, m)) for f, m in zip((self.r, self.k), self.mix, strict=True))
        return torch.sigmoid(r) * self.v(torch.relu(k) ** 2)


class SpikeGPT(nn.Module):
    """Tokens [B, L] to logits [B, L, V]."""

    def __init__(self, vocabulary: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lif = LIF()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        mixers = [f for _ in range(depth) for f in (SpikingRWKV(width), SpikingRFFN(width, 2 * width))]
        self.mixers = nn.ModuleList(mixers)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + self.lif(mixer(norm(x)))
        return self.head(x)


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and example tokens."""
    torch.manual_seed(0)
    model = SpikeGPT(vocabulary=50, width=12, depth=2).eval()
    with torch.no_grad():
        for mixer in model.mixers:  # so that some neurons fire
            last = mixer.out if isinstance(mixer, SpikingRWKV) else mixer.v
            last.weight.mul_(8)
    return model, (torch.randint(0, 50, (2, 7)),), {}, {"tokens": {0: "B", 1: "L"}}
