"""EfficientVMamba: Pei, Huang and Xu, 2024, arXiv 2403.09977, section 3.2 (ES2D) and figure 3.

The atrous scan skips: with a step of 2 the grid falls into four sub-grids, each is scanned once, two along rows and two
along columns, and the results are interleaved again. Every token is visited once instead of four times:

    O_1 = x[0::2, 0::2], O_2 = x'[0::2, 1::2]', O_3 = x[0::2, 1::2], O_4 = x'[1::2, 1::2]'       x': axes exchanged
    y   = interleave(S6_1(O_1), ..., S6_4(O_4))

with projections, A and D of their own per sub-grid. Odd extents are padded with a row or column of zeros, which is cut off
again. The block adds a local branch (depthwise convolution) and weighs channels of both (squeeze and excitation).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"selective_scan": 1}
CAUSAL = False
LENGTHS: tuple[int, ...] = ()
TOKENS = 35


def skip(x: Tensor) -> Tensor:
    """The four sub-grids of [B, D, H, W], H and W even, as sequences [B, 4, D, H*W/4]."""
    turned = x.transpose(2, 3)
    parts = (x[:, :, ::2, ::2], turned[:, :, ::2, 1::2], x[:, :, ::2, 1::2], turned[:, :, 1::2, 1::2])
    return torch.stack([part.flatten(2) for part in parts], dim=1)


def interleave(ys: Tensor, height: int, width: int) -> Tensor:
    """Back on the grid: [B, 4, D, H*W/4] to [B, D, H, W]."""
    y = ys.new_zeros(ys.shape[0], ys.shape[2], height, width)
    h, w = height // 2, width // 2
    y[:, :, ::2, ::2] = ys[:, 0].unflatten(2, (h, w))
    y[:, :, 1::2, ::2] = ys[:, 1].unflatten(2, (w, h)).transpose(2, 3)
    y[:, :, ::2, 1::2] = ys[:, 2].unflatten(2, (h, w))
    y[:, :, 1::2, 1::2] = ys[:, 3].unflatten(2, (w, h)).transpose(2, 3)
    return y


class ES2D(nn.Module):
    """[B, D, H, W] to [B, D, H, W]."""

    def __init__(self, channels: int, states: int, rank: int, parts: int = 4) -> None:
        super().__init__()
        self.states, self.rank = states, rank
        self.x_proj = nn.Parameter(torch.randn(parts, rank + 2 * states, channels) * channels**-0.5)
        self.dt_proj = nn.Parameter(torch.randn(parts, channels, rank) * rank**-0.5)
        self.dt_bias = nn.Parameter(torch.randn(parts, channels) - 3)
        self.a_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(parts, channels, 1))
        self.d = nn.Parameter(torch.ones(parts, channels))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = F.pad(x, (0, width % 2, 0, height % 2))
        xs = skip(x)
        parts = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj)
        dt, b, c = parts.split([self.rank, self.states, self.states], dim=2)
        dt = F.softplus(torch.einsum("bkrl,kdr->bkdl", dt, self.dt_proj) + self.dt_bias[:, :, None])
        y = interleave(self.scan(xs, dt, b, c), *x.shape[2:])
        return y[:, :, :height, :width]

    def scan(self, u: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """S6 per sub-grid: u, dt [B, 4, D, L], b and c [B, 4, N, L]."""
        decay = torch.exp(torch.einsum("bkdl,kdn->bkdln", dt, -torch.exp(self.a_log)))
        inflow = torch.einsum("bkdl,bknl,bkdl->bkdln", dt, b, u)
        h, ys = torch.zeros_like(decay[:, :, :, 0]), []
        for t in range(u.shape[3]):
            h = decay[:, :, :, t] * h + inflow[:, :, :, t]
            ys.append(torch.einsum("bkdn,bkn->bkd", h, c[..., t]))
        return torch.stack(ys, dim=3) + self.d[:, :, None] * u


class Block(nn.Module):
    """The efficient visual state space block: [B, H, W, M] to [B, H, W, M]."""

    def __init__(self, width: int, states: int, expand: int = 2) -> None:
        super().__init__()
        channels = expand * width
        self.norm = nn.LayerNorm(width)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.scan = ES2D(channels, states, -(-width // 16))
        self.scan_norm = nn.LayerNorm(channels)
        self.out_proj = nn.Linear(channels, width, bias=False)
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.squeeze, self.excite = nn.Linear(width, width // 4), nn.Linear(width // 4, width)

    def weighed(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean(dim=(1, 2), keepdim=True)))))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        u, z = self.in_proj(normed).chunk(2, dim=-1)
        y = self.scan(F.silu(self.conv(u.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
        y = self.out_proj(self.scan_norm(y) * F.silu(z))
        return x + self.weighed(y) + self.weighed(self.local(normed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class EfficientVMamba(nn.Module):
    """Image [B, 3, H, W] to logits [B, classes]."""

    def __init__(self, width: int, states: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.block = Block(width, states)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.block(self.embed(image).permute(0, 2, 3, 1)).mean(dim=(1, 2)))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example image: a grid of 7 x 5 tokens, both odd."""
    torch.manual_seed(0)
    model = EfficientVMamba(width=24, states=4, classes=10).eval()
    return model, (torch.randn(2, 3, 28, 20),), {}, {"image": {0: "B"}}
