"""Small words for recognising shapes of expressions; the ``recognise_*`` passes are written in them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from coilc.ir import Dims, Node, OpDef, Value, ops


def operands(value: Value, *which: OpDef) -> tuple[Value, ...] | None:
    """The operands of ``value`` if one of the ops ``which`` computes it."""
    return value.node.inputs if value.op in which else None


def both_orders(node: Node) -> Iterator[tuple[Value, Value]]:
    """The operands of a commutative node, either way round."""
    x, y = node.inputs
    yield x, y
    yield y, x


def unspread(value: Value) -> Value:
    """What ``value`` was broadcast from, if it was."""
    while value.op is ops.broadcast:
        (value,) = value.node.inputs
    return value


def is_zero(value: Value) -> bool:
    """Whether every element is known to be 0, complex or not."""
    while value.op in (ops.broadcast, ops.reshape):
        (value,) = value.node.inputs
    return value.op is ops.constant and not np.any(value.node.attrs["value"].value)


def scalar(value: Value) -> float | None:
    """The number that every element of ``value`` equals, if it is a broadcast constant."""
    while value.op in (ops.broadcast, ops.reshape):
        (value,) = value.node.inputs
    if value.op is not ops.constant or value.type.size != 1:
        return None
    array = value.node.attrs["value"].value
    if array.dtype.kind == "V":  # bfloat16
        array = array.astype(np.float32)
    return array.item() if array.dtype.kind in "iufb" else None


def factors(value: Value) -> tuple[float, tuple[Value, ...]]:
    """``value`` as a number times other values, products and divisions by constants flattened."""
    number, rest, stack = 1.0, [], [value]
    while stack:
        part = stack.pop()
        known = scalar(part)
        if known is not None:
            number *= known
        elif part.op is ops.mul:
            stack.extend(part.node.inputs)
        elif part.op is ops.div and (divisor := scalar(part.node.inputs[1])):
            number /= divisor
            stack.append(part.node.inputs[0])
        elif part.op is ops.pow and (exponent := scalar(part.node.inputs[1])) in (2, 3):
            stack.extend([part.node.inputs[0]] * int(exponent or 0))
        elif part.op is ops.neg:
            number = -number
            stack.append(part.node.inputs[0])
        else:
            rest.append(part)
    return number, tuple(rest)


def is_scaled(value: Value, number: float, *parts: Value) -> bool:
    """Whether ``value`` is ``number`` times the product of ``parts``."""
    found, rest = factors(value)
    return math.isclose(found, number, rel_tol=1e-6) and sorted(map(id_of, rest)) == sorted(map(id_of, parts))


def id_of(value: Value) -> tuple[int, int]:
    """An order of values that are alive; equal values are one object."""
    return id(value.node), value.index


def plus_number(value: Value) -> tuple[Value, float] | None:
    """``(x, c)`` if ``value`` is x + c for a constant c."""
    for x, y in both_orders(value.node) if value.op is ops.add else ():
        number = scalar(y)
        if number is not None:
            return x, number
    return None


def last_axis(value: Value) -> tuple[int, ...]:
    """The axes tuple of a reduction over the last axis."""
    return (value.type.rank - 1,)


def reshaped(x: Value, to: Dims) -> Value:
    """``x`` under other dims: one reshape at most, none where it has them."""
    while x.op is ops.reshape and x.dims != to:
        (x,) = x.node.inputs
    return x if x.dims == to else ops.reshape(x, dims=to)


def transposed(x: Value, perm: tuple[int, ...]) -> Value:
    """``x`` with its axes in another order; ``x`` itself where that is the order."""
    return x if perm == tuple(range(len(perm))) else ops.transpose(x, perm=perm)
