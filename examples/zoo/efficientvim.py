"""EfficientViM: vision Mamba that mixes channels inside a hidden state (Lee, Choi, Kim, 2024, arXiv 2411.15241).

The hidden-state mixer (HSM-SSD, section 3.2): state-space duality without causality has one state for all L tokens, so
the costly projections and the gate move from the tokens to the N columns of the state, N being much smaller than L::

    B, C, dt = dwconv3x3(W x)                 each [N, L]
    A        = softmax over L of (dt + a)     weight of each token in each column
    h        = x (A * B)^T                    [D, N]
    h', z    = W_hz h
    h        = W_o (h' * silu(z) + D h')
    y        = h C                            [D, L]

Around it (section 3.4): depthwise convolutions and a feed-forward network, each blended in by a learned factor per channel,
``x = (1 - s) x + s f(x)`` with ``s = sigmoid(alpha)``; the states of all stages feed the classifier (section 3.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class HiddenStateMixer(nn.Module):
    """x [B, D, H, W] to y of the same shape, and the hidden state [B, D, N]."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.state = state
        self.bc_dt_proj = nn.Conv1d(width, 3 * state, 1, bias=False)
        self.conv = nn.Conv2d(3 * state, 3 * state, 3, padding=1, groups=3 * state, bias=False)
        self.a = nn.Parameter(torch.linspace(1.0, 16.0, state))
        self.hz_proj = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.out_proj = nn.Conv1d(width, width, 1, bias=False)
        self.D = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, width, rows, columns = x.shape
        x = x.flatten(2)  # [B, D, L]
        mixed = self.conv(self.bc_dt_proj(x).reshape(batch, 3 * self.state, rows, columns))
        b, c, dt = mixed.flatten(2).split(self.state, dim=1)
        a = (dt + self.a[:, None]).softmax(-1)
        h = x @ (a * b).transpose(-2, -1)
        h, z = self.hz_proj(h).chunk(2, dim=1)
        h = self.out_proj(h * functional.silu(z) + h * self.D)
        return (h @ c).reshape(batch, width, rows, columns), h


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of [B, D, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(1, keepdim=True) + 1e-5)
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


class Block(nn.Module):
    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (self.depthwise(width) for _ in range(2))
        self.norm, self.mixer = ChannelNorm(width), HiddenStateMixer(width, state)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, 3 * width, 1, bias=False),
            nn.BatchNorm2d(3 * width),
            nn.ReLU(),
            nn.Conv2d(3 * width, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.alpha = nn.Parameter(torch.randn(4, width, 1, 1))

    @staticmethod
    def depthwise(width: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.sigmoid(self.alpha)
        x = (1 - s[0]) * x + s[0] * self.conv1(x)
        y, h = self.mixer(self.norm(x))
        x = (1 - s[1]) * x + s[1] * y
        x = (1 - s[2]) * x + s[2] * self.conv2(x)
        return (1 - s[3]) * x + s[3] * self.mlp(x), h


class EfficientViM(nn.Module):
    """Two stages of one block; logits from both hidden states and from the last features."""

    def __init__(self, widths: tuple[int, int] = (12, 20), states: tuple[int, int] = (9, 5), classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, stride=2, padding=1)
        self.down = nn.Conv2d(widths[0], widths[1], 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(d, n) for d, n in zip(widths, states))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for d in (*widths, widths[1]))
        self.heads = nn.ModuleList(nn.Linear(d, classes) for d in (*widths, widths[1]))
        self.mix = nn.Parameter(torch.zeros(3))

    def forward(self, image: Tensor) -> Tensor:
        x, first = self.blocks[0](self.stem(image))
        x, second = self.blocks[1](self.down(x))
        pooled = (first.mean(-1), second.mean(-1), x.mean((2, 3)))
        weights = self.mix.softmax(0)
        return sum(w * head(norm(p)) for w, head, norm, p in zip(weights, self.heads, self.norms, pooled))


HOLDS = {"matmul": 4, "softmax": 2, "batch_norm": 0}  # in each stage one product into the state, one out of it
CAUSAL = False
LENGTHS = ({"H": 1, "W": 1}, {"H": 13, "W": 6})


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return EfficientViM().eval(), (torch.randn(2, 3, 16, 24),), {}, {"image": {0: "B", 2: "H", 3: "W"}}
