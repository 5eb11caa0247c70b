"""GRU: Cho, van Merrienboer, Gulcehre, Bahdanau, Bougares, Schwenk and Bengio, 2014, arXiv 1406.1078.

    z_t = sigmoid(W_z x_t + U_z h_(t-1))
    r_t = sigmoid(W_r x_t + U_r h_(t-1))
    n_t = tanh(W x_t + U (r_t h_(t-1)))
    h_t = z_t h_(t-1) + (1 - z_t) n_t

The reset gate acts before the product with U (equation 8), so two products follow one another in a step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

HOLDS = {"scan": 1}
CAUSAL = True
LENGTHS = (1, 2, 33)
EXPORT = {"lengths": (7, 11)}


class GRU(nn.Module):
    """x [B, L, D] to the states [B, L, H]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.w = nn.Linear(width, 3 * hidden)
        self.u_gates = nn.Linear(hidden, 2 * hidden, bias=False)
        self.u = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.hidden)
        states = []
        for t in range(x.shape[1]):
            xz, xr, xn = self.w(x[:, t]).chunk(3, dim=-1)
            hz, hr = self.u_gates(h).chunk(2, dim=-1)
            z, r = torch.sigmoid(xz + hz), torch.sigmoid(xr + hr)
            h = z * h + (1 - z) * torch.tanh(xn + self.u(r * h))
            states.append(h)
        return torch.stack(states, dim=1)


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example sequence."""
    torch.manual_seed(0)
    model = GRU(width=10, hidden=21).eval()
    return model, (torch.randn(2, 7, 10),), {}, {"x": {0: "B", 1: "L"}}
