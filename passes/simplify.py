"""Algebraic identities that hold for every floating-point value, NaN and signed zero included."""

from __future__ import annotations

import math

from coilc.ir import Module, Node, Value, dims, ops

from .match import scalar
from .rewrite import Rule, on, rewrite_module


def simplify(module: Module) -> Module:
    """Apply the identities of this file until none applies.

    Before::

        v0: f32[4, 8] = reshape(x, dims=(4, 8))
        v1: f32[8, 4] = transpose(v0, perm=(1, 0))
        v2: f32[4, 8] = transpose(v1, perm=(1, 0))
        v3: f32[()] = constant(value=array(f32, 1.0))
        v4: f32[4, 8] = broadcast(v3, dims=(4, 8))
        v5: f32[4, 8] = mul(v2, v4)

    After (``x`` itself, which has these dims)::

        return {"y": x}

    Needs: nothing. Guarantees: every value is bit for bit what it was.
    """
    return rewrite_module(module, *RULES)


def operand(node: Node, name: str, index: int = 0) -> Node | None:
    """The node behind an operand if its op has this name."""
    if index < len(node.inputs) and node.inputs[index].op.name == name:
        return node.inputs[index].node
    return None


def is_negative_zero(number: float) -> bool:
    return number == 0 and math.copysign(1, number) < 0


# --- arithmetic ----------------------------------------------------------------------------------------------------


@on("mul")
def mul_by_one(node: Node) -> Value | None:
    """x * 1 = x"""
    x, y = node.inputs
    return x if scalar(y) == 1 else y if scalar(x) == 1 else None


@on("add")
def add_zero(node: Node) -> Value | None:
    """x + 0 = x for integers; for floats only x + (-0.0), because -0.0 + 0.0 is 0.0"""
    for x, y in (node.inputs, node.inputs[::-1]):
        number = scalar(y)
        if number == 0 and (x.type.dtype.is_integer or is_negative_zero(number)):
            return x
    return None


@on("sub")
def sub_zero(node: Node) -> Value | None:
    """x - 0 = x; for floats only +0.0, because -0.0 - -0.0 is 0.0"""
    x, y = node.inputs
    number = scalar(y)
    return x if number == 0 and not is_negative_zero(number) else None


@on("div")
def div_by_one(node: Node) -> Value | None:
    """x / 1 = x"""
    return node.inputs[0] if scalar(node.inputs[1]) == 1 else None


@on("div")
def div_by_power_of_two(node: Node) -> Value | None:
    """x / 2**k = x * 2**-k, exactly, when both are normal numbers"""
    x, y = node.inputs
    number = scalar(y)
    if not number or not math.isfinite(number) or math.frexp(number)[0] not in (0.5, -0.5) or not x.type.dtype.is_float:
        return None
    return ops.mul(x, 1 / number) if 2**-14 <= abs(number) <= 2**14 else None


@on("neg")
def double_negation(node: Node) -> Value | None:
    """-(-x) = x"""
    inner = operand(node, "neg")
    return inner.inputs[0] if inner else None


@on("pow")
def pow_by_small_constant(node: Node) -> Value | None:
    """x**1 = x, x**2 = x * x; exact for every x"""
    x, y = node.inputs
    number = scalar(y)
    if number == 1:
        return x
    return ops.mul(x, x) if number == 2 else None


@on("pow")
def pow_minus_one(node: Node) -> Value | None:
    """x**-1 = 1 / x"""
    x, y = node.inputs
    return ops.div(1.0, x) if scalar(y) == -1 and x.type.dtype.is_float else None


@on("cast")
def cast_to_same(node: Node) -> Value | None:
    """A cast to the dtype that x has"""
    (x,) = node.inputs
    return x if x.type.dtype is node.attrs["dtype"] else None


_EXACT = {("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64"), ("f32", "f64"), ("i32", "i64")}


@on("cast")
def cast_there_and_back(node: Node) -> Value | None:
    """Widening and narrowing again returns the same number"""
    inner = operand(node, "cast")
    if inner is None:
        return None
    (x,) = inner.inputs
    widened = (x.type.dtype.name, inner.attrs["dtype"].name) in _EXACT
    return x if widened and node.attrs["dtype"] is x.type.dtype else None


@on("clamp")
def clamp_of_positive(node: Node) -> Value | None:
    """A clamp from 0 or less to infinity of what is never negative"""
    low, high = node.attrs["low"], node.attrs["high"]
    positive = any(operand(node, name) for name in ("softplus", "exp", "sigmoid", "square", "abs"))
    return node.inputs[0] if positive and high in (None, math.inf) and (low is None or low <= 0) else None


@on("sum", "prod", "max", "min", "any", "all")
def reduction_of_one(node: Node) -> Value | None:
    """The sum of one number is x + 0.0, which turns -0.0 into 0.0; any other reduction of one is x"""
    (x,) = node.inputs
    if any(x.dims[axis] != 1 for axis in node.attrs["axes"]):
        return None
    moved: Value = ops.reshape(x, dims=node.types[0].dims)
    return ops.add(moved, 0.0) if node.op is ops.sum and not x.type.dtype.is_integer else moved


@on("where")
def where_of_equal(node: Node) -> Value | None:
    """where(c, x, x) = x"""
    _, x, y = node.inputs
    return x if x == y else None


# --- movement ------------------------------------------------------------------------------------------------------


@on("reshape", "broadcast")
def move_to_same_dims(node: Node) -> Value | None:
    """A reshape or broadcast to the dims that x has"""
    return node.inputs[0] if node.inputs[0].dims == node.types[0].dims else None


@on("reshape")
def reshape_of_reshape(node: Node) -> Value | None:
    """reshape(reshape(x)) = reshape(x)"""
    inner = operand(node, "reshape")
    return ops.reshape(inner.inputs[0], dims=node.types[0].dims) if inner else None


@on("reshape")
def reshape_of_constant(node: Node) -> Value | None:
    """A reshaped scalar broadcast is a broadcast: reshape(broadcast(c)) = broadcast(c)"""
    inner = operand(node, "broadcast")
    if inner is None or inner.inputs[0].type.size != 1:
        return None
    return ops.broadcast(ops.reshape(inner.inputs[0], dims=()), dims=node.types[0].dims)


@on("reshape")
def reshape_of_broadcast(node: Node) -> Value | None:
    """reshape(broadcast(x)) = broadcast(reshape(x)) when the broadcast only repeats x as a whole"""
    inner = operand(node, "broadcast")
    if inner is None:
        return None
    (x,) = inner.inputs
    tail = suffix_of_size(node.types[0].dims, x.type.size)
    if tail is None or inner.types[0].dims[inner.types[0].rank - x.type.rank :] != x.dims:
        return None
    return ops.broadcast(ops.reshape(x, dims=tail), dims=node.types[0].dims)


def suffix_of_size(of: dims.Dims, size: dims.Dim) -> dims.Dims | None:
    """The last dims of ``of`` that hold ``size`` elements together."""
    return next((of[i:] for i in range(len(of), -1, -1) if dims.size(of[i:]) == size), None)


@on("broadcast")
def broadcast_of_broadcast(node: Node) -> Value | None:
    """broadcast(broadcast(x)) = broadcast(x)"""
    inner = operand(node, "broadcast")
    return ops.broadcast(inner.inputs[0], dims=node.types[0].dims) if inner else None


@on("broadcast")
def broadcast_of_unit_reshape(node: Node) -> Value | None:
    """A reshape that only adds leading unit dims is part of the broadcast"""
    inner = operand(node, "reshape")
    if inner is None:
        return None
    (x,) = inner.inputs
    extra = inner.types[0].rank - x.type.rank
    added = extra > 0 and inner.types[0].dims == (1,) * extra + x.dims
    return ops.broadcast(x, dims=node.types[0].dims) if added else None


@on("broadcast")
def broadcast_by_reshape(node: Node) -> Value | None:
    """A broadcast that only adds unit dims is a reshape"""
    (x,) = node.inputs
    return ops.reshape(x, dims=node.types[0].dims) if x.type.size == node.types[0].size else None


@on("transpose")
def transpose_of_transpose(node: Node) -> Value | None:
    """transpose(transpose(x)) is one transpose"""
    inner = operand(node, "transpose")
    if inner is None:
        return None
    return ops.transpose(inner.inputs[0], perm=tuple(inner.attrs["perm"][axis] for axis in node.attrs["perm"]))


@on("transpose")
def transpose_of_nothing(node: Node) -> Value | None:
    """A transpose that keeps every axis in place"""
    return node.inputs[0] if node.attrs["perm"] == tuple(range(node.types[0].rank)) else None


@on("transpose")
def transpose_of_unit_dims(node: Node) -> Value | None:
    """A transpose that moves only dims of extent 1 keeps the elements in order: it is a reshape"""
    (x,) = node.inputs
    long = [axis for axis in node.attrs["perm"] if x.dims[axis] != 1]
    return ops.reshape(x, dims=node.types[0].dims) if long == sorted(long) else None


@on("transpose")
def transpose_of_broadcast(node: Node) -> Value | None:
    """transpose(broadcast(x)) = broadcast(transpose(x)): the smaller tensor moves"""
    inner = operand(node, "broadcast")
    if inner is None:
        return None
    (x,) = inner.inputs
    padded = ops.reshape(x, dims=(1,) * (node.types[0].rank - x.type.rank) + x.dims)
    return ops.broadcast(ops.transpose(padded, perm=node.attrs["perm"]), dims=node.types[0].dims)


@on("slice")
def slice_of_whole(node: Node) -> Value | None:
    """A slice that keeps everything"""
    (x,) = node.inputs
    return x if node.types[0].dims == x.dims and all(step == 1 for step in node.attrs["steps"]) else None


@on("slice")
def slice_of_slice(node: Node) -> Value | None:
    """slice(slice(x)) is one slice"""
    inner = operand(node, "slice")
    if inner is None or any(step != 1 for step in (*inner.attrs["steps"], *node.attrs["steps"])):
        return None
    offsets = inner.attrs["starts"]
    starts = tuple(a + b for a, b in zip(offsets, node.attrs["starts"], strict=True))
    stops = tuple(a + b for a, b in zip(offsets, node.attrs["stops"], strict=True))
    return ops.slice(inner.inputs[0], starts=starts, stops=stops, steps=node.attrs["steps"])


@on("slice")
def slice_of_concat(node: Node) -> Value | None:
    """A slice that lies within one operand of a concat reads that operand"""
    inner = operand(node, "concat")
    if inner is None:
        return None
    axis, offset = inner.attrs["axis"], 0
    start, stop = node.attrs["starts"][axis], node.attrs["stops"][axis]
    for x in inner.inputs:
        if _between(offset, start, stop, offset + x.dims[axis]):
            starts = _with(node.attrs["starts"], axis, start - offset)
            stops = _with(node.attrs["stops"], axis, stop - offset)
            return ops.slice(x, starts=starts, stops=stops, steps=node.attrs["steps"])
        offset = offset + x.dims[axis]
    return None


def _between(low: dims.Dim, start: dims.Dim, stop: dims.Dim, high: dims.Dim) -> bool:
    """Whether ``low <= start`` and ``stop <= high`` for all values of the symbols."""
    return all(dims.bounds(b - a, {})[0] >= 0 for a, b in ((low, start), (stop, high)))


def _with(entries: dims.Dims, axis: int, entry: dims.Dim) -> dims.Dims:
    return (*entries[:axis], entry, *entries[axis + 1 :])


@on("slice")
def slice_of_whole_operands(node: Node) -> Value | None:
    """A slice that keeps some operands of a concat whole is their concat"""
    inner = operand(node, "concat")
    if inner is None or any(step != 1 for step in node.attrs["steps"]):
        return None
    axis, offset, kept = inner.attrs["axis"], 0, []
    start, stop = node.attrs["starts"][axis], node.attrs["stops"][axis]
    for x in inner.inputs:
        if _between(start, offset, offset + x.dims[axis], stop):
            kept.append(x)
        offset = offset + x.dims[axis]
    length = sum((x.dims[axis] for x in kept), start=0)
    if len(kept) < 2 or length != stop - start:
        return None
    part = ops.concat(*kept, axis=axis)
    starts, stops = _with(node.attrs["starts"], axis, 0), _with(node.attrs["stops"], axis, length)
    result: Value = ops.slice(part, starts=starts, stops=stops, steps=node.attrs["steps"])
    return result


@on("concat")
def concat_of_concat(node: Node) -> Value | None:
    """concat(concat(x, y), z) = concat(x, y, z)"""
    axis = node.attrs["axis"]
    nested = [v.op is ops.concat and v.node.attrs["axis"] == axis for v in node.inputs]
    if not any(nested):
        return None
    flat = (x for v, inner in zip(node.inputs, nested, strict=True) for x in (v.node.inputs if inner else (v,)))
    result: Value = ops.concat(*flat, axis=axis)
    return result


@on("flip")
def flip_of_flip(node: Node) -> Value | None:
    """Two flips cancel on the axes that they share"""
    inner = operand(node, "flip")
    if inner is None:
        return None
    axes = tuple(sorted(set(node.attrs["axes"]) ^ set(inner.attrs["axes"])))
    return ops.flip(inner.inputs[0], axes=axes) if axes else inner.inputs[0]


@on("concat")
def concat_of_one(node: Node) -> Value | None:
    """A concat of one operand; operands of extent 0 do not count"""
    axis = node.attrs["axis"]
    kept = tuple(x for x in node.inputs if x.dims[axis] != 0)
    if len(kept) == 1:
        return kept[0]
    return ops.concat(*kept, axis=axis) if kept and len(kept) < len(node.inputs) else None


@on("pad")
def pad_by_nothing(node: Node) -> Value | None:
    """A pad that adds no element"""
    return node.inputs[0] if node.types[0].dims == node.inputs[0].dims else None


RULES: tuple[Rule, ...] = (
    mul_by_one, add_zero, sub_zero, div_by_one, div_by_power_of_two, double_negation, pow_by_small_constant,
    pow_minus_one, cast_to_same, cast_there_and_back, clamp_of_positive,
    reduction_of_one, where_of_equal,
    move_to_same_dims, reshape_of_reshape, reshape_of_constant, reshape_of_broadcast, broadcast_of_broadcast, broadcast_of_unit_reshape,
    broadcast_by_reshape, transpose_of_transpose, transpose_of_nothing, transpose_of_unit_dims, transpose_of_broadcast,
    slice_of_whole, slice_of_slice, slice_of_concat, slice_of_whole_operands, concat_of_concat,
    flip_of_flip, concat_of_one, pad_by_nothing,
)  # fmt: skip
