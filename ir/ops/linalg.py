"""Matrix products and what is written with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dims as d
from ..core import Value
from ..opdef import BadExample, Example, OpDef
from ..types import TensorType
from . import rules as r
from .elementwise import add, mul
from .movement import reshape, slice_axis, transpose
from .reduce import sum


def _matmul(x: TensorType, w: TensorType) -> TensorType:
    r.of_kind(r.NUMBER, x, w)
    r.same_dtype(x, w)
    r.require(x.rank == w.rank >= 2, f"operands must have one rank of at least 2, not {x.rank} and {w.rank}")
    r.require(x.dims[:-2] == w.dims[:-2], f"batch dims {r.show(x.dims[:-2])} and {r.show(w.dims[:-2])} differ")
    r.require(x.dims[-1] == w.dims[-2], f"inner dims {x.dims[-1]} and {w.dims[-2]} differ")
    return x.with_dims((*x.dims[:-1], w.dims[-1]))


def _linear(x: TensorType, w: TensorType, bias: TensorType | None = None) -> TensorType:
    r.of_kind(r.NUMBER, x, w)
    r.require(w.rank == 2 and x.rank >= 1, f"takes x [..., K] and w [N, K], not {r.show(x.dims)} and {r.show(w.dims)}")
    r.require(x.dims[-1] == w.dims[1], f"x has {x.dims[-1]} features, w takes {w.dims[1]}")
    r.same_dtype(x, w, *([bias] if bias else []))
    if bias is not None:
        r.shaped("bias", bias, w.dims[:1])
    return x.with_dims((*x.dims[:-1], w.dims[0]))


def _linear_reference(x: Any, w: Any, *bias: Any) -> Any:
    product = x @ w.T
    return product + bias[0] if bias else product


def _linear_by_matmul(x: Value, w: Value, *bias: Value) -> Value:
    product = _rows_matmul(x, transpose(w, perm=(1, 0)))
    return add(product, bias[0]) if bias else product


def _rows_matmul(x: Value, w: Value) -> Value:
    """``x [..., K] @ w [K, N]`` with the leading axes of x folded into rows."""
    rows = reshape(x, dims=(d.size(x.dims[:-1]), x.dims[-1]))
    return reshape(matmul(rows, w), dims=(*x.dims[:-1], w.dims[1]))


def _packed_type(x: TensorType, w: TensorType, *, columns: int) -> TensorType:
    panels, inner, width = r.ranked("w", w, ("panels", "K", "panel"))
    (panel,) = r.known("the panel", width)
    r.same_dtype(x, w)
    r.require(x.rank >= 1 and x.dims[-1] == inner, f"x {r.show(x.dims)} must end in {inner} features")
    r.require(panels == (columns + panel - 1) // panel, f"{columns} columns do not fill {panels} panels of {panel}")
    return x.with_dims((*x.dims[:-1], columns))


def _packed_reference(x: Any, w: Any, *, columns: int) -> Any:
    return x @ np.moveaxis(w, 0, 1).reshape(w.shape[1], -1)[:, :columns]


def _unpack_and_multiply(x: Value, w: Value, *, columns: int) -> Value:
    panels, inner, panel = w.dims
    rows = reshape(transpose(w, perm=(1, 0, 2)), dims=(inner, panels * panel))
    return _rows_matmul(x, slice_axis(rows, 1, 0, columns))


matmul = OpDef(
    "matmul",
    infer=_matmul,
    reference=np.matmul,
    flops=lambda x, w: 2 * x.size * w.dims[-1],
    aliases={"aten": ("aten.mm.default", "aten.bmm.default")},
    examples=(
        Example(("f32[3, 7]", "f32[7, 5]")),
        Example(("f32[2, 3, 1, 4]", "f32[2, 3, 4, 1]")),
        Example(("c64[3, 2]", "c64[2, 3]")),
        Example(("bf16[3, 33]", "bf16[33, 2]")),
    ),
    bad_examples=(
        BadExample(("f32[3, 7]", "f32[6, 5]"), {}, "inner dims 7 and 6 differ"),
        BadExample(("f32[2, 3, 7]", "f32[4, 7, 5]"), {}, "batch dims [2] and [4] differ"),
        BadExample(("f32[3]", "f32[3]"), {}, "rank of at least 2"),
    ),
    doc="[..., M, K] @ [..., K, N] with equal batch dims; 16-bit floats accumulate in f32.",
)
linear = OpDef(
    "linear",
    infer=_linear,
    reference=_linear_reference,
    decompose=_linear_by_matmul,
    aliases={"aten": ("aten.linear.default",)},
    examples=(
        Example(("f32[2, 3, 7]", "f32[5, 7]", "f32[5]")),
        Example(("f32[7]", "f32[1, 7]")),
        Example(("bf16[3, 17]", "bf16[5, 17]", "bf16[5]")),
    ),
    bad_examples=(
        BadExample(("f32[2, 7]", "f32[7, 5]"), {}, "x has 7 features, w takes 5"),
        BadExample(("f32[2, 7]", "f32[5, 7]", "f32[7]"), {}, "bias must have dims [5]"),
    ),
    doc="``x @ w.T + bias`` for x [..., K], w [N, K], bias [N].",
)
packed_matmul = OpDef(
    "packed_matmul",
    infer=_packed_type,
    reference=_packed_reference,
    decompose=_unpack_and_multiply,
    flops=lambda x, w, *, columns: 2 * x.size * columns,
    examples=(
        Example(("f32[3, 7]", "f32[2, 7, 4]"), {"columns": 5}),
        Example(("f32[1, 1, 3]", "f32[1, 3, 8]"), {"columns": 8}),
    ),
    bad_examples=(BadExample(("f32[3, 7]", "f32[2, 7, 4]"), {"columns": 4}, "4 columns do not fill 2 panels"),),
    doc="``x @ w`` for a w that pack_panels has laid out; x [..., K], result [..., columns].",
)

# --- einsum ---------------------------------------------------------------------------------------------------------


def _terms(equation: str) -> tuple[list[str], str]:
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    letters = "".join(terms)
    plain = bool(arrow) and all(t.isalpha() or not t for t in (*terms, result))
    r.require(plain, f'equation "{equation}" must be like "bik,bkj->bij", with the result written out')
    once = all(len(set(t)) == len(t) for t in (*terms, result)) and set(result) <= set(letters)
    r.require(once, f'equation "{equation}" repeats a letter in one term or invents one in the result')
    return terms, result


def _einsum(*xs: TensorType, equation: str) -> TensorType:
    terms, result = _terms(equation)
    r.of_kind(r.NUMBER, *xs)
    r.same_dtype(*xs)
    r.require(len(terms) == len(xs), f'equation "{equation}" is for {len(terms)} operands, not {len(xs)}')
    extents: dict[str, d.Dim] = {}
    for term, x in zip(terms, xs, strict=True):
        r.require(len(term) == x.rank, f'"{term}" does not fit {r.show(x.dims)}')
        for letter, dim in zip(term, x.dims, strict=True):
            r.require(extents.setdefault(letter, dim) == dim, f"{letter} is {extents[letter]} and {dim}")
    return xs[0].with_dims(tuple(extents[letter] for letter in result))


def _contract(*xs: Value, equation: str) -> Value:
    """Multiply from left to right, summing every letter as soon as nothing later needs it."""
    terms, result = _terms(equation)
    value, term = xs[0], terms[0]
    for position in range(1, len(xs)):
        needed = set(result).union(*terms[position + 1 :])
        value, term = _contract_pair(value, term, xs[position], terms[position], needed)
    return _arranged(*_summed(value, term, set(result)), result)


def _summed(x: Value, term: str, needed: set[str]) -> tuple[Value, str]:
    axes = tuple(i for i, letter in enumerate(term) if letter not in needed)
    return (sum(x, axes=axes), "".join(c for c in term if c in needed)) if axes else (x, term)


def _arranged(x: Value, term: str, target: str) -> Value:
    return x if term == target else transpose(x, perm=tuple(map(term.index, target)))


def _contract_pair(x: Value, a: str, y: Value, b: str, needed: set[str]) -> tuple[Value, str]:
    x, a = _summed(x, a, needed | set(b))
    y, b = _summed(y, b, needed | set(a))
    shared = [c for c in a if c in b]
    batch = "".join(c for c in shared if c in needed)
    inner = "".join(c for c in shared if c not in needed)
    rows, columns = ("".join(c for c in term if c not in shared) for term in (a, b))
    extent = dict(zip(a + b, x.dims + y.dims, strict=True))
    result = batch + rows + columns
    x, y = _arranged(x, a, batch + rows + inner), _arranged(y, b, batch + inner + columns)

    def dims(letters: str) -> d.Dims:
        return tuple(extent[c] for c in letters)

    if not inner:  # an outer product; a matmul over an axis of 1 would be a slow way to write it
        one = dims(batch + rows) + (1,) * len(columns)
        other = dims(batch) + (1,) * len(rows) + dims(columns)
        return mul(reshape(x, dims=one), reshape(y, dims=other)), result
    m, k, n = (d.size(dims(letters)) for letters in (rows, inner, columns))
    product = matmul(reshape(x, dims=(*dims(batch), m, k)), reshape(y, dims=(*dims(batch), k, n)))
    return reshape(product, dims=dims(result)), result


einsum = OpDef(
    "einsum",
    infer=_einsum,
    reference=lambda *xs, equation: np.einsum(equation, *xs),
    decompose=_contract,
    examples=(
        Example(("f32[2, 3, 5]", "f32[2, 5, 4]"), {"equation": "bik,bkj->bij"}),
        Example(("f32[3, 2, 5]", "f32[4, 5, 2, 1]"), {"equation": "hbk,jkbo->bjh"}),
        Example(("f32[3]", "f32[5]"), {"equation": "i,j->ji"}),
        Example(("f32[3, 1, 2]",), {"equation": "abc->ca"}),
        Example(("f32[2, 3]", "f32[3, 4]", "f32[4, 2]"), {"equation": "ij,jk,ki->"}),
        Example(("f32[2, 3, 4]", "f32[2, 3]"), {"equation": "bln,bl->bn"}),
    ),
    bad_examples=(
        BadExample(("f32[2, 3]", "f32[4, 5]"), {"equation": "ij,jk->ik"}, "j is 3 and 4"),
        BadExample(("f32[2, 3]",), {"equation": "...j->j"}, "must be like"),
        BadExample(("f32[3, 3]",), {"equation": "ii->i"}, "repeats a letter"),
        BadExample(("f32[3, 3]",), {"equation": "ijk->i"}, '"ijk" does not fit [3, 3]'),
    ),
    doc="Sum of products in Einstein's notation; explicit result, letters only.",
)
