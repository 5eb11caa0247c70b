"""selective_scan in chunks that run side by side: each from a zero state, then again from the state that enters it.

The decay of a chunk is ``exp(A sum dt)``. Every exponential is taken twice, so this pays only with more cores than the loop
has tasks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from coilc.ir import Value, ops
from coilc.ir.ops.recurrence import step_size

from .chunk_axis import Chunks


def split_selective_scan_in_numpy(x: Any, dt: Any, a: Any, b: Any, c: Any, h0: Any, *, chunks: int) -> tuple[Any, Any]:
    """The definition of the algorithm for ready steps ``dt``: x, dt [B, L, D]; a [N, D]; b, c [B, L, G, N]; h0 [B, N, D]."""
    loop = ops.selective_scan.reference
    (batch, length, _), size = x.shape, -(-x.shape[1] // chunks)
    missing = chunks * size - length

    def split(v: Any) -> Any:
        padded = np.concatenate([v, np.zeros((batch, missing, *v.shape[2:]), v.dtype)], axis=1)
        return padded.reshape(batch, chunks, size, *v.shape[2:])

    x, dt, b, c = map(split, (x, dt, b, c))
    h, ys = h0, []
    decay = np.exp(dt.sum(axis=2)[:, :, None] * a)
    for i in range(chunks):
        part = x[:, i], dt[:, i], a, b[:, i], c[:, i]
        ys.append(loop(*part, h, optional=("h0",), softplus=False)[0])
        h = decay[:, i] * h + loop(*part, optional=(), softplus=False)[1]
    return np.concatenate(ys, axis=1)[:, :length], h


def split_selective_scan(
    x: Value,
    dt: Value,
    a: Value,
    b: Value,
    c: Value,
    *rest: Value,
    optional: tuple[str, ...],
    softplus: bool,
    chunks: int,
) -> tuple[Value, Value]:
    """The same as IR ops; chunks join the batch.

    Before::

        v0, v1 = selective_scan(x, dt, a, b, c)                                  # x: f32[1, L, 64], 4 chunks

    After::

        v0 = [4, (L + 3)//4, 64] from x, padded with 0; v1 to v3 likewise from dt, b, c
        _, v4 = selective_scan(v0, v1, a, v2, v3)
        v5, v6 = linear_scan(exp(sum(v1, axes=(1,)) * a), v4, 0, axis=1)
        v7, _ = selective_scan(v0, v1, a, v2, v3, concat(0, v5[:, :-1]), optional=("h0",))
    """
    given = dict(zip(optional, rest, strict=True))
    parts = Chunks.so_many(1, x.dims[1], chunks)
    batch, (states, channels) = x.dims[0], a.dims
    dt = step_size(dt, given, softplus)

    def split(v: Value) -> Value:
        cut = parts.split(v)
        return ops.reshape(cut, dims=(batch * chunks, *cut.dims[2:]))

    def per_chunk(v: Value) -> Value:
        return ops.reshape(v, dims=(batch, chunks, *v.dims[1:]))

    x_c, dt_c, b_c, c_c = map(split, (x, dt, b, c))
    inflow = per_chunk(ops.selective_scan(x_c, dt_c, a, b_c, c_c, optional=(), softplus=False)[1])
    decay = ops.exp(ops.mul(ops.expand_dims(per_chunk(ops.sum(dt_c, axes=(1,))), 2), a))
    h0 = given.get("h0") or ops.zeros(a.type.with_dims((batch, states, channels)))
    after, last = ops.linear_scan(decay, inflow, h0, axis=1, reverse=False)
    entering = ops.reshape(parts.entering(h0, after), dims=(batch * chunks, states, channels))
    extra = {"D": given.get("D"), "z": split(given["z"]) if "z" in given else None, "h0": entering}
    kept = {name: v for name, v in extra.items() if v is not None}
    y = ops.selective_scan(x_c, dt_c, a, b_c, c_c, *kept.values(), optional=tuple(kept), softplus=False)[0]
    return parts.join(per_chunk(y)), last
