"""Kernels of the anchor ops, written by hand as templates: one row per op."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coilc.ir import OpDef, ops

from ..kernel import Kernel
from . import gpu
from .anchor import Anchor
from .argument import emit_argument
from .attention import emit_attention
from .causal_conv1d import emit_causal_conv1d
from .conv import emit_conv
from .delta_rule import emit_delta_rule
from .depthwise_conv import emit_depthwise_conv
from .dft import emit_dft
from .gated_linear_attention import emit_gated_linear_attention
from .linear_scan import emit_linear_scan
from .long_conv import emit_long_conv
from .matmul import emit_matmul
from .order import emit_sort
from .packed_matmul import emit_packed_matmul
from .place import emit_index_put, emit_scatter, emit_update_slice
from .pool import emit_pool
from .prefix import emit_cumulative
from .quantized_matmul import emit_quantized_matmul
from .scan import emit_scan
from .selective_scan import emit_selective_scan
from .while_loop import emit_while_loop

TEMPLATES: Mapping[OpDef, Callable[[Anchor], None]] = {
    ops.matmul: emit_matmul,
    ops.packed_matmul: emit_packed_matmul,
    ops.quantized_matmul: emit_quantized_matmul,
    ops.selective_scan: emit_selective_scan,
    ops.causal_conv1d: emit_causal_conv1d,
    ops.long_conv: emit_long_conv,
    ops.dft: emit_dft,
    ops.scan: emit_scan,
    ops.while_loop: emit_while_loop,
    ops.attention: emit_attention,
    ops.linear_scan: emit_linear_scan,
    ops.gated_linear_attention: emit_gated_linear_attention,
    ops.gated_delta_rule: emit_delta_rule,
    ops.generalized_delta_rule: emit_delta_rule,
    ops.conv: emit_conv,
    ops.depthwise_conv: emit_depthwise_conv,
    ops.pool: emit_pool,
    ops.cumsum: emit_cumulative,
    ops.cumprod: emit_cumulative,
    ops.argmax: emit_argument,
    ops.argmin: emit_argument,
    ops.sort: emit_sort,
    ops.scatter: emit_scatter,
    ops.index_put: emit_index_put,
    ops.update_slice: emit_update_slice,
}


def _anchored(op: OpDef, template: Callable[[Anchor], None]) -> Callable[[Kernel], None]:
    def emit(kernel: Kernel) -> None:
        anchors = [node for node in kernel.body.nodes if node.op is op]
        for node in anchors:
            anchor = Anchor(node, kernel, len(anchors))
            own = gpu.TEMPLATES.get(op) if kernel.target.device else None
            if own is None or not own(anchor):
                template(anchor)

    return emit


# What ``build_kernel`` takes to write the loops of a body whose anchors are of this op.
ANCHORS: Mapping[OpDef, Callable[[Kernel], None]] = {op: _anchored(op, template) for op, template in TEMPLATES.items()}
