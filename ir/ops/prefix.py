"""Running results along an axis, and order: cumulative ops, sort and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import dims as d
from ..core import Graph, Value
from ..opdef import BadExample, Example, OpDef
from ..types import DTYPES, Kind, TensorType
from . import rules as r
from .elementwise import logaddexp, maximum
from .movement import concat, reshape, slice_axis
from .precision import in_f32
from .recurrence import body_input, scan

Infer = Callable[..., TensorType]


def _along(kinds: frozenset[Kind]) -> Infer:
    def infer(x: TensorType, *, axis: int, reverse: bool = False) -> TensorType:
        r.of_kind(kinds, x)
        r.axis_of(x, axis)
        return x

    return infer


def _running(accumulate: Callable[..., Any]) -> Callable[..., Any]:
    """The reference of a cumulative op, from the start or from the end."""

    def reference(x: Any, *, axis: int, reverse: bool) -> Any:
        ordered = np.flip(x, axis) if reverse else x
        result = accumulate(ordered, axis=axis, dtype=x.dtype)
        return np.flip(result, axis) if reverse else result

    return reference


def _by_scan(combine: OpDef) -> Callable[..., Value]:
    """The decomposition of a cumulative op that starts from its first element: a scan whose carry is the result."""

    def decompose(x: Value, *, axis: int, reverse: bool) -> Value:
        carry, item = (body_input(name, x.type, without=axis) for name in ("carry", "x"))
        length = x.dims[axis]
        at = length - 1 if reverse else 0
        first = reshape(slice_axis(x, axis, at, at + 1), dims=carry.dims)
        after = combine(carry, item)
        # The first step must not combine the first element with itself: log(e + e) is not log(e).
        start, stop = (0, length - 1) if reverse else (1, length)
        body = Graph("body", (carry, item), (("carry", after), ("y", after)))
        rest = scan(
            first, slice_axis(x, axis, start, stop), body=body, carries=1, sequences=1, axis=axis, reverse=reverse
        )[1]
        head = slice_axis(x, axis, at, at + 1)
        return concat(*((rest, head) if reverse else (head, rest)), axis=axis)

    return decompose


def _cumulative(
    name: str,
    kinds: frozenset[Kind],
    accumulate: Callable[..., Any],
    doc: str,
    aten: str = "",
    combine: OpDef | None = None,
) -> OpDef:
    infer = _along(kinds)
    return OpDef(
        name,
        infer,
        _running(accumulate),
        combine and in_f32(infer, _by_scan(combine)),
        flops=lambda x, **_: x.size,
        aliases={"aten": (f"aten.{aten}",) if aten else ()},
        examples=(
            Example(("f32[3, 7]",), {"axis": 1}),
            Example(("f32[7, 1]",), {"axis": 0, "reverse": True}),
            Example(("f32[1]",), {"axis": 0}),
        ),
        bad_examples=(
            BadExample(("f32[3]",), {"axis": 1}, "axis 1 is not in 0..0"),
            BadExample(("bool[3]",), {"axis": 0}, "cast first"),
        ),
        doc=doc,
    )


cumsum = _cumulative(
    "cumsum", r.NUMBER, np.cumsum, "Sum of the elements so far; reverse starts at the end.", "cumsum.default"
)
cumprod = _cumulative("cumprod", r.NUMBER, np.cumprod, "Product of the elements so far.", "cumprod.default")
cummax = _cumulative("cummax", r.REAL, np.maximum.accumulate, "Largest element so far; NaN wins.", combine=maximum)
logcumsumexp = _cumulative(
    "logcumsumexp",
    r.FLOAT,
    np.logaddexp.accumulate,
    "``log(cumsum(exp(x)))`` without overflow.",
    "logcumsumexp.default",
    logaddexp,
)


def _sort(x: TensorType, *, axis: int, descending: bool = False) -> tuple[TensorType, TensorType]:
    r.of_kind(r.ORDERED, x)
    r.axis_of(x, axis)
    return x, x.with_dtype(DTYPES["i64"])


def _sort_reference(x: Any, *, axis: int, descending: bool) -> tuple[Any, Any]:
    if descending:  # sort the reversed axis and reverse the result: equal elements keep their order
        order = np.flip(x.shape[axis] - 1 - np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(x, axis, kind="stable")
    return np.take_along_axis(x, order, axis), order


def _topk(x: TensorType, *, k: d.Dim, axis: int, largest: bool = True) -> tuple[TensorType, TensorType]:
    values, indices = _sort(x, axis=axis)
    r.require(r.at_most(0, k) and r.at_most(k, x.dims[axis]), f"k is {k}, axis {axis} has {x.dims[axis]}")
    return r.replace_dim(values, axis, k), r.replace_dim(indices, axis, k)


def _topk_reference(x: Any, *, k: int, axis: int, largest: bool) -> tuple[Any, Any]:
    values, indices = _sort_reference(x, axis=axis, descending=largest)
    head = np.arange(k)
    return np.take(values, head, axis), np.take(indices, head, axis)


def _topk_by_sort(x: Value, *, k: d.Dim, axis: int, largest: bool) -> tuple[Value, Value]:
    values, indices = sort(x, axis=axis, descending=largest)
    return slice_axis(values, axis, 0, k), slice_axis(indices, axis, 0, k)


sort = OpDef(
    "sort",
    infer=_sort,
    reference=_sort_reference,
    aliases={"aten": ("aten.sort.stable",)},
    examples=(
        Example(("f32[3, 7]",), {"axis": 1}),
        Example(("i64[7, 2]",), {"axis": 0, "descending": True}),
        Example(("f32[1]",), {"axis": 0}),
    ),
    bad_examples=(BadExample(("f32[3]",), {"axis": 1}, "axis 1 is not in 0..0"),),
    doc="Values in order along axis, and where each came from; stable, NaN is largest.",
)
topk = OpDef(
    "topk",
    infer=_topk,
    reference=_topk_reference,
    decompose=_topk_by_sort,
    aliases={"aten": ("aten.topk.default",)},
    examples=(
        Example(("f32[3, 7]",), {"k": 2, "axis": 1}),
        Example(("i64[7, 2]",), {"k": 7, "axis": 0, "largest": False}),
        Example(("f32[1]",), {"k": 1, "axis": 0}),
    ),
    bad_examples=(BadExample(("f32[3]",), {"k": 4, "axis": 0}, "k is 4, axis 0 has 3"),),
    doc="The k largest (or smallest) along axis, best first, and where each came from; of equals the first wins.",
)
