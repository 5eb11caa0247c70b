"""MSVMamba: Shi, Dong, Li and Xu, "Multi-Scale VMamba", 2024, arXiv 2405.14174, section 3.3 (MS2D).

One route runs at full resolution, the other three on a map of half the resolution, where they are one sequence: rows
backwards, columns, columns backwards, one after the other, with one set of weights, and the state is carried over the
joins. Their outputs go back in place, are summed, enlarged, and added:

    x_1 = dwconv(x), stride 1;   x_2 = dwconv(x), stride 2
    y   = S6_1(rows of x_1) + upsample(sum over o of back_o(S6_2(concat over o of o(x_2))))
    out = W (norm(y) * silu(z))
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"linear_scan": 2}  # one state per channel: nothing is contracted
CAUSAL = False
LENGTHS: tuple[int, ...] = ()
TOKENS = 24


class Scan(nn.Module):
    """Projections and recurrence over [B, L, D], with a state of size 1."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.x_proj = nn.Linear(channels, rank + 2, bias=False)
        self.dt_proj = nn.Linear(rank, channels)
        self.a_log = nn.Parameter(0.1 * torch.randn(channels))
        self.d = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        dt, b, c = self.x_proj(x).split([self.rank, 1, 1], dim=2)
        dt = F.softplus(self.dt_proj(dt))
        a, h, ys = -torch.exp(self.a_log), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.exp(dt[:, t] * a) * h + dt[:, t] * b[:, t] * x[:, t]
            ys.append(c[:, t] * h)
        return torch.stack(ys, dim=1) + self.d * x


class MS2D(nn.Module):
    """[B, H, W, M] to [B, H, W, M]."""

    def __init__(self, width: int, expand: int = 2) -> None:
        super().__init__()
        channels = expand * width
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.fine = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.coarse = nn.Conv2d(channels, channels, 7, stride=2, padding=3, groups=channels)
        self.fine_scan, self.coarse_scan = Scan(channels, -(-width // 16)), Scan(channels, -(-width // 16))
        self.norm = nn.LayerNorm(channels)
        self.out_proj = nn.Linear(channels, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        x = x.permute(0, 3, 1, 2)
        fine, coarse = F.silu(self.fine(x)), F.silu(self.coarse(x))
        y = self.fine_scan(fine.flatten(2).transpose(1, 2)).unflatten(1, x.shape[2:])
        y = y + F.interpolate(self.three_routes(coarse), size=x.shape[2:], mode="bilinear").permute(0, 2, 3, 1)
        return self.out_proj(self.norm(y) * F.silu(z))

    def three_routes(self, x: Tensor) -> Tensor:
        """[B, D, h, w] to [B, D, h, w] by three routes in one sequence of 3 h w tokens."""
        height, width = x.shape[2:]
        rows, columns = x.flatten(2), x.transpose(2, 3).flatten(2)
        sequence = torch.cat([rows.flip(-1), columns, columns.flip(-1)], dim=-1)
        ys = self.coarse_scan(sequence.transpose(1, 2)).transpose(1, 2)
        back, along, along_back = ys.chunk(3, dim=-1)
        columns = (along + along_back.flip(-1)).unflatten(2, (width, height)).transpose(2, 3)
        return back.flip(-1).unflatten(2, (height, width)) + columns


class MSVMamba(nn.Module):
    """Image [B, 3, H, W] to logits [B, classes]."""

    def __init__(self, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.mixers = nn.ModuleList(MS2D(width) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).permute(0, 2, 3, 1)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x))
        return self.head(x.mean(dim=(1, 2)))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example image: a grid of 6 x 4 tokens."""
    torch.manual_seed(0)
    model = MSVMamba(width=16, depth=1, classes=10).eval()
    return model, (torch.randn(2, 3, 24, 16),), {}, {"image": {0: "B"}}
