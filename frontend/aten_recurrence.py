"""Rows for the custom ops that capture hooks insert: same operands and layout as the IR's ops."""

from __future__ import annotations

from coilc.ir import Value, ops

from .aten import TABLE, Call
from .recurrence_ops import NAMESPACE


def _given(**operands: Value | None) -> tuple[tuple[str, ...], tuple[Value, ...]]:
    """Names and values of the optional operands that are there."""
    present = {name: value for name, value in operands.items() if value is not None}
    return tuple(present), tuple(present.values())


def _selective_scan(
    call: Call, x: Value, dt: Value, A: Value, B: Value, C: Value, D: Value | None = None, z: Value | None = None,
    dt_bias: Value | None = None, h0: Value | None = None, softplus: bool = False,
) -> tuple[Value, Value]:  # fmt: skip
    names, rest = _given(D=D, z=z, dt_bias=dt_bias, h0=h0)
    return ops.selective_scan(x, dt, A, B, C, *rest, optional=names, softplus=softplus)


def _causal_conv1d(
    call: Call, x: Value, w: Value, bias: Value | None = None, state: Value | None = None, activation: str = "none"
) -> tuple[Value, Value]:
    names, rest = _given(bias=bias, state=state)
    return ops.causal_conv1d(x, w, *rest, optional=names, activation=activation)


def _gated_linear_attention(
    call: Call, q: Value, k: Value, v: Value, log_decay: Value, h0: Value | None = None, scale: float = 1.0
) -> tuple[Value, Value]:
    names, rest = _given(h0=h0)
    return ops.gated_linear_attention(q, k, v, log_decay, *rest, optional=names, scale=float(scale))


def _gated_delta_rule(
    call: Call, q: Value, k: Value, v: Value, log_decay: Value, beta: Value, h0: Value | None = None, scale: float = 1.0
) -> tuple[Value, Value]:
    names, rest = _given(h0=h0)
    return ops.gated_delta_rule(q, k, v, log_decay, beta, *rest, optional=names, scale=float(scale))


def _wkv(
    call: Call, k: Value, v: Value, w: Value, u: Value, num: Value, den: Value, max: Value
) -> tuple[Value, Value, Value, Value]:
    return ops.wkv(k, v, w, u, num, den, max, optional=("num", "den", "max"))


for _row in (_selective_scan, _causal_conv1d, _gated_linear_attention, _gated_delta_rule, _wkv):
    TABLE[f"{NAMESPACE}.{_row.__name__.removeprefix('_')}.default"] = _row
