"""h_t = a_t * h_(t-1) + b_t by element: elements in lanes, the state in registers, time serial."""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from .anchor import Anchor
from .loops import Blocks, i64, lanes, local, parallel, product, serial, unravel

A, B, H0 = range(3)
VECTORS_PER_BLOCK = 4


def emit_linear_scan(k: Anchor) -> None:
    """Write the body of the kernel: every state, and, if used, the last one."""
    axis, reverse, dtype = k.node.attrs["axis"], k.node.attrs["reverse"], k.compute_dtype(A)
    length, space = k.extent(k.dims(A)[axis]), k.dims(H0)
    *outer, inner = space or (1,)
    blocks = Blocks(inner, VECTORS_PER_BLOCK * k.target.lanes(32))
    extents = [*map(k.extent, outer), i64(blocks.count(k.extent(inner)))]
    with parallel(k, product(extents), 2 * d.size(k.dims(A))) as task:
        *at, block = unravel(task, extents)
        first = blocks.start(block)
        h = local((blocks.width,), dtype)
        with lanes(blocks.width) as j:
            place = [*at, first + j][: len(space)]
            T.buffer_store(h, k.read(H0, *place), [j])
        with serial(length) as step, lanes(blocks.width) as j:
            t, place = length - i64(1) - step if reverse else step, [*at, first + j][: len(space)]
            now = [*place[:axis], t, *place[axis:]]
            T.buffer_store(h, k.read(A, *now) * h[j] + k.read(B, *now), [j])
            k.store(0, now, h[j])
        with lanes(blocks.width) as j:
            k.store(1, [*at, first + j][: len(space)], h[j])
