"""Depthwise convolutions work with channels innermost, the layout of the recurrences and projections around them."""

from __future__ import annotations

from coilc.ir import Module, Node, Value, ops

from .match import reshaped
from .rewrite import on, rewrite_module
from .sink_transposes import inverse


def convolve_channels_last(module: Module) -> Module:
    """Turn a convolution with one filter per channel into ``depthwise_conv``.

    Before::

        v0: f32[B, 8, H, W] = conv(x, w, strides=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=8)

    After::

        v0: f32[B, H, W, 8] = transpose(x, perm=(0, 2, 3, 1))
        v1: f32[8, 3, 3] = reshape(w, dims=(8, 3, 3))
        v2: f32[3, 3, 8] = transpose(v1, perm=(1, 2, 0))
        v3: f32[B, H, W, 8] = depthwise_conv(v0, v2, strides=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1))
        v4: f32[B, 8, H, W] = transpose(v3, perm=(0, 3, 1, 2))

    The transposes meet those of the model, which has its tokens as [B, H, W, C] everywhere else.

    Needs: what is causal is ``causal_conv1d``. Guarantees: equal up to the order of sums.
    """
    return rewrite_module(module, conv_per_channel)


@on("conv")
def conv_per_channel(node: Node) -> Value | None:
    """A convolution whose groups have one channel each"""
    x, w = node.inputs
    channels = x.dims[1]
    if not node.attrs["groups"] == channels == w.dims[0] or channels == 1:
        return None
    rank = x.type.rank
    to_last = (0, *range(2, rank), 1)
    kernel = ops.transpose(reshaped(w, (channels, *w.dims[2:])), perm=(*range(1, rank - 1), 0))
    attrs = {name: node.attrs[name] for name in ("strides", "padding", "dilation")}
    y = ops.depthwise_conv(ops.transpose(x, perm=to_last), kernel, **attrs)
    result: Value = ops.transpose(y, perm=inverse(to_last))
    return result
