"""RWKV-7, Goose (Peng et al., 2025, arXiv 2503.14456, equations 5 to 19).

A generalised delta rule: decay per key channel, a removal key kappa of its own, and a rate a per channel at which what
the state holds under it is replaced::

    S_t = S_(t-1) (diag(w_t) - kappa_t^T (a_t * kappa_t)) + v_t^T k_t                  [P, N] per head
    o_t = S_t r_t^T + (r_t . (rho * k_t)) v_t

with w_t in (exp(-exp(-0.5)), 1) and kappa_t of length one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def before(x: Tensor) -> Tensor:
    """The token shift: every token sees the one before it, the first one zeros."""
    return functional.pad(x, (0, 0, 1, -1))


class LowRank(nn.Module):
    """base + f(x A) B."""

    def __init__(self, base: Tensor, rank: int) -> None:
        super().__init__()
        self.base = nn.Parameter(base)
        self.A, self.B = (nn.Parameter(0.3 * torch.randn(*s)) for s in ((len(base), rank), (rank, len(base))))

    def forward(self, x: Tensor) -> Tensor:
        return self.base + x @ self.A @ self.B


class TimeMixing(nn.Module):
    """[B, L, D] to the same."""

    def __init__(self, width: int, heads: int, rank: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix = nn.Parameter(torch.rand(6, width))
        self.decay = LowRank(torch.linspace(-6.0, 1.0, width), rank)
        self.rate = LowRank(torch.zeros(width), rank)
        self.gate_in, self.gate_out = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.removal = nn.Parameter(torch.linspace(0.5, 1.0, width))  # xi: from key to removal key
        self.replacement = nn.Parameter(torch.linspace(0.5, 1.0, width))  # alpha: how far the rate scales the key
        self.bonus = nn.Parameter(torch.linspace(-0.5, 0.5, width).reshape(heads, -1))  # rho
        self.receptance, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm = nn.GroupNorm(heads, width, eps=64e-5)

    def forward(self, x: Tensor) -> Tensor:
        heads = lambda y: y.unflatten(-1, (self.heads, -1))
        xr, xw, xk, xv, xa, xg = (x + (before(x) - x) * mix for mix in self.mix)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        w = torch.exp(-torch.exp(torch.tensor(-0.5)) * torch.sigmoid(self.decay(xw)))
        a = torch.sigmoid(self.rate(xa))
        kappa = functional.normalize(heads(k * self.removal), dim=-1)
        k = heads(k * (1 + (a - 1) * self.replacement))
        r, v = heads(r), heads(v)
        o = self.recur(r, heads(w), k, v, kappa, heads(a))
        normed = self.norm(o.flatten(0, 1).flatten(1)).reshape(x.shape)
        bonus = (r * k * self.bonus).sum(-1, keepdim=True) * v
        return self.output((normed + bonus.flatten(-2)) * self.gate_out(torch.sigmoid(self.gate_in(xg))))

    def recur(self, r: Tensor, w: Tensor, k: Tensor, v: Tensor, kappa: Tensor, a: Tensor) -> Tensor:
        """Everything [B, L, H, N], and so is the result."""
        state = v.new_zeros(v.shape[0], v.shape[2], v.shape[3], k.shape[3])
        outputs = []
        for t in range(r.shape[1]):
            vk = v[:, t, :, :, None] @ k[:, t, :, None, :]
            ab = -kappa[:, t, :, :, None] @ (kappa[:, t] * a[:, t])[:, :, None, :]
            state = state * w[:, t, :, None, :] + state @ ab + vk
            outputs.append((state @ r[:, t, :, :, None])[..., 0])
        return torch.stack(outputs, dim=1)


class ChannelMixing(nn.Module):
    """[B, L, D] to the same: squared ReLU between two products."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(width))
        self.key, self.value = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(torch.relu(self.key(x + (before(x) - x) * self.mix)) ** 2)


class RWKV7(nn.Module):
    """One layer: time mixing and channel mixing, each after a norm and with a residual."""

    def __init__(self, width: int, heads: int, rank: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.time, self.channels = TimeMixing(width, heads, rank), ChannelMixing(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.time(self.norm1(x))
        return x + self.channels(self.norm2(x))


HOLDS = {"generalized_delta_rule": 1}
CAUSAL = True
LENGTHS = (1, 2, 19, 37)
EXPORT = {"lengths": (7, 11)}


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return RWKV7(width=12, heads=3, rank=4).eval(), (torch.randn(2, 7, 12),), {}, {"x": {0: "B", 1: "L"}}
