"""The loop whose number of steps depends on data."""

from __future__ import annotations

from typing import Any

from .. import dims as d
from ..core import Graph
from ..opdef import BadExample, Example, OpDef
from ..types import DTYPES, TensorType
from . import rules as r
from .elementwise import add, logical_and, lt, mul
from .reduce import sum
from .structural import input_

_BOOL = TensorType(DTYPES["bool"], ())


def _while(*operands: TensorType, condition: Graph, body: Graph, carries: int) -> tuple[TensorType, ...]:
    r.require(1 <= carries <= len(operands), "carries counts the first operands, at least one")
    for what, graph in (("condition", condition), ("body", body)):
        r.require(
            len(graph.inputs) == len(operands), f"the {what} takes {len(graph.inputs)} values, not {len(operands)}"
        )
        for value, given in zip(graph.inputs, operands, strict=True):
            name = value.node.attrs["name"]
            r.require(value.type == given, f"the {what}'s '{name}' is {value.type}, it is given {given}")
    r.require([v.type for v in condition.results] == [_BOOL], "the condition must return one bool[()]")
    results = tuple(v.type for v in body.results)
    r.require(results == operands[:carries], f"the body must return its {carries} carries with equal types")
    return results


def _loop(*arrays: Any, condition: Graph, body: Graph, carries: int) -> tuple[Any, ...]:
    from ..interpret import evaluate_body

    state, rest = arrays[:carries], arrays[carries:]
    while evaluate_body(condition, (*state, *rest))[0]:
        state = evaluate_body(body, (*state, *rest))
    return state


def _one_step(*_: TensorType, condition: Graph, body: Graph, carries: int) -> d.Dim:
    from ..cost import graph_flops

    return graph_flops(condition) + graph_flops(body)


def _counted() -> tuple[Graph, Graph]:
    count, total, x = (
        input_(name=name, type=TensorType(DTYPES[dtype], dims))
        for name, dtype, dims in (("count", "i64", ()), ("total", "f32", (2, 3)), ("x", "f32", (2, 3)))
    )
    small = lt(sum(total, axes=(0, 1), keepdims=False), 100.0)
    condition = Graph("condition", (count, total, x), (("go", logical_and(lt(count, 7), small)),))
    return condition, Graph("body", (count, total, x), (("count", add(count, 1)), ("total", add(mul(total, 1.5), x))))


_CONDITION, _BODY = _counted()
_ATTRS = {"condition": _CONDITION, "body": _BODY, "carries": 2}
while_loop = OpDef(
    "while_loop",
    infer=_while,
    reference=_loop,
    flops=_one_step,
    examples=(
        Example(("i64[()]", "f32[2, 3]", "f32[2, 3]"), _ATTRS, low=0, high=4),
        Example(("i64[()]", "f32[2, 3]", "f32[2, 3]"), _ATTRS, ranges={0: (7, 9)}),  # not a single step
    ),
    bad_examples=(
        BadExample(("i64[()]", "f32[2, 4]", "f32[2, 3]"), _ATTRS, "the condition's 'total' is f32[2, 3]"),
        BadExample(("i64[()]", "f32[2, 3]"), _ATTRS, "the condition takes 3 values, not 2"),
        BadExample(("i64[()]", "f32[2, 3]", "f32[2, 3]"), {**_ATTRS, "carries": 1}, "return its 1 carries"),
        BadExample(("i64[()]", "f32[2, 3]", "f32[2, 3]"), {**_ATTRS, "condition": _BODY}, "must return one bool[()]"),
    ),
    doc=(
        "While condition(carries, constants) is true, carries become body(carries, constants). The number of steps is not "
        "known, so flops counts one."
    ),
)
