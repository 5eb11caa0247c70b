"""gated_linear_attention by matrix products over chunks (SSD, arXiv 2405.21060, section 6; GLA, arXiv 2312.06635, section 4).

With ``s_i`` the sum of the log decays of a chunk up to and including step i, and S the state that enters the chunk::

    o_i = sum over j <= i of (q_i . exp(s_i - s_j) k_j) v_j  +  (q_i exp(s_i)) S
    S'  = exp(s_last) S + sum over j of (exp(s_last - s_j) k_j) (x) v_j

No exponential of a positive number is taken. The sums are clamped and kept in double precision, because a difference of
two that are minus infinity has no value and one of two large ones has few digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coilc.ir import DTYPES, Value, ops

from .chunk_axis import Chunks
from .match import scalar

LOWEST = -1e4  # clamps a log decay; its exponential is zero in every precision


def chunk_gated_linear_attention_in_numpy(
    q: Any, k: Any, v: Any, log_decay: Any, h0: Any, *, scale: float, chunk: int
) -> tuple[Any, Any]:
    """The definition of the algorithm: q, k [B, L, H, N]; v [B, L, H, P]; log_decay [B, L, H, 1 or N]; h0 [B, H, N, P]."""
    state, outputs = h0, [np.empty_like(v[:, :0])]
    for start in range(0, v.shape[1], chunk):
        qc, kc, vc, g = (np.swapaxes(x[:, start : start + chunk], 1, 2) for x in (q, k, v, log_decay))
        total = np.cumsum(np.maximum(g, LOWEST), axis=2, dtype=np.float64)
        stretch = total[:, :, :, None] - total[:, :, None]
        causal = np.tri(g.shape[2], dtype=bool)[:, :, None]
        decay = np.exp(np.where(causal, stretch, LOWEST))
        scores = np.sum(qc[:, :, :, None] * decay * kc[:, :, None], axis=4)
        outputs.append(np.swapaxes(scores @ vc + (qc * np.exp(total)) @ state, 1, 2))
        last = total[:, :, -1:]
        state = np.swapaxes(np.exp(last), 2, 3) * state + np.swapaxes(kc * np.exp(last - total), 2, 3) @ vc
    return (scale * np.concatenate(outputs, axis=1)).astype(v.dtype), state.astype(h0.dtype)


def chunk_gated_linear_attention(
    q: Value, k: Value, v: Value, log_decay: Value, *rest: Value, optional: tuple[str, ...], scale: float, chunk: int
) -> tuple[Value, Value]:
    """The same as IR ops; all chunks side by side, but for the states that enter them.

    Before::

        v0, v1 = gated_linear_attention(q, k, v, log_decay)                      # [B, L, H, ..], chunks of 64

    After, with every operand as [B, (L + 63)//64, H, 64, ..] and sums s of the log decays::

        scores = matmul(q, transpose(k)) * exp(s_i - s_j)
        inflow = matmul(transpose(k), v * exp(s_last - s))
        states, v1 = linear_scan(exp(s_last), inflow, h0, axis=1)
        v0 = matmul(scores, v) + matmul(q, concat(h0, states[:, :-1])) * exp(s)
    """
    (batch, length, heads, size), states = v.dims, q.dims[3]
    parts = Chunks.of_size(1, length, chunk)
    none = scalar(log_decay) == 0
    per_head = log_decay.type.rank == 3

    def split(x: Value) -> Value:
        """[B, L, H, ..] to [B, chunks, H, chunk, ..]."""
        cut = parts.split(x)
        return ops.transpose(cut, perm=(0, 1, 3, 2, *range(4, cut.type.rank)))

    q, k, v = ops.mul(split(q), scale), split(k), split(v)
    decay = Decay.of(split(ops.expand_dims(log_decay, 3) if per_head else log_decay))
    if per_head:
        scores = _to_heads(ops.matmul(q, _t(k)), heads)
        q, k = _to_heads(q, heads), _to_heads(k, heads)
        scores = ops.where(_causal(chunk), scores, 0.0) if none else ops.mul(scores, decay.between(scores.dims))
        inflow = ops.matmul(_t(k), v if none else ops.mul(v, decay.to_end))
    else:
        q, k = _to_heads(q, heads), _to_heads(k, heads)
        pairs = ops.mul(ops.expand_dims(q, 4), ops.expand_dims(k, 3))
        scores = ops.sum(ops.mul(pairs, decay.between(pairs.dims)), axes=(5,))
        inflow = ops.matmul(_t(ops.mul(k, decay.to_end)), v)
        q = ops.mul(q, decay.since_start)
    h0 = rest[0] if rest else ops.zeros(v.type.with_dims((batch, heads, states, size)))
    of_chunk = ops.broadcast(decay.of_chunk, dims=inflow.dims)
    after, last = ops.linear_scan(of_chunk, inflow, h0, axis=1, reverse=False)
    carried = ops.matmul(q, parts.entering(h0, after))
    carried = ops.mul(carried, decay.since_start) if per_head and not none else carried
    o = ops.add(carried, ops.matmul(scores, v))
    return parts.join(ops.transpose(o, perm=(0, 1, 3, 2, 4))), last


@dataclass(frozen=True)
class Decay:
    """Decays inside chunks, from the sums ``total`` [B, chunks, H, chunk, 1 or N] of log decays, in double precision."""

    total: Value
    like: Value

    @staticmethod
    def of(log_decay: Value) -> Decay:
        wide = ops.cast(log_decay, dtype=DTYPES["f64"])
        return Decay(ops.cumsum(ops.maximum(wide, LOWEST), axis=3, reverse=False), log_decay)

    @property
    def last(self) -> Value:
        size = self.total.dims[3]
        return ops.slice_axis(self.total, 3, size - 1, size)

    @property
    def since_start(self) -> Value:
        return self._exp(self.total)

    @property
    def to_end(self) -> Value:
        return self._exp(ops.sub(self.last, self.total))

    @property
    def of_chunk(self) -> Value:
        """[B, chunks, H, 1 or N, 1]."""
        return _t(self._exp(self.last))

    def between(self, dims: tuple[Any, ...]) -> Value:
        """The decay after step j up to step i of a chunk, zero for j > i: [B, chunks, H, i, j] or [B, chunks, H, i, j, N]."""
        i, j = ops.expand_dims(self.total, 4), ops.expand_dims(self.total, 3)
        causal = ops.expand_dims(_causal(self.total.dims[3]), 2)
        between = self._exp(ops.where(causal, ops.sub(i, j), LOWEST))
        return ops.reshape(between, dims=dims) if len(dims) == 5 else between

    def _exp(self, exponent: Value) -> Value:
        return ops.exp(ops.cast(exponent, dtype=self.like.type.dtype))


def _causal(size: Any) -> Value:
    """[size, size]: whether j <= i."""
    i, j = (ops.iota(dims=(size, size), axis=axis, dtype=DTYPES["i32"]) for axis in (0, 1))
    return ops.le(j, i)


def _to_heads(x: Value, heads: Any) -> Value:
    """[B, chunks, G, ..] to [B, chunks, H, ..]: each head reads its group."""
    batch, chunks, groups, *rest = x.dims
    if groups == heads:
        return x
    per_group = heads // groups
    spread = ops.broadcast(ops.expand_dims(x, 3), dims=(batch, chunks, groups, per_group, *rest))
    return ops.reshape(spread, dims=(batch, chunks, heads, *rest))


def _t(x: Value) -> Value:
    """Swap the last two axes."""
    rank = x.type.rank
    return ops.transpose(x, perm=(*range(rank - 2), rank - 1, rank - 2))
