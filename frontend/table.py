"""The whole table, from ATen and ``coilc`` op names to rows, and the decompositions for what has no row."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch._decomp import decomposition_table

from . import (  # noqa: F401  (importing a file enters its rows)
    aten_elementwise,
    aten_fft,
    aten_index,
    aten_linalg,
    aten_movement,
    aten_nn,
    aten_recurrence,
    aten_reduce,
)
from .aten import TABLE, Row, register_elementwise
from .higher_order import HIGHER_ORDER

register_elementwise()

# Checks of the traced program about itself; shapes are checked again by the IR and by the runtime.
IGNORED = frozenset({
    "aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten._assert_scalar.default",
    "aten.sym_constrain_range_for_size.default", "aten.sym_constrain_range.default", "aten._assert_async.default",
})  # fmt: skip


def row_of(name: str) -> Row | None:
    """The row of an op by its overload name, ``aten.add.Tensor``."""
    return TABLE.get(name)


def is_convertible(program: torch.export.ExportedProgram) -> bool:
    """Whether every op has a row and none works in place, so that the program needs no decomposition.

    Decomposing traces the program twice more, which takes longer than exporting it.
    """
    blocks = (part for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule))
    nodes = (node for block in blocks for node in block.graph.nodes if node.op == "call_function")
    return all(map(_is_convertible, nodes))


def _is_convertible(node: torch.fx.Node) -> bool:
    if node.target is operator.getitem or isinstance(
        node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat
    ):
        return True
    name = str(node.target)
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return name in HIGHER_ORDER
    if name in TABLE and isinstance(node.target, torch._ops.OpOverload):
        return not node.target._schema.is_mutable or name in _HARMLESS
    return name in IGNORED


_HARMLESS = frozenset({"aten.detach_.default"})  # in place by name, but no element changes


@cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """torch's decompositions of every op that has no row: what has one stays whole."""
    every = {**decomposition_table, **torch.export.default_decompositions()}
    return {op: rule for op, rule in every.items() if str(op) not in TABLE and str(op) not in IGNORED}
