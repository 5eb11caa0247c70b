"""Random routes over grids and recurrences along them: for the tests of passes and of compiled code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np
from hypothesis import strategies as st

from coilc.ir import DTYPES, Graph, TensorType, Value, literal, ops

BATCH, CHANNELS, STATES = 2, 8, 3


@st.composite
def moved(draw: st.DrawFn, x: Value) -> Value:
    """Some tokens of ``x`` [B, *grid, C] as a sequence [B, T, C]: flips, transposes, strides, tables."""
    for _ in range(draw(st.integers(0, 3))):
        rank = x.type.rank
        axes = range(1, rank - 1)
        match draw(st.sampled_from(("flip", "transpose", "slice", "take", "flatten"))):
            case "flip":
                x = ops.flip(x, axes=(draw(st.sampled_from(axes)),))
            case "transpose":
                x = ops.transpose(x, perm=(0, *draw(st.permutations(axes)), rank - 1))
            case "slice":
                starts = tuple(draw(st.integers(0, 1)) if i in axes and x.dims[i] > 1 else 0 for i in range(rank))
                steps = tuple(draw(st.integers(1, 2)) if i in axes else 1 for i in range(rank))
                x = ops.slice(x, starts=starts, stops=x.dims, steps=steps)
            case "take":
                axis = draw(st.sampled_from(axes))
                table = draw(st.permutations(range(x.dims[axis])))
                x = ops.take(x, literal(np.array(table)), axis=axis)
            case "flatten":
                x = ops.reshape(x, dims=(x.dims[0], prod(x.dims[1:-1]), x.dims[-1]))
    return ops.reshape(x, dims=(x.dims[0], prod(x.dims[1:-1]), x.dims[-1]))


@st.composite
def windows(draw: st.DrawFn, x: Value) -> Value:
    """``x`` [B, H, W, C] as [B * windows, T, C], which starts every window from a state of zero (Swin)."""
    batch, height, width, channels = x.dims
    rows, columns = (draw(st.sampled_from([n for n in range(1, m + 1) if m % n == 0])) for m in (height, width))
    apart = ops.reshape(x, dims=(batch, height // rows, rows, width // columns, columns, channels))
    together = ops.transpose(apart, perm=(0, 1, 3, 2, 4, 5))
    return ops.reshape(together, dims=(batch * height * width // rows // columns, rows * columns, channels))


def weight(name: str, *dims: int) -> Value:
    value: Value = ops.weight(name=name, type=TensorType(DTYPES["f32"], dims))
    return value


def projected(x: Value, name: str, *dims: int) -> Value:
    """``x`` [B, T, C] times a matrix, as [B, T, *dims]."""
    product = ops.linear(x, weight(f"{name}{prod(dims)}", prod(dims), CHANNELS))
    result: Value = ops.reshape(product, dims=(*x.dims[:2], *dims))
    return result


def selective_scan(x: Value, other: Value) -> Value:
    """As PlainMamba's released code: B and C may be of other tokens than x."""
    b, c = projected(other, "b", 1, STATES), projected(other, "c", 1, STATES)
    return ops.selective_scan.node(x, other, weight("A", STATES, CHANNELS), b, c, optional=(), softplus=True).results[0]


def heads(x: Value) -> Value:
    """[B, T, C] as [B, T, 2, C / 2]."""
    result: Value = ops.reshape(x, dims=(*x.dims[:2], 2, CHANNELS // 2))
    return result


def gated_linear_attention(x: Value, other: Value) -> Value:
    q, k, decay = projected(x, "q", 2, STATES), projected(other, "k", 2, STATES), projected(other, "d", 2)
    o = ops.gated_linear_attention.node(q, k, heads(x), decays(decay), optional=(), scale=0.5).results[0]
    result: Value = ops.reshape(o, dims=x.dims)
    return result


def gated_delta_rule(x: Value, other: Value) -> Value:
    q, k, decay = projected(other, "q", 2, STATES), projected(x, "k", 2, STATES), projected(other, "d", 2)
    o = ops.gated_delta_rule.node(
        q, ops.mul(k, 0.1), heads(x), decays(decay), ops.sigmoid(projected(x, "e", 2)), optional=(), scale=1.0
    ).results[0]
    result: Value = ops.reshape(o, dims=x.dims)
    return result


def decays(x: Value) -> Value:
    """Logarithms of numbers between 0 and 1."""
    result: Value = ops.neg(ops.sigmoid(x))
    return result


def linear_scan(x: Value, other: Value) -> Value:
    zero = ops.broadcast(literal(0.0, DTYPES["f32"]), dims=(x.dims[0], CHANNELS))
    return ops.linear_scan.node(ops.sigmoid(other), x, zero, axis=1, reverse=False).results[0]


def causal_conv1d(x: Value, other: Value) -> Value:
    y = ops.causal_conv1d.node(x, weight("taps", 3, CHANNELS), optional=(), activation="silu").results[0]
    result: Value = ops.add(y, other)
    return result


RECURRENCES: Mapping[str, Callable[[Value, Value], Value]] = {
    function.__name__: function
    for function in (selective_scan, gated_linear_attention, gated_delta_rule, linear_scan, causal_conv1d)
}
JOINS = ("carried", "reset", "apart", "windows")


@st.composite
def scanned_routes(draw: st.DrawFn, name: str) -> Graph:
    """A recurrence along several routes over a grid, and what becomes of their outputs.

    The routes are one sequence, whose state is carried over the joins; or of equal length and side by side, so that each starts
    from zero; or recurrences of their own; or windows. Outputs are turned, gated, weighed or summed.
    """
    recurrence, (height, width) = RECURRENCES[name], draw(st.sampled_from(((1, 1), (1, 5), (2, 3), (4, 6))))
    x = ops.input_(name="x", type=TensorType(DTYPES["f32"], (BATCH, height, width, CHANNELS)))
    join, count = draw(st.sampled_from(JOINS)), draw(st.integers(1, 3))
    parts = [draw(windows(x))] if join == "windows" else [draw(moved(x)) for _ in range(count)]
    if join == "reset":
        parts = [ops.concat(*(part for part in parts if part.dims == parts[0].dims), axis=0)]
    elif join == "carried":
        parts = [ops.concat(*parts, axis=1)]
    ys = [recurrence(part, draw(st.sampled_from((part, ops.flip(part, axes=(1,)))))) for part in parts]
    return Graph("main", (x,), tuple((f"y{i}", y) for i, y in enumerate(merged(draw, ys, parts))))


def merged(draw: st.DrawFn, ys: list[Value], parts: list[Value]) -> list[Value]:
    """What becomes of the outputs of routes along ``parts``."""
    match draw(st.sampled_from(("stay", "turn", "gate", "sum"))):
        case "turn":
            return [ops.flip(y, axes=(1,)) for y in ys]
        case "gate":
            return [ops.mul(y, ops.silu(part)) for y, part in zip(ys, parts, strict=True)]
        case "sum":
            alike = [ops.flip(y, axes=(1,)) for y in ys[1:] if y.dims == ys[0].dims]
            total = ys[0]
            for y in alike:
                total = ops.add(total, y)
            return [total]
    return ys


def drawn_weights(graph: Graph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Small numbers; those of ``A`` are negative."""
    found = {n.attrs["name"]: n.types[0].dims for n in graph.nodes if n.op is ops.weight}
    arrays = {name: 0.5 * rng.standard_normal(dims).astype(np.float32) for name, dims in found.items()}  # type: ignore[arg-type]
    return {name: -np.abs(array) if name == "A" else array for name, array in arrays.items()}
