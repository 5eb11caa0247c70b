"""TSM2, the time-series form of MambaMixer (Behrouz, Santacatterina, Zabih, 2024, arXiv 2403.19888, section 3.4).

A multivariate series, normalised per variate and cut into patches. The token mixer runs the S6 recurrence over the patches
of one variate, forwards in time; the channel mixer runs it over the *variates* of one patch, in both directions, since
variates have no order::

    tokens    [B * M, patches, D]     y = S6(x)
    variates  [B * patches, M, D]     y = S6(x) + flip(S6(flip(x)))

No attention and no network over the flattened series: a linear head on the last patch predicts the horizon.
"""

from __future__ import annotations

import torch
from mamba import MambaBlock
from torch import Tensor, nn


class Layer(nn.Module):
    """Token mixer, then variate mixer, over [B, M, patches, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.over_time = MambaBlock(width, expand=1)
        self.forth, self.back = MambaBlock(width, expand=1), MambaBlock(width, expand=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, variates, patches, width = x.shape
        tokens = self.norm1(x).reshape(batch * variates, patches, width)
        x = x + self.over_time(tokens).reshape(x.shape)
        across = self.norm2(x).transpose(1, 2).reshape(batch * patches, variates, width)
        across = self.forth(across) + self.back(across.flip(1)).flip(1)
        return x + across.reshape(batch, patches, variates, width).transpose(1, 2)


class TSM2(nn.Module):
    """A series [B, time, M] to its next values [B, horizon, M]."""

    def __init__(self, patch: int = 8, stride: int = 4, width: int = 12, depth: int = 2, horizon: int = 6) -> None:
        super().__init__()
        self.patch, self.stride = patch, stride
        self.embed = nn.Linear(patch, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(depth))
        self.head = nn.Linear(width, horizon)

    def forward(self, series: Tensor) -> Tensor:
        mean = series.mean(1, keepdim=True)
        spread = torch.sqrt(series.var(1, keepdim=True, unbiased=False) + 1e-5)
        normal = (series - mean) / spread
        x = self.embed(normal.transpose(1, 2).unfold(-1, self.patch, self.stride))  # [B, M, patches, D]
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, :, -1]).transpose(1, 2) * spread + mean


HOLDS = {"selective_scan": 6, "causal_conv1d": 6, "scan": 0}
CAUSAL = False
LENGTHS = ()
TOKENS = 36


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return TSM2().eval(), (torch.randn(2, 36, 6),), {}, {"series": {0: "B"}}
