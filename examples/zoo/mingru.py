"""minGRU: Feng, Tung, Ahmed, Bengio and Hajimirsadeghi, "Were RNNs all we needed?", 2024, arXiv 2410.01201.

    z_t = sigmoid(W_z x_t),  n_t = g(W_h x_t),  h_t = (1 - z_t) h_(t-1) + z_t n_t
    g(x) = x + 1/2 for x >= 0, else sigmoid(x)

No gate sees the state, so a step is linear in it. The first layer runs as in Algorithm 1, token by token; the second
in the parallel form of Appendix B, a scan in log space: with a_t = log(1 - z_t), b_t = log(z_t n_t) and their prefix sum
A_t, h_t = exp(A_t + logcumsumexp(b - A)_t).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"linear_scan": 1}
CAUSAL = True
LENGTHS = (1, 2, 33)
EXPORT = {"lengths": (7, 11)}


class MinGRU(nn.Module):
    """x [B, L, D] to the states [B, L, H], which start at g(0) = 1/2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.to_z = nn.Linear(width, hidden)
        self.to_n = nn.Linear(width, hidden)

    def sequential(self, x: Tensor) -> Tensor:
        h = x.new_full((x.shape[0], self.hidden), 0.5)
        states = []
        for t in range(x.shape[1]):
            z, n = torch.sigmoid(self.to_z(x[:, t])), self.to_n(x[:, t])
            n = torch.where(n >= 0, n + 0.5, torch.sigmoid(n))
            h = (1 - z) * h + z * n
            states.append(h)
        return torch.stack(states, dim=1)

    def parallel(self, x: Tensor) -> Tensor:
        k, n = self.to_z(x), self.to_n(x)
        log_n = torch.where(n >= 0, torch.log(F.relu(n) + 0.5), -F.softplus(-n))
        first = torch.full_like(n[:, :1], 0.5).log()
        a = F.pad(torch.cumsum(-F.softplus(k), dim=1), (0, 0, 1, 0))
        b = torch.cat([first, -F.softplus(-k) + log_n], dim=1)
        return torch.exp(a + torch.logcumsumexp(b - a, dim=1))[:, 1:]


class Model(nn.Module):
    """Two layers, each with a residual. x [B, L, D] to [B, L, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.cells = nn.ModuleList(MinGRU(width, hidden) for _ in range(2))
        self.outs = nn.ModuleList(nn.Linear(hidden, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.outs[0](self.cells[0].sequential(self.norms[0](x)))
        return x + self.outs[1](self.cells[1].parallel(self.norms[1](x)))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example sequence."""
    torch.manual_seed(0)
    return Model(width=10, hidden=21).eval(), (torch.randn(2, 7, 10),), {}, {"x": {0: "B", 1: "L"}}
