"""Softmax attention with grouped heads, and rotary positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import dims as d
from ..core import Value
from ..opdef import MIXER, BadExample, Example, OpDef
from ..types import DTYPES, TensorType, bool_
from . import rules as r
from .elementwise import add, div, eq, exp, le, lt, maximum, mul, neg, sub, where
from .linalg import matmul
from .movement import concat, iota, reshape, slice_axis, transpose
from .precision import in_f32
from .reduce import max, sum

_OPTIONAL = ("mask", "offset")


def _attention(
    q: TensorType, k: TensorType, v: TensorType, *rest: TensorType,
    optional: tuple[str, ...] = (), scale: float | None = None, causal: bool = False, window: int | None = None,
) -> TensorType:  # fmt: skip
    batch, heads, length, size = r.ranked("q", q, "BHLE")
    groups, extent = r.ranked("k", k, "BGSE")[1:3]
    r.of_kind(r.FLOAT, q)
    r.same_dtype(q, k, v)
    r.shaped("k", k, (batch, groups, extent, size))
    r.ranked("v", v, "BGSF")
    r.shaped("v", v, (batch, groups, extent, v.dims[3]))
    r.divided("H and G", heads, groups)
    r.require(scale is not None or isinstance(size, int), "scale must be given when E is not known")
    r.require(window is None or (causal and window >= 1), "a window is at least 1, and of causal attention")
    given = r.optional_operands(rest, optional, _OPTIONAL)
    if "mask" in given:
        r.of_kind(r.FLOAT | r.BOOL, given["mask"])
        r.broadcasts_to("the mask", given["mask"], (batch, heads, length, extent))
    if "offset" in given:
        r.require(causal, "an offset is of causal attention")
        r.require(given["offset"] == TensorType(DTYPES["i64"], ()), f"offset must be i64[()], not {given['offset']}")
    return q.with_dims((batch, heads, length, v.dims[3]))


def _attention_reference(
    q: Any, k: Any, v: Any, *rest: Any, optional: tuple[str, ...], scale: float | None, causal: bool, window: int | None
) -> Any:
    given = dict(zip(optional, rest, strict=True))
    k, v = (np.repeat(m, q.shape[1] // m.shape[1], axis=1) for m in (k, v))
    scores = np.einsum("bhle,bhse->bhls", q, k) * (scale or 1 / math.sqrt(q.shape[3]))
    if causal:
        behind = np.arange(q.shape[2])[:, None] + given.get("offset", 0) - np.arange(k.shape[2])
        scores = np.where((behind >= 0) & (behind < (window or np.inf)), scores, -np.inf)
    if "mask" in given:
        scores = np.where(mask, scores, -np.inf) if (mask := given["mask"]).dtype == bool else scores + mask
    largest = np.max(scores, -1, keepdims=True)
    e = np.exp(scores - np.where(largest == -np.inf, 0, largest))
    total = np.sum(e, -1, keepdims=True)
    return np.einsum("bhls,bhsf->bhlf", e / np.where(total == 0, 1, total), v)


def _attention_by_matmul(
    q: Value, k: Value, v: Value, *rest: Value,
    optional: tuple[str, ...], scale: float | None, causal: bool, window: int | None,
) -> Value:  # fmt: skip
    """Heads that share keys are rows of one product, so keys and values are never repeated."""
    given = dict(zip(optional, rest, strict=True))
    batch, heads, length, size = q.dims
    groups, extent = k.dims[1:3]
    rows = r.divided("H and G", heads, groups) * length
    factor = 1 / math.sqrt(r.known("E", size)[0]) if scale is None else scale
    folded = reshape(mul(q, factor), dims=(batch, groups, rows, size))
    scores = reshape(matmul(folded, transpose(k, perm=(0, 1, 3, 2))), dims=(batch, heads, length, extent))
    if causal:
        row, column = (iota(dims=(length, extent), axis=axis, dtype=DTYPES["i64"]) for axis in (0, 1))
        row = add(row, given["offset"]) if "offset" in given else row
        scores = where(le(column, row), scores, -math.inf)
        if window is not None:
            scores = where(lt(sub(row, column), window), scores, -math.inf)
    if "mask" in given:
        mask = given["mask"]
        scores = where(mask, scores, -math.inf) if mask.type.dtype == bool_ else add(scores, mask)
    weights = reshape(_safe_softmax(scores), dims=(batch, groups, rows, extent))
    return reshape(matmul(weights, v), dims=(batch, heads, length, v.dims[3]))


def _safe_softmax(scores: Value) -> Value:
    """Softmax over the last axis that is 0, not NaN, in a row where everything is masked."""
    axes = (scores.type.rank - 1,)
    largest = max(scores, axes=axes, keepdims=True)
    e = exp(sub(scores, where(eq(largest, -math.inf), 0, largest)))
    return div(e, maximum(sum(e, axes=axes, keepdims=True), 1))  # the sum is 0 or >= 1


def _attention_flops(q: TensorType, k: TensorType, v: TensorType, *_: TensorType, **__: Any) -> d.Dim:
    pairs = d.size(q.dims[:3]) * k.dims[2]
    return 2 * pairs * (q.dims[3] + v.dims[3]) + 4 * pairs


def _rotary(x: TensorType, cos: TensorType, sin: TensorType) -> TensorType:
    r.of_kind(r.FLOAT, x)
    r.same_dtype(x, cos, sin)
    r.require(x.rank >= 1, "takes x [..., E]")
    r.divided("E and 2", x.dims[-1], 2)
    r.broadcasts_to("cos", cos, x.dims)
    r.broadcasts_to("sin", sin, x.dims)
    return x


def _rotary_reference(x: Any, cos: Any, sin: Any) -> Any:
    first, second = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([-second, first], -1) * sin


def _rotary_by_concat(x: Value, cos: Value, sin: Value) -> Value:
    axis = x.type.rank - 1
    half = r.divided("E and 2", x.dims[axis], 2)
    turned = concat(neg(slice_axis(x, axis, half, x.dims[axis])), slice_axis(x, axis, 0, half), axis=axis)
    return add(mul(x, cos), mul(turned, sin))


_GROUPED = ("f32[2, 4, 5, 3]", "f32[2, 2, 7, 3]", "f32[2, 2, 7, 1]")
attention = OpDef(
    "attention",
    infer=_attention,
    traits=frozenset({MIXER}),
    reference=_attention_reference,
    decompose=in_f32(_attention, _attention_by_matmul),
    flops=_attention_flops,
    aliases={"aten": ("aten.scaled_dot_product_attention.default",)},
    examples=(
        Example(_GROUPED, {"causal": True}),
        Example((*_GROUPED, "bool[2, 1, 5, 7]"), {"scale": 0.25, "optional": ("mask",)}),
        Example((*_GROUPED, "f32[5, 7]"), {"optional": ("mask",)}),
        Example((*_GROUPED, "bool[2, 4, 5, 1]"), {"optional": ("mask",)}),
        Example((*_GROUPED, "i64[()]"), {"optional": ("offset",), "causal": True}, ranges={3: (0, 9)}),
        Example((*_GROUPED, "bool[7]", "i64[()]"), {"optional": _OPTIONAL, "causal": True, "window": 2}),
        Example(("bf16[1, 1, 1, 17]", "bf16[1, 1, 1, 17]", "bf16[1, 1, 1, 17]"), {}),
    ),
    bad_examples=(
        BadExample(("f32[2, 3, 5, 3]", *_GROUPED[1:]), {}, "3 is not a multiple of 2"),
        BadExample((*_GROUPED, "bool[7, 5]"), {"optional": ("mask",)}, "cannot be broadcast to [2, 4, 5, 7]"),
        BadExample((*_GROUPED, "i64[1]"), {"optional": ("offset",), "causal": True}, "offset must be i64[()]"),
        BadExample(_GROUPED, {"window": 3}, "of causal attention"),
        BadExample((*_GROUPED[:2], "f32[2, 2, 6, 1]"), {}, "v must have dims [2, 2, 7, 1]"),
    ),
    doc=(
        "softmax(scale * q k^T + mask) v for q [B, H, L, E], k [B, G, S, E], v [B, G, S, F]; head h uses group "
        "h // (H // G). causal lets row i see columns up to offset + i (offset is 0 if not given), with a window only the "
        "last so many of these. mask is added, or hides where it is false. A row that sees nothing is 0. scale defaults "
        "to 1 / sqrt(E)."
    ),
)
rotary = OpDef(
    "rotary",
    infer=_rotary,
    reference=_rotary_reference,
    decompose=_rotary_by_concat,
    examples=(
        Example(("f32[2, 3, 5, 6]", "f32[5, 6]", "f32[5, 6]")),
        Example(("f32[1, 2]", "f32[1, 2]", "f32[1, 2]")),
    ),
    bad_examples=(
        BadExample(("f32[5, 3]", "f32[5, 3]", "f32[5, 3]"), {}, "3 is not a multiple of 2"),
        BadExample(("f32[5, 4]", "f32[4, 4]", "f32[5, 4]"), {}, "cos [4, 4] cannot be broadcast"),
    ),
    doc="Rotate pairs (x_i, x_(i + E/2)) by angles whose cosine and sine are given: ``x * cos + turned(x) * sin``.",
)
