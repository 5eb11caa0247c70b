"""Recognise the causal depthwise convolution of state-space layers in a general convolution."""

from __future__ import annotations

from coilc.ir import Module, Node, Value, ops

from .match import both_orders, unspread
from .rewrite import Rule, on, rewrite_module
from .trace import Declined, no


def recognise_convolutions(module: Module) -> Module:
    """Turn a depthwise convolution that sees only the past into ``causal_conv1d``, which works channels innermost.

    Before::

        v0: f32[B, 8, L + 3] = conv(x, w, strides=(1,), padding=((3, 3),), dilation=(1,), groups=8)
        v1: f32[B, 8, L] = slice(v0, starts=(0, 0, 0), stops=(B, 8, L), steps=(1, 1, 1))

    After::

        v0: f32[B, L, 8] = transpose(x, perm=(0, 2, 1))
        v1: f32[8, 4] = reshape(w, dims=(8, 4))
        v2: f32[4, 8] = transpose(v1, perm=(1, 0))
        v3, v4 = causal_conv1d(v0, v2, optional=(), activation="none")
        v5: f32[B, 8, L] = transpose(v3, perm=(0, 2, 1))

    Needs: nothing. Guarantees: equal up to the order of sums.
    """
    return rewrite_module(module, *RULES)


TO_TIME_MAJOR = (0, 2, 1)


@on("conv")
def conv_of_pad(node: Node) -> Value | None:
    """conv(pad(x)) = conv(x) with that padding, where zeros are added along spatial axes only"""
    x, *rest = node.inputs
    moved = x.op is ops.transpose
    pad = (x.node.inputs[0] if moved else x).node
    if pad.op is not ops.pad or pad.attrs["value"] != 0:
        return None
    order = x.node.attrs["perm"] if moved else range(x.type.rank)
    added = [(pad.attrs["low"][axis], pad.attrs["high"][axis]) for axis in order]
    if added[:2] != [(0, 0)] * 2 or not all(isinstance(n, int) and n >= 0 for pair in added for n in pair):
        return None
    (source,) = pad.inputs
    both = tuple((a + low, b + high) for (a, b), (low, high) in zip(node.attrs["padding"], added[2:], strict=True))
    inner = ops.transpose(source, perm=order) if moved else source
    return ops.conv(inner, *rest, **{**node.attrs, "padding": both})


@on("conv")
def conv_with_past_padding(node: Node) -> Value | Declined | None:
    """A depthwise convolution padded only before the first step"""
    if not is_depthwise(node):
        return None
    ((low, high),) = node.attrs["padding"]
    return causal(node) if (low, high) == (taps(node) - 1, 0) else no(f"padded by {low} before and {high} after")


@on("slice")
def conv_with_future_cut_off(node: Node) -> Value | None:
    """A depthwise convolution padded on both sides of which only the first L steps are kept"""
    conv = node.inputs[0].node
    if conv.op is not ops.conv or not is_depthwise(conv) or conv.attrs["padding"][0][0] != taps(conv) - 1:
        return None
    whole = (0, 0, 0), conv.inputs[0].dims, (1, 1, 1)
    kept = node.attrs["starts"], node.attrs["stops"], node.attrs["steps"]
    return causal(conv) if kept == whole else None


@on("slice")
def cut_before_bias(node: Node) -> Value | None:
    """slice(conv(x) + bias) = slice(conv(x)) + bias when the bias is the same at every step"""
    (biased,) = node.inputs
    if biased.op is not ops.add or biased.type.rank != 3:
        return None
    for product, bias in both_orders(biased.node):
        vector = unspread(bias)
        if product.op is ops.conv and vector.type.rank >= 2 and vector.dims[-1] == 1:
            return ops.add(ops.slice(product, **node.attrs), vector)
    return None


def is_depthwise(conv: Node) -> bool:
    """One input channel and one output channel per group, one spatial axis, no strides."""
    x, w = conv.inputs
    if x.type.rank != 3 or w.dims[1] != 1 or w.dims[0] != x.dims[1]:
        return False
    return conv.attrs["groups"] == x.dims[1] and conv.attrs["strides"] == conv.attrs["dilation"] == (1,)


def taps(conv: Node) -> int:
    count = conv.inputs[1].dims[2]
    return count if isinstance(count, int) else -1


def causal(conv: Node) -> Value:
    """The convolution's first L results."""
    x, w = conv.inputs
    kernel = ops.transpose(ops.reshape(w, dims=(w.dims[0], w.dims[2])), perm=(1, 0))
    y, _ = ops.causal_conv1d(ops.transpose(x, perm=TO_TIME_MAJOR), kernel, optional=(), activation="none")
    return ops.transpose(y, perm=TO_TIME_MAJOR)


@on("add")
def bias_of_causal_conv(node: Node) -> Value | None:
    """causal_conv1d(x, w) + b = causal_conv1d(x, w, b)"""
    for y, term in both_orders(node):
        bias = unspread(term)
        if is_plain(y) and "bias" not in y.node.attrs["optional"] and bias.dims == y.dims[-1:]:
            fixed, rest = y.node.inputs[:2], y.node.inputs[2:]
            optional = ("bias", *y.node.attrs["optional"])
            return ops.causal_conv1d(*fixed, bias, *rest, optional=optional, activation="none")[0]
    return None


@on("silu")
def silu_of_causal_conv(node: Node) -> Value | None:
    """silu(causal_conv1d(x, w)) is the convolution's own activation"""
    (y,) = node.inputs
    return ops.causal_conv1d(*y.node.inputs, **{**y.node.attrs, "activation": "silu"})[0] if is_plain(y) else None


def is_plain(value: Value) -> bool:
    """The convolved values of a convolution without activation."""
    return value.op is ops.causal_conv1d and value.index == 0 and value.node.attrs["activation"] == "none"


RULES: tuple[Rule, ...] = (
    conv_of_pad, conv_with_past_padding, cut_before_bias, conv_with_future_cut_off, bias_of_causal_conv, silu_of_causal_conv,
)  # fmt: skip
