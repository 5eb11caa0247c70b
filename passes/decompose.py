"""Decompose composites into core ops, except those that the target claims."""

from __future__ import annotations

from collections.abc import Collection

from coilc.ir import Module, Node, Value

from .rewrite import Rule, rewrite_module


def decompose(module: Module, keep: Collection[str] = ()) -> Module:
    """Replace every composite that ``keep`` does not name by its definition, recursively.

    Before::

        v0: f32[B, 4] = silu(x)

    After::

        v0: f32[B, 4] = sigmoid(x)
        v1: f32[B, 4] = mul(x, v0)

    Needs: nothing. Guarantees: only core ops and ops in ``keep`` remain, inside bodies too.
    """
    return rewrite_module(module, by_definition(frozenset(keep)))


def by_definition(keep: Collection[str]) -> Rule:
    """The rule that replaces a composite by what its ``OpDef.decompose`` builds."""

    def definition(node: Node) -> Value | tuple[Value, ...] | None:
        if node.op.decompose is None or node.op.name in keep:
            return None
        return node.op.decompose(*node.inputs, **node.attrs)

    return definition
