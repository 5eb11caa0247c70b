"""Language models of one convolution or one attention whose tokens are bytes: enough for prefill, step and text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coilc.codegen.compile import compile
from coilc.ir import Module, parse_graph

PROGRAM = """
def main(input_ids: i64[B, L], *, B: dim[1:4], L: dim[1:64]):
    table: f32[{V}, 8] = weight(name="table", type=f32[{V}, 8])
    taps: f32[3, 8] = weight(name="taps", type=f32[3, 8])
    v0: f32[B, L, 8] = take(table, input_ids, axis=0)
    v1, v2 = causal_conv1d(v0, taps, optional=(), activation="silu")
    v3: f32[B, L, {V}] = linear(v1, table)
    return {{"logits": v3}}
"""


ATTENTION = """
def main(input_ids: i64[B, L], *, B: dim[1:4], L: dim[1:64]):
    table: f32[{V}, 8] = weight(name="table", type=f32[{V}, 8])
    v0: f32[B, L, 8] = take(table, input_ids, axis=0)
    v1: f32[B, 1, L, 8] = reshape(v0, dims=(B, 1, L, 8))
    v2: f32[B, 1, L, 8] = attention(v1, v1, v1, causal=True)
    v3: f32[B, L, 8] = reshape(v2, dims=(B, L, 8))
    v4: f32[B, L, {V}] = linear(v3, table)
    return {{"logits": v4}}
"""


def build(path: Path, size: int = 256, tokenizer: Path | None = None, program: str = PROGRAM) -> Path:
    """Compile it with ``size`` tokens; its texts run through all of them, never twice the same way."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((n, 8), dtype=np.float32) for name, n in (("table", size), ("taps", 3))}
    graph = parse_graph(program.format(V=size))
    used = {n.attrs["name"] for n in graph.nodes if n.op.name == "weight"}
    module = Module({"main": graph}, {name: array for name, array in weights.items() if name in used})
    return compile(module, path, entries=("main", "prefill", "step"), tokenizer=tokenizer)
