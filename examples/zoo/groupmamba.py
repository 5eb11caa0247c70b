"""GroupMamba: Shaker, Wasim, Khan, Gall and Khan, 2024, arXiv 2407.13772, section 3.

The channels are cut into four groups, and each group is scanned in one direction only: along rows, along columns, and
both backwards, with weights of its own and a state of size 1. The outputs are put side by side and weighed per channel by
the affinity of channels (CAM):

    x_1, ..., x_4 = split(norm(x));   y_g = VSSS_g(x_g) in direction g
    out           = x + W (concat(y_1, ..., y_4) * sigmoid(W_2 relu(W_1 mean over tokens of norm(x))))

VSSS is Mamba's layer over a grid: dwconv, silu, selective scan, norm, gate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"linear_scan": 4}  # one state per channel: nothing is contracted
CAUSAL = False
LENGTHS: tuple[int, ...] = ()
TOKENS = 30


class VSSS(nn.Module):
    """One group in one direction: [B, H, W, M] to [B, H, W, M]."""

    def __init__(self, width: int, columns: bool, backwards: bool, states: int = 1) -> None:
        super().__init__()
        self.columns, self.backwards, self.states, self.rank = columns, backwards, states, -(-width // 4)
        self.in_proj = nn.Linear(width, 2 * width, bias=False)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.x_proj = nn.Linear(width, self.rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.rank, width)
        self.a_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(width, 1))
        self.d = nn.Parameter(torch.ones(width))
        self.norm = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, width, bias=False)

    def sequence(self, grid: Tensor) -> Tensor:
        """[B, D, H, W] to [B, L, D] in this group's direction."""
        x = (grid.transpose(2, 3) if self.columns else grid).flatten(2).transpose(1, 2)
        return x.flip(1) if self.backwards else x

    def grid(self, y: Tensor, height: int, width: int) -> Tensor:
        """Back in place: [B, L, D] to [B, H, W, D]."""
        y = y.flip(1) if self.backwards else y
        return y.unflatten(1, (width, height)).transpose(1, 2) if self.columns else y.unflatten(1, (height, width))

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = self.sequence(F.silu(self.conv(x.permute(0, 3, 1, 2))))
        dt, b, c = self.x_proj(x).split([self.rank, self.states, self.states], dim=2)
        dt = F.softplus(self.dt_proj(dt))
        a, h, ys = -torch.exp(self.a_log), x.new_zeros(x.shape[0], x.shape[2], self.states), []
        for t in range(x.shape[1]):
            decay = torch.exp(dt[:, t, :, None] * a)
            h = decay * h + (dt[:, t] * x[:, t])[:, :, None] * b[:, t, None]
            ys.append((h * c[:, t, None]).sum(dim=2))
        y = torch.stack(ys, dim=1) + self.d * x
        return self.out_proj(self.norm(self.grid(y, *z.shape[1:3])) * F.silu(z))


class Block(nn.Module):
    """The modulated group Mamba layer: [B, H, W, M] to [B, H, W, M]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.out_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        ways = ((False, False), (True, False), (False, True), (True, True))
        self.groups = nn.ModuleList(VSSS(width // 4, *way) for way in ways)
        self.reduce, self.expand = nn.Linear(width, width // 4), nn.Linear(width // 4, width)
        self.skip = nn.Parameter(torch.ones(width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        y = torch.cat([group(part) for group, part in zip(self.groups, normed.chunk(4, dim=-1))], dim=-1)
        affinity = torch.sigmoid(self.expand(F.relu(self.reduce(normed.mean(dim=(1, 2), keepdim=True)))))
        return x + self.out_proj(self.out_norm(y * self.skip * normed * affinity))


class GroupMamba(nn.Module):
    """Image [B, 3, H, W] to logits [B, classes]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.block = Block(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.block(self.embed(image).permute(0, 2, 3, 1)).mean(dim=(1, 2)))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example image: a grid of 6 x 5 tokens."""
    torch.manual_seed(0)
    model = GroupMamba(width=48, classes=10).eval()
    return model, (torch.randn(2, 3, 24, 20),), {}, {"image": {0: "B"}}
