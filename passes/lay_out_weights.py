"""Store the weights of matrix products along the inner dimension, where the target reads them so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from coilc.ir import Module, Node, Value, at, ops

from .cost_model import Machine
from .fold_constants import drop_unused_weights
from .rewrite import on, rewrite_module


def lay_out_weights(module: Module, machine: Machine) -> Module:
    """Transpose the weights that are right operands of matrix products, if the machine's kernels read them along columns.

    Before::

        v0: f32[4, 8] = weight(name="w.folded", type=f32[4, 8])
        v1: f32[B, 8] = matmul(x, v0)

    After::

        v0: f32[8, 4] = weight(name="w.folded.inner", type=f32[8, 4])
        v1: f32[4, 8] = transpose(v0, perm=(1, 0))
        v2: f32[B, 8] = matmul(x, v1)

    The kernel reads through the transposition. A weight that is there already, in this order, is used: the table of an
    embedding is also the matrix of the last layer.

    Guarantees: the same values; nothing folds constants afterwards.
    """
    if not machine.inner_first:
        return module
    weights = dict(module.weights)
    known = {place_of(array): name for name, array in weights.items()}

    @on("matmul")
    def transpose_weight(node: Node) -> Value | None:
        x, w = node.inputs
        if w.op is not ops.weight or w.type.rank < 2:
            return None
        turned = weights[w.node.attrs["name"]].swapaxes(-1, -2)
        name = known.setdefault(place_of(turned), f"{w.node.attrs['name']}.inner")
        weights.setdefault(name, turned)
        perm = (*range(w.type.rank - 2), w.type.rank - 1, w.type.rank - 2)
        with at(w.location):
            stored = ops.weight(name=name, type=replace(w.type, dims=turned.shape))
            return ops.matmul(x, ops.transpose(stored, perm=perm))

    return drop_unused_weights(replace(rewrite_module(module, transpose_weight), weights=weights))


def place_of(array: np.ndarray) -> tuple[object, ...]:
    """What two arrays have in common that are the same memory."""
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype
