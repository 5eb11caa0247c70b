"""LSTM: Hochreiter and Schmidhuber, "Long short-term memory", 1997; with forget gates by Gers, Schmidhuber and Cummins, 2000.

    i, f, g, o = W x_t + U h_(t-1) + b
    c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g)
    h_t = sigmoid(o) tanh(c_t)

Not linear in the state, so each layer stays a general scan; what does not need the state leaves the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

HOLDS = {"scan": 2}
CAUSAL = True
LENGTHS = (1, 2, 33)
EXPORT = {"lengths": (7, 11)}


class LSTMCell(nn.Module):
    """One step. x [B, D], h and c [B, H] to the next h and c."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.x_proj = nn.Linear(width, 4 * hidden)
        self.h_proj = nn.Linear(hidden, 4 * hidden, bias=False)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.x_proj(x) + self.h_proj(h)).chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class LSTM(nn.Module):
    """Stacked layers. x [B, L, D] to the states of the last layer [B, L, H], and its last h and c."""

    def __init__(self, width: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cells = nn.ModuleList(LSTMCell(hidden if i else width, hidden) for i in range(layers))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for cell in self.cells:
            h = c = x.new_zeros(x.shape[0], self.hidden)
            ys = []
            for t in range(x.shape[1]):
                h, c = cell(x[:, t], h, c)
                ys.append(h)
            x = torch.stack(ys, dim=1)
        return x, h, c


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example sequence."""
    torch.manual_seed(0)
    model = LSTM(width=10, hidden=21, layers=2).eval()
    return model, (torch.randn(2, 7, 10),), {}, {"x": {0: "B", 1: "L"}}
