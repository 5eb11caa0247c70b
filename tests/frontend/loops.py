"""Recurrent models as people write them: a Python loop over time, which a trace unrolls."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

D, H = 5, 6


class LSTM(nn.Module):
    """Hochreiter and Schmidhuber (1997), with all gates in one product."""

    def __init__(self) -> None:
        super().__init__()
        self.from_input, self.from_state = nn.Linear(D, 4 * H), nn.Linear(H, 4 * H, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = c = x.new_zeros(x.shape[0], H)
        outputs = []
        for t in range(x.shape[1]):
            i, f, g, o = (self.from_input(x[:, t]) + self.from_state(h)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, 1), h, c


class GRU(nn.Module):
    """Cho et al. (2014), of which only the last state is used."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(D, H), nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], H)
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
        return self.head(h)


class LIF(nn.Module):
    """Leaky integrate and fire: the potential is reset where it crosses the threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.beta = nn.Linear(D, H), nn.Parameter(torch.rand(H))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        potential, spikes = torch.zeros(x.shape[0], H), []
        for t in range(x.shape[1]):
            potential = self.beta * potential + 3 * self.weight(x[:, t])
            spike = (potential > 1.0).float()
            potential = potential * (1 - spike)
            spikes.append(spike)
        return torch.stack(spikes, 1), potential


class RWKV4(nn.Module):
    """Time mixing of RWKV-4 (Peng et al., 2023, arXiv 2305.13048, appendix D), token by token."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value, self.gate, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.mix_k, self.mix_v, self.mix_r, self.decay, self.bonus = (nn.Parameter(torch.rand(D)) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        last = a = b = x.new_zeros(x.shape[0], D)
        p = torch.full_like(a, -1e38)
        outputs = []
        for t in range(x.shape[1]):
            now = x[:, t]
            k = self.key(now * self.mix_k + last * (1 - self.mix_k))
            v = self.value(now * self.mix_v + last * (1 - self.mix_v))
            r = self.gate(now * self.mix_r + last * (1 - self.mix_r)).sigmoid()
            q = torch.maximum(p, self.bonus + k)
            old, new = torch.exp(p - q), torch.exp(self.bonus + k - q)
            outputs.append(self.out(r * (old * a + new * v) / (old * b + new)))
            q = torch.maximum(p - torch.exp(self.decay), k)
            old, new = torch.exp(p - torch.exp(self.decay) - q), torch.exp(k - q)
            a, b, p, last = old * a + new * v, old * b + new, q, now
        return torch.stack(outputs, 1)


class S4(nn.Module):
    """The recurrence of a discretised state space with a dense transition (Gu et al., 2022, arXiv 2111.00396, eq. 3)."""

    def __init__(self, states: int = 4) -> None:
        super().__init__()
        self.transition = nn.Parameter(0.3 * torch.randn(D, states, states))
        self.B, self.C, self.skip = (
            nn.Parameter(torch.randn(D, states)),
            nn.Parameter(torch.randn(D, states)),
            nn.Parameter(torch.randn(D)),
        )

    def forward(self, u: Tensor) -> Tensor:
        state = u.new_zeros(u.shape[0], *self.B.shape)
        y = torch.empty_like(u)
        for k in range(u.shape[1]):
            state = torch.einsum("dnm,bdm->bdn", self.transition, state) + self.B * u[:, k, :, None]
            y[:, k] = (self.C * state).sum(-1) + self.skip * u[:, k]
        return y


class NoState(nn.Module):
    """The first step has no state to look at."""

    def __init__(self) -> None:
        super().__init__()
        self.from_input, self.from_state = nn.Linear(D, H), nn.Linear(H, H)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor | None = None
        outputs = []
        for t in range(x.shape[1]):
            z = self.from_input(x[:, t])
            h = torch.tanh(z if h is None else z + self.from_state(h))
            outputs.append(h)
        return torch.stack(outputs, 1)


class Stack(nn.Module):
    """Layers inside the loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.LSTMCell(D, H), nn.LSTMCell(H, H)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states = [(x.new_zeros(x.shape[0], H), x.new_zeros(x.shape[0], H)) for _ in self.cells]
        outputs = []
        for t in range(x.shape[1]):
            h = x[:, t]
            for i, cell in enumerate(self.cells):
                states[i] = cell(h, states[i])
                h = states[i][0]
            outputs.append(h)
        return torch.stack(outputs, 1), torch.stack([h for h, _ in states])


class TwoWays(nn.Module):
    """A loop forwards, a loop backwards, and a loop over what both leave."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards, self.backwards, self.over = nn.GRUCell(D, H), nn.GRUCell(D, H), nn.GRUCell(2 * H, H)

    def forward(self, x: Tensor) -> Tensor:
        times = range(x.shape[1])
        both = torch.cat([self.loop(self.forwards, x, times), self.loop(self.backwards, x, reversed(times))], dim=-1)
        return self.loop(self.over, both, times).mean(1)

    def loop(self, cell: nn.Module, x: Tensor, times: Iterable[int]) -> Tensor:
        h, outputs = x.new_zeros(x.shape[0], H), [x.new_zeros(0)] * x.shape[1]
        for t in times:
            h = outputs[t] = cell(x[:, t], h)
        return torch.stack(outputs, 1)
