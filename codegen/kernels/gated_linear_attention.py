"""Gated linear attention (SSD, GLA): a task is one head and a block of its value columns, which are in lanes.

The state [N, lanes] is in local memory and would cost a load and a store per multiply-add if every step passed over it.
So a few steps share one pass: their values and outputs stay in registers while each row of the state is read, taken
through those steps, and written back. Without matrix units this beats the chunked form, which does more arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import UnsupportedError
from coilc.ir import dims as d

from ..math import exp
from ..scalar import Expr
from .anchor import Anchor
from .loops import Blocks, i64, lanes, local, parallel, product, serial, unravel, unrolled

Q, K, V, LOG_DECAY = range(4)
VECTORS_PER_BLOCK = 2  # with four steps: 8 vectors of outputs, 8 of values, 2 of the state


@dataclass(frozen=True)
class HeadTask:
    """One batch element, head and block of value columns."""

    k: Anchor
    b: Expr
    head: Expr
    group: Expr
    first: Expr
    width: int
    states: int

    @property
    def dtype(self) -> str:
        return self.k.compute_dtype(LOG_DECAY)

    @property
    def per_channel(self) -> bool:
        """Whether every key channel has a decay of its own."""
        return len(self.k.dims(LOG_DECAY)) == 4

    def initial(self, n: Expr, j: Expr) -> Expr:
        """The first state."""
        if self.k.has("h0"):
            return self.k.read("h0", self.b, self.head, n, self.first + j)
        return tirx.const(0, self.dtype)


@contextmanager
def head_tasks(k: Anchor, vectors: int, work: int) -> Iterator[HeadTask]:
    """The parallel loop over tasks of ``vectors`` vectors of columns; ``work`` is operations per state element and step.

    Raises:
        UnsupportedError: the state's size is not known.
    """
    batch, length, heads, size = k.dims(V)
    groups, states = k.dims(Q)[2:]
    per_group = d.divide_exactly(heads, groups)
    if not isinstance(states, int) or per_group is None:
        where = [(str(k.operands[Q].type), k.node.location)]
        raise UnsupportedError(f"{k.node.op.name} needs a fixed state size and whole groups of heads:", where)
    blocks = Blocks(size, vectors * k.target.lanes(32))
    extents = [k.extent(batch), k.extent(heads), i64(blocks.count(k.extent(size)))]
    with parallel(k, product(extents), work * d.size((batch, length, heads, size, states))) as index:
        b, head, block = unravel(index, extents)
        group = tirx.truncdiv(head, k.extent(per_group))
        yield HeadTask(k, b, head, group, blocks.start(block), blocks.width, states)


def emit_gated_linear_attention(k: Anchor) -> None:
    """Write the body of the kernel: o[B, L, H, P] and, if used, the last state h[B, H, N, P]."""
    with head_tasks(k, VECTORS_PER_BLOCK, 6) as task:
        _run(task, k.extent(k.dims(V)[1]))


def _run(task: HeadTask, length: Expr) -> None:
    k, dtype, steps = task.k, task.dtype, 4 if task.k.target.registers >= 32 else 2
    h = local((task.states, task.width), dtype)
    decay = local((steps, task.states if task.per_channel else 1), dtype)
    with serial(task.states) as n, lanes(task.width) as j:
        T.buffer_store(h, task.initial(n, j), [n, j])
    whole = tirx.truncdiv(length, i64(steps))
    with serial(whole) as block:
        _advance(task, h, decay, block * i64(steps), steps)
    with serial(length, start=whole * i64(steps)) as t:
        _advance(task, h, decay, t, 1)
    with serial(task.states) as n, lanes(task.width) as j:
        k.store(1, [task.b, task.head, n, task.first + j], h[n, j])


def _advance(task: HeadTask, h: tirx.Buffer, decay: tirx.Buffer, t: Expr, steps: int) -> None:
    """``steps`` steps from ``t`` in one pass over the state."""
    k, dtype, width = task.k, task.dtype, task.width
    out, v = ([local((width,), dtype) for _ in range(steps)] for _ in range(2))  # one buffer each: they fit the stack
    row = local((width,), dtype)
    _store_decays(task, decay, t, steps)
    for i in range(steps):
        with lanes(width) as j:
            T.buffer_store(out[i], tirx.const(0, dtype), [j])
        with lanes(width) as j:
            T.buffer_store(v[i], k.read(V, task.b, t + i64(i), task.head, task.first + j, dtype=dtype), [j])
    with serial(task.states) as n:
        with lanes(width) as j:
            T.buffer_store(row, h[n, j], [j])
        for i in range(steps):
            key = partial(k.read, K, task.b, t + i64(i), task.group, n, dtype=dtype)
            query = partial(k.read, Q, task.b, t + i64(i), task.group, n, dtype=dtype)
            kept = decay[i, n if task.per_channel else i64(0)]
            if k.has("bonus"):  # outputs see the state before, and the step's own inflow times the bonus
                with lanes(width) as j:
                    seen = row[j] + k.read("bonus", task.head, n, dtype=dtype) * (key() * v[i][j])
                    T.buffer_store(out[i], out[i][j] + query() * seen, [j])
            with lanes(width) as j:
                T.buffer_store(row, kept * row[j] + key() * v[i][j], [j])
            if not k.has("bonus"):
                with lanes(width) as j:
                    T.buffer_store(out[i], out[i][j] + query() * row[j], [j])
        with lanes(width) as j:
            T.buffer_store(h, row[j], [n, j])
    scale = tirx.const(k.node.attrs["scale"], dtype)
    for i in range(steps):
        with lanes(width) as j:
            k.store(0, [task.b, t + i64(i), task.head, task.first + j], out[i][j] * scale)


def _store_decays(task: HeadTask, decay: tirx.Buffer, t: Expr, steps: int) -> None:
    """decay = exp(log_decay) of these steps; channels in lanes where there are any."""
    k = task.k
    if not task.per_channel:
        with unrolled(steps) as i:
            T.buffer_store(decay, exp(k.read(LOG_DECAY, task.b, t + i, task.head)), [i, i64(0)])
        return
    blocks = Blocks(task.states, VECTORS_PER_BLOCK * k.target.lanes(32))
    with serial(steps) as i, serial(blocks.count(i64(task.states))) as block, lanes(blocks.width) as j:
        n = blocks.start(block) + j
        T.buffer_store(decay, exp(k.read(LOG_DECAY, task.b, t + i, task.head, n)), [i, n])
