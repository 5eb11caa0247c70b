"""DeltaNet: linear attention with the delta rule (Schlag, Irie, Schmidhuber, 2021, arXiv 2102.11174, equation 24; Yang,
Wang, Zhang, Shen, Kim, 2024, arXiv 2406.06484, section 2.2).

The state of a head is a matrix that maps keys to values. A token does not add its value under its key: it replaces part
of what the state holds there, at a rate beta that it chooses::

    v_old = S_(t-1) k_t
    S_t   = S_(t-1) + beta_t (v_t - v_old) k_t^T                  [P, N] per head
    o_t   = S_t q_t

Queries and keys pass a short convolution and SiLU and have length one, so the eigenvalues of a step lie in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ShortConvolution(nn.Module):
    """Depthwise causal convolution over time, then SiLU."""

    def __init__(self, width: int, taps: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, taps, padding=taps - 1, groups=width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))


class DeltaNet(nn.Module):
    """The token mixer: [B, L, width] to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.conv_q, self.conv_k, self.conv_v = (ShortConvolution(width) for _ in range(3))
        self.to_beta = nn.Linear(width, heads, bias=False)
        self.norm = nn.RMSNorm(width // heads)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            conv(project(x)).unflatten(-1, (self.heads, -1))
            for project, conv in ((self.to_q, self.conv_q), (self.to_k, self.conv_k), (self.to_v, self.conv_v))
        )
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        o = self.recur(q, k, v, torch.sigmoid(self.to_beta(x)))
        return self.to_out(self.norm(o).flatten(-2))

    def recur(self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        """q, k [B, L, H, N]; v [B, L, H, P]; beta [B, L, H] to [B, L, H, P]."""
        state = v.new_zeros(v.shape[0], v.shape[2], v.shape[3], k.shape[3])
        outputs = []
        for t in range(q.shape[1]):
            old = torch.einsum("bhpn,bhn->bhp", state, k[:, t])
            new = beta[:, t, :, None] * (v[:, t] - old)
            state = state + torch.einsum("bhp,bhn->bhpn", new, k[:, t])
            outputs.append(torch.einsum("bhpn,bhn->bhp", state, q[:, t]))
        return torch.stack(outputs, dim=1)


class DeltaNetBlock(nn.Module):
    """Mixer and SwiGLU, each after a norm and with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mixer = DeltaNet(width, heads)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


HOLDS = {"gated_delta_rule": 1, "causal_conv1d": 3}
CAUSAL = True
LENGTHS = (1, 2, 19, 37)
EXPORT = {"lengths": (7, 11)}


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return DeltaNetBlock(width=12, heads=3).eval(), (torch.randn(2, 7, 12),), {}, {"x": {0: "B", 1: "L"}}
