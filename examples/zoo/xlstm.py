"""xLSTM: Beck et al., "xLSTM: extended long short-term memory", 2024, arXiv 2405.04517.

Exponential gates, kept in range by a running maximum m of their logarithms (equations 15 to 17):

    m_t = max(f_t + m_(t-1), i_t),  f'_t = exp(f_t + m_(t-1) - m_t),  i'_t = exp(i_t - m_t)

sLSTM (equations 8 to 14) mixes its memory: gates and input of a cell see the last output h of its head.

    c_t = f'_t c_(t-1) + i'_t tanh(z_t),  n_t = f'_t n_(t-1) + i'_t,  h_t = sigmoid(o_t) c_t / n_t

mLSTM (equations 19 to 27) keeps a matrix per head, whose gates see the token only.

    C_t = f'_t C_(t-1) + i'_t v_t k_t',  n_t = f'_t n_(t-1) + i'_t k_t
    h_t = sigmoid(o_t) C_t q_t / max(|n_t' q_t|, exp(-m_t))
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"scan": 2}
CAUSAL = True
LENGTHS = (1, 2, 33)
EXPORT = {"lengths": (7, 11)}


class SLSTM(nn.Module):
    """x [B, L, D] to [B, L, D]; cells of one head see each other through h."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, size = heads, width // heads
        self.enter = nn.Linear(width, 4 * width)
        self.recur = nn.Parameter(torch.randn(heads, size, 4 * size) / size**0.5)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        entered = self.enter(x).view(batch, length, self.heads, -1)
        c = n = m = h = x.new_zeros(batch, self.heads, width // self.heads)
        ys = []
        for t in range(length):
            z, i, f, o = (entered[:, t] + torch.einsum("bhd,hde->bhe", h, self.recur)).chunk(4, dim=-1)
            f = F.logsigmoid(f)
            top = torch.maximum(f + m, i)
            keep, take, m = torch.exp(f + m - top), torch.exp(i - top), top
            c, n = keep * c + take * torch.tanh(z), keep * n + take
            h = torch.sigmoid(o) * c / n
            ys.append(h.reshape(batch, width))
        return torch.stack(ys, dim=1)


class MLSTM(nn.Module):
    """x [B, L, D] to [B, L, D]; a matrix [B, H, P, P] per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.gates, self.out = (
            nn.Linear(width, 3 * width),
            nn.Linear(width, 2 * heads),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).unbind(2)
        k = k / k.shape[-1] ** 0.5
        i, f = self.gates(x).chunk(2, dim=-1)
        f = F.logsigmoid(f)
        state = x.new_zeros(batch, self.heads, q.shape[-1], q.shape[-1])
        n, m = x.new_zeros(batch, self.heads, q.shape[-1]), x.new_zeros(batch, self.heads)
        ys = []
        for t in range(length):
            top = torch.maximum(f[:, t] + m, i[:, t])
            keep, take, m = torch.exp(f[:, t] + m - top), torch.exp(i[:, t] - top), top
            state = keep[..., None, None] * state + take[..., None, None] * v[:, t, :, :, None] * k[:, t, :, None]
            n = keep[..., None] * n + take[..., None] * k[:, t]
            scale = torch.maximum((n * q[:, t]).sum(-1).abs(), torch.exp(-m))
            ys.append(((state * q[:, t, :, None]).sum(-1) / scale[..., None]).reshape(batch, width))
        return torch.sigmoid(self.out(x)) * torch.stack(ys, dim=1)


class XLSTM(nn.Module):
    """A block of each kind. x [B, L, D] to [B, L, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mixers = nn.ModuleList([MLSTM(width, heads), SLSTM(width, heads)])

    def forward(self, x: Tensor) -> Tensor:
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return x


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example sequence."""
    torch.manual_seed(0)
    return XLSTM(width=12, heads=2).eval(), (torch.randn(2, 7, 12),), {}, {"x": {0: "B", 1: "L"}}
