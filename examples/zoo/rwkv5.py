"""RWKV-5, Eagle (Peng et al., 2024, arXiv 2404.05892, section 4.1, equations 5 to 9).

Linear attention with a matrix per head as its state, a decay per key channel that is learned and constant in time, and a
bonus u for the current token, which is read before the state holds it::

    o_t = r_t (S_(t-1) + diag(u) k_t^T v_t)                       S [N, P] per head
    S_t = diag(w) S_(t-1) + k_t^T v_t
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def before(x: Tensor) -> Tensor:
    """The token shift: every token sees the one before it, the first one zeros."""
    return functional.pad(x, (0, 0, 1, -1))


class TimeMixing(nn.Module):
    """[B, L, D] to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        size = width // heads
        self.heads = heads
        self.mix_r, self.mix_k, self.mix_v, self.mix_g = (nn.Parameter(torch.rand(width)) for _ in range(4))
        self.receptance, self.key, self.value, self.gate, self.output = (
            nn.Linear(width, width, bias=False) for _ in range(5)
        )
        self.decay = nn.Parameter(torch.linspace(-4.0, 1.0, width).reshape(heads, size))
        self.bonus = nn.Parameter(torch.linspace(-1.0, 1.0, width).reshape(heads, size))
        self.norm = nn.GroupNorm(heads, width)

    def forward(self, x: Tensor) -> Tensor:
        shift = before(x) - x
        r, k, v = (
            project(x + shift * mix).unflatten(-1, (self.heads, -1))
            for project, mix in ((self.receptance, self.mix_r), (self.key, self.mix_k), (self.value, self.mix_v))
        )
        gate = functional.silu(self.gate(x + shift * self.mix_g))
        o = self.recur(r, k, v, torch.exp(-torch.exp(self.decay)))
        normed = self.norm(o.flatten(0, 1).flatten(1)).reshape(x.shape)
        return self.output(normed * gate)

    def recur(self, r: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """r, k, v [B, L, H, N]; w [H, N] to [B, L, H, N]."""
        state = k.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3])
        outputs = []
        for t in range(k.shape[1]):
            kv = k[:, t, :, :, None] @ v[:, t, :, None, :]
            seen = state + self.bonus[:, :, None] * kv
            outputs.append((r[:, t, :, None, :] @ seen)[:, :, 0])
            state = w[:, :, None] * state + kv
        return torch.stack(outputs, dim=1)


class ChannelMixing(nn.Module):
    """[B, L, D] to the same: squared ReLU between two products, gated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix_k, self.mix_r = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.key, self.value = nn.Linear(width, 3 * width, bias=False), nn.Linear(3 * width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shift = before(x) - x
        k = torch.relu(self.key(x + shift * self.mix_k)) ** 2
        return torch.sigmoid(self.receptance(x + shift * self.mix_r)) * self.value(k)


class RWKV5(nn.Module):
    """One layer: time mixing and channel mixing, each after a norm and with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.time, self.channels = TimeMixing(width, heads), ChannelMixing(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.time(self.norm1(x))
        return x + self.channels(self.norm2(x))


HOLDS = {"gated_linear_attention": 1}
CAUSAL = True
LENGTHS = (1, 2, 19, 37)
EXPORT = {"lengths": (7, 11)}


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return RWKV5(width=12, heads=3).eval(), (torch.randn(2, 7, 12),), {}, {"x": {0: "B", 1: "L"}}
