"""Ops that shape a graph rather than compute: inputs, weights, constants and fused groups."""

from __future__ import annotations

import numpy as np

from .. import dims as d
from ..core import Array, Graph, Value
from ..errors import TypeRuleError
from ..opdef import STRUCTURAL, Example, OpDef, literal
from ..types import TensorType
from .movement import broadcast


def _input(*, name: str, type: TensorType) -> TensorType:
    return type


def _constant(*, value: Array) -> TensorType:
    return value.type


def _fused(*operands: TensorType, body: Graph) -> tuple[TensorType, ...]:
    expected = tuple(v.type for v in body.inputs)
    if operands != expected:
        raise TypeRuleError(f"the body takes ({', '.join(map(str, expected))})")
    return tuple(v.type for v in body.results)


def _run_body(*arrays: np.ndarray, body: Graph) -> tuple[np.ndarray, ...]:
    from ..interpret import evaluate_body

    return evaluate_body(body, arrays)


def _body_flops(*_: TensorType, body: Graph) -> d.Dim:
    from ..cost import graph_flops

    return graph_flops(body)


def _provided_by_caller(**_: object) -> np.ndarray:
    raise TypeRuleError("inputs and weights are bound by the interpreter")


input_ = OpDef(
    "input",
    infer=_input,
    reference=_provided_by_caller,
    traits=frozenset({STRUCTURAL}),
    doc="A graph's parameter.",
)
weight = OpDef(
    "weight",
    infer=_input,
    reference=_provided_by_caller,
    traits=frozenset({STRUCTURAL}),
    doc="An entry of the module's weight table, by name.",
)
constant = OpDef(
    "constant",
    infer=_constant,
    reference=lambda *, value: value.value,
    traits=frozenset({STRUCTURAL}),
    examples=(Example((), {"value": Array(np.float32(2.5))}), Example((), {"value": Array(np.arange(3))})),
    doc="A small literal array; large ones are weights.",
)
fused = OpDef(
    "fused",
    infer=_fused,
    reference=_run_body,
    flops=_body_flops,
    traits=frozenset({STRUCTURAL}),
    doc="A group of ops that becomes one kernel; made by the fusion pass, one kernel per distinct body.",
)


def zeros(type: TensorType) -> Value:
    """A tensor of zeros, as a broadcast constant."""
    return broadcast(literal(0, type.dtype), dims=type.dims)
