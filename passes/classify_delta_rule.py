"""A loop that replaces what its state holds under a key: DeltaNet, gated DeltaNet, Kimi Delta Attention, RWKV-7."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from coilc.ir import Node, Value, ops

from .classify_affine import AffineIn, NotAffine
from .classify_factors import Factor, factors_of, removed, support
from .classify_gated_linear_attention import Roles, initial_state, log_decay, roles_of
from .classify_readout import TIME, Contraction, one_carry, over_time, query_of, read_out
from .loop_parts import Loop
from .match import scalar
from .replace_values import replace_values
from .rewrite import on
from .trace import Declined, no
from .vectorise_time import NotParallel, Parallel


@on("scan")
def scan_is_delta_rule(node: Node) -> tuple[Value, ...] | Declined | None:
    """S = decay * S + k (x) beta (v - k (decay * S)); o = q S   is   gated_delta_rule(q, k, v, log(decay), beta)

    Before::

        def step(S, q, k, v, g, beta):
            kept = mul(exp(g), S)
            held = matmul(k, kept)
            after = add(kept, mul(k, mul(beta, sub(v, held))))
            return {"S": after, "o": matmul(q, after)}
        S, o = scan(S0, q, k, v, g, beta, body=step)

    After::

        o, S = gated_delta_rule(q, k, v, g, beta)

    A state from which something else than its own key is removed is generalized_delta_rule.

    Needs: re-rolled graphs. Guarantees: equal up to the order of multiplication.
    """
    try:
        update = _update_of(one_carry(node))
        return _rule(update, roles_of(update.parts, update.factors))
    except (NotAffine, NotParallel) as broken:
        return no(f"{broken.reason} ('{broken.node.op.name}')")


@dataclass(frozen=True)
class _Update:
    """``state = decay * state + update - write (x) sum(erase * state)``, each a product of factors.

    Attributes:
        erase, write: their factors along the contracted axis; ``rate``: all others of both; ``number``: the constant ones.
    """

    parts: Contraction
    erase: tuple[Factor, ...]
    write: tuple[Factor, ...]
    rate: tuple[Factor, ...]
    number: float

    @property
    def factors(self) -> tuple[Factor, ...]:
        return (*self.erase, *self.write, *self.rate)


def _update_of(loop: Loop) -> _Update:
    carry, held = loop.body_carries[0], _held(loop)
    removal = ops.input_(name=next(loop.fresh_names("held")), type=held.type)
    body = replace_values(loop.body, {held: removal})
    after, time = body.results[0], Parallel(loop)
    reading, keeping = AffineIn(time, carry), AffineIn(time, carry, zeros=(removal,))
    contracted, erase, out_axes, added = query_of(reading, held)
    kept = keeping.of(after)
    if added is not None or kept.view != keeping.state:
        raise NotAffine(held.node, "what is removed is not read from the state alone")
    parts = read_out(loop, time, kept)
    if parts.contracted != contracted or parts.added is not None:
        raise NotAffine(parts.out.node, "the outputs do not contract the updated state along its keys")
    writing = AffineIn(time, removal, zeros=(carry,))
    step = writing.of(after)
    if step.view is None or step.scale is None or _places(step.view, writing.state, out_axes) is None:
        raise NotAffine(after.node, "what is removed is not the outer product of a vector with what was read")
    number, write = _numbers(over_time(step.scale))
    factor, erase = _numbers(erase)
    rate = tuple(f for f in (*erase, *write) if not f.support & contracted)
    along = [tuple(f for f in factors if f.support & contracted) for factors in (erase, write)]
    return _Update(parts, along[0], along[1], rate, -number * factor)


def _held(loop: Loop) -> Value:
    """The only sum over the state before the update that the update depends on."""
    reading = AffineIn(Parallel(loop), loop.body_carries[0])
    found: dict[Value, None] = {}
    stack = [loop.next_carries[0]]
    while stack:
        value = stack.pop()
        if value.op is ops.sum and not reading.is_free(value):
            found[value] = None
        elif not reading.is_free(value):
            stack += value.node.inputs
    if not found:
        reading.of(loop.next_carries[0])  # raises with a better reason, if there is one
    if len(found) != 1:
        raise NotAffine(loop.node, f"the update contracts the state {len(found)} times, not once")
    return next(iter(found))


def _places(view: Value, state: Value, axes: tuple[int | None, ...]) -> Value | None:
    """``view`` if it has every dim i of ``state`` on the axis of the loop's state that ``axes[i]`` says."""
    (whole, *more) = factors_of(view)
    long = [(i, axis) for i, axis in enumerate(axes) if state.dims[i] != 1]
    same = not more and whole.value == state and all(whole.axes[i] == (axis or 0) - 1 for i, axis in long)
    return view if same else None


def _numbers(factors: Iterable[Factor]) -> tuple[float, tuple[Factor, ...]]:
    """The product of the constant factors, and the others."""
    found = [(scalar(f.value), f) for f in factors]
    return math.prod(n for n, _ in found if n is not None), tuple(f for n, f in found if n is None)


def _rule(update: _Update, roles: Roles) -> tuple[Value, ...]:
    parts = update.parts
    if support(update.factors) & set(roles.value_axes):
        raise NotAffine(parts.loop.node, "what is removed depends on the value channel")
    per_group = (roles.batch, (TIME,), roles.grouped, roles.key_axes)
    per_head = (roles.batch, (TIME,), roles.heads)
    per_value = (*per_head, roles.value_axes)
    state = (roles.batch, roles.heads, roles.key_axes, roles.value_axes)
    given = initial_state(parts, *state)
    queries, keys = (parts.arranged(f, *per_group) for f in (parts.query, roles.keys))
    decay, attrs = log_decay(parts, roles), {"optional": tuple(given), "scale": 1.0}
    own = _own_key(update, roles)
    if own is not None:
        rate, values = own
        v, beta = parts.arranged(values, *per_value), parts.arranged(rate, *per_head)
        out, last = ops.gated_delta_rule(queries, keys, v, decay, beta, *given.values(), **attrs)
    else:
        v, erase = parts.arranged(roles.values, *per_value), parts.arranged(update.erase, *per_head, roles.key_axes)
        write = parts.arranged((*update.write, *update.rate), *per_head, roles.key_axes)
        write = write if update.number == 1 else ops.mul(write, update.number)
        out, last = ops.generalized_delta_rule(queries, keys, v, decay, erase, write, *given.values(), **attrs)
    return parts.results(out, last, per_value, state)


def _own_key(update: _Update, roles: Roles) -> tuple[tuple[Factor, ...], tuple[Factor, ...]] | None:
    """The rate and the values, if what is removed is the value that the decayed state has under the key, times the rate."""
    contracted = update.parts.contracted
    faded = tuple(f for f in update.parts.decay if f.support & contracted)
    fading = tuple(f for f in update.parts.decay if not f.support & contracted)
    keys = removed(update.erase, faded)
    if update.number != 1 or keys is None or removed(keys, roles.keys) != () or removed(update.write, roles.keys) != ():
        return None
    rate = removed(update.rate, fading)
    values = None if rate is None else removed(roles.values, rate)
    return None if rate is None or values is None else (rate, values)
