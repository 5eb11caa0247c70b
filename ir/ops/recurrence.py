"""Recurrences: each is defined by its plain loop over time, and each decomposes to ``scan``.

Operands are time-major with channels innermost. Optional operands follow the fixed ones in the order listed for the op
and are named in attribute ``optional``. Letters: B batch, L length, D channels, N state, H heads, P head size, G groups.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import dims as d
from ..core import Graph, Value
from ..opdef import MIXER, BadExample, Example, OpDef
from ..types import DTYPES, TensorType
from . import rules as r
from .elementwise import _sigmoid, _softplus, add, exp, exp2, mul, silu, softplus
from .linalg import matmul
from .movement import broadcast, concat, expand_dims, pad, reshape, slice_axis, transpose
from .precision import as_dtype, in_f32
from .reduce import sum
from .structural import input_, zeros

# --- scan: the general loop -----------------------------------------------------------------------------------------


def _scan(
    *operands: TensorType, body: Graph, carries: int, sequences: int, axis: int = 0, reverse: bool = False
) -> tuple[TensorType, ...]:
    r.require(sequences >= 1, "at least one sequence sets the length")
    r.require(len(operands) == len(body.inputs), f"the body takes {len(body.inputs)} values, not {len(operands)}")
    xs = operands[carries : carries + sequences]
    for x in xs:
        r.axis_of(x, axis)
    length = xs[0].dims[axis]
    r.require(all(x.dims[axis] == length for x in xs), f"sequences must have equal length on axis {axis}")
    slices = tuple(r.replace_dim(x, axis) for x in xs)
    for value, given in zip(body.inputs, (*operands[:carries], *slices, *operands[carries + sequences :]), strict=True):
        r.require(value.type == given, f"the body's '{value.node.attrs['name']}' is {value.type}, it is given {given}")
    results = tuple(v.type for v in body.results)
    r.require(results[:carries] == operands[:carries], f"the body must return its {carries} carries with equal types")
    return (*results[:carries], *(_stacked(y, axis, length) for y in results[carries:]))


def _stacked(y: TensorType, axis: int, length: d.Dim) -> TensorType:
    r.require(axis <= y.rank, f"axis {axis} does not exist in a stack of {y}")
    return y.with_dims((*y.dims[:axis], length, *y.dims[axis:]))


def _loop(*arrays: Any, body: Graph, carries: int, sequences: int, axis: int, reverse: bool) -> tuple[Any, ...]:
    from ..interpret import evaluate_body

    state, xs, consts = arrays[:carries], arrays[carries : carries + sequences], arrays[carries + sequences :]
    length = xs[0].shape[axis]
    outputs: list[Any] = [None] * length
    for t in reversed(range(length)) if reverse else range(length):
        results = evaluate_body(body, (*state, *(np.take(x, t, axis) for x in xs), *consts))
        state, outputs[t] = results[:carries], results[carries:]
    if not outputs:
        types = [_stacked(v.type, axis, 0) for v in body.results[carries:]]
        return (*state, *(np.empty(r.known("dims", *t.dims), t.dtype.numpy) for t in types))
    return (*state, *(np.stack(ys, axis) for ys in zip(*outputs, strict=True)))


def _scan_flops(*operands: TensorType, body: Graph, carries: int, axis: int = 0, **_: Any) -> d.Dim:
    from ..cost import graph_flops

    return graph_flops(body) * operands[carries].dims[axis]


def body_input(name: str, like: TensorType, *, without: int | None = None) -> Value:
    """An input of a scan body: the type of a value, or of its slices along an axis."""
    return input_(name=name, type=like if without is None else r.replace_dim(like, without))


def _running_sum() -> Graph:
    total, x, gain = (input_(name=n, type=TensorType(DTYPES["f32"], (3,))) for n in ("total", "x", "gain"))
    after = add(mul(total, 0.5), mul(x, gain))
    return Graph("body", (total, x, gain), (("total", after), ("y", exp(after))))


_BODY = _running_sum()
scan = OpDef(
    "scan",
    infer=_scan,
    traits=frozenset({MIXER}),
    reference=_loop,
    flops=_scan_flops,
    examples=(
        Example(("f32[3]", "f32[7, 3]", "f32[3]"), {"body": _BODY, "carries": 1, "sequences": 1}),
        Example(
            ("f32[3]", "f32[3, 1]", "f32[3]"), {"body": _BODY, "carries": 1, "sequences": 1, "axis": 1, "reverse": True}
        ),
    ),
    bad_examples=(
        BadExample(
            ("f32[3]", "f32[7, 4]", "f32[3]"), {"body": _BODY, "carries": 1, "sequences": 1}, "the body's 'x' is"
        ),
        BadExample(("f32[3]", "f32[7, 3]"), {"body": _BODY, "carries": 1, "sequences": 1}, "the body takes 3 values"),
        BadExample(("f32[3]",) * 3, {"body": _BODY, "carries": 1, "sequences": 0}, "at least one sequence"),
    ),
    doc="Run body over time: (carries, a slice of each sequence, constants) to (carries, outputs stacked on axis).",
)

# --- linear_scan ----------------------------------------------------------------------------------------------------


def _linear_scan(
    a: TensorType, b: TensorType, h0: TensorType, *, axis: int, reverse: bool = False
) -> tuple[TensorType, TensorType]:
    r.of_kind(r.FLOATING, a, b, h0)
    r.same_dtype(a, h0)
    r.axis_of(r.same_type(a, b), axis)
    r.shaped("h0", h0, r.replace_dim(a, axis).dims)
    return a, h0


def _linear_loop(a: Any, b: Any, h: Any, *, axis: int, reverse: bool) -> tuple[Any, Any]:
    states = np.empty_like(b)
    steps = range(a.shape[axis])
    for t in reversed(steps) if reverse else steps:
        place = (np.s_[:],) * axis + (t,)
        h = states[place] = a[place] * h + b[place]
    return states, h


def _linear_by_scan(a: Value, b: Value, h0: Value, *, axis: int, reverse: bool) -> tuple[Value, Value]:
    h, a_t, b_t = body_input("h", h0.type), body_input("a", a.type, without=axis), body_input("b", b.type, without=axis)
    after = add(mul(a_t, h), b_t)
    body = Graph("body", (h, a_t, b_t), (("h", after), ("state", after)))
    last, states = scan(h0, a, b, body=body, carries=1, sequences=2, axis=axis, reverse=reverse)
    return states, last


linear_scan = OpDef(
    "linear_scan",
    infer=_linear_scan,
    traits=frozenset({MIXER}),
    reference=_linear_loop,
    decompose=in_f32(_linear_scan, _linear_by_scan),
    flops=lambda a, b, h0, **_: 2 * a.size,
    examples=(
        Example(("f32[2, 7, 3]", "f32[2, 7, 3]", "f32[2, 3]"), {"axis": 1}, ranges={0: (0.0, 1.0)}),
        Example(("f32[1, 3]", "f32[1, 3]", "f32[3]"), {"axis": 0, "reverse": True}, ranges={0: (0.0, 1.0)}),
        Example(("c64[63, 2]", "c64[63, 2]", "c64[2]"), {"axis": 0}, low=-0.5, high=0.5),
    ),
    bad_examples=(
        BadExample(("f32[7, 3]", "f32[7, 3]", "f32[7]"), {"axis": 0}, "h0 must have dims [3]"),
        BadExample(("f32[7, 3]", "f32[7, 2]", "f32[3]"), {"axis": 0}, "equal dims"),
    ),
    doc="h_t = a_t * h_(t-1) + b_t elementwise: every state, and the last one. Associative.",
)

# --- selective_scan -------------------------------------------------------------------------------------------------

_SELECTIVE = ("D", "z", "dt_bias", "h0", "mask")


def _selective_scan(
    x: TensorType, dt: TensorType, a: TensorType, b: TensorType, c: TensorType, *rest: TensorType,
    optional: tuple[str, ...] = (), softplus: bool = False,
) -> tuple[TensorType, TensorType]:  # fmt: skip
    batch, length, channels = r.ranked("x", x, "BLD")
    state, _ = r.ranked("A", a, "ND")
    groups = r.ranked("Bm", b, "BLGN")[2]
    r.divided("D and G", channels, groups)
    extra = r.optional_operands(rest, optional, _SELECTIVE)
    expected = {
        "dt": (dt, x.dims), "A": (a, (state, channels)), "Bm": (b, (batch, length, groups, state)), "Cm": (c, b.dims),
    }  # fmt: skip
    dims = {"D": (channels,), "z": x.dims, "dt_bias": (channels,), "h0": (batch, state, channels), "mask": x.dims[:2]}
    for name, (operand, wanted) in {**expected, **{n: (t, dims[n]) for n, t in extra.items()}}.items():
        r.shaped(name, operand, wanted)
    r.of_kind(r.FLOAT, x, dt, a, b, c, *(t for n, t in extra.items() if n != "mask"))
    r.same_dtype(a, *([extra["h0"]] if "h0" in extra else []))
    return x, a.with_dims((batch, state, channels))


def _selective_loop(
    x: Any, dt: Any, a: Any, b: Any, c: Any, *rest: Any, optional: tuple[str, ...], softplus: bool
) -> tuple[Any, Any]:
    given = dict(zip(optional, rest, strict=True))
    dt = dt + given.get("dt_bias", 0)
    dt = _softplus(dt) if softplus else dt
    dt = dt * given["mask"][:, :, None] if "mask" in given else dt
    (batch, length, channels), (state, _) = x.shape, a.shape
    b, c = (np.repeat(m, channels // m.shape[2], axis=2) for m in (b, c))  # [B, L, D, N]
    h = given["h0"] if "h0" in given else np.zeros((batch, state, channels), a.dtype)
    y = np.empty_like(x)
    for t in range(length):
        decay = np.exp(dt[:, t, None, :] * a)
        h = decay * h + b[:, t].swapaxes(1, 2) * (dt[:, t] * x[:, t])[:, None, :]
        y[:, t] = np.sum(c[:, t].swapaxes(1, 2) * h, axis=1)
    y = y + given["D"] * x if "D" in given else y
    return (y * given["z"] * _sigmoid(given["z"]) if "z" in given else y), h


def _selective_by_scan(
    x: Value, dt: Value, a: Value, b: Value, c: Value, *rest: Value, optional: tuple[str, ...], softplus: bool
) -> tuple[Value, Value]:
    given = dict(zip(optional, rest, strict=True))
    dt = step_size(dt, given, softplus)
    h0 = given.get("h0") or zeros(x.type.with_dims((x.dims[0], *a.dims)))
    h, step, u, b_t, c_t = (
        body_input("h", h0.type),
        *(body_input(n, v.type, without=1) for n, v in (("dt", dt), ("u", x), ("b", b), ("c", c))),
    )
    decays = body_input("a", a.type)
    per_state = a.dims[1] if b.dims[2] == 1 else r.divided("D and G", a.dims[1], b.dims[2])
    spread_b, spread_c = (_to_channels(m, per_state) for m in (b_t, c_t))
    rates = mul(decays, math.log2(math.e))
    after = add(mul(exp2(mul(expand_dims(step, 1), rates)), h), mul(expand_dims(u, 1), spread_b))
    body = Graph("body", (h, step, u, b_t, c_t, decays), (("h", after), ("y", sum(mul(spread_c, after), axes=(1,)))))
    last, y = scan(h0, dt, mul(dt, x), b, c, a, body=body, carries=1, sequences=4, axis=1)
    y = add(y, mul(given["D"], x)) if "D" in given else y
    return (mul(y, silu(given["z"])) if "z" in given else y), last


def step_size(dt: Value, given: dict[str, Value], positive: bool) -> Value:
    """dt as selective_scan uses it: with its bias, softplus and mask."""
    dt = add(dt, given["dt_bias"]) if "dt_bias" in given else dt
    dt = softplus(dt) if positive else dt
    return mul(dt, as_dtype(expand_dims(given["mask"], 2), dt.type.dtype)) if "mask" in given else dt


def _to_channels(m: Value, per_group: d.Dim) -> Value:
    """[B, G, N] to [B, N, G * per_group]: each group's vector, for each of its channels."""
    batch, groups, state = m.dims
    columns = expand_dims(transpose(m, perm=(0, 2, 1)), 3)
    spread = broadcast(columns, dims=(batch, state, groups, per_group))
    return reshape(spread, dims=(batch, state, groups * per_group))


def _selective_flops(x: TensorType, dt: TensorType, a: TensorType, *_: TensorType, **__: Any) -> d.Dim:
    return 7 * x.size * a.dims[0] + 8 * x.size


_S6 = ("f32[2, 7, 6]", "f32[2, 7, 6]", "f32[4, 6]", "f32[2, 7, 2, 4]", "f32[2, 7, 2, 4]")
_DECAYS = {1: (0.0, 1.0), 2: (-2.0, -0.1)}
selective_scan = OpDef(
    "selective_scan",
    infer=_selective_scan,
    traits=frozenset({MIXER}),
    reference=_selective_loop,
    decompose=in_f32(_selective_scan, _selective_by_scan),
    flops=_selective_flops,
    examples=(
        Example(_S6, {}, ranges=_DECAYS),
        Example(
            (*_S6, "f32[6]", "f32[2, 7, 6]", "f32[6]", "f32[2, 4, 6]", "bool[2, 7]"),
            {"optional": _SELECTIVE, "softplus": True},
            ranges=_DECAYS,
        ),
        Example(
            ("f32[1, 1, 3]", "f32[1, 1, 3]", "f32[1, 3]", "f32[1, 1, 1, 1]", "f32[1, 1, 1, 1]", "f32[1, 1, 3]"),
            {"optional": ("h0",)},
            ranges=_DECAYS,
        ),
        Example(
            ("bf16[1, 63, 5]", "bf16[1, 63, 5]", "f32[3, 5]", "bf16[1, 63, 1, 3]", "bf16[1, 63, 1, 3]", "f32[5]"),
            {"optional": ("D",), "softplus": True},
            ranges=_DECAYS,
        ),
    ),
    bad_examples=(
        BadExample((*_S6[:2], "f32[6, 4]", *_S6[3:]), {}, "A must have dims"),
        BadExample((*_S6, "f32[6]"), {}, "1 optional operands for 0 names"),
        BadExample((*_S6, "f32[6]"), {"optional": ("skip",)}, "optional must be some of"),
        BadExample((*_S6[:3], "f32[2, 7, 4, 4]", "f32[2, 7, 4, 4]"), {}, "6 is not a multiple of 4"),
    ),
    doc=(
        "S6, the selective state-space scan (Mamba, arXiv 2312.00752, Algorithm 2): h_t = exp(dt_t A) h_(t-1) "
        "+ dt_t x_t B_t; y_t = C_t . h_t + D x_t, times silu(z). Channel d uses group d // (D // G). dt gets dt_bias "
        "and softplus first; mask [B, L] then multiplies it, so a masked step keeps the state. The state has A's dtype."
    ),
)

# --- causal_conv1d --------------------------------------------------------------------------------------------------

_CONV = ("bias", "state")


def _causal_conv1d(
    x: TensorType, w: TensorType, *rest: TensorType, optional: tuple[str, ...] = (), activation: str = "none"
) -> tuple[TensorType, TensorType]:
    r.of_kind(r.FLOAT, x)
    batch, _, channels = r.ranked("x", x, "BLD")
    taps = r.ranked("w", w, "KD")[0]
    r.require(r.known("K", taps)[0] >= 1, "w must have at least one tap")
    extra = r.optional_operands(rest, optional, _CONV)
    r.same_dtype(x, w, *rest)
    state = x.with_dims((batch, taps - 1, channels))
    r.shaped("w", w, (taps, channels))
    for name, wanted in {"bias": (channels,), "state": state.dims}.items():
        if name in extra:
            r.shaped(name, extra[name], wanted)
    r.require(activation in ("none", "silu"), f'activation is "none" or "silu", not "{activation}"')
    return x, state


def _conv_loop(x: Any, w: Any, *rest: Any, optional: tuple[str, ...], activation: str) -> tuple[Any, Any]:
    given = dict(zip(optional, rest, strict=True))
    taps, length = w.shape[0], x.shape[1]
    before = given["state"] if "state" in given else np.zeros((x.shape[0], taps - 1, x.shape[2]), x.dtype)
    window = np.concatenate([before, x], axis=1)
    y = np.empty_like(x)
    for t in range(length):
        y[:, t] = np.sum(window[:, t : t + taps] * w, axis=1) + given.get("bias", 0)
    return (y * _sigmoid(y) if activation == "silu" else y), window[:, length:]


def _conv_by_slices(
    x: Value, w: Value, *rest: Value, optional: tuple[str, ...], activation: str
) -> tuple[Value, Value]:
    given = dict(zip(optional, rest, strict=True))
    (taps,), length = r.known("K", w.dims[0]), x.dims[1]
    window = _with_history(x, given.get("state"), taps - 1)
    terms = [mul(slice_axis(window, 1, k, k + length), slice_axis(w, 0, k, k + 1)) for k in range(taps)]
    y = terms[0]
    for term in terms[1:]:
        y = add(y, term)
    y = add(y, given["bias"]) if "bias" in given else y
    return (silu(y) if activation == "silu" else y), slice_axis(window, 1, length, length + taps - 1)


def _with_history(x: Value, state: Value | None, taps: int) -> Value:
    if state is not None:
        return concat(state, x, axis=1)
    return pad(x, low=(0, taps, 0), high=(0, 0, 0), value=0.0)


causal_conv1d = OpDef(
    "causal_conv1d",
    infer=_causal_conv1d,
    traits=frozenset({MIXER}),
    reference=_conv_loop,
    decompose=in_f32(_causal_conv1d, _conv_by_slices),
    flops=lambda x, w, *_, **__: 2 * x.size * w.dims[0] + 4 * x.size,
    examples=(
        Example(("f32[2, 7, 3]", "f32[4, 3]")),
        Example(("f32[2, 1, 3]", "f32[4, 3]", "f32[3]", "f32[2, 3, 3]"), {"optional": _CONV, "activation": "silu"}),
        Example(("f32[1, 5, 3]", "f32[1, 3]", "f32[3]"), {"optional": ("bias",)}),
        Example(("bf16[1, 63, 3]", "bf16[4, 3]"), {"activation": "silu"}),
    ),
    bad_examples=(
        BadExample(("f32[2, 7, 3]", "f32[3, 4]"), {}, "w must have dims [3, 3]"),
        BadExample(("f32[2, 7, 3]", "f32[4, 3]", "f32[2, 4, 3]"), {"optional": ("state",)}, "state must have dims"),
        BadExample(("f32[2, 7, 3]", "f32[4, 3]"), {"activation": "relu"}, "activation is"),
    ),
    doc=(
        "Depthwise convolution that looks back: y_t = sum over k of w_k * x_(t - K + 1 + k), then bias and activation; "
        "state holds the K - 1 inputs before the first, and the result's second value those before the next."
    ),
)

# --- gated_linear_attention -----------------------------------------------------------------------------------------


GATED_OPTIONAL = ("bonus", "h0")


def gated_types(
    q: TensorType, k: TensorType, v: TensorType, log_decay: TensorType, *rest: TensorType,
    optional: tuple[str, ...] = (), known: tuple[str, ...] = ("h0",),
) -> tuple[TensorType, TensorType]:  # fmt: skip
    """The outputs and the last state of attention with a decaying state."""
    batch, length, groups, state = r.ranked("q", q, "BLGN")
    _, _, heads, size = r.ranked("v", v, "BLHP")
    r.divided("H and G", heads, groups)
    r.shaped("k", k, q.dims)
    r.shaped("v", v, (batch, length, heads, size))
    per_head = (batch, length, heads)
    fits = log_decay.dims in (per_head, (*per_head, state))
    r.require(fits, f"log_decay must be {r.show(per_head)} or {r.show((*per_head, state))}")
    extra = r.optional_operands(rest, optional, known)
    result = log_decay.with_dims((batch, heads, state, size))
    r.of_kind(r.FLOAT, q, k, v, log_decay, *rest)
    if "bonus" in extra:
        r.shaped("bonus", extra["bonus"], (heads, state))
    if "h0" in extra:
        r.shaped("h0", extra["h0"], result.dims)
        r.same_dtype(extra["h0"], log_decay)
    return v, result


def _gated(
    q: TensorType, k: TensorType, v: TensorType, log_decay: TensorType, *rest: TensorType,
    optional: tuple[str, ...] = (), scale: float = 1.0,
) -> tuple[TensorType, TensorType]:  # fmt: skip
    return gated_types(q, k, v, log_decay, *rest, optional=optional, known=GATED_OPTIONAL)


def per_head(q: Any, k: Any, v: Any, log_decay: Any, h0: Any | None) -> tuple[Any, Any, Any, Any]:
    """What the loops of linear attention start with: q and k [B, L, H, N], decay [B, L, H, N or 1], the state."""
    (batch, _, heads, size), state = v.shape, q.shape[3]
    q, k = (np.repeat(m, heads // m.shape[2], axis=2) for m in (q, k))
    decay = np.exp(log_decay if log_decay.ndim == 4 else log_decay[..., None])
    return q, k, decay, np.zeros((batch, heads, state, size), log_decay.dtype) if h0 is None else h0


def _gated_loop(
    q: Any, k: Any, v: Any, log_decay: Any, *rest: Any, optional: tuple[str, ...], scale: float
) -> tuple[Any, Any]:
    given = dict(zip(optional, rest, strict=True))
    q, k, decay, h = per_head(q, k, v, log_decay, given.get("h0"))
    o = np.empty_like(v)
    for t in range(v.shape[1]):
        before, inflow = h, k[:, t, :, :, None] * v[:, t, :, None, :]
        h = decay[:, t, :, :, None] * h + inflow
        seen = before + given["bonus"][..., None] * inflow if "bonus" in given else h
        o[:, t] = scale * np.sum(q[:, t, :, :, None] * seen, axis=2)
    return o, h


def _gated_by_scan(
    q: Value, k: Value, v: Value, log_decay: Value, *rest: Value, optional: tuple[str, ...], scale: float
) -> tuple[Value, Value]:
    given = dict(zip(optional, rest, strict=True))
    batch, _, heads, size = v.dims
    state = q.dims[3]
    h0 = given.get("h0") or zeros(v.type.with_dims((batch, heads, state, size)))
    h = body_input("h", h0.type)
    named = {"q": q, "k": k, "v": v, "log_decay": log_decay}
    q_t, k_t, v_t, g_t = slices = [body_input(n, x.type, without=1) for n, x in named.items()]
    consts = {body_input("bonus", given["bonus"].type): given["bonus"]} if "bonus" in given else {}
    inflow = mul(expand_dims(to_heads(k_t, heads), 3), expand_dims(v_t, 2))
    after = seen = add(mul(per_key(exp(g_t), 4), h), inflow)
    for bonus in consts:
        seen = add(h, mul(expand_dims(bonus, 2), inflow))
    out = reshape(matmul(mul(expand_dims(to_heads(q_t, heads), 2), scale), seen), dims=v_t.dims)
    body = Graph("body", (h, *slices, *consts), (("h", after), ("o", out)))
    last, o = scan(h0, *named.values(), *consts.values(), body=body, carries=1, sequences=4, axis=1)
    return o, last


def per_key(decay: Value, rank: int) -> Value:
    """[.., H] or [.., H, N] with axes of extent 1 behind, up to ``rank``."""
    return reshape(decay, dims=(*decay.dims, *(1,) * (rank - decay.type.rank)))


def to_heads(m: Value, heads: d.Dim) -> Value:
    """[.., G, N] to [.., H, N]: each head reads its group."""
    *lead, groups, state = m.dims
    wide = expand_dims(m, m.type.rank - 1)
    spread = broadcast(wide, dims=(*lead, groups, r.divided("H and G", heads, groups), state))
    return reshape(spread, dims=(*lead, heads, state))


_GLA = ("f32[2, 7, 2, 3]", "f32[2, 7, 2, 3]", "f32[2, 7, 4, 5]")
gated_linear_attention = OpDef(
    "gated_linear_attention",
    infer=_gated,
    traits=frozenset({MIXER}),
    reference=_gated_loop,
    decompose=in_f32(_gated, _gated_by_scan),
    flops=lambda q, k, v, *_, **__: 5 * v.size * q.dims[3],
    examples=(
        Example((*_GLA, "f32[2, 7, 4]"), ranges={3: (-1.0, 0.0)}),
        Example(
            (*_GLA, "f32[2, 7, 4, 3]", "f32[2, 4, 3, 5]"), {"optional": ("h0",), "scale": 0.5}, ranges={3: (-1.0, 0.0)}
        ),
        Example(("f32[1, 1, 1, 2]", "f32[1, 1, 1, 2]", "f32[1, 1, 3, 1]", "f32[1, 1, 3]"), ranges={3: (-1.0, 0.0)}),
        Example(
            ("bf16[1, 63, 1, 2]", "bf16[1, 63, 1, 2]", "bf16[1, 63, 1, 3]", "f32[1, 63, 1]"), ranges={3: (-1.0, 0.0)}
        ),
        Example((*_GLA, "f32[2, 7, 4, 3]", "f32[4, 3]"), {"optional": ("bonus",)}, ranges={3: (-1.0, 0.0)}),
        Example(
            (*_GLA, "f32[2, 7, 4]", "f32[4, 3]", "f32[2, 4, 3, 5]"),
            {"optional": ("bonus", "h0"), "scale": 0.5},
            ranges={3: (-200.0, 0.0)},
        ),
    ),
    bad_examples=(
        BadExample((*_GLA, "f32[2, 7, 3]"), {}, "log_decay must be [2, 7, 4] or [2, 7, 4, 3]"),
        BadExample(("f32[2, 7, 3, 3]",) * 2 + ("f32[2, 7, 4, 5]", "f32[2, 7, 4]"), {}, "4 is not a multiple of 3"),
        BadExample((*_GLA, "f32[2, 7, 4]", "f32[2, 4, 5, 3]"), {"optional": ("h0",)}, "h0 must have dims"),
        BadExample((*_GLA, "f32[2, 7, 4]", "f32[3]"), {"optional": ("bonus",)}, "bonus must have dims [4, 3]"),
    ),
    doc=(
        "S_t = exp(log_decay_t) S_(t-1) + k_t (x) v_t; o_t = scale * q_t S_t. Decay per head is Mamba-2's SSD (arXiv "
        "2405.21060, section 5: q = C, k = B, v = dt x, log_decay = dt A); decay per key channel is GLA (arXiv "
        "2312.06635, section 4). With bonus u [H, N], o_t = scale * q_t (S_(t-1) + (u * k_t) (x) v_t) instead: RWKV-5 and 6 "
        "(arXiv 2404.05892, section 4). Head h uses group h // (H // G). The state has log_decay's dtype."
    ),
)
