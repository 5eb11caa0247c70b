"""Delta rules: linear attention that removes what the state holds under a key before it writes there.

Operands and optional operands are as for gated_linear_attention. Letters: B batch, L length, G groups of heads that share
keys and queries, N key channels, H heads, P value channels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import Graph, Value
from ..opdef import MIXER, BadExample, Example, OpDef
from ..types import TensorType
from . import rules as r
from .elementwise import add, exp, mul, sub
from .linalg import matmul
from .movement import expand_dims, reshape
from .precision import in_f32
from .recurrence import body_input, gated_types, per_head, per_key, scan, to_heads
from .structural import zeros

# --- generalized_delta_rule: the diagonal and two vectors that span the rest --------------------------------------------


def _generalized(
    q: TensorType, k: TensorType, v: TensorType, log_decay: TensorType, erase: TensorType, write: TensorType,
    *rest: TensorType, optional: tuple[str, ...] = (), scale: float = 1.0,
) -> tuple[TensorType, TensorType]:  # fmt: skip
    results = gated_types(q, k, v, log_decay, *rest, optional=optional)
    keys = (*v.dims[:3], q.dims[3])
    r.of_kind(r.FLOAT, erase, write)
    r.shaped("erase", erase, keys)
    r.shaped("write", write, keys)
    return results


def _generalized_loop(
    q: Any, k: Any, v: Any, log_decay: Any, erase: Any, write: Any, *rest: Any, optional: tuple[str, ...], scale: float
) -> tuple[Any, Any]:
    q, k, decay, h = per_head(q, k, v, log_decay, rest[0] if rest else None)
    o = np.empty_like(v)
    for t in range(v.shape[1]):
        held = np.sum(erase[:, t, :, :, None] * h, axis=2, keepdims=True)
        h = decay[:, t, :, :, None] * h - write[:, t, :, :, None] * held + k[:, t, :, :, None] * v[:, t, :, None, :]
        o[:, t] = scale * np.sum(q[:, t, :, :, None] * h, axis=2)
    return o, h


def _generalized_by_scan(
    q: Value, k: Value, v: Value, log_decay: Value, erase: Value, write: Value, *rest: Value,
    optional: tuple[str, ...], scale: float,
) -> tuple[Value, Value]:  # fmt: skip
    (batch, _, heads, size), state = v.dims, q.dims[3]
    h0 = rest[0] if rest else zeros(v.type.with_dims((batch, heads, state, size)))
    h = body_input("h", h0.type)
    named = {"q": q, "k": k, "v": v, "log_decay": log_decay, "erase": erase, "write": write}
    q_t, k_t, v_t, g_t, e_t, w_t = slices = [body_input(n, x.type, without=1) for n, x in named.items()]
    held = matmul(expand_dims(e_t, 2), h)
    kept = sub(mul(per_key(exp(g_t), 4), h), mul(expand_dims(w_t, 3), held))
    after = add(kept, mul(expand_dims(to_heads(k_t, heads), 3), expand_dims(v_t, 2)))
    out = reshape(matmul(mul(expand_dims(to_heads(q_t, heads), 2), scale), after), dims=v_t.dims)
    body = Graph("body", (h, *slices), (("h", after), ("o", out)))
    last, o = scan(h0, *named.values(), body=body, carries=1, sequences=len(named), axis=1)
    return o, last


_KEYS = ("f32[2, 7, 2, 3]", "f32[2, 7, 2, 3]", "f32[2, 7, 4, 5]")
_ONE = ("f32[1, 1, 1, 2]", "f32[1, 1, 1, 2]", "f32[1, 1, 3, 1]")
_CALM = {1: (-0.6, 0.6), 3: (-1.0, 0.0), 4: (-0.5, 0.5), 5: (-0.5, 0.5)}
generalized_delta_rule = OpDef(
    "generalized_delta_rule",
    infer=_generalized,
    traits=frozenset({MIXER}),
    reference=_generalized_loop,
    decompose=in_f32(_generalized, _generalized_by_scan),
    flops=lambda q, k, v, *_, **__: 9 * v.size * q.dims[3],
    examples=(
        Example((*_KEYS, "f32[2, 7, 4, 3]", "f32[2, 7, 4, 3]", "f32[2, 7, 4, 3]"), ranges=_CALM),
        Example(
            (*_KEYS, "f32[2, 7, 4]", "f32[2, 7, 4, 3]", "f32[2, 7, 4, 3]", "f32[2, 4, 3, 5]"),
            {"optional": ("h0",), "scale": 0.5},
            ranges=_CALM,
        ),
        Example((*_ONE, "f32[1, 1, 3]", "f32[1, 1, 3, 2]", "f32[1, 1, 3, 2]"), ranges=_CALM),
    ),
    bad_examples=(
        BadExample((*_KEYS, "f32[2, 7, 4]", "f32[2, 7, 2, 3]", "f32[2, 7, 4, 3]"), {}, "erase must have dims"),
        BadExample((*_KEYS, "f32[2, 7, 4]", "f32[2, 7, 4, 3]", "f32[2, 7, 4]"), {}, "write must have dims"),
    ),
    doc=(
        "S_t = (diag(exp(log_decay_t)) - write_t (x) erase_t) S_(t-1) + k_t (x) v_t; o_t = scale * q_t S_t. The "
        "generalised delta rule of RWKV-7 (arXiv 2503.14456, equation 17: erase = kappa, write = a * kappa). Head h uses "
        "group h // (H // G). The state [B, H, N, P] has log_decay's dtype."
    ),
)

# --- gated_delta_rule -------------------------------------------------------------------------------------------------


def _gated_delta(
    q: TensorType, k: TensorType, v: TensorType, log_decay: TensorType, beta: TensorType, *rest: TensorType,
    optional: tuple[str, ...] = (), scale: float = 1.0,
) -> tuple[TensorType, TensorType]:  # fmt: skip
    results = gated_types(q, k, v, log_decay, *rest, optional=optional)
    r.of_kind(r.FLOAT, beta)
    r.shaped("beta", beta, v.dims[:3])
    return results


def _gated_delta_loop(
    q: Any, k: Any, v: Any, log_decay: Any, beta: Any, *rest: Any, optional: tuple[str, ...], scale: float
) -> tuple[Any, Any]:
    q, k, decay, h = per_head(q, k, v, log_decay, rest[0] if rest else None)
    o = np.empty_like(v)
    for t in range(v.shape[1]):
        key = k[:, t, :, :, None]
        h = decay[:, t, :, :, None] * h
        error = v[:, t] - np.sum(key * h, axis=2)
        h = h + key * (beta[:, t, :, None] * error)[:, :, None, :]
        o[:, t] = scale * np.sum(q[:, t, :, :, None] * h, axis=2)
    return o, h


def _gated_delta_by_scan(
    q: Value, k: Value, v: Value, log_decay: Value, beta: Value, *rest: Value, optional: tuple[str, ...], scale: float
) -> tuple[Value, Value]:
    (batch, _, heads, size), state = v.dims, q.dims[3]
    h0 = rest[0] if rest else zeros(v.type.with_dims((batch, heads, state, size)))
    h = body_input("h", h0.type)
    named = {"q": q, "k": k, "v": v, "log_decay": log_decay, "beta": beta}
    q_t, k_t, v_t, g_t, b_t = slices = [body_input(n, x.type, without=1) for n, x in named.items()]
    keys, decay = to_heads(k_t, heads), exp(g_t)
    held = matmul(expand_dims(mul(per_key(decay, 3), keys), 2), h)
    inflow = mul(per_key(b_t, 4), sub(expand_dims(v_t, 2), held))
    after = add(mul(per_key(decay, 4), h), mul(expand_dims(keys, 3), inflow))
    out = reshape(matmul(mul(expand_dims(to_heads(q_t, heads), 2), scale), after), dims=v_t.dims)
    body = Graph("body", (h, *slices), (("h", after), ("o", out)))
    last, o = scan(h0, *named.values(), body=body, carries=1, sequences=len(named), axis=1)
    return o, last


_RATES = {1: (-0.6, 0.6), 3: (-1.0, 0.0), 4: (0.0, 1.0)}
_HALF = ("bf16[1, 63, 1, 2]", "bf16[1, 63, 1, 2]", "bf16[1, 63, 1, 3]", "f32[1, 63, 1]", "bf16[1, 63, 1]")
gated_delta_rule = OpDef(
    "gated_delta_rule",
    infer=_gated_delta,
    traits=frozenset({MIXER}),
    reference=_gated_delta_loop,
    decompose=in_f32(_gated_delta, _gated_delta_by_scan),
    flops=lambda q, k, v, *_, **__: 7 * v.size * q.dims[3],
    examples=(
        Example((*_KEYS, "f32[2, 7, 4]", "f32[2, 7, 4]"), ranges=_RATES),
        Example((*_KEYS, "f32[2, 7, 4]", "f32[2, 7, 4]"), ranges={**_RATES, 3: (0.0, 0.0), 4: (1.0, 1.0)}),
        Example((*_KEYS, "f32[2, 7, 4]", "f32[2, 7, 4]"), ranges={**_RATES, 3: (-200.0, -200.0), 4: (0.0, 0.0)}),
        Example(
            (*_KEYS, "f32[2, 7, 4, 3]", "f32[2, 7, 4]", "f32[2, 4, 3, 5]"),
            {"optional": ("h0",), "scale": 0.5},
            ranges=_RATES,
        ),
        Example((*_ONE, "f32[1, 1, 3]", "f32[1, 1, 3]"), ranges=_RATES),
        Example(_HALF, ranges=_RATES),
    ),
    bad_examples=(
        BadExample((*_KEYS, "f32[2, 7, 4]", "f32[2, 7, 2]"), {}, "beta must have dims [2, 7, 4]"),
        BadExample((*_KEYS, "f32[2, 7, 3]", "f32[2, 7, 4]"), {}, "log_decay must be [2, 7, 4] or [2, 7, 4, 3]"),
    ),
    doc=(
        "S_t = (I - beta_t k_t (x) k_t) diag(exp(log_decay_t)) S_(t-1) + beta_t k_t (x) v_t; o_t = scale * q_t S_t. "
        "Without decay it is DeltaNet (arXiv 2406.06484, equation 2), with one per head gated DeltaNet (arXiv "
        "2412.06464, equation 10), with one per key channel Kimi Delta Attention (arXiv 2510.26692, equation 1). Head h "
        "uses group h // (H // G). The state [B, H, N, P] has log_decay's dtype."
    ),
)
