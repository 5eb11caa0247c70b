"""Recognise activation functions written out in elementary ops."""

from __future__ import annotations

import math

from coilc.ir import Module, Node, Value, ops

from .match import both_orders, factors, is_scaled, operands, plus_number, scalar
from .rewrite import Rule, on, rewrite_module


def recognise_activations(module: Module) -> Module:
    """Replace written-out activations by ``silu``, ``sigmoid``, ``softplus`` and ``gelu``.

    Before::

        v0: f32[B, 8] = sigmoid(x)
        v1: f32[B, 8] = mul(x, v0)

    After::

        v0: f32[B, 8] = silu(x)

    Needs: exact identities applied. Guarantees: equal up to rounding where the written form does not overflow; where
    ``log(1 + exp(x))`` and ``1 / (1 + exp(-x))`` overflow, the value that they approximate.
    """
    return rewrite_module(module, *RULES)


@on("mul")
def silu_by_product(node: Node) -> Value | None:
    """x * sigmoid(x) = silu(x)"""
    return next((ops.silu(x) for x, gate in both_orders(node) if operands(gate, ops.sigmoid) == (x,)), None)


@on("div")
def silu_by_division(node: Node) -> Value | None:
    """x / (1 + exp(-x)) = silu(x)"""
    x, bottom = node.inputs
    argument = one_plus_exp(bottom)
    return ops.silu(x) if argument and operands(argument, ops.neg) == (x,) else None


@on("div", "reciprocal")
def sigmoid_by_division(node: Node) -> Value | None:
    """1 / (1 + exp(-x)) = sigmoid(x)"""
    if node.op is ops.div and scalar(node.inputs[0]) != 1:
        return None
    argument = one_plus_exp(node.inputs[-1])
    negated = operands(argument, ops.neg) if argument else None
    return ops.sigmoid(negated[0]) if negated else None


@on("log", "log1p")
def softplus_by_log(node: Node) -> Value | None:
    """log(1 + exp(x)) = softplus(x)"""
    (inner,) = node.inputs
    if node.op is ops.log1p:
        argument = operands(inner, ops.exp)
        return ops.softplus(*argument) if argument else None
    found = one_plus_exp(inner)
    return ops.softplus(found) if found else None


def one_plus_exp(value: Value) -> Value | None:
    """``x`` if ``value`` is 1 + exp(x)."""
    shifted = plus_number(value)
    if shifted is None or shifted[1] != 1:
        return None
    argument = operands(shifted[0], ops.exp)
    return argument[0] if argument else None


@on("mul")
def gelu_by_product(node: Node) -> Value | None:
    """x/2 * (1 + erf(x / sqrt(2))) and x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x**3))) = gelu(x)"""
    number, parts = factors(node.results[0])
    if len(parts) != 2 or number != 0.5:
        return None
    for x, gate in (parts, parts[::-1]):
        shifted = plus_number(gate)
        if shifted is not None and shifted[1] == 1:
            curve = shifted[0]
            if curve.op is ops.erf and is_scaled(curve.node.inputs[0], math.sqrt(0.5), x):
                return ops.gelu(x, approximate="none")
            if curve.op is ops.tanh and is_cubic(curve.node.inputs[0], x):
                return ops.gelu(x, approximate="tanh")
    return None


def is_cubic(value: Value, x: Value) -> bool:
    """Whether ``value`` is sqrt(2/pi) * (x + 0.044715 x**3)."""
    number, parts = factors(value)
    if len(parts) != 1 or not math.isclose(number, math.sqrt(2 / math.pi), rel_tol=1e-6):
        return False
    orders = both_orders(parts[0].node) if parts[0].op is ops.add else ()
    return any(line == x and is_scaled(cube, 0.044715, x, x, x) for line, cube in orders)


RULES: tuple[Rule, ...] = (
    silu_by_product, silu_by_division, sigmoid_by_division, softplus_by_log, gelu_by_product,
)  # fmt: skip
