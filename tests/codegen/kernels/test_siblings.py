"""Several equal recurrences in one kernel: the numbers of each alone, and one launch for the tasks of all."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import pytest
from native_kernels import Kernels

from coilc.ir import Graph, parse_graph

from .harness import Compiled

# For each op, the operands and the lines of the i-th of several; the first two results leave the kernel.
CASES = {
    "selective_scan": (
        "x{i}: f32[B, L, 40], dt{i}: f32[B, L, 40], a{i}: f32[4, 40], b{i}: f32[B, L, 1, 4], c{i}: f32[B, L, 1, 4]",
        'y{i}, h{i} = selective_scan(x{i}, dt{i}, a{i}, b{i}, c{i}, optional=(), softplus=True)',
        "f32[B, L, 40]",
    ),
    "causal_conv1d": (
        "x{i}: f32[B, L, 40], w{i}: f32[4, 40]",
        'y{i}, h{i} = causal_conv1d(x{i}, w{i}, optional=(), activation="silu")',
        "f32[B, L, 40]",
    ),
    "linear_scan": (
        "a{i}: f32[B, L, 40], b{i}: f32[B, L, 40], h0{i}: f32[B, 40]",
        "y{i}, h{i} = linear_scan(a{i}, b{i}, h0{i}, axis=1, reverse={reverse})",
        "f32[B, L, 40]",
    ),
    "gated_linear_attention": (
        "q{i}: f32[B, L, 1, 6], k{i}: f32[B, L, 1, 6], v{i}: f32[B, L, 1, 24], decay{i}: f32[B, L, 1]",
        "y{i}, h{i} = gated_linear_attention(q{i}, k{i}, v{i}, decay{i}, optional=(), scale=1.0)",
        "f32[B, L, 1, 24]",
    ),
    "gated_delta_rule": (
        "q{i}: f32[B, L, 1, 6], k{i}: f32[B, L, 1, 6], v{i}: f32[B, L, 1, 24], decay{i}: f32[B, L, 1], s{i}: f32[B, L, 1]",
        "y{i}, h{i} = gated_delta_rule(q{i}, k{i}, v{i}, decay{i}, s{i}, optional=(), scale=1.0)",
        "f32[B, L, 1, 24]",
    ),
    "scan of elements": (
        "h0{i}: f32[B, 40], x{i}: f32[B, L, 40]",
        """def step{i}(h: f32[B, 40], x: f32[B, 40]):
        v0: f32[B, 40] = mul(h, x)
        v1: f32[B, 40] = tanh(v0)
        return {{"h": v1, "y": v1}}
    h{i}, y{i} = scan(h0{i}, x{i}, body=step{i}, carries=1, sequences=1, axis=1, reverse={reverse})""",
        "f32[B, L, 40]",
    ),
    "scan with a product": (
        "h0{i}: f32[B, 24], x{i}: f32[B, L, 24], w{i}: f32[24, 24]",
        """def step{i}(h: f32[B, 24], x: f32[B, 24], w: f32[24, 24]):
        v0: f32[B, 24] = matmul(h, w)
        v1: f32[B, 24] = add(v0, x)
        v2: f32[B, 24] = tanh(v1)
        return {{"h": v2, "y": v2}}
    h{i}, y{i} = scan(h0{i}, x{i}, w{i}, body=step{i}, carries=1, sequences=1, axis=1, reverse={reverse})""",
        "f32[B, L, 24]",
    ),
}  # fmt: skip
RANGES = {
    f"{name}{i}": bounds
    for name, bounds in {
        "a": (-1.0, -0.1),
        "decay": (-2.0, 0.0),
        "k": (-0.3, 0.3),
        "dt": (-3.0, 1.0),
        "w": (-0.2, 0.2),
    }.items()
    for i in range(3)
}
COUNTS = pytest.mark.parametrize("count", [2, 3])


@cache
def body(name: str, count: int) -> Graph:
    """Several of one op, every second one backwards where it can be; the others have epilogues. The last leaves its state."""
    operands, line, type_ = CASES[name]
    lines = [line.format(i=i, reverse=i % 2 == 1) for i in range(count)]
    lines += [f"e{i}: {type_} = neg(y{i})" for i in range(0, count, 2)]
    results = [f'"y{i}": {"y" if i % 2 else "e"}{i}' for i in range(count)] + [f'"h": h{count - 1}']
    parameters = ", ".join(operands.format(i=i) for i in range(count))
    text = "\n    ".join([f"def siblings({parameters}):", *lines, f"return {{{', '.join(results)}}}"])
    return parse_graph(text + "\n")


@cache
def kernels() -> Kernels:
    return Kernels({name: body(name, 2) for name in CASES})


@COUNTS
@pytest.mark.parametrize("name", CASES)
def test_each_computes_what_it_does_alone(name: str, count: int) -> None:
    kernel = Compiled(body(name, count))
    for batch, length in ((1, 1), (3, 1), (1, 2), (3, 7), (1, 65), (2, 131)):
        kernel.check_random(ranges=RANGES, B=batch, L=length)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("batch", "length", "expected"), [(1, 3, 0), (1, 2048, 1), (3, 2048, 1)])
def test_the_tasks_of_all_are_one_launch(name: str, batch: int, length: int, expected: int) -> None:
    launches = ctypes.c_int.in_dll(kernels().library, "launches")
    before = launches.value
    shapes = [v.type.substitute({"B": batch, "L": length}).dims for v in kernels().bodies[name].inputs]
    kernels().run(name, *(np.zeros(shape, np.float32) for shape in shapes))  # type: ignore[arg-type]
    assert launches.value - before == expected
