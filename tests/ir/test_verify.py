"""What every graph must satisfy, and what pipeline stages promise."""

from __future__ import annotations

import numpy as np
import pytest

from coilc.ir import Graph, Module, Node, TensorType, Value, VerifyError, ops, parse_graph, symbol
from coilc.ir.text import parse_type
from coilc.ir.types import DTYPES
from coilc.ir.verify import any_graph, core_or_claimed, scheduled


def value(text: str, name: str = "x") -> Value:
    return ops.input_(name=name, type=parse_type(text))


X = value("f32[3]")


def graph(*inputs: Value, outputs: tuple[tuple[str, Value], ...], symbols: tuple = ()) -> Graph:
    return Graph("main", inputs, outputs, symbols)


def lying_node() -> Value:
    node = object.__new__(Node)
    node.op, node.inputs, node.attrs, node.location = ops.exp, (X,), {}, None
    node.types = (parse_type("f32[4]"),)
    return Value(node)


def reading_body() -> Value:
    h = value("f32[3]", "h")
    weight = ops.weight(name="w", type=h.type)
    body = Graph("body", (h, X), (("h", ops.add(h, weight)),))
    return ops.scan(X, value("f32[7, 3]", "xs"), body=body, carries=1, sequences=1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (graph(ops.exp(X), outputs=()), "inputs must be 'input' nodes"),
        (graph(X, value("f32[4]"), outputs=()), "input 'x' appears twice"),
        (graph(X, outputs=(("y", X), ("y", X))), "output 'y' appears twice"),
        (graph(value("f32[3]", "a.b"), outputs=()), "input 'a.b' is not a Python name"),
        (graph(value("f32[3]", "lambda"), outputs=()), "input 'lambda' is not a Python name"),
        (graph(outputs=(("y", X),)), "uses input 'x' without declaring it"),
        (graph(value("f32[L]"), outputs=()), "symbol 'L' has no range"),
        (graph(outputs=(("n", ops.extent(dim=symbol("L"), dtype=DTYPES["f32"])),)), "symbol 'L' has no range"),
        (graph(X, outputs=(("y", lying_node()),)), "op 'exp' has types (f32[4],), its rule says (f32[3],)"),
        (graph(X, value("f32[7, 3]", "xs"), outputs=(("y", reading_body()),)), "body 'body' reads weight 'w'"),
        (graph(outputs=(("y", ops.weight(name="v", type=X.type)),)), "weight 'v' is not in the module's table"),
        (graph(outputs=(("y", ops.weight(name="w", type=X.type)),)), "weight 'w' is float32[4], the graph says f32[3]"),
    ],
)
def test_broken_graphs(broken: Graph, message: str) -> None:
    with pytest.raises(VerifyError) as error:
        any_graph(Module({"main": broken}, {"w": np.zeros(4, np.float32)}))
    assert message in error.value.message


GOOD = parse_graph("""
def main(x: f32[L, 3], *, L: dim[1:]):
    v0: f32[L, 3] = silu(x)
    v1: f32[3*L] = reshape(v0, dims=(3*L,))
    return {"y": v1, "y again": v1}
""")


def test_stages_promise() -> None:
    module = Module({"main": GOOD})
    any_graph(module)
    core_or_claimed({"silu"})(module)
    with pytest.raises(VerifyError, match="composite op 'silu' is left"):
        core_or_claimed(())(module)
    with pytest.raises(VerifyError, match="op 'silu' is outside every fused group"):
        scheduled(module)


def test_a_scheduled_graph_holds_groups_and_aliases() -> None:
    x = value("f32[L, 3]")
    x0 = value("f32[L, 3]", "x0")
    body = Graph("body", (x0,), (("y0", ops.exp(x0)),))
    length = symbol("L")
    y = ops.reshape(ops.fused(x, body=body), dims=(length * 3,))
    scheduled(Module({"main": Graph("main", (x,), (("y", y),), (("L", (1, None)),))}))
    with pytest.raises(Exception, match=r"the body takes \(f32\[L, 3\]\)"):
        ops.fused(y, body=body)
    assert y.type == TensorType(DTYPES["f32"], (length * 3,))
