"""MambaMixer in its vision form ViM2 (Behrouz, Santacatterina, Zabih, 2024, arXiv 2403.19888, sections 3.1 and 3.3).

Selection along both axes of the data. A token mixer runs the S6 recurrence along the tokens of a grid, in four orders; a
channel mixer runs it along the *channels*, in both directions, with the tokens as its features::

    tokens    y_T = sum of S6 over the rows, the columns, and both backwards
    channels  y_C = S6(x^T) + flip(S6(flip(x^T)))

Layers are connected by learned averages of all that came before, a number per earlier output (equations 9 to 12)::

    x_T = sum_i alpha_i y_T^i + sum_i beta_i y_C^i      what the token mixer of this layer sees
    x_C = sum_i theta_i y_T^i + sum_i gamma_i y_C^i     what the channel mixer sees, this layer's y_T included
"""

from __future__ import annotations

import torch
from mamba import SelectiveSSM
from torch import Tensor, nn
from torch.nn import functional


class TokenMixer(nn.Module):
    """A gated block around the recurrence in four orders, over [B, H, W, C]."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 2 * width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.scans = nn.ModuleList(SelectiveSSM(width, state) for _ in range(4))
        self.norm, self.out_proj = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = functional.silu(self.conv(u.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        by_row, by_column = u.flatten(1, 2), u.transpose(1, 2).flatten(1, 2)
        rows = self.scans[0](by_row) + self.scans[1](by_row.flip(1)).flip(1)
        columns = self.scans[2](by_column) + self.scans[3](by_column.flip(1)).flip(1)
        columns = columns.unflatten(1, (x.shape[2], x.shape[1])).transpose(1, 2)
        y = rows.reshape(x.shape) + columns
        return self.out_proj(self.norm(y) * functional.silu(z))


class ChannelMixer(nn.Module):
    """The recurrence along the channels of [B, H, W, C], in both directions; the tokens are its features."""

    def __init__(self, tokens: int, state: int) -> None:
        super().__init__()
        self.forth, self.back = SelectiveSSM(tokens, state), SelectiveSSM(tokens, state)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.flatten(1, 2).transpose(1, 2)  # [B, C, tokens]
        y = self.forth(channels) + self.back(channels.flip(1)).flip(1)
        return y.transpose(1, 2).reshape(x.shape)


class ViM2(nn.Module):
    def __init__(self, grid: tuple[int, int], width: int, depth: int = 2, state: int = 4) -> None:
        super().__init__()
        tokens = grid[0] * grid[1]
        self.token_mixers = nn.ModuleList(TokenMixer(width, state) for _ in range(depth))
        self.channel_mixers = nn.ModuleList(ChannelMixer(tokens, state) for _ in range(depth))
        self.token_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.channel_norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.to_tokens = nn.Parameter(torch.rand(depth, 2, depth))  # alpha and beta
        self.to_channels = nn.Parameter(torch.rand(depth, 2, depth + 1))  # theta and gamma

    def forward(self, x: Tensor) -> Tensor:
        by_tokens, by_channels = [x], [x]
        for i, mixers in enumerate(zip(self.token_norms, self.token_mixers, self.channel_norms, self.channel_mixers)):
            token_norm, token_mixer, channel_norm, channel_mixer = mixers
            seen = self.average(self.to_tokens[i], by_tokens, by_channels)
            by_tokens.append(seen + token_mixer(token_norm(seen)))
            seen = self.average(self.to_channels[i], by_tokens, by_channels)
            by_channels.append(seen + channel_mixer(channel_norm(seen)))
        return by_channels[-1]

    @staticmethod
    def average(weights: Tensor, *outputs: list[Tensor]) -> Tensor:
        return sum(weight * y for row, group in zip(weights, outputs) for weight, y in zip(row, group))


HOLDS = {"selective_scan": 12, "scan": 0}  # four orders of tokens and two of channels, in two layers
CAUSAL = False
LENGTHS = ()
TOKENS = 9


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    return ViM2(grid=(3, 3), width=8).eval(), (torch.randn(2, 3, 3, 8),), {}, {"x": {0: "B"}}
