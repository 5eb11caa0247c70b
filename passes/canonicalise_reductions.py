"""Give every reduction the form that fusion and code generation expect."""

from __future__ import annotations

from coilc.ir import Module, Node, Value, ops
from coilc.ir.opdef import REDUCTION

from .rewrite import rewrite_module


def canonicalise_reductions(module: Module) -> Module:
    """Keep reduced dims with extent 1, and let a reshape drop them.

    Before::

        v0: f32[B] = sum(x, axes=(1,), keepdims=False)

    After::

        v0: f32[B, 1] = sum(x, axes=(1,), keepdims=True)
        v1: f32[B] = reshape(v0, dims=(B,))

    Needs: nothing. Guarantees: every reduction has ``keepdims=True``.
    """
    return rewrite_module(module, reduction_keeps_dims)


def reduction_keeps_dims(node: Node) -> Value | None:
    """sum(x) = reshape(sum(x, keepdims=True))"""
    if REDUCTION not in node.op.traits or node.attrs["keepdims"]:
        return None
    kept = node.op(*node.inputs, **{**node.attrs, "keepdims": True})
    return ops.reshape(kept, dims=node.types[0].dims)
