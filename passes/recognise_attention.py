"""Recognise attention and rotary positions written out in elementary ops."""

from __future__ import annotations

from coilc.ir import Module, Node, Value, dims, ops

from .match import both_orders, operands, scalar, unspread
from .rewrite import Rule, on, rewrite_module
from .trace import Declined, no


def recognise_attention(module: Module) -> Module:
    """Replace written-out attention by ``attention`` and half rotations by ``rotary``.

    Before::

        v0: f32[B, 2, 8, L] = transpose(k, perm=(0, 1, 3, 2))
        v1: f32[B, 2, L, L] = matmul(q, v0)
        v2: f32[B, 2, L, L] = mul(v1, scale)
        v3: f32[B, 2, L, L] = add(v2, mask)
        v4: f32[B, 2, L, L] = softmax(v3, axis=3)
        v5: f32[B, 2, L, 8] = matmul(v4, v)

    After::

        v0: f32[B, 2, L, 8] = attention(q, k, v, mask, scale=0.25, causal=False)

    Needs: exact identities applied. Guarantees: equal up to rounding; heads that share keys are not repeated. A row that
    sees nothing becomes 0 where the written form gives NaN.
    """
    return rewrite_module(module, *RULES)


@on("matmul")
def attention_by_matmul(node: Node) -> Value | Declined | None:
    """softmax(scale * q k' + mask) v = attention(q, k, v, mask)"""
    weights, v = node.inputs
    if weights.op is not ops.softmax or weights.node.attrs["axis"] != weights.type.rank - 1:
        return None
    if v.type.rank != 4:
        return no(f"the values have rank {v.type.rank}, not [B, H, S, F]")
    scores, masks = without_mask(weights.node.inputs[0])
    product, scale = without_scale(scores)
    parts = operands(product, ops.matmul)
    keys = untransposed(parts[1]) if parts else None
    if parts is None or keys is None:
        return no("the scores are not a product of queries and transposed keys")
    optional = ("mask",) if masks else ()
    return ops.attention(parts[0], unrepeated(keys), unrepeated(v), *masks, optional=optional, scale=scale)


def without_mask(scores: Value) -> tuple[Value, tuple[Value, ...]]:
    """The scores and what was added to them, or chose between them and minus infinity."""
    if scores.op is ops.add:
        for x, mask in both_orders(scores.node):
            if without_scale(x)[0].op is ops.matmul:
                return x, (unspread(mask),)
    if scores.op is ops.where and scalar(scores.node.inputs[2]) == float("-inf"):
        mask, x, _ = scores.node.inputs
        return x, (unspread(mask),)
    return scores, ()


def without_scale(scores: Value) -> tuple[Value, float]:
    """The product and the constant that multiplies it."""
    if scores.op is ops.mul:
        for x, factor in both_orders(scores.node):
            number = scalar(factor)
            if number is not None:
                return x, number
    if scores.op is ops.div and (divisor := scalar(scores.node.inputs[1])):
        return scores.node.inputs[0], 1 / divisor
    return scores, 1.0


def untransposed(value: Value) -> Value | None:
    """``x`` if ``value`` is ``x`` with its last two axes swapped."""
    swapped = value.op is ops.transpose and value.node.attrs["perm"] == (0, 1, 3, 2)
    return value.node.inputs[0] if swapped else None


def unrepeated(heads: Value) -> Value:
    """Keys or values before they were repeated for groups of query heads: [B, G, S, E]."""
    spread = operands(heads, ops.reshape)
    if not spread or spread[0].op is not ops.broadcast or spread[0].type.rank != 5:
        return heads
    batch, groups, repeats, length, size = spread[0].dims
    inner = unspread(spread[0])
    whole = inner.type.size == dims.size((batch, groups, length, size))
    fits = heads.dims == (batch, groups * repeats, length, size) and inner.dims[1:3] == (groups, 1)
    return ops.reshape(inner, dims=(batch, groups, length, size)) if whole and fits else heads


@on("attention")
def attention_of_groups(node: Node) -> Value | None:
    """attention(q, repeated(k), repeated(v)) = attention(q, k, v)"""
    q, k, v, *rest = node.inputs
    keys, values = unrepeated(k), unrepeated(v)
    if keys == k or values == v or keys.dims[1] != values.dims[1]:
        return None
    return ops.attention(q, keys, values, *rest, **node.attrs)


@on("add")
def rotary_by_halves(node: Node) -> Value | None:
    """x * cos + concat(-x[half:], x[:half]) * sin = rotary(x, cos, sin)"""
    for straight, turned in both_orders(node):
        if straight.op is not ops.mul or turned.op is not ops.mul:
            continue
        for x, cos in both_orders(straight.node):
            for rotated, sin in both_orders(turned.node):
                if is_rotated(rotated, x):
                    return ops.rotary(x, unspread(cos), unspread(sin))
    return None


def is_rotated(value: Value, x: Value) -> bool:
    """Whether ``value`` is the second half of ``x`` negated, then the first half."""
    axis = x.type.rank - 1
    if value.op is not ops.concat or len(value.node.inputs) != 2 or value.node.attrs["axis"] != axis:
        return False
    back, front = value.node.inputs
    half, whole = front.dims[-1], x.dims[-1]
    return (
        half + half == whole
        and operands(back, ops.neg) == (ops.slice_axis(x, axis, half, whole),)
        and front == ops.slice_axis(x, axis, 0, half)
    )


RULES: tuple[Rule, ...] = (attention_by_matmul, attention_of_groups, rotary_by_halves)
