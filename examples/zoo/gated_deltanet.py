"""Gated DeltaNet (Yang, Kautz, Hatamizadeh, 2024, arXiv 2412.06464, equation 10).

The delta rule with Mamba-2's decay: the state can be cleared at once (alpha near 0) and changed under one key alone
(beta near 1)::

    S_t = alpha_t S_(t-1) (I - beta_t k_t k_t^T) + beta_t v_t k_t^T            [P, N] per head
    o_t = S_t q_t,    alpha_t = exp(-exp(A) softplus(a_t + bias))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class GatedDeltaNet(nn.Module):
    """The token mixer: [B, L, width] to the same."""

    def __init__(self, width: int, heads: int, key_size: int, value_size: int, taps: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.sizes = [heads * key_size, heads * key_size, heads * value_size]
        mixed = sum(self.sizes)
        self.to_qkv = nn.Linear(width, mixed, bias=False)
        self.conv = nn.Conv1d(mixed, mixed, taps, padding=taps - 1, groups=mixed, bias=False)
        self.to_alpha, self.to_beta = nn.Linear(width, heads, bias=False), nn.Linear(width, heads, bias=False)
        self.A_log = nn.Parameter(torch.linspace(0.0, 2.0, heads))
        self.dt_bias = nn.Parameter(torch.linspace(-3.0, 0.0, heads))
        self.to_gate = nn.Linear(width, heads * value_size, bias=False)
        self.norm = nn.RMSNorm(value_size)
        self.to_out = nn.Linear(heads * value_size, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.conv(self.to_qkv(x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        q, k, v = (m.unflatten(-1, (self.heads, -1)) for m in functional.silu(mixed).split(self.sizes, dim=-1))
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        alpha = torch.exp(-torch.exp(self.A_log) * functional.softplus(self.to_alpha(x) + self.dt_bias))
        o = self.recur(q, k, v, alpha, torch.sigmoid(self.to_beta(x)))
        gate = self.to_gate(x).unflatten(-1, (self.heads, -1))
        return self.to_out((self.norm(o) * functional.silu(gate)).flatten(-2))

    def recur(self, q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """q, k [B, L, H, N]; v [B, L, H, P]; alpha, beta [B, L, H] to [B, L, H, P]."""
        identity = torch.eye(k.shape[3])
        state = v.new_zeros(v.shape[0], v.shape[2], v.shape[3], k.shape[3])
        outputs = []
        for t in range(q.shape[1]):
            a, b = alpha[:, t, :, None, None], beta[:, t, :, None, None]
            key, value = k[:, t, :, :, None], v[:, t, :, :, None]
            state = a * (state @ (identity - b * key @ key.transpose(-1, -2))) + b * value @ key.transpose(-1, -2)
            outputs.append((state @ q[:, t, :, :, None])[..., 0])
        return torch.stack(outputs, dim=1)


class GatedDeltaNetBlock(nn.Module):
    """Mixer and SwiGLU, each after a norm and with a residual."""

    def __init__(self, width: int, heads: int, key_size: int, value_size: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.mixer = GatedDeltaNet(width, heads, key_size, value_size)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


HOLDS = {"gated_delta_rule": 1, "causal_conv1d": 1}
CAUSAL = True
LENGTHS = (1, 2, 19, 37)
EXPORT = {"lengths": (7, 11)}


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    module = GatedDeltaNetBlock(width=12, heads=3, key_size=4, value_size=5).eval()
    return module, (torch.randn(2, 7, 12),), {}, {"x": {0: "B", 1: "L"}}
