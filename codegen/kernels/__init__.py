"""Kernels of the anchor ops, written by hand as templates: one row per op."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coilc.ir import OpDef, ops

from ..kernel import Kernel
from .anchor import Anchor
from .causal_conv1d import emit_causal_conv1d
from .matmul import emit_matmul
from .packed_matmul import emit_packed_matmul
from .selective_scan import emit_selective_scan

TEMPLATES: Mapping[OpDef, Callable[[Anchor], None]] = {
    ops.matmul: emit_matmul,
    ops.packed_matmul: emit_packed_matmul,
    ops.selective_scan: emit_selective_scan,
    ops.causal_conv1d: emit_causal_conv1d,
}


def _anchored(op: OpDef, template: Callable[[Anchor], None]) -> Callable[[Kernel], None]:
    def emit(kernel: Kernel) -> None:
        template(Anchor(next(node for node in kernel.body.nodes if node.op is op), kernel))

    return emit


# What ``build_kernel`` takes to write the loops of a body whose anchor is this op.
ANCHORS: Mapping[OpDef, Callable[[Kernel], None]] = {op: _anchored(op, template) for op, template in TEMPLATES.items()}
