"""PlainMamba: Yang, Chen, Espinosa, Ericsson, Wang, Liu and Crowley, 2024, arXiv 2403.17695, sections 3.2 and 3.3.

Four continuous (snake) routes visit the grid, so that consecutive tokens are neighbours: by rows from either end, by
columns from either end. The update is direction-aware: B of a step gets a vector for where the step comes from,

    h_t = exp(dt_t A) h_(t-1) + dt_t (B_t + Theta[d_t]) x_t;   y_t = C_t h_t + D x_t,

with d_t in {start, right, left, up, down}. As in the authors' code, the routes permute x alone: dt, B and C stay in raster
order, and one set of weights serves all routes. Outputs go back in place, are summed and gated by silu(z).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"selective_scan": 1, "scan": 0}  # the sum over routes is no loop
CAUSAL = False
LENGTHS: tuple[int, ...] = ()
TOKENS = 30

START, RIGHT, LEFT, UP, DOWN = range(5)


def snake(height: int, width: int) -> tuple[list[int], list[int]]:
    """Raster indices row by row, every second row backwards, and the direction of each step."""
    order, steps = [], []
    for i in range(height):
        columns = range(width) if i % 2 == 0 else range(width - 1, -1, -1)
        order += [i * width + j for j in columns]
        steps += [DOWN, *[RIGHT if i % 2 == 0 else LEFT] * (width - 1)]
    return order, [START, *steps[1:]]


def routes(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Orders and directions of the four routes, [4, L] each."""
    rows, along_rows = snake(height, width)
    columns, along_columns = snake(width, height)
    columns = [(i % height) * width + i // height for i in columns]
    turned = {START: START, RIGHT: DOWN, LEFT: UP, DOWN: RIGHT, UP: LEFT}
    along_columns = [turned[step] for step in along_columns]
    back = {START: START, RIGHT: LEFT, LEFT: RIGHT, DOWN: UP, UP: DOWN}
    orders = [rows, rows[::-1], columns, columns[::-1]]
    steps = [along_rows, [START, *(back[s] for s in along_rows[:0:-1])]]
    steps += [along_columns, [START, *(back[s] for s in along_columns[:0:-1])]]
    return torch.tensor(orders), torch.tensor(steps)


class Mixer(nn.Module):
    """[B, H, W, M] to [B, H, W, M]."""

    def __init__(self, width: int, states: int, grid: tuple[int, int], expand: int = 2) -> None:
        super().__init__()
        channels, self.states, self.rank = expand * width, states, -(-width // 16)
        self.in_proj = nn.Linear(width, 2 * channels, bias=False)
        self.conv = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.x_proj = nn.Linear(channels, self.rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.rank, channels)
        self.a_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(channels, 1))
        self.d = nn.Parameter(torch.ones(channels))
        self.theta = nn.Parameter(0.1 * torch.randn(5, states))
        self.out_proj = nn.Linear(channels, width, bias=False)
        orders, steps = routes(*grid)
        self.register_buffer("orders", orders)
        self.register_buffer("inverses", orders.argsort(1))
        self.register_buffer("steps", steps)

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2))).flatten(2).transpose(1, 2)
        dt, b, c = self.x_proj(x).split([self.rank, self.states, self.states], dim=2)
        dt = F.softplus(self.dt_proj(dt))
        xs = torch.stack([x[:, order] for order in self.orders], dim=1)
        b = b[:, None] + self.theta[self.steps]
        ys = self.scan(xs, dt, b, c)
        y = sum(ys[:, k, inverse] for k, inverse in enumerate(self.inverses))
        return self.out_proj(y.unflatten(1, z.shape[1:3]) * F.silu(z))

    def scan(self, xs: Tensor, dt: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """The recurrence for each route: xs [B, 4, L, D], dt [B, L, D], b [B, 4, L, N], c [B, L, N]."""
        decay = torch.exp(torch.einsum("bld,dn->bldn", dt, -torch.exp(self.a_log)))
        inflow = torch.einsum("bld,bkln,bkld->bkldn", dt, b, xs)
        h, ys = torch.zeros_like(inflow[:, :, 0]), []
        for t in range(xs.shape[2]):
            h = decay[:, None, t] * h + inflow[:, :, t]
            ys.append(torch.einsum("bkdn,bn->bkd", h, c[:, t]))
        return torch.stack(ys, dim=2) + self.d * xs


class PlainMamba(nn.Module):
    """Image [B, 3, H, W] to logits [B, classes]."""

    def __init__(self, width: int, states: int, grid: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = Mixer(width, states, grid)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).permute(0, 2, 3, 1)
        x = x + self.mixer(self.norm1(x))
        return self.head(self.norm2(x).mean(dim=(1, 2)))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and an example image: a grid of 6 x 5 tokens."""
    torch.manual_seed(0)
    model = PlainMamba(width=24, states=4, grid=(6, 5), classes=10).eval()
    return model, (torch.randn(2, 3, 24, 20),), {}, {"image": {0: "B"}}
