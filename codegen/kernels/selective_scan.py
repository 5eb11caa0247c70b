"""Selective scan (S6): channels in lanes, time serial, the state of a block of channels in local memory.

A task is one batch element and one block of channels. Per step the time-dependent vectors (dt, dt*x, y) stay in
registers while a loop over the state updates ``h[n, lanes]``; that loop must stay rolled, an unrolled one spills.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import e, log2

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import UnsupportedError
from coilc.ir import dims as d

from ..math import exp2, exp2_in_range, has_scale, silu, softplus
from ..scalar import Expr, bind, const, dtype_name, on_device, select
from .anchor import AHEAD, Anchor
from .loops import Blocks, i64, lanes, local, parallel, product, serial, unravel

X, DT, A, B, C = range(5)
VECTORS_PER_BLOCK = 4  # dt, dt*x and y of a block then take 12 registers, which leaves room for the exponential
VECTORS_WITHOUT_MEMORY_OPERANDS = 2  # where the exponential's ten constants take registers too

MOST_WRITTEN_OUT = 8  # states: LLVM unrolls such a loop of its own accord


def emit_selective_scan(k: Anchor) -> None:
    """Write the body of the kernel; y[B, L, D] and, if used, the last state h[B, N, D]."""
    batch, length, channels = k.dims(X)
    groups, states = k.dims(B)[2:]
    per_group = d.divide_exactly(channels, groups)
    if not isinstance(states, int) or per_group is None:
        where = [(str(k.operands[B].type), k.node.location)]
        raise UnsupportedError("selective_scan needs a fixed state size and fixed channels per group:", where)
    vectors = VECTORS_PER_BLOCK if k.target.memory_operands else VECTORS_WITHOUT_MEMORY_OPERANDS
    blocks = Blocks(per_group, vectors * k.target.lanes(32))
    extents = [k.extent(batch), k.extent(groups), blocks.count(k.extent(per_group))]
    with parallel(k, product(extents), d.size((batch, length, channels, 16 * states))) as task:
        b, g, block = unravel(task, extents)
        _scan_block(Task(k, b, g, blocks.start(block), per_group), blocks.width)


@dataclass(frozen=True)
class Task:
    """One batch element, and the channels of group ``g`` from its channel ``start`` on; a group has ``size``."""

    k: Anchor
    b: Expr
    g: Expr
    start: Expr
    size: d.Dim

    @property
    def first(self) -> Expr:
        """The first channel, counted over all groups."""
        return self.g * self.k.extent(self.size) + self.start

    def read(self, operand: str | int, t: Expr, lane: Expr, dtype: str) -> Expr:
        """A channel at step t."""
        return self.k.read_member(operand, [self.b, t], self.g, self.start + lane, self.size, dtype=dtype)


def _scan_block(task: Task, width: int) -> None:
    """All time steps of ``width`` channels."""
    k, b, first = task.k, task.b, task.first
    states, dtype = k.fixed(k.dims(A)[0]), k.compute_dtype(A)
    h, rates = local((states, width), dtype), local((states, width), dtype)
    with serial(states) as n:
        with lanes(width) as j:
            T.buffer_store(h, k.read("h0", b, n, first + j) if k.has("h0") else tirx.const(0, dtype), [n, j])
        with lanes(width) as j:
            T.buffer_store(rates, k.read(A, n, first + j) * tirx.const(log2(e), dtype), [n, j])
    with serial(k.extent(k.dims(X)[1])) as t:
        _step(task, t, h, rates)
    with serial(states) as n, lanes(width) as j:
        k.store(1, [b, n, first + j], h[n, j])


def _step(task: Task, t: Expr, h: tirx.Buffer, rates: tirx.Buffer) -> None:
    """h = 2**(dt * rates) * h + dt * x * B;  y = (C . h + D * x) * silu(z)."""
    k, b, g, first = task.k, task.b, task.g, task.first
    (states, width), dtype = map(int, h.shape), str(h.dtype)
    dt, dtx, y = (local((width,), dtype) for _ in range(3))
    for operand in (X, DT, "z") if k.has("z") else (X, DT):
        k.prefetch_row(operand, width, lambda j: [b, t + i64(AHEAD), first + j])
    with lanes(width) as j:
        T.buffer_store(dt, _step_size(task, t, j, dtype), [j])
    with lanes(width) as j:
        x = task.read(X, t, j, dtype)
        T.buffer_store(dtx, dt[j] * x, [j])
        T.buffer_store(y, k.read("D", first + j, dtype=dtype) * x if k.has("D") else tirx.const(0, dtype), [j])
    with serial(_rolled(k, states)) as n:
        with lanes(width) as j:
            inflow = dtx[j] * k.read(B, b, t, g, n, dtype=dtype)
            T.buffer_store(h, _decay(dt[j] * rates[n, j]) * h[n, j] + inflow, [n, j])
        with lanes(width) as j:
            T.buffer_store(y, y[j] + h[n, j] * k.read(C, b, t, g, n, dtype=dtype), [j])
    if k.has("z"):
        with lanes(width) as j:
            T.buffer_store(y, y[j] * silu(task.read("z", t, j, dtype)), [j])
    with lanes(width) as j:
        k.store(0, [b, t, first + j], y[j])


def _rolled(k: Anchor, states: int) -> Expr | int:
    """The number of states, where needed in a form that LLVM cannot know, as it writes out loops of few steps."""
    if k.target.memory_operands or on_device() or states > MOST_WRITTEN_OUT:
        return states
    saturating_add = T.llvm_lookup_intrinsic_id("llvm.aarch64.neon.sqadd")  # LLVM folds no instruction of one processor
    return tirx.max(T.call_llvm_pure_intrin("int64", saturating_add, i64(states), i64(0)), i64(1))


def _decay(t: Expr) -> Expr:
    """2**t, in two operations less than exact ones: never below 2**-126, and NaN where the power is no number of fp32.

    So a state may be off by 2**-126 of itself, and one that overflows is NaN even where the loop would give infinity.
    """
    if dtype_name(t) == "float64" or on_device() or has_scale():
        return exp2(t)
    t = bind(select(t < const(-126.0, t), const(-126.0, t), t))
    # From 128 on, the exponent is that of infinities and NaN.
    return exp2_in_range(bind(select(t > const(128.5, t), const(128.5, t), t)))


def _step_size(task: Task, t: Expr, lane: Expr, dtype: str) -> Expr:
    """dt with its bias, softplus and mask."""
    k, dt = task.k, task.read(DT, t, lane, dtype)
    if k.has("dt_bias"):
        dt = dt + k.read("dt_bias", task.first + lane, dtype=dtype)
    if k.node.attrs["softplus"]:
        dt = softplus(dt)
    return dt * k.read("mask", task.b, t, dtype=dtype) if k.has("mask") else dt
