"""Give a convolution a state: where few states have its kernel as their response, they go on from step to step."""

from __future__ import annotations

import numpy as np

from coilc.ir import Graph, Module, Node, Value, dims, interpret, literal, ops
from coilc.ir.ops.recurrence import body_input

from .fold_constants import WeightTable, is_known, known_dims, weight_of
from .lattice import STATES, Array, Lattice, NotRealised, realise
from .rewrite import Rule, on, rewrite_graph
from .trace import Declined, no

MOVED_BY_WINDOW, MOVED_BY_STATES = 3, 5  # numbers per tap and per state that one step reads and writes
NUMBERS = ("s", "w", "c", "gain")
WORK = 2**29  # channels times squared taps: more would take minutes to look at


def realise_kernels(graph: Graph, table: WeightTable) -> Graph:
    """Turn a long convolution with a known kernel into a recurrence.

    Before, where ``k`` is the kernel of an S4 or companion layer, or of any other with few states::

        y: f32[B, L, 4] = long_conv(x, k)  # k: f32[1024, 4], L: dim[1:1024]

    After, with the numbers s (sines), w (versines, 1 - cosine) and c of [16, 4] from ``lattice.realise``::

        def turn(v, y, z, s, w, c):
            g = v + (s * z - w * v)
            return {"v": z - (s * v + w * z), "y": y + c * g, "g": g}
        def step(g, x, s, w, c):
            _, y, after = scan(g[0], 0, concat(g[1:], x), s, w, c, body=turn)  # over the states
            return {"g": after, "y": y}
        _, y = scan(zeros([B, 16, 4]), x, s, w, c, body=step)

    Channels without such a form stay a convolution, of their own.

    Needs: the sequence is no longer than the kernel. Guarantees: the kernel's taps change by less than 1e-6 of the
    largest, and by 4e-6 of their norm when the recurrence runs in it.
    """
    return rewrite_graph(graph, kernel_of_few_states(graph, table))


def kernel_of_few_states(graph: Graph, table: WeightTable) -> Rule:
    """The rule over a graph with these weights; the numbers of what it finds are added to them."""

    @on("long_conv")
    def kernel_of_few_states(node: Node) -> Value | Declined | None:
        """A kernel that is the response of few states is a recurrence"""
        x, k = node.inputs[:2]
        if node.attrs["optional"] or not is_known(k):
            return no("its kernel is not known before the run, or reads the future")
        longest = dims.bounds(x.dims[1], graph.ranges)[1]
        if longest is None or longest > known_dims(k)[0]:
            return no(f"a sequence may have more steps than the {k.dims[0]} that its kernel tells of")
        try:
            lattice, others = _lattice(k, table)
        except NotRealised as reason:
            return no(f"a step needs its last {k.dims[0] - 1} inputs: {reason}")
        y = _emitted(lattice, x, table, weight_of(k) or "kernel")
        if not len(others):
            return y
        channels = literal(others)
        rest = ops.long_conv(ops.take(x, channels, axis=2), ops.take(k, channels, axis=1))
        places = np.arange(known_dims(k)[1])
        places[others] = len(places) + np.arange(len(others))
        return ops.take(ops.concat(y, rest, axis=2), literal(places), axis=2)

    return kernel_of_few_states


def _lattice(k: Value, table: WeightTable) -> tuple[Lattice, Array]:
    taps, channels = known_dims(k)
    if k.type.dtype.name != "f32":
        raise NotRealised(f"states are not looked for in a kernel of {k.type.dtype}")
    if taps**2 * channels > WORK:
        raise NotRealised(f"a kernel of [{taps}, {channels}] is too large to look for states")
    (array,) = interpret(Module({"main": Graph("kernel", (), (("k", k),))}, table.arrays), {}).values()
    return realise(array, min(STATES, taps * MOVED_BY_WINDOW // MOVED_BY_STATES))


# --- the recurrence ---------------------------------------------------------------------------------------------------


def _emitted(lattice: Lattice, x: Value, table: WeightTable, stem: str) -> Value:
    """The outputs [B, L, D] of the lattice for inputs x."""
    grows = bool(np.any(lattice.gain != 1))
    arrays = [lattice.sine, lattice.versine, lattice.readout, *([lattice.gain] if grows else [])]
    weights = [table.add(array.astype(np.float32), stem) for array in arrays]
    batch, _, channels = x.dims
    start = ops.zeros(x.type.with_dims((batch, lattice.states, channels)))
    _, y = ops.scan(start, x, *weights, body=_step(start, x, weights), carries=1, sequences=1, axis=1)
    return y


def _step(start: Value, x: Value, weights: list[Value]) -> Graph:
    """One step of all chains: along each of them, what goes on and what is read so far."""
    g, now = body_input("g", start.type), body_input("x", x.type, without=1)
    numbers = [body_input(name, v.type) for name, v in zip(NUMBERS, weights, strict=False)]
    batch, states, channels = start.dims
    first = ops.reshape(ops.slice_axis(g, 1, 0, 1), dims=(batch, channels))
    z = ops.concat(ops.slice_axis(g, 1, 1, states), ops.expand_dims(now, 1), axis=1)
    along = ops.transpose(z, perm=(1, 0, 2))
    body = _turn(now, weights)
    _, y, turned = ops.scan(first, ops.zeros(first.type), along, *numbers, body=body, carries=2, sequences=4)
    return Graph("step", (g, now, *numbers), (("g", ops.transpose(turned, perm=(1, 0, 2))), ("y", y)))


def _turn(x: Value, weights: list[Value]) -> Graph:
    """One rotation of every channel."""
    v, y, z = (body_input(name, x.type) for name in ("v", "y", "z"))
    s, w, c = (body_input(name, v.type, without=0) for name, v in zip(NUMBERS, weights[:3], strict=False))
    gain = [body_input(name, v.type) for name, v in zip(NUMBERS[3:], weights[3:], strict=False)]
    further = ops.sub(z, ops.add(ops.mul(s, v), ops.mul(w, z)))
    new = ops.add(v, ops.sub(ops.mul(s, z), ops.mul(w, v)))
    new = ops.mul(new, gain[0]) if gain else new
    return Graph("turn", (v, y, z, s, w, c, *gain), (("v", further), ("y", ops.add(y, ops.mul(c, new))), ("g", new)))
