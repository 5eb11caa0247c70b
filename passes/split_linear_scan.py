"""linear_scan and cumsum in chunks that run side by side: reduce each chunk, scan over chunks, then scan inside them.

A step ``h -> a h + b`` composes with the next into a step of the same form, so a chunk is one step with decay ``prod a``
and inflow its last state from zero (Blelloch 1990, "Prefix sums and their applications"). This needs twice the arithmetic of
the loop and reads the operands twice; it pays where the loop has fewer tasks than there are cores.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coilc.ir import Value, ops

from .chunk_axis import Chunks


def split_linear_scan_in_numpy(a: Any, b: Any, h0: Any, *, axis: int, reverse: bool, chunks: int) -> tuple[Any, Any]:
    """The definition of the algorithm, on arrays."""
    if reverse:
        y, last = split_linear_scan_in_numpy(
            np.flip(a, axis), np.flip(b, axis), h0, axis=axis, reverse=False, chunks=chunks
        )
        return np.flip(y, axis), last
    a, b, length = np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0), a.shape[axis]
    size = -(-length // chunks)
    missing = np.zeros((chunks * size - length, *h0.shape), a.dtype)
    a = np.concatenate([a, missing + 1]).reshape(chunks, size, *h0.shape)
    b = np.concatenate([b, missing]).reshape(chunks, size, *h0.shape)
    inflow = np.zeros_like(b[:, 0])
    for t in range(size):
        inflow = a[:, t] * inflow + b[:, t]
    h, decay, entering = h0, a.prod(axis=1), np.empty_like(inflow)
    for c in range(chunks):
        entering[c], h = h, decay[c] * h + inflow[c]
    y, states = np.empty_like(b), entering
    for t in range(size):
        y[:, t] = states = a[:, t] * states + b[:, t]
    return np.moveaxis(y.reshape(chunks * size, *h0.shape)[:length], 0, axis), h


def split_linear_scan(a: Value, b: Value, h0: Value, *, axis: int, reverse: bool, chunks: int) -> tuple[Value, Value]:
    """The same as IR ops; the number of chunks is fixed, so that there are as many tasks at any length.

    Before::

        v0, v1 = linear_scan(a, b, h0, axis=1)                                   # f32[B, L, 64], 4 chunks

    After::

        v0 = [B, 4, (L + 3)//4, 64] from a, padded with 1; v1 likewise from b, padded with 0
        _, v2 = linear_scan(v0, v1, 0, axis=2)
        v3, v4 = linear_scan(prod(v0, axes=(2,)), v2, h0, axis=1)
        v5, _ = linear_scan(v0, v1, concat(h0, v3[:, :-1]), axis=2)
    """
    parts = Chunks.so_many(axis, a.dims[axis], chunks)
    a, b = parts.split(a, 1.0), parts.split(b)
    zero = ops.zeros(h0.type.with_dims((*h0.dims[:axis], chunks, *h0.dims[axis:])))
    _, inflow = ops.linear_scan(a, b, zero, axis=axis + 1, reverse=reverse)
    states, last = ops.linear_scan(ops.prod(a, axes=(axis + 1,)), inflow, h0, axis=axis, reverse=reverse)
    y, _ = ops.linear_scan(a, b, parts.entering(h0, states, reverse), axis=axis + 1, reverse=reverse)
    return parts.join(y), last


def split_cumsum_in_numpy(x: Any, *, axis: int, reverse: bool, chunks: int) -> Any:
    """Sums of chunks, their running sum, and running sums inside."""
    if reverse:
        return np.flip(split_cumsum_in_numpy(np.flip(x, axis), axis=axis, reverse=False, chunks=chunks), axis)
    x, length = np.moveaxis(x, axis, 0), x.shape[axis]
    size = -(-length // chunks)
    x = np.concatenate([x, np.zeros((chunks * size - length, *x.shape[1:]), x.dtype)]).reshape(
        chunks, size, *x.shape[1:]
    )
    entering = np.cumsum(np.concatenate([np.zeros_like(x[:1, 0]), x[:-1].sum(axis=1)]), axis=0, dtype=x.dtype)
    y = entering[:, None] + np.cumsum(x, axis=1, dtype=x.dtype)
    return np.moveaxis(y.reshape(chunks * size, *x.shape[2:])[:length], 0, axis)


def split_cumsum(x: Value, *, axis: int, reverse: bool, chunks: int) -> Value:
    """The same as IR ops."""
    parts = Chunks.so_many(axis, x.dims[axis], chunks)
    x = parts.split(x)
    sums = ops.sum(x, axes=(axis + 1,))
    first = ops.zeros(sums.type.with_dims((*sums.dims[:axis], *sums.dims[axis + 1 :])))
    entering = ops.cumsum(parts.entering(first, sums, reverse), axis=axis, reverse=reverse)
    y = ops.add(ops.cumsum(x, axis=axis + 1, reverse=reverse), ops.expand_dims(entering, axis + 1))
    return parts.join(y)
