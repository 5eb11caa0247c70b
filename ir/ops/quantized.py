"""Products with quantised weights: integers with a scale per group of adjacent rows and column (f16).

A format is a type of weights, laid out in panels of adjacent columns like those of ``pack_panels``, four rows at a time:
i8[P, Q, panel, 4] holds 4 Q rows of numbers in -127..127, u8[P, Q, panel, 4] holds 8 Q rows of numbers in -7..7, plus 8: the
first four of eight rows in the low halves of the bytes. Letters: P panels, G groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dims as d
from ..core import Value
from ..opdef import BadExample, Example, OpDef
from ..types import DTYPES, TensorType
from . import rules as r
from .elementwise import (
    abs,
    add,
    bitwise_and,
    bitwise_or,
    cast,
    clamp,
    div,
    eq,
    mul,
    round,
    shift_left,
    shift_right,
    sub,
    where,
)
from .linalg import matmul
from .movement import broadcast, concat, pad, reshape, slice_axis, transpose
from .reduce import max

FORMATS = {8: DTYPES["i8"], 4: DTYPES["u8"]}  # by bits
SCALE = DTYPES["f16"]


def _largest(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _quantize_type(w: TensorType, *, panel: int, bits: int, groups: int) -> tuple[TensorType, TensorType]:
    r.of_kind(r.FLOAT, w)
    inner, columns = r.ranked("w", w, "KN")
    (rows,) = r.known("K", inner)
    r.require(bits in FORMATS, f"there are formats of {', '.join(map(str, FORMATS))} bits, not {bits}")
    per_four = 32 // bits
    r.require(rows % (per_four * groups) == 0, f"{rows} rows do not make {groups} groups of whole {per_four} rows")
    panels = (columns + panel - 1) // panel
    return TensorType(FORMATS[bits], (panels, rows // per_four, panel, 4)), TensorType(SCALE, (panels, groups, panel))


def _quantize_reference(w: Any, *, panel: int, bits: int, groups: int) -> tuple[Any, Any]:
    padded = np.pad(w, ((0, 0), (0, -w.shape[1] % panel)))
    grouped = padded.reshape(groups, -1, padded.shape[1] // panel, panel)
    scale = (np.max(np.abs(grouped), axis=1) / _largest(bits)).astype(np.float16)
    step = np.where(scale == 0, 1, scale).astype(w.dtype)[:, None]
    numbers = np.clip(np.round(grouped / step), -_largest(bits), _largest(bits)).astype(np.int8)
    fours = numbers.reshape(-1, 4, *numbers.shape[2:]).transpose(2, 0, 3, 1)  # [P, K / 4, panel, 4]
    if bits == 4:
        low, high = (fours[:, half::2].astype(np.uint8) + np.uint8(8) for half in (0, 1))
        fours = low | (high << np.uint8(4))
    return fours, scale.swapaxes(0, 1)


def _quantize(w: Value, *, panel: int, bits: int, groups: int) -> tuple[Value, Value]:
    (inner, columns), largest = w.dims, _largest(bits)
    panels = (columns + panel - 1) // panel
    padded = pad(w, low=(0, 0), high=(0, panels * panel - columns))
    grouped = reshape(padded, dims=(groups, d.divide_exactly(inner, groups), panels, panel))
    scale = cast(div(max(abs(grouped), axes=(1,), keepdims=True), largest), dtype=SCALE)
    step = cast(where(eq(scale, 0.0), 1.0, scale), dtype=w.type.dtype)
    numbers = clamp(round(div(grouped, broadcast(step, dims=grouped.dims))), low=-largest, high=largest)
    per_four = 32 // bits
    rows = reshape(
        cast(numbers, dtype=DTYPES["i8"]), dims=(d.divide_exactly(inner, per_four), per_four // 4, 4, panels, panel)
    )
    halves = transpose(rows, perm=(1, 3, 0, 4, 2))
    dims = halves.dims[1:]
    if bits == 8:
        packed = reshape(halves, dims=dims)
    else:
        shifted = add(cast(halves, dtype=DTYPES["u8"]), 8)
        low, high = (reshape(slice_axis(shifted, 0, half, half + 1), dims=dims) for half in (0, 1))
        packed = bitwise_or(low, shift_left(high, 4))
    return packed, transpose(reshape(scale, dims=(groups, panels, panel)), perm=(1, 0, 2))


quantize_panels = OpDef(
    "quantize_panels",
    infer=_quantize_type,
    reference=_quantize_reference,
    decompose=_quantize,
    examples=(
        Example(("f32[16, 7]",), {"panel": 4, "bits": 8, "groups": 2}),
        Example(("f32[32, 5]",), {"panel": 4, "bits": 4, "groups": 2}),
        Example(("f32[4, 1]",), {"panel": 1, "bits": 8, "groups": 1}),
    ),
    bad_examples=(
        BadExample(
            ("f32[12, 7]",), {"panel": 4, "bits": 4, "groups": 1}, "12 rows do not make 1 groups of whole 8 rows"
        ),
        BadExample(("f32[16, 7]",), {"panel": 4, "bits": 2, "groups": 1}, "there are formats of 8, 4 bits, not 2"),
    ),
    doc="w [K, N] as panels of small integers and the scales [P, groups, panel] that their groups of rows share.",
)

# --- the product ------------------------------------------------------------------------------------------------------


def together(w: TensorType) -> int:
    """How many rows four bytes of quantised panels hold."""
    return 4 if w.dtype == FORMATS[8] else 8


def rows_of(w: TensorType) -> int:
    """How many rows quantised panels hold."""
    (fours,) = r.known("Q", w.dims[1])
    return fours * together(w)


def _product_type(x: TensorType, w: TensorType, scale: TensorType, *, columns: int) -> TensorType:
    panels, _, panel, four = r.ranked("w", w, ("panels", "Q", "panel", "4"))
    r.require(w.dtype in FORMATS.values() and four == 4, f"w must be i8 or u8 [panels, Q, panel, 4], not {w}")
    r.require(x.dtype == DTYPES["i8"], f"x must be i8, not {x.dtype}")
    rows, groups = rows_of(w), r.ranked("scale", scale, ("panels", "groups", "panel"))[1]
    r.require(x.rank >= 1 and x.dims[-1] == rows, f"x {r.show(x.dims)} must end in {rows} features")
    r.shaped("scale", scale, (panels, groups, panel))
    count, width = r.known("groups and the panel", groups, panel)
    r.require(rows % (together(w) * count) == 0, f"{rows} rows do not make {count} groups")
    r.require(panels == -(-columns // width), f"{columns} columns do not fill {panels} panels of {panel}")
    return TensorType(DTYPES["f32"], (*x.dims[:-1], columns))


def _unpacked(w: Any) -> Any:
    """The integers, [K, P * panel]."""
    halves = w[:, :, None] if w.dtype == np.int8 else np.stack([w & 15, w >> 4], axis=2).astype(np.int8) - 8
    return halves.transpose(1, 2, 4, 0, 3).reshape(-1, w.shape[0] * w.shape[2])


def _product_reference(x: Any, w: Any, scale: Any, *, columns: int) -> Any:
    numbers, steps = _unpacked(w)[:, :columns], scale.swapaxes(0, 1).reshape(scale.shape[1], -1)[:, :columns]
    groups = len(steps)
    sums = np.einsum(
        "...gk,gkn->...gn",
        x.reshape(*x.shape[:-1], groups, -1).astype(np.int64),
        numbers.reshape(groups, -1, columns).astype(np.int64),
    )
    wide = np.float64 if scale.dtype == np.float64 else np.float32
    return np.sum(sums.astype(wide) * steps.astype(wide), axis=-2)


def _dequantize_and_multiply(x: Value, w: Value, scale: Value, *, columns: int) -> Value:
    panels, fours, panel, _ = r.known("w", *w.dims)
    (groups,), f32 = r.known("groups", scale.dims[1]), DTYPES["f32"]
    halves = reshape(w, dims=(panels, fours, 1, panel, 4))
    if w.type.dtype == FORMATS[4]:
        both = (bitwise_and(halves, 15), shift_right(halves, 4))
        halves = sub(concat(*(cast(half, dtype=DTYPES["i8"]) for half in both), axis=2), 8)
    rows = rows_of(w.type)
    numbers = reshape(transpose(halves, perm=(1, 2, 4, 0, 3)), dims=(groups, rows // groups, panels * panel))
    steps = reshape(transpose(scale, perm=(1, 0, 2)), dims=(groups, 1, panels * panel))
    weights = reshape(mul(cast(numbers, dtype=f32), cast(steps, dtype=f32)), dims=(rows, panels * panel))
    flat = reshape(cast(x, dtype=f32), dims=(d.size(x.dims[:-1]), rows))
    return reshape(matmul(flat, slice_axis(weights, 1, 0, columns)), dims=(*x.dims[:-1], columns))


_I8, _U8 = {0: (-127, 127), 1: (-127, 127)}, {0: (-127, 127), 1: (0, 255)}
quantized_matmul = OpDef(
    "quantized_matmul",
    infer=_product_type,
    reference=_product_reference,
    decompose=_dequantize_and_multiply,
    flops=lambda x, w, scale, *, columns: 2 * x.size * columns,
    examples=(
        Example(("i8[3, 8]", "i8[2, 2, 4, 4]", "f16[2, 2, 4]"), {"columns": 5}, ranges=_I8),
        Example(("i8[2, 1, 16]", "u8[1, 2, 8, 4]", "f16[1, 1, 8]"), {"columns": 8}, ranges=_U8),
    ),
    bad_examples=(
        BadExample(("i8[3, 8]", "i8[2, 2, 4, 4]", "f16[2, 2, 4]"), {"columns": 4}, "4 columns do not fill 2 panels"),
        BadExample(("i8[3, 7]", "i8[2, 2, 4, 4]", "f16[2, 2, 4]"), {"columns": 5}, "must end in 8 features"),
        BadExample(("f32[3, 8]", "i8[2, 2, 4, 4]", "f16[2, 2, 4]"), {"columns": 5}, "x must be i8, not f32"),
    ),
    doc=(
        "x @ w for integers x [..., K] in -127..127 and what quantize_panels made of w: sums of a group are integers, and "
        "exact; then they are scaled and added in f32. Result [..., columns]."
    ),
)
