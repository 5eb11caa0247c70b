"""Graph Mamba Networks (Behrouz and Hashemi, 2024, arXiv 2402.08678, section 4, algorithm 1).

A node's sequence is its neighbourhoods, from far to near: for every distance m of M, ..., 1, the nodes that random walks of
that length visit, s samples of them; the node itself comes last. A selective scan in both directions reads the sequence,
with the nodes as its batch, and the state at the node itself is what it knows of its surroundings::

    token = mean of the visited nodes' features, encoded        s M + 1 tokens per node
    y     = Mamba(tokens) + flip(Mamba(flip(tokens)))           at the last token
    x     = y + messages from the neighbours                    a mean over the edges

The walks are sampled beforehand: ``visited`` holds node numbers, filled up with -1. Edges are pairs of node numbers.
"""

from __future__ import annotations

import torch
from mamba import MambaBlock
from torch import Tensor, nn


class Neighbourhoods(nn.Module):
    """Features x [V, D] and visited nodes [V, T, K] to tokens [V, T + 1, D], the node itself last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor, visited: Tensor) -> Tensor:
        present = (visited >= 0).to(x.dtype)[..., None]
        features = x[visited.clamp(min=0)] * present
        tokens = self.encode(features.sum(2) / present.sum(2).clamp(min=1.0))
        return torch.cat([tokens, x[:, None]], dim=1)


class Messages(nn.Module):
    """The mean of what the neighbours send, over edges [2, E] of source and target."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.send = nn.Linear(width, width)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        total = torch.zeros_like(x).index_add(0, target, self.send(x)[source])
        count = torch.zeros_like(x[:, :1]).index_add(0, target, torch.ones_like(source, dtype=x.dtype)[:, None])
        return total / count.clamp(min=1.0)


class GraphMamba(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.tokens, self.messages = Neighbourhoods(width), Messages(width)
        self.norm = nn.LayerNorm(width)
        self.forth, self.back = MambaBlock(width), MambaBlock(width)

    def forward(self, x: Tensor, visited: Tensor, edges: Tensor) -> Tensor:
        tokens = self.norm(self.tokens(x, visited))
        y = self.forth(tokens) + self.back(tokens.flip(1)).flip(1)
        return x + y[:, -1] + self.messages(x, edges)


HOLDS = {"selective_scan": 2, "causal_conv1d": 2, "scan": 0}
CAUSAL = False
LENGTHS = ({"V": 10, "E": 1}, {"V": 17, "E": 40})
TOKENS = 7


def build() -> tuple[nn.Module, tuple[Tensor, ...], dict, dict]:
    torch.manual_seed(0)
    nodes = 10
    visited = torch.randint(-1, nodes, (nodes, 6, 4))
    edges = torch.randint(0, nodes, (2, 21))
    shapes = {"x": {0: "V"}, "visited": {0: "V"}, "edges": {1: "E"}}
    return GraphMamba().eval(), (torch.randn(nodes, 12), visited, edges), {}, shapes
