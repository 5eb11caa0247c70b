"""ViG: vision with gated linear attention (Liao, Wang, Zhu, Zhang, Huang, 2024, arXiv 2405.18425, sections 3.2 and 3.3).

Gated linear attention in both directions. The directions share queries, keys and values and have gates of their own; the
gates are low-rank projections with a temperature, ``alpha = sigmoid(W2 W1 x) ^ (1/16)``::

    S_t = diag(alpha_t) S_(t-1) + k_t^T v_t        forwards, and the same backwards with other gates
    o_t = q_t S_t                                  then the mean of both directions

Locality on the grid is injected by a convolution, chosen per channel against the global result:
``y = g * norm(o) + (1 - g) * norm(silu(dwconv3x3(x)))`` with ``g = sigmoid(W_g x)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def gated_linear_attention(q: Tensor, k: Tensor, v: Tensor, log_gate: Tensor) -> Tensor:
    """The recurrence over q, k, log_gate [B, H, L, N] and v [B, H, L, P]."""
    state = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3])
    outputs = []
    for t in range(q.shape[2]):
        state = torch.exp(log_gate[:, :, t, :, None]) * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append((q[:, :, t, None, :] @ state).squeeze(2))
    return torch.stack(outputs, dim=2)


class BidirectionalGLA(nn.Module):
    """The mixer over tokens [B, H, W, C]."""

    def __init__(self, width: int, heads: int, rank: int = 4, temperature: float = 16.0) -> None:
        super().__init__()
        self.heads, self.temperature = heads, temperature
        keys = width // 2
        self.q_proj, self.k_proj = nn.Linear(width, keys, bias=False), nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, keys)) for _ in range(2)
        )
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.choose = nn.Linear(width, width)
        self.global_norm, self.local_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.out_proj = nn.Linear(width, width, bias=False)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, L, ...]

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)
        q, k, v = self.split(self.q_proj(tokens)), self.split(self.k_proj(tokens)), self.split(self.v_proj(tokens))
        forth, back = (self.split(functional.logsigmoid(gate(tokens)) / self.temperature) for gate in self.gates)
        q = q * q.shape[-1] ** -0.5
        o = gated_linear_attention(q, k, v, forth)
        flipped = gated_linear_attention(*(part.flip(2) for part in (q, k, v, back))).flip(2)
        o = ((o + flipped) / 2).transpose(1, 2).reshape(x.shape)
        local = functional.silu(self.local(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        g = torch.sigmoid(self.choose(x))
        return self.out_proj(g * self.global_norm(o) + (1 - g) * self.local_norm(local))


class ViG(nn.Module):
    """One block over a grid: mixer and feed-forward network."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = BidirectionalGLA(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


HOLDS = {"gated_linear_attention": 2, "scan": 0}
CAUSAL = False
LENGTHS = ()
TOKENS = 20


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return ViG().eval(), (torch.randn(2, 4, 5, 24),), {}, {"x": {0: "B"}}
