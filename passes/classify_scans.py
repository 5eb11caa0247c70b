"""Give every loop the name of the recurrence that it is."""

from __future__ import annotations

from dataclasses import replace

from coilc.ir import Module

from .classify_delta_rule import scan_is_delta_rule
from .classify_gated_linear_attention import scan_is_gated_linear_attention
from .classify_linear_scan import carry_is_linear
from .classify_selective_scan import absorb_skip_and_gate, scan_is_selective
from .classify_time_invariant import loops_without_change
from .classify_wkv import scan_is_plain_wkv, scan_is_wkv
from .fold_constants import WeightTable, drop_unused_weights, with_final_names
from .hoist_invariants import drop_unused, hoist_invariants
from .rewrite import rewrite_module


def classify_scans(module: Module) -> Module:
    """Turn ``scan`` into the recurrence that its body is: a linear one, attention with a decay, a delta rule, a state space.

    Before::

        last, y = scan(h0, a, x, body=step)  # step: h = a * h + x, y = tanh(h)

    After::

        states, last = linear_scan(a, x, h0)
        y = tanh(states)

    Needs: loops are scans. Guarantees: equal up to rounding; any other loop stays, with only what needs a carry in it.
    """
    table = WeightTable(module.weights)
    rules = (
        loops_without_change(table),
        scan_is_selective,
        scan_is_gated_linear_attention,
        scan_is_delta_rule,
        scan_is_wkv,
        scan_is_plain_wkv,
        carry_is_linear,
    )
    named = rewrite_module(drop_unused(module), *rules)
    named = with_final_names(drop_unused_weights(replace(named, weights=table.arrays)))
    return absorb_skip_and_gate(hoist_invariants(named))
