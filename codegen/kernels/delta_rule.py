"""Delta rules: a task is one head and a block of its value columns, which are in lanes; time is serial.

A step needs what the state holds under its key before it may change any row, which would be two passes over the state.
But the rows that one step writes are what the next one reads, so the pass that updates them for step t, and reads them
for its output, also collects what step t + 1 will remove: one load and one store per row and step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import ops

from ..math import exp
from ..scalar import Expr
from .anchor import Anchor
from .gated_linear_attention import LOG_DECAY, HeadTask, K, Q, V, head_tasks
from .loops import Blocks, i64, lanes, local, serial, when

BETA = ERASE = 4  # the operand that differs: the rate of gated_delta_rule, or two vectors
WRITE = 5
VECTORS_PER_BLOCK = 4  # inflow, output and what the next step removes take 12 registers
VECTORS_IN_FEW_REGISTERS = 2


@dataclass(frozen=True)
class Step:
    """Local memory of one step: vectors over key channels (``decay`` has one element if it is per head) and over lanes.

    Attributes:
        decay: of this step; ``coming`` is the next one's.
        erase: the vector whose product with the state the next step removes, and ``held`` that product.
        removed: of generalized_delta_rule, ``held`` of this step.
    """

    decay: tirx.Buffer
    coming: tirx.Buffer
    key: tirx.Buffer
    query: tirx.Buffer
    erase: tirx.Buffer
    write: tirx.Buffer
    inflow: tirx.Buffer
    out: tirx.Buffer
    held: tirx.Buffer
    removed: tirx.Buffer
    row: tirx.Buffer


def emit_delta_rule(k: Anchor) -> None:
    """Write the body of the kernel: o[B, L, H, P] and, if used, the last state h[B, H, N, P]."""
    vectors = VECTORS_PER_BLOCK if k.target.registers >= 32 else VECTORS_IN_FEW_REGISTERS
    with head_tasks(k, vectors, 7) as task:
        _run(task, k.extent(k.dims(V)[1]))


def _run(task: HeadTask, length: Expr) -> None:
    k, dtype, states, width = task.k, task.dtype, task.states, task.width
    h = local((states, width), dtype)
    decays = states if task.per_channel else 1
    step = Step(*(local((n,), dtype) for n in (decays, decays, *(states,) * 4, *(width,) * 5)))
    with serial(states) as n, lanes(width) as j:
        T.buffer_store(h, task.initial(n, j), [n, j])
    _fill(step.held, tirx.const(0, dtype))
    with when(length > i64(0)):
        _read_ahead(task, step, i64(0))
        with serial(states) as n, lanes(width) as j:
            T.buffer_store(step.held, step.held[j] + step.erase[n] * h[n, j], [j])
    with serial(length) as t:
        _advance(task, step, h, t, tirx.min(t + i64(1), length - i64(1)))
    with serial(states) as n, lanes(width) as j:
        k.store(1, [task.b, task.head, n, task.first + j], h[n, j])


def _advance(task: HeadTask, step: Step, h: tirx.Buffer, t: Expr, following: Expr) -> None:
    """Step ``t``; ``following`` is the next one, or this one if it is the last."""
    k, dtype, width = task.k, task.dtype, task.width
    general = k.node.op is ops.generalized_delta_rule
    _load_step(task, step, t)
    _read_ahead(task, step, following)
    _fill(step.out, tirx.const(0, dtype))
    _fill(step.held, tirx.const(0, dtype))
    with serial(task.states) as n:
        with lanes(width) as j:
            kept = step.decay[n if task.per_channel else i64(0)] * h[n, j]
            kept = kept - step.write[n] * step.removed[j] if general else kept
            T.buffer_store(step.row, kept + step.key[n] * step.inflow[j], [j])
        with lanes(width) as j:
            T.buffer_store(step.out, step.out[j] + step.query[n] * step.row[j], [j])
        with lanes(width) as j:
            T.buffer_store(step.held, step.held[j] + step.erase[n] * step.row[j], [j])
        with lanes(width) as j:
            T.buffer_store(h, step.row[j], [n, j])
    scale = tirx.const(k.node.attrs["scale"], dtype)
    with lanes(width) as j:
        k.store(0, [task.b, t, task.head, task.first + j], step.out[j] * scale)


def _load_step(task: HeadTask, step: Step, t: Expr) -> None:
    """Key and query of step ``t``, its decay, which was read ahead, and what it adds under its key."""
    k, dtype, at = task.k, task.dtype, (task.b, t, task.group)
    general = k.node.op is ops.generalized_delta_rule
    _copy(task, step.decay, lambda n: step.coming[n])
    _copy(task, step.key, lambda n: k.read(K, *at, n, dtype=dtype))
    _copy(task, step.query, lambda n: k.read(Q, *at, n, dtype=dtype))
    if general:
        _copy(task, step.write, lambda n: k.read(WRITE, task.b, t, task.head, n, dtype=dtype))
    with lanes(task.width) as j:
        value = k.read(V, task.b, t, task.head, task.first + j, dtype=dtype)
        if not general:
            value = k.read(BETA, task.b, t, task.head, dtype=dtype) * (value - step.held[j])
        T.buffer_store(step.inflow, value, [j])
    if general:
        with lanes(task.width) as j:
            T.buffer_store(step.removed, step.held[j], [j])


def _read_ahead(task: HeadTask, step: Step, t: Expr) -> None:
    """Decay and erased vector of step ``t``; the delta rule's is its key in the decayed state."""
    k, dtype = task.k, task.dtype
    if task.per_channel:
        _copy(task, step.coming, lambda n: exp(k.read(LOG_DECAY, task.b, t, task.head, n)))
    else:
        T.buffer_store(step.coming, exp(k.read(LOG_DECAY, task.b, t, task.head)), [i64(0)])
    if k.node.op is ops.generalized_delta_rule:
        _copy(task, step.erase, lambda n: k.read(ERASE, task.b, t, task.head, n, dtype=dtype))
    else:
        key = lambda n: k.read(K, task.b, t, task.group, n, dtype=dtype)
        _copy(task, step.erase, lambda n: step.coming[n if task.per_channel else i64(0)] * key(n))


def _copy(task: HeadTask, buffer: tirx.Buffer, read: Callable[[Expr], Expr]) -> None:
    """Fill a vector over key channels, with these in lanes."""
    extent = int(buffer.shape[0])
    blocks = Blocks(extent, 2 * task.k.target.lanes(32))
    with serial(blocks.count(i64(extent))) as block, lanes(blocks.width) as j:
        n = blocks.start(block) + j
        T.buffer_store(buffer, read(n), [n])


def _fill(buffer: tirx.Buffer, number: Expr) -> None:
    with lanes(int(buffer.shape[0])) as j:
        T.buffer_store(buffer, number, [j])
