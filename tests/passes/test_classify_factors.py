"""Factors of a tensor, looked for behind what only moves its elements."""

from __future__ import annotations

import numpy as np

from coilc.ir import Graph, Module, TensorType, interpret, ops
from coilc.ir.types import f32
from coilc.passes.classify_factors import factors_of, product


def test_a_slice_of_a_slice_picks_one_element() -> None:
    x = ops.input_(name="x", type=TensorType(f32, (2, 4, 6)))
    even = ops.slice(x, starts=(0, 0, 0), stops=(2, 4, 6), steps=(1, 2, 1))
    second = ops.slice(even, starts=(0, 1, 0), stops=(2, 2, 6), steps=(1, 1, 1))
    value = ops.reshape(second, dims=(2, 6))
    (factor,) = factors_of(value)
    assert all(extent == 1 for extent, axis in zip(factor.value.dims, factor.axes, strict=True) if axis is None)
    again = product([factor], [(0,), (1,)], {0: 2, 1: 6}, like=value)
    graph = Graph("main", (x,), (("value", value), ("again", again)))
    found = interpret(Module({"main": graph}), {"x": np.arange(48, dtype=np.float32).reshape(2, 4, 6)})
    np.testing.assert_array_equal(found["again"], found["value"])
