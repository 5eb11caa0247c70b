"""Type rules with symbolic dims: lengths are exact polynomials, and what is certainly wrong is refused."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.ir import Graph, Module, TypeRuleError, Value, interpret, ops, parse_graph, print_graph
from coilc.ir.cost import graph_flops, node_bytes, node_flops
from coilc.ir.dims import evaluate
from coilc.ir.text import parse_type

ONE = {"strides": (2,), "padding": ((1, 1),), "dilation": (1,)}


def value(text: str, name: str = "x") -> Value:
    return ops.input_(name=name, type=parse_type(text))


X = value("f32[B, L, 6]")
L = X.dims[1]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (lambda: ops.slice_axis(X, 1, 0, L - 1), "f32[B, L - 1, 6]"),
        (lambda: ops.slice(X, starts=(0, 1, 0), stops=(X.dims[0], L, 6), steps=(1, 2, 1)), "f32[B, L//2, 6]"),
        (lambda: ops.concat(X, X, axis=1), "f32[B, 2*L, 6]"),
        (lambda: ops.pad(X, low=(0, 3, 0), high=(0, L, 0)), "f32[B, 2*L + 3, 6]"),
        (lambda: ops.reshape(X, dims=(X.dims[0] * L, 6)), "f32[B*L, 6]"),
        (lambda: ops.iota(dims=(L + 1,), axis=0, dtype=X.type.dtype), "f32[L + 1]"),
        (lambda: ops.conv(ops.transpose(X, perm=(0, 2, 1)), value("f32[4, 6, 3]", "w"), **ONE), "f32[B, 4, (L + 1)//2]"),
        (lambda: ops.linear(X, value("f32[5, 6]", "w")), "f32[B, L, 5]"),
        (lambda: ops.take(X, value("i64[S]", "i"), axis=1), "f32[B, S, 6]"),
        (lambda: ops.mean(X, axes=(1,)), "f32[B, 6]"),
        (lambda: ops.pack_panels(value("f32[6, N]", "w"), panel=8), "f32[(N + 7)//8, 6, 8]"),
    ],
)  # fmt: skip
def test_inferred_types(result, expected: str) -> None:
    assert result().type == parse_type(expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ops.slice_axis(X, 1, 0, L + 1), "0:L + 1 is not inside an axis of L"),
        (lambda: ops.slice_axis(X, 1, L, L - 1), "L:L - 1 is not inside an axis of L"),
        (lambda: ops.reshape(X, dims=(L, 6)), "[L, 6] has 6*L elements, the operand 6*B*L"),
        (lambda: ops.concat(X, value("f32[B, L, 5]"), axis=1), "must agree on every axis but 1"),
        (lambda: ops.add(X, value("f32[B, S, 6]")), "dims [B, L, 6] and [B, S, 6] do not broadcast together"),
    ],
)
def test_certain_mistakes_are_refused(build, message: str) -> None:
    with pytest.raises(TypeRuleError) as error:
        build()
    assert message in error.value.message


def recurrent() -> Graph:
    x, dt = value("f32[B, L, D]"), value("f32[B, L, D]", "dt")
    a = value("f32[4, D]", "a")
    b, c = (value("f32[B, L, 1, 4]", name) for name in "bc")
    y, h = ops.selective_scan(x, dt, a, b, c, softplus=True)
    z, state = ops.causal_conv1d(y, value("f32[4, D]", "w"), activation="silu")
    out = ops.rms_norm(z)
    symbols = tuple((name, (1, None)) for name in "BLD")
    return Graph("main", (x, dt, a, b, c, value("f32[4, D]", "w")), (("y", out), ("h", h), ("s", state)), symbols)


def test_composites_decompose_with_every_dim_symbolic() -> None:
    whole = recurrent()
    mapping: dict[Value, Value] = {}
    for node in whole.nodes:
        operands = tuple(mapping.get(v, v) for v in node.inputs)
        if node.op.decompose:
            found = node.op.decompose(*operands, **node.attrs)
            mapping.update(zip(node.results, found if isinstance(found, tuple) else (found,), strict=True))
    parts = whole.with_results(mapping[v] for v in whole.results)
    assert parse_graph(print_graph(parts)) == parts
    rng = np.random.default_rng(0)
    sizes = {"B": 2, "L": 5, "D": 3}
    arrays = {
        v.node.attrs["name"]: rng.uniform(-1, 0, [evaluate(dim, sizes) for dim in v.dims]).astype(np.float32)
        for v in whole.inputs
    }
    expected, found = (interpret(Module({"main": g}), arrays) for g in (whole, parts))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_costs_are_polynomials() -> None:
    product = ops.matmul(value("f32[B, L, 6]"), value("f32[B, 6, L]", "w")).node
    assert str(node_flops(product)) == "12*B*L*L"
    assert str(node_bytes(product)) == "4*B*L*L + 48*B*L"
    assert node_flops(ops.transpose(X, perm=(1, 0, 2)).node) == 0
    assert str(node_flops(ops.softmax(X, axis=2).node)) == "30*B*L"
    assert evaluate(graph_flops(recurrent()), {"B": 1, "L": 10, "D": 1}) > 10 * 7 * 4
