"""Weights of matrix products on machines that read them along the inner dimension."""

from __future__ import annotations

import numpy as np

from coilc.ir import Module, interpret, parse_graphs, print_module
from coilc.passes.cost_model import Machine
from coilc.passes.lay_out_weights import lay_out_weights

TEXT = """\
def main(ids: i64[B], x: f32[2, B, 3], *, B: dim[1:]):
    v0: f32[5, 4] = weight(name="table", type=f32[5, 4])
    v1: f32[B, 4] = take(v0, ids, axis=0)
    v2: f32[4, 5] = weight(name="table.folded", type=f32[4, 5])
    v3: f32[B, 5] = matmul(v1, v2)
    v4: f32[2, 3, 6] = weight(name="experts", type=f32[2, 3, 6])
    v5: f32[2, B, 6] = matmul(x, v4)
    return {"scores": v3, "y": v5}
"""


def module() -> Module:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((5, 4)).astype(np.float32)
    weights = {"table": table, "table.folded": table.T, "experts": rng.standard_normal((2, 3, 6)).astype(np.float32)}
    return Module({graph.name: graph for graph in parse_graphs(TEXT)}, weights)


def test_products_read_along_the_inner_dimension_and_share_what_is_there() -> None:
    found = lay_out_weights(module(), Machine(inner_first=True))
    text = print_module(found)
    assert 'weight(name="table", type=f32[5, 4])' in text
    assert "table.folded" not in text
    assert 'weight(name="experts.inner", type=f32[2, 6, 3])' in text
    inputs = {"ids": np.array([1, 4]), "x": np.ones((2, 2, 3), np.float32)}
    for name, expected in interpret(module(), inputs).items():
        np.testing.assert_array_equal(interpret(found, inputs)[name], expected)


def test_other_machines_keep_them() -> None:
    before = module()
    assert lay_out_weights(before, Machine()) is before
