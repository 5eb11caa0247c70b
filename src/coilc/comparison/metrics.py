"""How far two arrays are apart, and how far they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Relative Frobenius error that an artifact may have against eager PyTorch, by dtype of the compared value, or by the
# precision that it was compiled with, or the format of its weights, if that is lower. The tests use the same table.
# Integers and booleans must be equal.
TOLERANCE = {
    "float64": 1e-11,
    "complex128": 1e-11,
    "float32": 1e-5,
    "complex64": 1e-5,
    "float16": 5e-3,
    "bfloat16": 3e-2,
    "int8": 5e-2,
    "int4": 2.5e-1,
}
ROWS = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "int8": "int8",
    "int4": "int4",
}  # of what --precision and --quantize name
LOGITS_CLASSES = 1000  # a last axis this long is taken for scores over classes even under another name


@dataclass(frozen=True)
class Difference:
    """Distance of an array from its reference.

    Attributes:
        max_abs_error: largest absolute difference of two elements; inf where only one of them is finite.
        relative_error: Frobenius norm of the difference over that of the reference (over 1 if the reference is all
            zeros); for integers and booleans, the share of elements that differ.
        cosine: of the angle between the two as vectors; 1 where both are all zeros.
        argmax_agreement: share of rows whose largest element is at the same place; None unless scores over classes.
    """

    max_abs_error: float
    relative_error: float
    cosine: float
    argmax_agreement: float | None = None


def difference(actual: np.ndarray, expected: np.ndarray, name: str = "") -> Difference:
    """Measure ``actual`` against ``expected``; both have the same shape. Sums are taken in double precision."""
    agreement = _argmax_agreement(actual, expected) if is_scores(name, expected) else None
    if expected.dtype.kind in "biu":
        wrong = actual != expected
        gap = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        return Difference(float(gap.max(initial=0.0)), float(wrong.mean()) if wrong.size else 0.0, 1.0, agreement)
    a, e = _wide(actual).ravel(), _wide(expected).ravel()
    same = (a == e) | (np.isnan(a) & np.isnan(e))  # equal infinities and NaNs in the same place are no error
    a, e = np.where(same, np.where(np.isfinite(e), e, 0), a), np.where(same & ~np.isfinite(e), 0, e)
    if not (np.isfinite(a).all() and np.isfinite(e).all()):
        return Difference(math.inf, math.inf, 0.0, agreement)
    gap, norm, other = np.abs(a - e), float(np.linalg.norm(e)), float(np.linalg.norm(a))
    cosine = float(np.vdot(a, e).real) / (norm * other) if norm * other else float(norm == other)
    return Difference(float(gap.max(initial=0.0)), float(np.linalg.norm(gap)) / (norm or 1.0), cosine, agreement)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def is_scores(name: str, array: np.ndarray) -> bool:
    """Whether the last axis is a choice among classes, so that the place of its maximum is what a user sees."""
    return (
        is_float(array)
        and array.ndim >= 2
        and array.size > 0
        and ("logits" in name or array.shape[-1] >= LOGITS_CLASSES)
    )


def is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def _argmax_agreement(actual: np.ndarray, expected: np.ndarray) -> float:
    return float((actual.argmax(-1) == expected.argmax(-1)).mean())


def tolerance_for(array: np.ndarray, given: float | None = None, *stored: str) -> float:
    """The relative error allowed for ``array``: zero for integers, else ``given``, else the table's row."""
    if array.dtype.kind in "biu":
        return 0.0
    rows = [array.dtype.name, *(ROWS[name] for name in stored if name in ROWS)]
    return max(TOLERANCE[row] for row in rows) if given is None else given
