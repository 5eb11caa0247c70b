"""Kernels of anchors launch the thread pool when their work is worth it, which a symbolic extent decides at run time."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import pytest
from native_kernels import Kernels

from coilc.ir import Module, interpret, parse_graph

BODIES = {
    "linear_scan": """def k(x0: f32[L, 512], x1: f32[L, 512], x2: f32[512]):
    y, last = linear_scan(x0, x1, x2, axis=0)
    return {"y0": y, "y1": last}
""",
    "matmul": """def k(x0: f32[L, 32], x1: f32[32, 64]):
    y: f32[L, 64] = matmul(x0, x1)
    return {"y0": y}
""",
    "loop": """def k(x0: f32[L, 9, 16], x1: f32[L, 16], x2: f32[16, 16]):
    def body_0(h: f32[L, 16], x: f32[L, 16], w: f32[16, 16]):
        v0: f32[L, 16] = matmul(h, w)
        v1: f32[L, 16] = add(v0, x)
        return {"h": v1, "y": v1}
    last, y = scan(x1, x0, x2, body=body_0, carries=1, sequences=1, axis=1, reverse=False)
    return {"y0": last}
""",
    "heads": """def k(x0: f32[L, 4, 8, 64], x1: f32[4, 8, 64]):
    def body_0(h: f32[4, 8, 64], x: f32[4, 8, 64]):
        v0: f32[4, 8, 64] = add(h, x)
        v1: f32[4, 64] = sum(v0, axes=(1,), keepdims=False)
        return {"h": v0, "y": v1}
    last, y = scan(x1, x0, body=body_0, carries=1, sequences=1, axis=0, reverse=False)
    return {"y0": last, "y1": y}
""",
}


@cache
def kernels() -> Kernels:
    return Kernels({name: parse_graph(text) for name, text in BODIES.items()})


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(("length", "parallel"), [(1, False), (5, False), (1024, True)])
def test_only_large_work_goes_to_the_threads(name: str, length: int, parallel: bool) -> None:
    launches = ctypes.c_int.in_dll(kernels().library, "launches")
    before = launches.value
    shapes = [v.type.substitute({"L": length}).dims for v in kernels().bodies[name].inputs]
    kernels().run(name, *(np.zeros(shape, np.float32) for shape in shapes))  # type: ignore[arg-type]
    assert (launches.value > before) == parallel


def test_tasks_with_known_dims_apart_agree_with_the_definition() -> None:
    body, rng = kernels().bodies["heads"], np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.substitute({"L": 5}).dims).astype(np.float32) for v in body.inputs]  # type: ignore[arg-type]
    expected = interpret(Module({"main": body}), dict(zip(("x0", "x1"), arrays, strict=True)))
    for found, wanted in zip(kernels().run("heads", *arrays), expected.values(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
