"""SpikMamba: Chen et al., "SpikMamba: when SNN meets Mamba in event-based human action recognition", 2024, arXiv 2410.16746.

Frames of events pass through leaky integrate-and-fire neurons along time (equations 1 to 3), linear attention between the
tokens of a window, and a selective scan over all tokens, frame after frame:

    LIF        u_t = v_(t-1) + (x_t - v_(t-1)) / tau;  s_t = [u_t >= threshold];  v_t = (1 - s_t) u_t
    attention  q, k = elu(LIF(W x)) + 1;  y = rope(q) (rope(k)' x / N) / (q mean(k)' + 1e-6) + depthwise3x3(x)
    Mamba      h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t;  y_t = C_t h_t + D x_t

A neuron resets to zero where it fires, so its recurrence is neither linear nor associative.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HOLDS = {"scan": 3, "selective_scan": 1}
CAUSAL = False  # tokens of one frame see each other
ROWS = 8
LENGTHS = (1, 2, 9)
EXPORT = {"lengths": (5, 7)}


class LIF(nn.Module):
    """Spikes of neurons driven by x [B, T, ...]."""

    def __init__(self, tau: float = 2.0, threshold: float = 1.0) -> None:
        super().__init__()
        self.tau, self.threshold = tau, threshold

    def forward(self, x: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            u = v + (x[:, t] - v) / self.tau
            s = (u >= self.threshold).to(x.dtype)
            v = (1 - s) * u
            spikes.append(s)
        return torch.stack(spikes, dim=1)


class WindowAttention(nn.Module):
    """x [B, T, H, W, D] to the same; tokens of one window of one frame see each other."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.lif_q, self.lif_k = LIF(), LIF(threshold=0.5)
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        rates = 10000 ** (-torch.arange(width // 4) / (width // 4))
        rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        angles = torch.cat([rows[..., None] * rates, columns[..., None] * rates], dim=-1).flatten(0, 1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def windows(self, x: Tensor) -> Tensor:
        """[B, T, H, W, D] to [..., tokens of a window, D]."""
        batch, frames, height, width, channels = x.shape
        x = x.view(batch, frames, height // self.window, self.window, width // self.window, self.window, channels)
        return x.transpose(3, 4).flatten(4, 5)

    def rope(self, x: Tensor) -> Tensor:
        """Turn pairs of channels by the place in the window."""
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * self.cos - b * self.sin, a * self.sin + b * self.cos], dim=-1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        q, k = F.elu(self.lif_q(self.q(x))) + 1, F.elu(self.lif_k(self.k(x))) + 1
        q, k, v = self.windows(q), self.windows(k), self.windows(x)
        scale = 1 / (q @ k.mean(dim=-2, keepdim=True).transpose(-2, -1) + 1e-6)
        y = self.rope(q) @ (self.rope(k).transpose(-2, -1) @ v / v.shape[-2]) * scale
        rows, columns, channels = y.shape[2], y.shape[3], y.shape[-1]
        y = y.unflatten(4, (self.window, self.window)).transpose(3, 4)
        y = y.reshape(x.shape[0], x.shape[1], rows * self.window, columns * self.window, channels)
        return y + self.local(x.flatten(0, 1).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class S6(nn.Module):
    """x [B, L, D] to [B, L, D]."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.states = states
        self.a_log = nn.Parameter(torch.log(torch.arange(1.0, states + 1)).repeat(width, 1))
        self.dt = nn.Linear(width, width)
        self.bc = nn.Linear(width, 2 * states, bias=False)
        self.skip = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        dt, (b, c) = F.softplus(self.dt(x)), self.bc(x).chunk(2, dim=-1)
        a, h, ys = -torch.exp(self.a_log), x.new_zeros(x.shape[0], x.shape[2], self.states), []
        for t in range(x.shape[1]):
            h = torch.exp(dt[:, t, :, None] * a) * h + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
            ys.append((h * c[:, t, None]).sum(-1))
        return torch.stack(ys, dim=1) + self.skip * x


class SpikMamba(nn.Module):
    """Events [B, T, 2, H, W] to scores of classes per frame [B, T, K]; tokens are places of 2 x 2."""

    def __init__(self, width: int, states: int, window: int, classes: int) -> None:
        super().__init__()
        self.stem, self.lif = nn.Conv2d(2, width, 3, padding=1), LIF()
        self.attention, self.scan = WindowAttention(width, window), S6(width, states)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.head = nn.Linear(width, classes)

    def forward(self, events: Tensor) -> Tensor:
        batch, frames = events.shape[:2]
        x = F.max_pool2d(self.lif(self.stem(events.flatten(0, 1)).unflatten(0, (batch, frames))).flatten(0, 1), 2)
        x = x.unflatten(0, (batch, frames)).permute(0, 1, 3, 4, 2)
        x = x + self.attention(self.norms[0](x))
        tokens = self.norms[1](x).flatten(1, 3)
        x = x + self.scan(tokens).view(x.shape)
        return self.head(x.mean(dim=(2, 3)))


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict[str, object], dict[str, object]]:
    """A small seeded model and example frames with many events."""
    torch.manual_seed(0)
    model = SpikMamba(width=8, states=3, window=2, classes=5).eval()
    with torch.no_grad():
        for layer in (model.stem, model.attention.q, model.attention.k):  # so that neurons fire
            layer.weight.mul_(4)
    return model, (torch.randn(2, 5, 2, 4, 8),), {}, {"events": {0: "B", 1: "L"}}
