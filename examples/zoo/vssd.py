"""VSSD: non-causal state-space duality for vision (Shi, Dong, Li, Xu, 2024, arXiv 2407.18559, section 3.2, equation 9).

State-space duality in which a token's weight does not depend on how far away the reader is. The decay between tokens is
dropped, its own step size is what is left of it, and so all tokens share one state::

    H   = sum over t of B_t (x) (dt_t A x_t)          [N, P] per head
    y_t = C_t H + D x_t

Nothing is left of the recurrence: two matrix products, linear in the number of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class NonCausalSSD(nn.Module):
    """The mixer over a grid of tokens [B, H, W, C]: projection, 3 x 3 depthwise convolution, shared state, gate."""

    def __init__(self, width: int, heads: int, state: int, expand: int = 2) -> None:
        super().__init__()
        self.inner = expand * width
        self.heads, self.state = heads, state
        mixed = self.inner + 2 * state
        self.in_proj = nn.Linear(width, self.inner + mixed + heads, bias=False)
        self.conv = nn.Conv2d(mixed, mixed, 3, padding=1, groups=mixed)
        self.dt_bias = nn.Parameter(torch.linspace(-3.0, 0.0, heads))
        self.A_log = nn.Parameter(torch.linspace(0.0, 2.0, heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.LayerNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        z, xbc, dt = self.in_proj(x).split([self.inner, self.inner + 2 * self.state, self.heads], dim=-1)
        xbc = functional.silu(self.conv(xbc.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)
        v, b, c = xbc.split([self.inner, self.state, self.state], dim=-1)
        dt = functional.softplus(dt.reshape(batch, height * width, self.heads) + self.dt_bias)
        y = self.share(v.reshape(batch, height * width, self.heads, -1), dt, b, c)
        y = self.norm(y.reshape(batch, height, width, self.inner)) * z
        return self.out_proj(y)

    def share(self, v: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """One state for all tokens: v [B, L, H, P], dt [B, L, H], b and c [B, L, N]."""
        weighted = v * (dt * torch.exp(self.A_log))[..., None]
        state = b.transpose(1, 2)[:, None] @ weighted.transpose(1, 2)  # [B, H, N, P]
        y = c[:, None] @ state  # [B, H, L, P]
        return y.transpose(1, 2) + self.D[:, None] * v


class VSSDBlock(nn.Module):
    """Convolutional position encoding, mixer, and feed-forward network, each with a residual."""

    def __init__(self, width: int, heads: int, state: int) -> None:
        super().__init__()
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = NonCausalSSD(width, heads, state)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


HOLDS = {"matmul": 2, "conv": 2}
CAUSAL = False
LENGTHS = ({"H": 1, "W": 1}, {"H": 5, "W": 9})


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return (
        VSSDBlock(width=12, heads=3, state=6).eval(),
        (torch.randn(2, 4, 6, 12),),
        {},
        {"x": {0: "B", 1: "H", 2: "W"}},
    )
