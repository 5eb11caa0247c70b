"""RWKV-6, Finch (Peng et al., 2024, arXiv 2404.05892, section 4.2, equations 10 to 19).

Eagle with a decay that the token chooses, and a token shift whose mixing weights depend on the token too, both through
low-rank products::

    ddlerp(a, b) = a + (b - a) * (mu + tanh((a + (b - a) mu_x) A) B)
    w_t = exp(-exp(d + tanh(ddlerp_d(x_t, x_(t-1)) A_d) B_d))
    o_t = r_t (S_(t-1) + diag(u) k_t^T v_t),    S_t = diag(w_t) S_(t-1) + k_t^T v_t         [N, P] per head
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def before(x: Tensor) -> Tensor:
    """The token shift: every token sees the one before it, the first one zeros."""
    return functional.pad(x, (0, 0, 1, -1))


class LowRank(nn.Module):
    """base + tanh(x A) B."""

    def __init__(self, base: Tensor, rank: int) -> None:
        super().__init__()
        self.base = nn.Parameter(base)
        self.A, self.B = (nn.Parameter(0.3 * torch.randn(*s)) for s in ((len(base), rank), (rank, len(base))))

    def forward(self, x: Tensor) -> Tensor:
        return self.base + torch.tanh(x @ self.A) @ self.B


class TimeMixing(nn.Module):
    """[B, L, D] to the same."""

    def __init__(self, width: int, heads: int, rank: int) -> None:
        super().__init__()
        self.heads = heads
        self.mix_x = nn.Parameter(torch.rand(width))
        self.mix_w, self.mix_k, self.mix_v, self.mix_r, self.mix_g = (
            LowRank(torch.rand(width), rank) for _ in range(5)
        )
        self.decay = LowRank(torch.linspace(-4.0, 1.0, width), rank)
        self.bonus = nn.Parameter(torch.linspace(-1.0, 1.0, width).reshape(heads, -1))
        self.receptance, self.key, self.value, self.gate, self.output = (
            nn.Linear(width, width, bias=False) for _ in range(5)
        )
        self.norm = nn.GroupNorm(heads, width, eps=64e-5)

    def forward(self, x: Tensor) -> Tensor:
        shift = before(x) - x
        rough = x + shift * self.mix_x
        mixed = lambda mix: x + shift * mix(rough)
        heads = lambda y: y.unflatten(-1, (self.heads, -1))
        w = torch.exp(-torch.exp(self.decay(mixed(self.mix_w))))
        r, k, v = self.receptance(mixed(self.mix_r)), self.key(mixed(self.mix_k)), self.value(mixed(self.mix_v))
        o = self.recur(heads(r), heads(k), heads(v), heads(w))
        normed = self.norm(o.flatten(0, 1).flatten(1)).reshape(x.shape)
        return self.output(normed * functional.silu(self.gate(mixed(self.mix_g))))

    def recur(self, r: Tensor, k: Tensor, v: Tensor, w: Tensor) -> Tensor:
        """r, k, v, w [B, L, H, N] to [B, L, H, N]."""
        state = k.new_zeros(k.shape[0], k.shape[2], k.shape[3], v.shape[3])
        outputs = []
        for t in range(k.shape[1]):
            kv = torch.einsum("bhn,bhp->bhnp", k[:, t], v[:, t])
            outputs.append(torch.einsum("bhn,bhnp->bhp", r[:, t], state + self.bonus[..., None] * kv))
            state = w[:, t, :, :, None] * state + kv
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


class RWKV6(nn.Module):
    """One layer: time mixing and channel mixing, each after a norm and with a residual."""

    def __init__(self, width: int, heads: int, rank: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.time, self.channels = TimeMixing(width, heads, rank), ChannelMixing(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.time(self.norm1(x))
        return x + self.channels(self.norm2(x))


HOLDS = {"gated_linear_attention": 1}
CAUSAL = True
LENGTHS = (1, 2, 19, 37)
EXPORT = {"lengths": (7, 11)}


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return RWKV6(width=12, heads=3, rank=4).eval(), (torch.randn(2, 7, 12),), {}, {"x": {0: "B", 1: "L"}}
