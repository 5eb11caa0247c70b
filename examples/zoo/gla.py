"""Gated linear attention: a decay per key channel, in chunks.

Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training", 2023, arXiv 2312.06635. Section 4.1:

    S_t = diag(alpha_t) S_(t-1) + k_t v_t^T        o_t = q_t S_t        alpha_t = sigmoid(x_t W1 W2 + b)^(1/16)

Section 4.2 has the chunked form with b_t = alpha_1 ... alpha_t counted from the start of each chunk: inside a chunk
((Q . B)(K / B)^T . M) V, and from chunk to chunk S = diag(b_end) S + (K . b_end / B)^T V. Section 4.4: norm and gate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"gated_linear_attention": 1}
CAUSAL = True
LENGTHS = ({"C": 1}, {"C": 2}, {"C": 9})
EXPORT = {"lengths": {"C": (5, 7)}}


def gla(q: Tensor, k: Tensor, v: Tensor, log_alpha: Tensor, chunk: int) -> Tensor:
    """q, k and log_alpha [B, H, L, E], v [B, H, L, F]; L is a multiple of the chunk."""
    q, k, v, log_alpha = (m.unflatten(2, (-1, chunk)) for m in (q, k, v, log_alpha))
    b = log_alpha.cumsum(3)
    end = b[..., -1:, :]
    scores = (q * b.exp()) @ (k * (-b).exp()).mT
    inside = torch.tril(scores) @ v
    inflow = (k * (end - b).exp()).mT @ v
    state, before = torch.zeros_like(inflow[:, :, 0]), []
    for i in range(q.shape[2]):
        before.append(state)
        state = end[:, :, i].exp().mT * state + inflow[:, :, i]
    return (inside + (q * b.exp()) @ torch.stack(before, 2)).flatten(2, 3)


class GatedLinearAttention(nn.Module):
    def __init__(self, size: int, heads: int, chunk: int) -> None:
        super().__init__()
        self.heads, self.chunk = heads, chunk
        self.q, self.k = (nn.Linear(size, size // 2, bias=False) for _ in range(2))
        self.v, self.out = (nn.Linear(size, size, bias=False) for _ in range(2))
        self.alpha = nn.Sequential(nn.Linear(size, 4, bias=False), nn.Linear(4, size // 2))
        self.gate = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        alpha = F.logsigmoid(self.alpha(x)) / 16
        q, k, v, alpha = (
            m.unflatten(-1, (self.heads, -1)).transpose(1, 2) for m in (self.q(x), self.k(x), self.v(x), alpha)
        )
        y = gla(q * q.shape[-1] ** -0.5, k, v, alpha, self.chunk).transpose(1, 2)
        y = F.layer_norm(y, (y.shape[-1],)).flatten(2)
        return self.out(F.silu(self.gate(x)) * y)


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    torch.manual_seed(0)
    return GatedLinearAttention(16, 2, chunk=4).eval(), (torch.randn(2, 20, 16),), {}, {"x": {0: "B", 1: "4*C"}}
