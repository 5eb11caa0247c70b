"""Chimera: Behrouz, Santacatterina and Zabih, "Chimera: effectively modeling multivariate time series with 2-dimensional
state space models", 2024, arXiv 2406.04320.

A grid of variates v and times t carries two coupled states per channel, one along each axis (equations 5 to 7):

    h1[v, t] = A1 h1[v, t-1] + A2 h2[v, t-1] + B1 x[v, t]
    h2[v, t] = A3 h1[v-1, t] + A4 h2[v-1, t] + B2 x[v, t]
    y[v, t]  = C1 h1[v, t] + C2 h2[v, t]

The step sizes of time (A1, A2, B1) and of variates (A3, A4, B2) come from the input, as do B and C; A is diagonal.
Every cell needs the one before it and the one above it. What comes from above is known when a row starts, so that a row is
one linear scan.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"scan": 1}  # over rows; inside, a linear scan over time
CAUSAL = False  # along time it is, but a row ends before the next one starts
ROWS = 3
LENGTHS = (1, 2, 33)
EXPORT = {"lengths": (7, 11)}


class Chimera2D(nn.Module):
    """x [B, V, L, D] to y [B, V, L, D]; states [B, D, N]."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.states = states
        self.a_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(4, width, 1))
        self.dt = nn.Linear(width, 2 * width)
        self.bc = nn.Linear(width, 4 * states, bias=False)
        self.skip = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        batch, variates, length, width = x.shape
        dt1, dt2 = F.softplus(self.dt(x)).chunk(2, dim=-1)
        b1, b2, c1, c2 = self.bc(x).chunk(4, dim=-1)
        a = -torch.exp(self.a_log)
        zero = x.new_zeros(batch, width, self.states)
        above = [(zero, zero)] * length
        rows = []
        for v in range(variates):
            left, row, ys = (zero, zero), [], []
            for t in range(length):
                s1, s2, u = dt1[:, v, t, :, None], dt2[:, v, t, :, None], x[:, v, t, :, None]
                h1 = torch.exp(s1 * a[0]) * left[0] + torch.exp(s1 * a[1]) * left[1] / 2 + s1 * b1[:, v, t, None] * u
                h2 = torch.exp(s2 * a[2]) * above[t][0] / 2 + torch.exp(s2 * a[3]) * above[t][1]
                h2 = h2 + s2 * b2[:, v, t, None] * u
                ys.append((h1 * c1[:, v, t, None] + h2 * c2[:, v, t, None]).sum(-1))
                left = (h1, h2)
                row.append(left)
            above = row
            rows.append(torch.stack(ys, dim=1))
        return torch.stack(rows, dim=1) + self.skip * x


class Chimera(nn.Module):
    """Series [B, V, L] to one of the same size: embedding, 2-D state space with a gate, readout."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.gate = nn.Linear(width, width)
        self.mixer = Chimera2D(width, states)
        self.head = nn.Linear(width, 1)

    def forward(self, series: Tensor) -> Tensor:
        x = torch.tanh(self.embed(series[..., None]))
        return self.head(self.mixer(x) * F.silu(self.gate(x)))[..., 0]


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example series."""
    torch.manual_seed(0)
    return Chimera(width=6, states=3).eval(), (torch.randn(2, 3, 7),), {}, {"series": {0: "B", 2: "L"}}
