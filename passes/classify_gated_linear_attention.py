"""A loop that is linear attention with decay: RetNet, GLA, Mamba-2's SSD, plain linear attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coilc.ir import Node, Value, literal, ops
from coilc.ir.opdef import MOVEMENT

from .classify_affine import NotAffine, filled
from .classify_factors import Factor, removed, support
from .classify_readout import TIME, Decaying, Named, contraction_of
from .rewrite import on
from .simplify import scalar
from .trace import Declined, no
from .vectorise_time import NotParallel


@on("scan")
def scan_is_gated_linear_attention(node: Node) -> tuple[Value, ...] | Declined | None:
    """S = decay * S + k (x) v; o = q S   is   gated_linear_attention(q, k, v, log(decay))

    Before::

        def step(S, q, k, v, g):
            after = add(mul(exp(g), S), mul(k, v))
            return {"S": after, "o": matmul(q, after)}
        S, o = scan(S0, q, k, v, g, body=step)

    After::

        o, S = gated_linear_attention(q, k, v, g)

    Needs: re-rolled graphs. Guarantees: equal up to the order of multiplication.
    """
    try:
        parts = contraction_of(node)
        return parts.results(*as_attention(parts))
    except (NotAffine, NotParallel) as broken:
        return no(f"{broken.reason} ('{broken.node.op.name}')")


@dataclass(frozen=True)
class Roles:
    """Factors by role, and the axes of batch, heads, groups of heads that share keys, keys (N) and values (P)."""

    keys: tuple[Factor, ...]
    values: tuple[Factor, ...]
    batch: tuple[int, ...]
    heads: tuple[int, ...]
    grouped: tuple[int, ...]
    key_axes: tuple[int, ...]
    value_axes: tuple[int, ...]


def roles_of(parts: Decaying, more: tuple[Factor, ...] = ()) -> Roles:
    """Value axes are those that only the values have, and none of the factors ``more``; batch is the state's first axis if
    every sample has its keys."""
    keys = tuple(f for f in parts.update if f.support & parts.contracted)
    values = tuple(f for f in parts.update if not f.support & parts.contracted)
    shared = support((*keys, *parts.query, *parts.decay, *more))
    value_axes = tuple(axis for axis in parts.rest if axis not in shared and axis in support(values))
    if TIME not in support((*keys, *parts.query)):
        raise NotAffine(parts.origin, "keys and queries are constant in time: a convolution, not attention")
    own = {axis for axis in parts.rest if parts.extent[axis] == 1} | support(keys)
    batch = tuple(axis for axis in parts.rest[:1] if axis in own and axis not in value_axes)
    heads = tuple(axis for axis in parts.rest if axis not in (*batch, *value_axes))
    if not value_axes and support(parts.decay) & parts.contracted:
        raise NotAffine(parts.origin, "the decay is as large as the state")
    if not value_axes and any(parts.extent[axis] != 1 for axis in heads) and _spans(keys, heads):
        raise NotAffine(parts.origin, "what is added to the state is not an outer product")
    spanned = support((*keys, *parts.query))
    grouped = tuple(axis for axis in heads if axis in spanned)
    ordered = (*grouped, *(axis for axis in heads if axis not in grouped))
    return Roles(keys, values, batch, ordered, grouped, tuple(sorted(parts.contracted)), value_axes)


def _spans(factors: tuple[Factor, ...], axes: tuple[int, ...]) -> bool:
    return bool(support(factors) & set(axes))


def as_attention(parts: Decaying) -> Named:
    """The op that does this.

    Raises:
        NotAffine: it does something else.
    """
    roles = roles_of(parts)
    per_group = (roles.batch, (TIME,), roles.grouped, roles.key_axes)
    per_value = (roles.batch, (TIME,), roles.heads, roles.value_axes)
    state = (roles.batch, roles.heads, roles.key_axes, roles.value_axes)
    given = {} if parts.added is None else {"bonus": _bonus(parts, roles)}
    given |= initial_state(parts, *state)
    out, last = ops.gated_linear_attention(
        parts.arranged(parts.query, *per_group),
        parts.arranged(roles.keys, *per_group),
        parts.arranged(roles.values, *per_value),
        log_decay(parts, roles),
        *given.values(),
        optional=tuple(given),
        scale=1.0,
    )
    return out, last, per_value, state


def initial_state(parts: Decaying, *groups: tuple[int, ...]) -> dict[str, Value]:
    """The optional operand h0, unless the state starts as zero."""
    return {} if scalar(parts.start) == 0 else {"h0": parts.initial(*groups)}


def _bonus(parts: Decaying, roles: Roles) -> Value:
    """[H, N]: what an output adds to the state before it is updated, per unit of what the update adds."""
    if not parts.added:
        return filled(0, parts.arranged((), roles.heads, roles.key_axes)).value
    bonus = removed(parts.added, parts.update)
    if bonus is None or not support(bonus) <= {*roles.heads, *roles.key_axes}:
        raise NotAffine(parts.origin, "what is added to the state when it is read is not its inflow times a constant")
    return parts.arranged(bonus, roles.heads, roles.key_axes)


def log_decay(parts: Decaying, roles: Roles) -> Value:
    """[B, L, H], or [B, L, H, N] when the decay varies along the keys."""
    groups: tuple[tuple[int, ...], ...] = (roles.batch, (TIME,), roles.heads)
    groups = (*groups, roles.key_axes) if support(parts.decay) & parts.contracted else groups
    terms = [parts.arranged([Factor(_logarithm(f.value), f.axes)], *groups) for f in parts.decay]
    total = terms[0] if terms else parts.arranged([Factor(literal(0, parts.start.type.dtype), ())], *groups)
    for term in terms[1:]:
        total = ops.add(total, term)
    dtype = parts.start.type.dtype
    return total if total.type.dtype is dtype else ops.cast(total, dtype=dtype)


def _logarithm(value: Value) -> Value:
    """The logarithm of a value that is positive by its form.

    Raises:
        NotAffine: it may be zero or negative.
    """
    number: Any = value.node.attrs["value"].value if value.op is ops.constant else None
    if value.op is ops.exp:
        return value.node.inputs[0]
    if value.op is ops.sigmoid:
        return ops.neg(ops.softplus(ops.neg(value.node.inputs[0])))
    if MOVEMENT in value.op.traits and len(value.node.inputs) == 1 and value.op is not ops.pad:
        return Node.make(value.op, (_logarithm(value.node.inputs[0]),), value.node.attrs).results[value.index]
    if number is not None and number.dtype.kind == "f" and np.all(number > 0):
        return ops.log(value)
    raise NotAffine(value.node, "the decay is not known to be positive: it is no exp, sigmoid or positive constant")
