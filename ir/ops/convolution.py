"""Convolution and pooling over trailing axes, channels second: x is [B, C, *S]."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import dims as d
from ..core import Value
from ..opdef import BadExample, Example, OpDef
from ..types import TensorType
from . import rules as r
from .movement import flip, pad, reshape, slice, transpose

Pairs = tuple[tuple[int, int], ...]
Ints = tuple[int, ...]


def _windows(extents: d.Dims, window: Ints, strides: Ints, padding: Pairs, dilation: Ints) -> d.Dims:
    """How many windows fit each axis."""
    rank = len(extents)
    for name, value in (("window", window), ("strides", strides), ("padding", padding), ("dilation", dilation)):
        r.require(len(value) == rank, f"{name} has {len(value)} entries for {rank} spatial axes")
    r.require(min((*window, *strides, *dilation), default=1) >= 1, "window, strides and dilation must be positive")
    padded = tuple(low + extent + high for (low, high), extent in zip(padding, extents, strict=True))
    spans = tuple(step * (size - 1) + 1 for step, size in zip(dilation, window, strict=True))
    for span, extent in zip(spans, padded, strict=True):
        r.require(r.at_most(span, extent), f"a window spans {span}, the padded axis has {extent}")
    return tuple((n - span) // stride + 1 for n, span, stride in zip(padded, spans, strides, strict=True))


def _taps(x: Any, window: Ints, strides: Ints, padding: Pairs, dilation: Ints, fill: Any) -> Iterator[tuple[Ints, Any]]:
    """Each place in the window, with the elements that all windows see there."""
    lead = x.ndim - len(window)
    counts = r.known("extents", *_windows(x.shape[lead:], window, strides, padding, dilation))
    padded = np.pad(x, ((0, 0),) * lead + tuple(padding), constant_values=fill)
    for tap in np.ndindex(*window):
        starts = [t * step for t, step in zip(tap, dilation, strict=True)]
        places = zip(starts, strides, counts, strict=True)
        yield tap, _at(padded, *(np.s_[at : at + n * stride : stride] for at, stride, n in places))


def _at(array: Any, *places: Any) -> Any:
    """The view at ``places`` of the trailing axes."""
    index = (Ellipsis, *places)
    return array[index]


def _conv(
    x: TensorType, w: TensorType, *, strides: Ints, padding: Pairs, dilation: Ints, groups: int = 1
) -> TensorType:
    r.of_kind(r.NUMBER, x)
    r.same_dtype(x, w)
    r.require(
        x.rank == w.rank >= 3, f"takes x [B, C, *S] and w [O, C/groups, *K], not {r.show(x.dims)}, {r.show(w.dims)}"
    )
    inner = r.divided("C and groups", x.dims[1], groups)
    r.divided("O and groups", w.dims[0], groups)
    r.require(inner == w.dims[1], f"w takes {w.dims[1]} channels per group, x has {inner}")
    window = r.known("w's kernel", *w.dims[2:])
    return x.with_dims((x.dims[0], w.dims[0], *_windows(x.dims[2:], window, strides, padding, dilation)))


def _conv_reference(x: Any, w: Any, *, strides: Ints, padding: Pairs, dilation: Ints, groups: int) -> Any:
    result: Any = 0
    for tap, seen in _taps(x, w.shape[2:], strides, padding, dilation, 0):
        grouped = seen.reshape(x.shape[0], groups, -1, *seen.shape[2:])
        weights = _at(w, *tap).reshape(groups, -1, w.shape[1])
        result = result + np.einsum("bgc...,goc->bgo...", grouped, weights)
    return result.reshape(x.shape[0], w.shape[0], *result.shape[3:])


def _conv_flops(x: TensorType, w: TensorType, **attrs: Any) -> d.Dim:
    result = _conv(x, w, **attrs)
    return 2 * result.size * d.size(w.dims[1:])


_CONV1 = {"strides": (1,), "padding": ((0, 0),), "dilation": (1,)}
_CONV2 = {"strides": (2, 1), "padding": ((1, 0), (2, 2)), "dilation": (1, 2), "groups": 2}
_SAME = {"strides": (1, 1), "dilation": (1, 1)}
conv = OpDef(
    "conv",
    infer=_conv,
    reference=_conv_reference,
    flops=_conv_flops,
    examples=(
        Example(("f32[2, 3, 7]", "f32[5, 3, 3]"), _CONV1),
        Example(("f32[1, 4, 7, 5]", "f32[6, 2, 3, 3]"), _CONV2),
        Example(("f32[1, 3, 1]", "f32[3, 1, 1]"), {**_CONV1, "groups": 3}),
        Example(
            ("f32[1, 1, 3, 4, 5]", "f32[1, 1, 2, 2, 2]"),
            {"strides": (1,) * 3, "padding": ((0, 1),) * 3, "dilation": (1,) * 3},
        ),
    ),
    bad_examples=(
        BadExample(("f32[2, 3, 7]", "f32[5, 2, 3]"), _CONV1, "w takes 2 channels per group, x has 3"),
        BadExample(("f32[2, 3, 2]", "f32[5, 3, 3]"), _CONV1, "a window spans 3, the padded axis has 2"),
        BadExample(("f32[2, 3, 7]", "f32[5, 3, 3]"), {**_CONV1, "strides": (1, 1)}, "strides has 2 entries for 1"),
    ),
    doc="Cross-correlation of x [B, C, *S] with w [O, C/groups, *K]; padding is (before, after) per axis, with zeros. A kernel may "
    "leave out what lies on the padding, which shows where a weight is infinite: zero times infinity is NaN.",
)

# --- depthwise_conv -------------------------------------------------------------------------------------------------


def _depthwise(x: TensorType, w: TensorType, *, strides: Ints, padding: Pairs, dilation: Ints) -> TensorType:
    r.of_kind(r.NUMBER, x)
    r.same_dtype(x, w)
    fits = x.rank >= 3 and w.rank == x.rank - 1 and w.dims[-1] == x.dims[-1]
    r.require(fits, f"takes x [B, *S, C] and w [*K, C], not {r.show(x.dims)}, {r.show(w.dims)}")
    window = r.known("w's kernel", *w.dims[:-1])
    return x.with_dims((x.dims[0], *_windows(x.dims[1:-1], window, strides, padding, dilation), x.dims[-1]))


def _depthwise_reference(x: Any, w: Any, *, strides: Ints, padding: Pairs, dilation: Ints) -> Any:
    first = np.moveaxis(x, -1, 1)
    seen = _taps(first, w.shape[:-1], strides, padding, dilation, 0)
    return sum(np.moveaxis(part, 1, -1) * w[tap] for tap, part in seen)


def _depthwise_by_conv(x: Value, w: Value, *, strides: Ints, padding: Pairs, dilation: Ints) -> Value:
    last = x.type.rank - 1
    kernel = reshape(transpose(w, perm=(last - 1, *range(last - 1))), dims=(x.dims[-1], 1, *w.dims[:-1]))
    first = transpose(x, perm=(0, last, *range(1, last)))
    y = conv(first, kernel, strides=strides, padding=padding, dilation=dilation, groups=x.dims[-1])
    return transpose(y, perm=(0, *range(2, last + 1), 1))


depthwise_conv = OpDef(
    "depthwise_conv",
    infer=_depthwise,
    reference=_depthwise_reference,
    decompose=_depthwise_by_conv,
    flops=lambda x, w, **attrs: 2 * _depthwise(x, w, **attrs).size * d.size(w.dims[:-1]),
    examples=(
        Example(("f32[2, 7, 3]", "f32[3, 3]"), _CONV1),
        Example(("f32[1, 7, 5, 4]", "f32[3, 3, 4]"), {k: v for k, v in _CONV2.items() if k != "groups"}),
        Example(("f32[1, 3, 1, 17]", "f32[3, 5, 17]"), {**_SAME, "padding": ((1, 1), (2, 2))}),
        Example(("f32[2, 1, 1, 1]", "f32[1, 1, 1]"), {**_SAME, "padding": ((0, 0), (0, 0))}),
    ),
    bad_examples=(
        BadExample(("f32[2, 7, 3]", "f32[3, 4]"), _CONV1, "takes x [B, *S, C] and w [*K, C]"),
        BadExample(("f32[2, 2, 3]", "f32[3, 3]"), _CONV1, "a window spans 3, the padded axis has 2"),
    ),
    doc="Cross-correlation of each channel by itself, channels innermost: x [B, *S, C] with w [*K, C]; padding as in conv.",
)

# --- conv_transpose -------------------------------------------------------------------------------------------------


def _conv_transpose(
    x: TensorType,
    w: TensorType,
    *,
    strides: Ints,
    padding: Pairs,
    output_padding: Ints,
    dilation: Ints,
    groups: int = 1,
) -> TensorType:
    r.of_kind(r.NUMBER, x)
    r.same_dtype(x, w)
    r.require(x.rank == w.rank >= 3 and x.dims[1] == w.dims[0], f"w must be [{x.dims[1]}, O/groups, *K]")
    r.divided("C and groups", x.dims[1], groups)
    window = r.known("w's kernel", *w.dims[2:])
    rows = zip(x.dims[2:], window, strides, padding, output_padding, dilation, strict=True)
    extents = tuple((n - 1) * s - lo - hi + step * (k - 1) + extra + 1 for n, k, s, (lo, hi), extra, step in rows)
    return x.with_dims((x.dims[0], w.dims[1] * groups, *extents))


def _conv_transpose_reference(x: Any, w: Any, **attrs: Any) -> Any:
    """Each input element adds its window to the result."""
    strides, padding, dilation, groups = attrs["strides"], attrs["padding"], attrs["dilation"], attrs["groups"]
    full = [
        (n - 1) * s + step * (k - 1) + 1 + extra
        for n, k, s, step, extra in zip(
            x.shape[2:], w.shape[2:], strides, dilation, attrs["output_padding"], strict=True
        )
    ]
    result = np.zeros((x.shape[0], groups, w.shape[1], *full), x.dtype)
    grouped = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    for tap in np.ndindex(*w.shape[2:]):
        weights = _at(w, *tap).reshape(groups, -1, w.shape[1])
        rows = zip(tap, dilation, x.shape[2:], strides, strict=True)
        reached = _at(result, *(np.s_[t * step : t * step + n * s : s] for t, step, n, s in rows))
        reached += np.einsum("bgc...,gco->bgo...", grouped, weights)
    kept = (np.s_[lo : n - hi] for (lo, hi), n in zip(padding, full, strict=True))
    return _at(result.reshape(x.shape[0], -1, *full), *kept)


def _transpose_by_conv(
    x: Value, w: Value, *, strides: Ints, padding: Pairs, output_padding: Ints, dilation: Ints, groups: int
) -> Value:
    """Spread x with zeros between, then convolve with the reversed kernel."""
    space = range(2, x.type.rank)
    spans = [step * (k - 1) for step, k in zip(dilation, r.known("w's kernel", *w.dims[2:]), strict=True)]
    edges = [
        (span - lo, span - hi + extra) for span, (lo, hi), extra in zip(spans, padding, output_padding, strict=True)
    ]
    spread = _padded(_spread(x, strides), edges)
    inner = r.divided("C and groups", w.dims[0], groups)
    grouped = reshape(w, dims=(groups, inner, *w.dims[1:]))
    swapped = transpose(grouped, perm=(0, 2, 1, *(axis + 1 for axis in space)))
    kernel = flip(reshape(swapped, dims=(w.dims[1] * groups, inner, *w.dims[2:])), axes=tuple(space))
    ones = (1,) * len(strides)
    return conv(spread, kernel, strides=ones, padding=((0, 0),) * len(ones), dilation=dilation, groups=groups)


def _spread(x: Value, strides: Ints) -> Value:
    """Put ``stride - 1`` zeros between neighbours on each spatial axis."""
    for axis, stride in enumerate(strides, start=2):
        if stride > 1:
            split = reshape(x, dims=(*x.dims[: axis + 1], 1, *x.dims[axis + 1 :]))
            zeros = tuple(stride - 1 if i == axis + 1 else 0 for i in range(split.type.rank))
            wide = pad(split, low=(0,) * split.type.rank, high=zeros)
            dims = (*x.dims[:axis], x.dims[axis] * stride, *x.dims[axis + 1 :])
            x = _padded(reshape(wide, dims=dims), [(0, 1 - stride)], first=axis)
    return x


def _padded(x: Value, edges: list[tuple[int, int]], first: int = 2) -> Value:
    """Pad axes from ``first`` on with zeros; negative edges remove elements."""
    around = [(0, 0)] * first + edges
    around += [(0, 0)] * (x.type.rank - len(around))
    grown = pad(x, low=tuple(max(a, 0) for a, _ in around), high=tuple(max(b, 0) for _, b in around))
    starts = tuple(max(-a, 0) for a, _ in around)
    stops = tuple(dim - max(-b, 0) for dim, (_, b) in zip(grown.dims, around, strict=True))
    return slice(grown, starts=starts, stops=stops, steps=(1,) * x.type.rank)


_BACK1 = {"strides": (2,), "padding": ((1, 1),), "output_padding": (1,), "dilation": (1,)}
conv_transpose = OpDef(
    "conv_transpose",
    infer=_conv_transpose,
    reference=_conv_transpose_reference,
    decompose=_transpose_by_conv,
    examples=(
        Example(("f32[2, 3, 7]", "f32[3, 5, 3]"), _BACK1),
        Example(
            ("f32[1, 4, 3, 5]", "f32[4, 3, 2, 3]"),
            {"strides": (2, 1), "padding": ((0, 0), (3, 2)), "output_padding": (0, 0), "dilation": (1, 1), "groups": 2},
        ),
        Example(("f32[1, 2, 1]", "f32[2, 1, 4]"), {**_BACK1, "padding": ((0, 0),), "dilation": (3,), "groups": 2}),
    ),
    bad_examples=(BadExample(("f32[2, 3, 7]", "f32[4, 5, 3]"), _BACK1, "w must be [3, O/groups, *K]"),),
    doc="The transpose of conv: x [B, C, *S] with w [C, O/groups, *K] to [B, O, *T].",
)

# --- pool -----------------------------------------------------------------------------------------------------------


def _pool(x: TensorType, *, kind: str, window: Ints, strides: Ints, padding: Pairs, dilation: Ints) -> TensorType:
    r.of_kind(r.REAL, x)
    r.require(kind in ("max", "sum"), f'kind is "max" or "sum", not "{kind}"')
    r.require(len(window) <= x.rank, f"a window of {len(window)} axes does not fit rank {x.rank}")
    lead = x.rank - len(window)
    return x.with_dims((*x.dims[:lead], *_windows(x.dims[lead:], window, strides, padding, dilation)))


def _pool_reference(x: Any, *, kind: str, window: Ints, strides: Ints, padding: Pairs, dilation: Ints) -> Any:
    lowest = -math.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    combine, start = (np.maximum, lowest) if kind == "max" else (np.add, 0)
    result: Any = None
    for _, seen in _taps(x, window, strides, padding, dilation, start):
        result = seen if result is None else combine(result, seen)
    return result


_POOL = {"kind": "max", "window": (3, 2), "strides": (2, 1), "padding": ((1, 1), (0, 1)), "dilation": (1, 2)}
pool = OpDef(
    "pool",
    infer=_pool,
    reference=_pool_reference,
    flops=lambda x, *, window, **attrs: _pool(x, window=window, **attrs).size * math.prod(window),
    examples=(
        Example(("f32[2, 7, 5]",), _POOL),
        Example(("f32[2, 7, 5]",), {**_POOL, "kind": "sum"}),
        Example(("i64[1]",), {"kind": "max", "window": (1,), "strides": (1,), "padding": ((0, 0),), "dilation": (1,)}),
    ),
    bad_examples=(
        BadExample(("f32[7, 5]",), {**_POOL, "kind": "mean"}, "kind is"),
        BadExample(("f32[5]",), _POOL, "does not fit rank 1"),
    ),
    doc="Largest element or sum of each window over the trailing axes; padding never wins a max.",
)
