"""Elementwise ops: result[i] depends on operands[i] only; operands have one dtype and equal dims."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import TypeRuleError
from ..opdef import COMMUTATIVE, ELEMENTWISE, Example, OpDef
from ..types import TensorType


def same_type(*operands: TensorType) -> TensorType:
    """All operands have one type, which is the result's."""
    if any(t != operands[0] for t in operands):
        raise TypeRuleError("operands must have one dtype and equal dims; cast or broadcast first")
    return operands[0]


def _unary(name: str, reference: Callable[..., Any], *aten: str) -> OpDef:
    return OpDef(
        name,
        infer=lambda x: same_type(x),
        reference=reference,
        traits=frozenset({ELEMENTWISE}),
        aliases={"aten": tuple(f"aten.{n}" for n in aten or (f"{name}.default",))},
        examples=(Example(("f32[3, 7]",)), Example(("f64[1]",))),
    )


def _binary(name: str, reference: Callable[..., Any], *aten: str, commutative: bool = False) -> OpDef:
    return OpDef(
        name,
        infer=lambda x, y: same_type(x, y),
        reference=reference,
        traits=frozenset({ELEMENTWISE, COMMUTATIVE} if commutative else {ELEMENTWISE}),
        aliases={"aten": tuple(f"aten.{n}" for n in aten)},
        examples=(Example(("f32[3, 7]", "f32[3, 7]")), Example(("i64[5]", "i64[5]"))),
    )


exp = _unary("exp", np.exp)
add = _binary("add", np.add, "add.Tensor", commutative=True)
mul = _binary("mul", np.multiply, "mul.Tensor", commutative=True)
