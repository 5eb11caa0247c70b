"""Weights seen through the bodies of loops: rules about weights then apply there as everywhere."""

from __future__ import annotations

from coilc.ir import Module, Node, Value, ops

from .loop_parts import Loop
from .replace_values import replace_values
from .rewrite import on, rewrite_module


def show_weights_in_bodies(module: Module) -> Module:
    """Let bodies name the weights that they are given.

    Before::

        def step(h: f32[B, 4], u: f32[4, 4]):
            return {"h": matmul(h, u)}
        w = weight(name="w", type=f32[4, 4])
        h = scan(h0, xs, w, body=step)

    After::

        def step(h: f32[B, 4]):
            w = weight(name="w", type=f32[4, 4])
            return {"h": matmul(h, w)}
        h = scan(h0, xs, body=step)

    Needs: nothing. Guarantees: nothing; such a body is no valid one until ``hide_weights_from_bodies``.
    """
    return rewrite_module(module, weight_in_body)


def hide_weights_from_bodies(module: Module) -> Module:
    """The reverse: what bodies compute of weights alone is computed before the loop and given to them."""
    return rewrite_module(module, weight_as_operand)


def is_constant(w: Value) -> bool:
    """A weight, perhaps transposed or reshaped, which folding computes."""
    while w.op in (ops.transpose, ops.reshape):
        (w,) = w.node.inputs
    return w.op is ops.weight


@on("scan")
def weight_in_body(node: Node) -> tuple[Value, ...] | None:
    """A loop's operand that is a weight"""
    loop = Loop(node)
    weights = {inner: w for inner, w in loop.consts.items() if is_constant(w)}
    return loop.rebuilt(replace_values(loop.body, weights).outputs) if weights else None


@on("scan")
def weight_as_operand(node: Node) -> tuple[Value, ...] | None:
    """Bodies are given what they need of the weight table"""
    loop = Loop(node)
    known: set[Node] = set()
    for inner in loop.body.nodes:
        if inner.op is ops.weight or (inner.inputs and all(v.node in known for v in inner.inputs)):
            known.add(inner)
    rest = (n for n in loop.body.nodes if n not in known)
    read = dict.fromkeys(v for n in rest for v in n.inputs if v.node in known)
    read |= dict.fromkeys(v for v in loop.body.results if v.node in known)
    if not read:
        return None
    names = zip(read, loop.fresh_names("weight"), strict=False)
    inputs = {w: ops.input_(name=name, type=w.type) for w, name in names}
    outputs = replace_values(loop.body, inputs).outputs
    return loop.rebuilt(outputs, consts={**loop.consts, **{x: w for w, x in inputs.items()}})
