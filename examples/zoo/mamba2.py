"""Mamba-2: state-space duality, in the minimal chunked form.

Dao and Gu, "Transformers are SSMs", 2024, arXiv 2405.21060. Section 5, equation 16 with a scalar decay per head:

    S_t = exp(dt_t A) S_(t-1) + dt_t x_t (x) B_t        y_t = S_t C_t + D x_t

Section 6 and Listing 1 compute it in chunks: attention inside a chunk under the mask L[i, j] = exp(a_(j+1) + ... + a_i),
one state per chunk, a recurrence over the states written as one more masked product, and what the states add to each
chunk. Section 7 has the block: one projection for z, x, B, C and dt, a short convolution, a gated norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"gated_linear_attention": 1, "causal_conv1d": 1}
CAUSAL = True
LENGTHS = ({"C": 1}, {"C": 2}, {"C": 7})


def segment_sum(a: Tensor) -> Tensor:
    """[..., T] to [..., T, T]: a_(j+1) + ... + a_i for i >= j, and -inf above the diagonal."""
    length = a.shape[-1]
    a = a[..., None].expand(*a.shape, length)
    below = torch.tril(torch.ones(length, length, dtype=torch.bool), diagonal=-1)
    sums = torch.cumsum(a.masked_fill(~below, 0), dim=-2)
    return sums.masked_fill(~torch.tril(torch.ones(length, length, dtype=torch.bool)), -torch.inf)


def ssd(x: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk: int) -> Tensor:
    """x [B, L, H, P], a [B, L, H], b and c [B, L, H, N]; L is a multiple of the chunk."""
    x, a, b, c = (m.unflatten(1, (-1, chunk)) for m in (x, a, b, c))
    a = a.permute(0, 3, 1, 2)  # [B, H, chunks, chunk]
    sums = torch.cumsum(a, dim=-1)
    inside = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", c, b, torch.exp(segment_sum(a)), x)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", b, torch.exp(sums[..., -1:] - sums), x)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
    between = torch.exp(segment_sum(F.pad(sums[..., -1], (1, 0))))
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    return (inside + torch.einsum("bclhn,bchpn,bhcl->bclhp", c, states, torch.exp(sums))).flatten(1, 2)


class Mamba2(nn.Module):
    """The block of Figure 6, with one group."""

    def __init__(self, size: int, heads: int, head: int, state: int, chunk: int) -> None:
        super().__init__()
        self.heads, self.inner, self.state, self.chunk = heads, heads * head, state, chunk
        self.into = nn.Linear(size, 2 * self.inner + 2 * state + heads, bias=False)
        self.conv = nn.Conv1d(
            self.inner + 2 * state, self.inner + 2 * state, 4, groups=self.inner + 2 * state, padding=3
        )
        self.dt_bias = nn.Parameter(torch.linspace(-4.0, -1.0, heads))
        self.a_log = nn.Parameter(torch.arange(1, heads + 1).float().log())
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        self.out = nn.Linear(self.inner, size, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        sizes = [self.inner, self.inner + 2 * self.state, self.heads]
        z, xbc, dt = self.into(u).split(sizes, dim=-1)
        xbc = F.silu(self.conv(xbc.mT)[..., : u.shape[1]].mT)
        x, b, c = xbc.split([self.inner, self.state, self.state], dim=-1)
        x = x.unflatten(-1, (self.heads, -1))
        dt = F.softplus(dt + self.dt_bias)
        b, c = (m[:, :, None].expand(-1, -1, self.heads, -1) for m in (b, c))
        y = ssd(x * dt[..., None], -torch.exp(self.a_log) * dt, b, c, self.chunk) + self.skip[:, None] * x
        return self.out(self.norm(y.flatten(2) * F.silu(z)))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    torch.manual_seed(0)
    model = Mamba2(size=12, heads=3, head=8, state=5, chunk=6)
    return model.eval(), (torch.randn(2, 30, 12),), {}, {"u": {0: "B", 1: "6*C"}}
