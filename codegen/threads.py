"""What the threads of a device's block share: memory, a place to wait, and values that go from thread to thread."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .scalar import Expr, dtype_name

WARP = 32  # threads that run in step
EVERYONE = 2**WARP - 1  # all lanes of a warp, as a mask


def shared(shape: Sequence[int], dtype: str) -> tirx.Buffer:
    """Memory of the block."""
    return T.alloc_buffer(tuple(shape), dtype, scope="shared")


def wait_for_block() -> None:
    """Until all threads of the block are here, and what they wrote to its memory can be read."""
    T.evaluate(T.tvm_storage_sync("shared"))


def wait_for_warp() -> None:
    """Until all lanes of the warp are here. No load moves past this place, as it would to its use to save registers."""
    T.evaluate(tirx.call_extern("int32", "__syncwarp"))


def from_lane(x: Expr, offset: int, lanes: Expr | None = None) -> Expr:
    """What the thread of this warp has whose number differs in the bit ``offset``.

    ``lanes`` is a mask of the threads that are here, by default all of the warp.
    """
    mask = tirx.const(EVERYONE, "uint32") if lanes is None else lanes
    return tirx.call_extern(dtype_name(x), "__shfl_xor_sync", mask, x, tirx.const(offset, "int32"))
