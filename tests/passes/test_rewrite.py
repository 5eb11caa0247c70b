"""The engine: order, fixed point, depth, bodies, locations, limits."""

from __future__ import annotations

import itertools

import pytest

from coilc.ir import Graph, Location, Node, Value, at, ops, parse_graph, print_graph
from coilc.ir.core import Module
from coilc.passes import no, on, rewrite_graph, rewrite_module, tracing
from coilc.passes.rewrite import RewriteError


@on("exp")
def exp_becomes_sin(node: Node) -> Value:
    return ops.sin(*node.inputs)


@on("sin")
def sin_becomes_cos(node: Node) -> Value:
    return ops.cos(*node.inputs)


def chain(length: int) -> Graph:
    x = value = ops.input_(name="x", type=parse_graph("def g(x: f32[2]):\n    return {'y': x}").inputs[0].type)
    for _ in range(length):
        value = ops.exp(value)
    return Graph("main", (x,), (("y", value),))


def test_rules_apply_until_none_does() -> None:
    found = rewrite_graph(chain(2), exp_becomes_sin, sin_becomes_cos)
    assert [node.op.name for node in found.nodes] == ["input", "cos", "cos"]


def test_deep_graphs_need_no_recursion() -> None:
    assert len(rewrite_graph(chain(20_000), exp_becomes_sin).nodes) == 20_001


def test_bodies_are_rewritten() -> None:
    graph = parse_graph("""
def main(h: f32[3], xs: f32[L, 3], *, L: dim[1:]):
    def body0(h: f32[3], x: f32[3]):
        v0: f32[3] = exp(x)
        v1: f32[3] = add(h, v0)
        return {"h": v1}
    v0: f32[3] = scan(h, xs, body=body0, carries=1, sequences=1, axis=0, reverse=False)
    return {"h": v0}
""")
    assert "sin(x)" in print_graph(rewrite_graph(graph, exp_becomes_sin))


def test_entries_share_nodes() -> None:
    graph = chain(3)
    found = rewrite_module(Module({"a": graph, "b": graph}), exp_becomes_sin)
    assert found.entries["a"].results == found.entries["b"].results


def test_rules_that_undo_one_another_are_named() -> None:
    @on("cos")
    def cos_becomes_exp(node: Node) -> Value:
        return ops.exp(*node.inputs)

    with pytest.raises(RewriteError, match=r"rule '.*' brings back the node it replaced"):
        rewrite_graph(chain(1), exp_becomes_sin, sin_becomes_cos, cos_becomes_exp)


def test_rules_that_never_rest_are_named() -> None:
    numbers = itertools.count(2)

    @on("exp", "add")
    def grow(node: Node) -> Value:
        return ops.add(node.inputs[0], ops.add(node.inputs[0], float(next(numbers))))

    with pytest.raises(RewriteError, match="rule 'grow' does not come to rest"):
        rewrite_graph(chain(1), grow)


def test_replacements_must_keep_the_type() -> None:
    @on("exp")
    def exp_becomes_scalar(node: Node) -> Value:
        return ops.sum(node.inputs[0], axes=(0,))

    with pytest.raises(RewriteError, match="rule 'exp_becomes_scalar' turned"):
        rewrite_graph(chain(1), exp_becomes_scalar)


def test_only_the_replacement_itself_says_which_value_of_the_model_it_is() -> None:
    @on("tanh")
    def tanh_in_two(node: Node) -> Value:
        return ops.neg(ops.tan(node.inputs[0]))

    x = chain(0).inputs[0]
    with at(Location("m.py", 3, "layer", source="tanh_1")):
        y = ops.tanh(x)
    found = rewrite_graph(Graph("main", (x,), (("y", y),)), tanh_in_two)
    (root,) = found.results
    (helper,) = root.node.inputs
    assert root.location == Location("m.py", 3, "layer", "tanh_1")
    assert helper.location == Location("m.py", 3, "layer")


def test_trace_records_firings_and_reasons() -> None:
    @on("sin")
    def keep_sin(node: Node) -> object:
        return no("it is nice")

    with tracing() as trace:
        rewrite_graph(chain(1), exp_becomes_sin, keep_sin)  # type: ignore[arg-type]
    assert [event.rule for event in trace.fired] == ["exp_becomes_sin"]
    assert str(trace.declined[0]) == "keep_sin: sin(f32[2]) declined: it is nice"
