"""Recurrences in chunks, compiled: lengths around a chunk, and what the artifact says about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import coilc
from coilc.ir import dims as d
from coilc.ir import interpret, parse_graph
from coilc.runtime.artifact import read_manifest

FORMS = {
    "chunked": """def main(
    q: f32[2, L, 1, 16], k: f32[2, L, 1, 16], v: f32[2, L, 3, 8], g: f32[2, L, 3], h: f32[2, 3, 16, 8], *, L: dim[1:]
):
    y, last = gated_linear_attention(q, k, v, g, h, optional=("h0",), scale=0.5)
    return {"y": y, "last": last}
""",
    "associative": """def main(
    x: f32[2, L, 10], dt: f32[2, L, 10], g: f32[4, 10], b: f32[2, L, 1, 4], c: f32[2, L, 1, 4], z: f32[2, L, 10],
    mask: bool[2, L], h: f32[2, 10], *, L: dim[1:]
):
    y, last = selective_scan(x, dt, g, b, c, z, mask, optional=("z", "mask"), softplus=True)
    decay = sigmoid(y)
    back, _ = linear_scan(decay, x, h, axis=1, reverse=True)
    return {"y": back, "last": last}
""",
}


@pytest.mark.parametrize("algorithm", FORMS)
def test_chunks_at_any_length(algorithm: str, tmp_path: Path) -> None:
    graph = parse_graph(FORMS[algorithm])
    module = coilc.Module({"main": graph}, {})
    path = coilc.compile(module, tmp_path / "x.coil", algorithm=algorithm)
    session, rng = coilc.load(path), np.random.default_rng(0)
    for length in (1, 2, 15, 16, 17, 130):
        arrays = {}
        for value in graph.inputs:
            numbers = rng.standard_normal([d.evaluate(dim, {"L": length}) for dim in value.dims])
            name = value.node.attrs["name"]
            arrays[name] = (-np.abs(numbers) if name == "g" else numbers).astype(np.float32)
            if value.type.dtype.kind == "bool":
                arrays[name] = numbers > 0
        expected, found = interpret(module, arrays, wide=True), session(**arrays)
        for name, wanted in expected.items():
            scale = max(1.0, float(np.abs(wanted).max()))
            np.testing.assert_allclose(np.asarray(found[name]), wanted, rtol=0, atol=1e-5 * scale)
    rows = read_manifest(path)["recurrences"]
    assert {row["algorithm"] for row in rows} == {algorithm}
    assert all("asked for" in row["reason"] for row in rows)
