"""Templates for devices, one row per op: consulted before the common ones.

A template returns False, with nothing written, for a case that it leaves to the common template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coilc.ir import OpDef, ops

from ..anchor import Anchor
from .causal_conv1d import emit_causal_conv1d
from .matmul import emit_matmul
from .selective_scan import emit_selective_scan
from .state_matrix import emit_state_matrix

TEMPLATES: Mapping[OpDef, Callable[[Anchor], bool]] = {
    ops.matmul: emit_matmul,
    ops.selective_scan: emit_selective_scan,
    ops.causal_conv1d: emit_causal_conv1d,
    ops.gated_linear_attention: emit_state_matrix,
    ops.gated_delta_rule: emit_state_matrix,
    ops.generalized_delta_rule: emit_state_matrix,
}
