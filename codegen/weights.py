"""The weights file: safetensors whose every tensor starts at a multiple of 64 bytes of the file.

The format allows neither gaps between tensors nor bytes that no tensor owns, so a gap is a tensor of its own
(``coilc.padding.3``, u8), and the header, which may end in spaces, is padded to the same multiple.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coilc.ir import dtype_of

ALIGNMENT = 64
_NAMES = {"f16": "F16", "bf16": "BF16", "f32": "F32", "f64": "F64", "i8": "I8", "i16": "I16", "i32": "I32", "i64": "I64",
          "u8": "U8", "bool": "BOOL", "c64": "C64"}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Where every tensor lies: ``spans`` gives offset and bytes in the file."""

    header: bytes
    spans: Mapping[str, tuple[int, int]]
    total_bytes: int


def plan_layout(arrays: Mapping[str, np.ndarray]) -> Layout:
    """Lay the arrays out in the order given."""
    entries: dict[str, dict[str, object]] = {}
    starts: dict[str, int] = {}
    end = 0
    for name, array in arrays.items():
        starts[name] = end
        entries[name] = _entry(_NAMES[dtype_of(array).name], array.shape, end, array.nbytes)
        end += array.nbytes
        gap = -end % ALIGNMENT
        if gap:
            entries[f"coilc.padding.{len(starts)}"] = _entry("U8", (gap,), end, gap)
        end += gap
    text = json.dumps(entries, separators=(",", ":")).encode()
    header = text + b" " * (-(8 + len(text)) % ALIGNMENT)
    base = 8 + len(header)
    spans = {name: (base + start, arrays[name].nbytes) for name, start in starts.items()}
    return Layout(len(header).to_bytes(8, "little") + header, spans, base + end)


def _entry(dtype: str, shape: tuple[int, ...], start: int, size: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}


def write_weights(path: Path, arrays: Mapping[str, np.ndarray], layout: Layout) -> str:
    """Write the file tensor by tensor, never holding more than one converted tensor, and return its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:

        def emit(data: bytes | memoryview) -> None:
            file.write(data)
            digest.update(data)

        emit(layout.header)
        for array in arrays.values():
            emit(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            emit(bytes(-array.nbytes % ALIGNMENT))
    return digest.hexdigest()
