"""How weights are laid out for kernels; evaluated at compile time when the operand is a weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core import Value
from ..opdef import BadExample, Example, OpDef
from ..types import TensorType
from . import rules as r
from .movement import pad, reshape, transpose


def _pack_panels(w: TensorType, *, panel: int) -> TensorType:
    inner, columns = r.ranked("w", w, "KN")
    r.require(panel >= 1, f"panel must be positive, not {panel}")
    return w.with_dims(((columns + panel - 1) // panel, inner, panel))


def _pack_reference(w: Any, *, panel: int) -> Any:
    padded = np.pad(w, ((0, 0), (0, -w.shape[1] % panel)))
    return padded.reshape(w.shape[0], -1, panel).swapaxes(0, 1)


def _pack_by_transpose(w: Value, *, panel: int) -> Value:
    inner, columns = w.dims
    panels = (columns + panel - 1) // panel
    padded = pad(w, low=(0, 0), high=(0, panels * panel - columns))
    return transpose(reshape(padded, dims=(inner, panels, panel)), perm=(1, 0, 2))


pack_panels = OpDef(
    "pack_panels",
    infer=_pack_panels,
    reference=_pack_reference,
    decompose=_pack_by_transpose,
    examples=(Example(("f32[3, 7]",), {"panel": 4}), Example(("f32[1, 8]",), {"panel": 8})),
    bad_examples=(BadExample(("f32[3]",), {"panel": 4}, "w must be [K, N]"),),
    doc="w [K, N] as [ceil(N / panel), K, panel]: panels of adjacent columns, each contiguous, zero padded.",
)
