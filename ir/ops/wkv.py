"""RWKV-4's recurrence: an average of values, weighted by exponentials of keys that fade with time."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import Graph, Value
from ..opdef import MIXER, BadExample, Example, OpDef, literal
from ..types import TensorType
from . import rules as r
from .elementwise import abs, add, div, exp, ge, maximum, mul, neg, sub, where
from .movement import broadcast
from .precision import in_f32
from .recurrence import body_input, scan

# A state by name and its value before the first token: sums relative to exp(max), and an exponent below every key's.
WKV_STATES = {"num": 0.0, "den": 0.0, "max": -1e38}


def _wkv(
    k: TensorType, v: TensorType, w: TensorType, u: TensorType, *rest: TensorType, optional: tuple[str, ...] = ()
) -> tuple[TensorType, TensorType, TensorType, TensorType]:
    batch, _, channels = r.ranked("k", k, "BLD")
    r.of_kind(r.FLOAT, k, v, w, u, *rest)
    r.shaped("v", v, k.dims)
    r.shaped("w", w, (channels,))
    r.shaped("u", u, (channels,))
    state = w.with_dims((batch, channels))
    for name, operand in r.optional_operands(rest, optional, tuple(WKV_STATES)).items():
        r.shaped(name, operand, state.dims)
        r.same_dtype(operand, w)
    return v, state, state, state


def _wkv_loop(k: Any, v: Any, w: Any, u: Any, *rest: Any, optional: tuple[str, ...]) -> tuple[Any, Any, Any, Any]:
    given = dict(zip(optional, rest, strict=True))
    batch, length, channels = k.shape
    num, den, top = (given.get(n, np.full((batch, channels), x, w.dtype)) for n, x in WKV_STATES.items())
    y = np.empty_like(v)
    for t in range(length):
        k_t, v_t = k[:, t], v[:, t]
        high = np.maximum(top, k_t + u)
        past, now = np.exp(top - high), np.exp(k_t + u - high)
        y[:, t] = (past * num + now * v_t) / (past * den + now)
        high = np.maximum(top + w, k_t)
        past, now = np.exp(top + w - high), np.exp(k_t - high)
        num, den, top = past * num + now * v_t, past * den + now, high
    return y, num, den, top


def _wkv_by_scan(
    k: Value, v: Value, w: Value, u: Value, *rest: Value, optional: tuple[str, ...]
) -> tuple[Value, Value, Value, Value]:
    given = dict(zip(optional, rest, strict=True))
    state = w.type.with_dims((k.dims[0], k.dims[2]))
    inits = [given.get(n) or broadcast(literal(x, state.dtype), dims=state.dims) for n, x in WKV_STATES.items()]
    num, den, top = carries = [body_input(n, state) for n in WKV_STATES]
    k_t, v_t = slices = [body_input(n, x.type, without=1) for n, x in (("k", k), ("v", v))]
    w_d, u_d = consts = [body_input(n, x.type) for n, x in (("w", w), ("u", u))]
    past, now, _ = _weights(top, add(k_t, u_d))
    out = div(add(mul(past, num), mul(now, v_t)), add(mul(past, den), now))
    past, now, high = _weights(add(top, w_d), k_t)
    results = {"num": add(mul(past, num), mul(now, v_t)), "den": add(mul(past, den), now), "max": high, "y": out}
    body = Graph("body", (*carries, *slices, *consts), tuple(results.items()))
    *last, y = scan(*inits, k, v, w, u, body=body, carries=3, sequences=2, axis=1)
    return y, *last


def _weights(x: Value, y: Value) -> tuple[Value, Value, Value]:
    """exp(x - m), exp(y - m) and m = max(x, y); the larger of the two weights is 1, so one exponential is enough."""
    smaller = exp(neg(abs(sub(x, y))))
    first = ge(x, y)
    return where(first, 1, smaller), where(first, smaller, 1), maximum(x, y)


_RWKV = ("f32[2, 7, 3]", "f32[2, 7, 3]", "f32[3]", "f32[3]")
_STATE = ("f32[2, 3]", "f32[2, 3]", "f32[2, 3]")
_FADING = {2: (-1.0, 0.0)}
wkv = OpDef(
    "wkv",
    infer=_wkv,
    traits=frozenset({MIXER}),
    reference=_wkv_loop,
    decompose=in_f32(_wkv, _wkv_by_scan),
    flops=lambda k, *_, **__: 25 * k.size,
    examples=(
        Example(_RWKV, ranges=_FADING),
        Example((*_RWKV, *_STATE), {"optional": tuple(WKV_STATES)}, ranges={**_FADING, 5: (0.5, 2.0)}),
        Example(_RWKV, ranges={0: (-300.0, 300.0), 2: (-80.0, 0.0), 3: (-100.0, 100.0)}),
        Example(_RWKV, ranges={0: (-500.0, -400.0), 2: (0.0, 0.0)}),
        Example(("f32[1, 1, 1]", "f32[1, 1, 1]", "f32[1]", "f32[1]"), ranges=_FADING),
        Example(("bf16[1, 63, 5]", "bf16[1, 63, 5]", "f32[5]", "f32[5]"), ranges=_FADING),
    ),
    bad_examples=(
        BadExample((*_RWKV[:3], "f32[1, 3]"), {}, "u must have dims [3]"),
        BadExample((*_RWKV, "f32[3, 2]"), {"optional": ("num",)}, "num must have dims [2, 3]"),
    ),
    doc=(
        "RWKV-4 (arXiv 2305.13048, equation 16): y_t = (sum over i < t of exp((t - 1 - i) w + k_i) v_i + exp(u + k_t) "
        "v_t) / (the same without v), with w <= 0 per channel. Results: y, then the numerator and the denominator over "
        "all tokens, both relative to exp(max), and max. The states have w's dtype."
    ),
)
