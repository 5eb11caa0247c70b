"""Fused bodies at awkward extents and in every element type, against the interpreter in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from native_kernels import Kernels

from coilc.codegen.build import build_object
from coilc.codegen.collapse import collapse_axes
from coilc.codegen.loops import PARALLEL_WORK
from coilc.codegen.lower import lower_body
from coilc.codegen.target import TARGETS
from coilc.ir import CoilError, Graph, Module, Value, interpret, ops, parse_graph
from coilc.ir.text import parse_type

# One tolerance per element type: relative to the largest magnitude of the result, and to each element.
TOLERANCE = {"f64": 1e-12, "f32": 1e-5, "f16": 4e-3, "bf16": 3e-2}
Make = Callable[..., Value | tuple[Value, ...]]


def graph(make: Make, *types: str) -> Graph:
    """A body whose composite ops are expanded."""
    inputs = tuple(ops.input_(name=f"x{i}", type=parse_type(t)) for i, t in enumerate(types))
    made = make(*inputs)
    results = made if isinstance(made, tuple) else (made,)
    body = Graph("body", inputs, tuple((f"y{i}", v) for i, v in enumerate(results)))
    while any(not node.op.is_core for node in body.nodes):
        body = _expand(body)
    return body


def _expand(body: Graph) -> Graph:
    found: dict[Value, Value] = {v: v for v in body.inputs}
    for node in body.nodes:
        if node.results[0] in found:
            continue
        operands = [found[v] for v in node.inputs]
        made = node.op.decompose(*operands, **node.attrs) if node.op.decompose else node.op(*operands, **node.attrs)
        found.update(zip(node.results, made if isinstance(made, tuple) else (made,), strict=True))
    return body.with_results([found[v] for v in body.results])


def softmax(x: Value) -> Value:
    return ops.softmax(x, axis=x.type.rank - 1)


def norm_with_gate(x: Value, y: Value, w: Value) -> tuple[Value, Value]:
    total = ops.add(x, y)
    return ops.mul(ops.rms_norm(total, w, eps=1e-5), ops.silu(y)), total


def layer_norm(x: Value, w: Value, b: Value) -> Value:
    return ops.layer_norm(x, w, b, eps=1e-5)


def gated(x: Value, y: Value) -> Value:
    return ops.mul(ops.silu(x), y)


def window(x: Value, y: Value) -> Value:
    """A shifted sum along time, through slice, concat and pad."""
    dims = x.dims
    joined = ops.concat(x, y, axis=1)
    later = ops.slice(joined, starts=(0, 2, 0), stops=(dims[0], dims[1] + 2, dims[2]), steps=(1, 1, 1))
    tail = ops.slice(x, starts=(0, 1, 0), stops=dims, steps=(1, 1, 1))
    return ops.add(later, ops.pad(tail, low=(0, 0, 0), high=(0, 1, 0), value=0.5))


def heads(x: Value) -> Value:
    b, n, d = x.dims
    return ops.transpose(ops.reshape(x, dims=(b, n, 3, d // 3)), perm=(0, 2, 1, 3))


def swapped(x: Value, y: Value) -> Value:
    return ops.add(ops.transpose(x, perm=(0, 2, 1)), y)


def masked(x: Value, keep: Value) -> Value:
    return ops.where(keep, x, ops.neg(x))


def per_channel(x: Value, w: Value) -> Value:
    scaled = ops.mul(x, ops.broadcast(ops.reshape(w, dims=(1, w.dims[0], 1)), dims=x.dims))
    return ops.sum(ops.exp(scaled), axes=(0, 2))


def column_sums(x: Value) -> Value:
    return ops.sqrt(ops.sum(ops.mul(x, x), axes=(0, 1)))


def embedding(table: Value, tokens: Value) -> Value:
    return ops.take(table, tokens, axis=0)


FLOATS = ("f32", "f16", "bf16")
BODIES: dict[str, tuple[Make, tuple[str, ...]]] = {
    **{f"softmax {t}": (softmax, (f"{t}[B, L, M]",)) for t in (*FLOATS, "f64")},
    "softmax of odd rows": (softmax, ("f32[B, L, 77]",)),
    **{f"norm {t}": (norm_with_gate, (f"{t}[B, L, 70]", f"{t}[B, L, 70]", f"{t}[70]")) for t in FLOATS},
    "layer norm": (layer_norm, ("f32[B, L, M]", "f32[M]", "f32[M]")),
    **{f"gated {t}": (gated, (f"{t}[B, L, M]", f"{t}[B, L, M]")) for t in FLOATS},
    "window": (window, ("f32[B, L, 5]", "f32[B, 2, 5]")),
    "heads": (heads, ("bf16[B, L, 48]",)),
    "swapped": (swapped, ("f32[B, L, M]", "f32[B, M, L]")),
    "masked": (masked, ("f32[B, L, M]", "bool[B, L, M]")),
    "per channel": (per_channel, ("f32[B, L, M]", "f32[L]")),
    "column sums": (column_sums, ("f32[B, L, M]",)),
    "embedding": (embedding, ("f32[M, 40]", "i64[B, L]")),
}
EXTENTS = (
    {"B": 1, "L": 1, "M": 1},
    {"B": 2, "L": 3, "M": 33},
    {"B": 3, "L": 17, "M": 258},
    {"B": 2, "L": 64, "M": 512},
)


@cache
def kernels() -> Kernels:
    return Kernels({name.replace(" ", "_"): graph(*_spread(row)) for name, row in BODIES.items()})


def _spread(row: tuple[Make, tuple[str, ...]]) -> tuple:
    return (row[0], *row[1])


def draw(body: Graph, extents: dict[str, int]) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    arrays = []
    for value in body.inputs:
        concrete = value.type.substitute(extents)
        if value.type.dtype.kind == "int":
            arrays.append(generator.integers(0, extents["M"], concrete.dims))
        elif value.type.dtype.kind == "bool":
            arrays.append(generator.integers(0, 2, concrete.dims).astype(bool))
        else:
            arrays.append(generator.uniform(-2, 2, concrete.dims).astype(value.type.dtype.numpy))
    return arrays


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("extents", EXTENTS, ids=str)
def test_fused_body(name: str, extents: dict[str, int]) -> None:
    kernel = name.replace(" ", "_")
    body = kernels().bodies[kernel]
    arrays = draw(body, extents)
    expected = interpret(Module({"main": body}), {f"x{i}": a for i, a in enumerate(arrays)}, wide=True)
    for actual, wanted, value in zip(kernels().run(kernel, *arrays), expected.values(), body.results, strict=True):
        tolerance = TOLERANCE[value.type.dtype.name]
        scale = float(np.abs(wanted).max())
        np.testing.assert_allclose(actual.astype(np.float64), wanted, rtol=tolerance, atol=tolerance * min(scale, 1.0))


@pytest.mark.parametrize(("length", "parallel"), [(1, False), (PARALLEL_WORK // 512 - 1, False), (2048, True)])
def test_only_large_work_goes_to_the_threads(length: int, parallel: bool) -> None:
    launches = ctypes.c_int.in_dll(kernels().library, "launches")
    for name in ("softmax_f32", "gated_f32"):
        before = launches.value
        body = kernels().bodies[name]
        kernels().run(name, *draw(body, {"B": 1, "L": length, "M": 512}))
        assert (launches.value > before) == parallel


def test_collapse_merges_what_nothing_tells_apart() -> None:
    flat = collapse_axes(graph(gated, "f32[B, L, 64]", "f32[B, L, 64]"))
    assert [str(v.type) for v in flat.results] == ["f32[64*B*L]"]
    rows = collapse_axes(graph(norm_with_gate, "f32[B, L, 64]", "f32[B, L, 64]", "f32[64]"))
    assert [str(v.type) for v in rows.results] == ["f32[B*L, 64]", "f32[B*L, 64]"]


def test_collapse_keeps_axes_apart_that_are_permuted() -> None:
    body = graph(swapped, "f32[B, L, M]", "f32[B, M, L]")
    assert collapse_axes(body).results[0].type.rank == 3


def test_a_large_constant_is_refused() -> None:
    items = ", ".join(["1", "2"] * 50)
    body = parse_graph(f"def k():\n    v0: f32[100] = constant(value=array(f32, [{items}]))\n    return {{'y0': v0}}\n")
    with pytest.raises(CoilError, match="should be a weight"):
        lower_body(body, "k", TARGETS["x86-64-v3"])


@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if target.kind == "cpu"])
def test_every_target_compiles_the_bodies(target: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp(target) / "kernels.o"
    info = build_object(kernels().bodies, TARGETS[target], path)
    assert path.stat().st_size > 0
    assert info.scratch_bytes == 0  # nothing here needs more than registers and the stack
