"""Nodes are shared when equal; locations travel and never take part in equality."""

from __future__ import annotations

import math
from weakref import WeakValueDictionary

import numpy as np
import pytest

from coilc.ir import Array, Graph, Location, Node, TypeRuleError, Value, at, ops, parse_graph, symbol
from coilc.ir.text import parse_type


def value(text: str, name: str = "x") -> Value:
    return ops.input_(name=name, type=parse_type(text))


def test_equal_nodes_are_one_object() -> None:
    x = value("f32[3]")
    assert ops.exp(x) == ops.exp(x)
    assert ops.exp(x).node is ops.exp(x).node
    assert ops.exp(x) != ops.exp(value("f32[4]"))


@pytest.mark.parametrize(("one", "other"), [(1.0, 1), (0.0, -0.0), (True, 1.0)])
def test_numbers_that_python_calls_equal_are_distinct(one: float, other: float) -> None:
    x = value("f32[3]")
    assert ops.pad(x, low=(0,), high=(0,), value=one) != ops.pad(x, low=(0,), high=(0,), value=other)


def test_nan_equals_itself() -> None:
    x = value("f32[3]")
    assert ops.pad(x, low=(0,), high=(0,), value=math.nan) == ops.pad(x, low=(0,), high=(0,), value=float("nan"))
    assert Array(np.float32("nan")) == Array(np.float32("nan"))


def test_arrays_are_copied_and_frozen() -> None:
    source = np.zeros(3, np.float32)
    array = Array(source)
    source[0] = 1
    assert array == Array(np.zeros(3, np.float32))
    assert array != Array(np.zeros(3, np.float64))
    with pytest.raises(ValueError, match="read-only"):
        array.value[0] = 1


def test_the_first_location_stays_and_does_not_matter() -> None:
    x = value("f32[17]")
    with at(Location("a.py", 1, source="first")):
        one = ops.exp(x)
    with at(Location("b.py", 2)):
        two = ops.exp(x)
    assert one == two
    assert two.location == Location("a.py", 1, source="first")
    assert two.location.interior() == Location("a.py", 1)


def test_forgetting_separates_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "_interned", WeakValueDictionary())
    x = value("f32[18]")
    with at(Location("a.py", 1)):
        one = ops.exp(x)
    Node.forget_all()
    with at(Location("b.py", 2)):
        two = ops.exp(x)
    assert one != two
    assert (one.location, two.location) == (Location("a.py", 1), Location("b.py", 2))


def test_lists_and_numpy_numbers_become_plain_attributes() -> None:
    x = value("f32[3, 4]")
    assert ops.sum(x, axes=[np.int64(1)], keepdims=np.bool_(True)) == ops.sum(x, axes=(1,), keepdims=True)
    with pytest.raises(TypeRuleError, match="attribute 'axes' cannot hold a set"):
        ops.sum(x, axes={1})


def test_operands_broadcast_explicitly() -> None:
    x, y = value("f32[B, 1, 3]"), value("f32[L, 1]", "y")
    node = ops.add(x, y).node
    assert [v.op.name for v in node.inputs] == ["broadcast", "broadcast"]
    assert node.types[0] == parse_type("f32[B, L, 3]")
    assert ops.mul(x, 2).node.inputs[1].type == parse_type("f32[B, 1, 3]")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ops.add(value("f32[3]"), value("f32[4]", "y")), "add: dims [3] and [4] do not broadcast together"),
        (lambda: ops.add(value("f32[3]"), value("f64[3]", "y")), "add(f32[3], f64[3]): operands must have one dtype"),
        (lambda: ops.mul(value("i64[3]"), 0.5), "mul: 0.5 is not a value of i64; cast the other operand first"),
        (lambda: ops.exp(value("i64[3]")), "exp(i64[3]): takes complex or float operands, not i64; cast first"),
    ],
)
def test_messages(build: object, message: str) -> None:
    with pytest.raises(TypeRuleError) as error:
        build()
    assert message in error.value.message


def test_graphs_list_nodes_operands_first_and_count_uses() -> None:
    graph = parse_graph("""
def main(x: f32[3], unused: f32[1]):
    v0: f32[3] = exp(x)
    v1: f32[3] = mul(v0, v0)
    return {"y": v1, "e": v0}
""")
    assert [n.op.name for n in graph.nodes] == ["input", "input", "exp", "mul"]
    assert graph.uses[graph.outputs[1][1]] == 3


def test_substitution_reaches_types_attributes_and_bodies() -> None:
    graph = parse_graph(
        """
def main(h: f32[B], x: f32[L, B], *, B: dim[1:], L: dim[1:]):
    def body_0(h: f32[B], x: f32[B]):
        v0: f32[B] = add(h, x)
        return {"h": v0}
    v0 = scan(h, x, body=body_0, carries=1, sequences=1, axis=0, reverse=False)  # m.py:3
    v1: f32[B, L] = broadcast(v0, dims=(L, B))  # m.py:4
    return {"y": v1}
""".replace("f32[B, L] =", "f32[L, B] =")
    )
    found = graph.substitute({"B": 4})
    (result,) = found.results
    assert result.type == parse_type("f32[L, 4]")
    assert result.node.attrs["dims"] == (symbol("L"), 4)
    assert result.location == Location("m.py", 4)
    (scan,) = result.node.inputs
    body: Graph = scan.node.attrs["body"]
    assert body.inputs[0].type == parse_type("f32[4]")
    assert dict(found.symbols) == {"L": (1, None)}
