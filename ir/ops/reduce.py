"""Reductions over ``axes``; ``keepdims`` leaves them with extent 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import dims as d
from ..core import Value
from ..opdef import REDUCTION, BadExample, Example, OpDef
from ..types import DTYPES, Kind, TensorType
from . import rules as r
from .elementwise import add, div, exp, isinf, log, mul, sub, where
from .movement import dim_value, reshape
from .precision import in_f32

Axes = tuple[int, ...]
_EXAMPLES = ({"axes": (1,), "keepdims": False}, {"axes": (0, 2), "keepdims": True})


def _reduced(x: TensorType, axes: Axes, keepdims: bool) -> TensorType:
    r.require(bool(axes), "axes must name at least one axis")
    r.axis_of(x, *axes)
    dims = enumerate(x.dims)
    return x.with_dims(tuple(1 if i in axes else dim for i, dim in dims if keepdims or i not in axes))


def _rule(kinds: frozenset[Kind]) -> Callable[..., TensorType]:
    def infer(x: TensorType, *, axes: Axes, keepdims: bool = False) -> TensorType:
        r.of_kind(kinds, x)
        return _reduced(x, axes, keepdims)

    return infer


def _reduction(
    name: str,
    kinds: frozenset[Kind],
    reference: Callable[..., Any],
    doc: str,
    aten: str = "",
    decompose: Callable[..., Any] | None = None,
) -> OpDef:
    sample = "f32" if "float" in kinds else "bool"
    return OpDef(
        name,
        _rule(kinds),
        reference,
        decompose and in_f32(_rule(kinds), decompose),
        traits=frozenset() if decompose else frozenset({REDUCTION}),
        aliases={"aten": tuple(f"aten.{n}" for n in aten.split())},
        examples=(*(Example((f"{sample}[3, 7, 1]",), attrs) for attrs in _EXAMPLES),),
        bad_examples=(
            BadExample((f"{sample}[3]",), {"axes": (1,)}, "axis 1 is not in 0..0"),
            BadExample((f"{sample}[3]",), {"axes": ()}, "at least one axis"),
            BadExample(("c64[3]" if "complex" not in kinds else "bool[3]",), {"axes": (0,)}, "cast first"),
        ),
        doc=doc,
    )


def count(x: Value, axes: Axes) -> d.Dim:
    """How many elements one result of a reduction over ``axes`` sums."""
    return d.size(x.dims[axis] for axis in axes)


def _mean(x: Value, *, axes: Axes, keepdims: bool) -> Value:
    return div(sum(x, axes=axes, keepdims=keepdims), dim_value(count(x, axes), x.type.dtype))


def _var_type(x: TensorType, *, axes: Axes, keepdims: bool = False, correction: int = 1) -> TensorType:
    r.of_kind(r.FLOAT, x)
    return _reduced(x, axes, keepdims)


def _var(x: Value, *, axes: Axes, keepdims: bool, correction: int) -> Value:
    centred = sub(x, _mean(x, axes=axes, keepdims=True))
    total = sum(mul(centred, centred), axes=axes, keepdims=keepdims)
    return div(total, dim_value(count(x, axes) - correction, x.type.dtype))


def _logsumexp(x: Value, *, axes: Axes, keepdims: bool) -> Value:
    largest = max(x, axes=axes, keepdims=True)
    shift = where(isinf(largest), 0, largest)  # inf - inf is NaN
    total = log(sum(exp(sub(x, shift)), axes=axes, keepdims=True))
    result = add(total, shift)
    return result if keepdims else reshape(result, dims=_reduced(x.type, axes, False).dims)


def _logsumexp_reference(x: Any, *, axes: Axes, keepdims: bool) -> Any:
    largest = np.max(x, axis=axes, keepdims=True)
    shift = np.where(np.isinf(largest), 0, largest)
    return np.log(np.sum(np.exp(x - shift), axis=axes, keepdims=keepdims)) + shift.reshape(
        np.max(x, axis=axes, keepdims=keepdims).shape
    )


def _arg_type(x: TensorType, *, axis: int, keepdims: bool = False) -> TensorType:
    r.of_kind(r.ORDERED, x)
    return _reduced(x, (axis,), keepdims).with_dtype(DTYPES["i64"])


def _arg(name: str, reference: Callable[..., Any], doc: str) -> OpDef:
    return OpDef(
        name,
        _arg_type,
        lambda x, *, axis, keepdims: reference(x, axis=axis, keepdims=keepdims),
        aliases={"aten": (f"aten.{name}.default",)},
        examples=(
            Example(("f32[3, 7]",), {"axis": 1, "keepdims": True}),
            Example(("i64[5, 2]",), {"axis": 0}),
            Example(("f32[1]",), {"axis": 0}),
        ),
        bad_examples=(BadExample(("f32[3]",), {"axis": 1}, "axis 1 is not in 0..0"),),
        doc=doc,
    )


sum = _reduction(
    "sum",
    r.NUMBER,
    lambda x, *, axes, keepdims: np.sum(x, axis=axes, keepdims=keepdims, dtype=x.dtype),
    "Sum, in f32 for 16-bit floats.",
    "sum.dim_IntList",
)
prod = _reduction(
    "prod",
    r.NUMBER,
    lambda x, *, axes, keepdims: np.prod(x, axis=axes, keepdims=keepdims, dtype=x.dtype),
    "Product, in f32 for 16-bit floats.",
    "prod.dim_int",
)
max = _reduction(
    "max",
    r.ORDERED,
    lambda x, *, axes, keepdims: np.max(x, axis=axes, keepdims=keepdims),
    "Largest; NaN wins.",
    "amax.default",
)
min = _reduction(
    "min",
    r.ORDERED,
    lambda x, *, axes, keepdims: np.min(x, axis=axes, keepdims=keepdims),
    "Smallest; NaN wins.",
    "amin.default",
)
mean = _reduction(
    "mean",
    r.FLOATING,
    lambda x, *, axes, keepdims: np.mean(x, axis=axes, keepdims=keepdims, dtype=x.dtype),
    "Arithmetic mean.",
    "mean.dim",
    _mean,
)
any = _reduction(
    "any",
    r.BOOL,
    lambda x, *, axes, keepdims: np.any(x, axis=axes, keepdims=keepdims),
    "Whether some element is true.",
    "any.dims",
    lambda x, *, axes, keepdims: max(x, axes=axes, keepdims=keepdims),
)
all = _reduction(
    "all",
    r.BOOL,
    lambda x, *, axes, keepdims: np.all(x, axis=axes, keepdims=keepdims),
    "Whether every element is true.",
    "all.dims",
    lambda x, *, axes, keepdims: min(x, axes=axes, keepdims=keepdims),
)
logsumexp = _reduction(
    "logsumexp",
    r.FLOAT,
    _logsumexp_reference,
    "``log(sum(exp(x)))`` without overflow.",
    "logsumexp.default",
    _logsumexp,
)
var = OpDef(
    "var",
    _var_type,
    lambda x, *, axes, keepdims, correction: np.var(x, axis=axes, keepdims=keepdims, ddof=correction),
    in_f32(_var_type, _var),
    aliases={"aten": ("aten.var.correction",)},
    examples=(
        Example(("f32[3, 7, 1]",), {"axes": (1,), "correction": 1}),
        Example(("f32[3, 7, 2]",), {"axes": (0, 2), "keepdims": True, "correction": 0}),
    ),
    bad_examples=(BadExample(("i64[3]",), {"axes": (0,)}, "cast first"),),
    doc="Variance: squared deviations from the mean over (count - correction).",
)
argmax = _arg("argmax", np.argmax, "Index of the first largest element; NaN is largest.")
argmin = _arg("argmin", np.argmin, "Index of the first smallest element; NaN is smallest.")
