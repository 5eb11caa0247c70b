"""A loop that is RWKV-4's average of values weighted by exponentials of keys, kept from overflowing by a running maximum."""

from __future__ import annotations

from collections.abc import Mapping

from coilc.ir import Dim, Node, Value, ops
from coilc.ir.ops.wkv import WKV_STATES

from .classify_affine import NotAffine
from .classify_factors import factors_of, product, support
from .classify_readout import TIME
from .loop_parts import Loop, from_front
from .match import both_orders, factors, id_of, scalar
from .rewrite import on
from .trace import Declined, no
from .vectorise_time import NotParallel, Parallel, Timed

LOWEST = -1e30  # a running maximum that starts below is one that the first key replaces


@on("scan")
def scan_is_wkv(node: Node) -> tuple[Value, ...] | Declined | None:
    """y = (exp(m - p) a + exp(u + k - p) v) / (exp(m - p) b + exp(u + k - p)), p = max(m, u + k)   is   wkv(k, v, w, u)

    Before::

        def step(a, b, m, k, v, w, u):
            p = maximum(m, add(u, k))
            y = div(add(mul(exp(sub(m, p)), a), mul(exp(sub(add(u, k), p)), v)), ...)
            top = maximum(add(m, w), k)
            next_a = add(mul(exp(sub(add(m, w), top)), a), mul(exp(sub(k, top)), v))
            next_b = add(mul(exp(sub(add(m, w), top)), b), exp(sub(k, top)))
            return {"a": next_a, "b": next_b, "m": top, "y": y}
        a, b, m, y = scan(a0, b0, m0, k, v, w, u, body=step)

    After::

        y, a, b, m = wkv(k, v, w, u)

    Needs: re-rolled graphs. Guarantees: equal up to rounding.
    """
    loop = Loop(node)
    if loop.carries != len(WKV_STATES):
        return None
    try:
        return _Average(loop).as_op()
    except (NotAffine, NotParallel) as broken:
        return no(f"{broken.reason} ('{broken.node.op.name}')")


class _Average:
    """The parts of such a loop, as values of its body.

    Attributes:
        order: the places of the carries that are numerator, denominator and maximum.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop, self.time = loop, Parallel(loop)
        place, faded, self.w, self.k = self._running_maximum()
        top, after = loop.body_carries[place], loop.next_carries[place]
        past, now = _weight(faded, after), _weight(self.k, after)
        sums = [i for i in range(loop.carries) if i != place]
        added = {i: _added(loop.next_carries[i], past, loop.body_carries[i], now) for i in sums}
        for i, rest in added.items():
            if rest is None:
                reason = "a sum is not the last one, faded, plus the current token's share"
                raise NotAffine(loop.next_carries[i].node, reason)
        num, den = sorted(sums, key=lambda i: added[i] == ())
        value = added[num]
        if not value or added[den] != ():
            raise NotAffine(loop.node, "the carries are not a sum of weighted values and one of the weights alone")
        self.order, self.v = (num, den, place), value
        self.u, self.y = self._output(top, *(loop.body_carries[i] for i in (num, den)))

    def _running_maximum(self) -> tuple[int, Value, Value, Value]:
        """The carry m with m = maximum(m + w, k): its place, m + w, w and k."""
        for place, (carry, after) in enumerate(zip(self.loop.body_carries, self.loop.next_carries, strict=True)):
            for faded, key in both_orders(after.node) if after.op is ops.maximum else ():
                for state, w in both_orders(faded.node) if faded.op is ops.add else ():
                    if state == carry:
                        return place, faded, w, key
        raise NotAffine(self.loop.node, "no carry is a running maximum of keys that fades")

    def _output(self, top: Value, num: Value, den: Value) -> tuple[Value, Value]:
        """u, and the quotient in which the current token's key has u added."""
        for node in self.loop.body.nodes:
            for other, own in both_orders(node) if node.op is ops.maximum else ():
                bonus = [u for k, u in both_orders(own.node) if k == self.k] if own.op is ops.add else []
                if other == top and bonus:
                    past, now = _weight(top, Value(node)), _weight(own, Value(node))
                    return bonus[0], self._quotient(past, now, num, den)
        raise NotAffine(self.loop.node, "no output weighs the current token by exp(u + k)")

    def _quotient(self, past: Value, now: Value, num: Value, den: Value) -> Value:
        for node in self.loop.body.nodes:
            if node.op is ops.div:
                above, below = node.inputs
                if _added(above, past, num, now) == self.v and _added(below, past, den, now) == ():
                    return Value(node)
        raise NotAffine(self.loop.node, "no output is the quotient of the two sums")

    def as_op(self) -> tuple[Value, ...]:
        """The loop's results from those of wkv."""
        loop, rank = self.loop, self.y.type.rank
        batch, channels = ((1,), tuple(range(2, rank + 1))) if rank > 1 else ((), (1,))
        sequence, states = (batch, (TIME,), channels), (batch, channels)
        value = self.v[0]
        for factor in self.v[1:]:
            value = ops.mul(value, factor)
        inits = [loop.inits[i] for i in self.order]
        fresh = scalar(inits[0]) == scalar(inits[1]) == 0 and (scalar(inits[2]) or 0) < LOWEST
        given = {} if fresh else dict(zip(WKV_STATES, (self._plain(v, *states) for v in inits), strict=True))
        y, *last = ops.wkv(
            *(self._arranged(v, *sequence) for v in (self.k, value)),
            *(self._arranged(v, channels) for v in (self.w, self.u)),
            *given.values(),
            optional=tuple(given),
        )
        y = ops.transpose(ops.flip(y, axes=(1,)) if loop.reverse else y, perm=(1, 0, 2))
        self.time.known[self.y] = Timed(ops.reshape(y, dims=(loop.length, *self.y.dims)), True)
        ends = {i: ops.reshape(v, dims=self.y.dims) for i, v in zip(self.order, last, strict=True)}
        ys = [self.time.full(self.time.value(v)) for v in loop.outputs]
        return (*(ends[i] for i in range(loop.carries)), *(from_front(v, loop.axis) for v in ys))

    def _arranged(self, value: Value, *groups: tuple[int, ...]) -> Value:
        """A value of the body with one dim per group of axes: time, then those of a carry."""
        whole = self.time.value(value)
        factors = factors_of(whole.value, tuple(range(1 - whole.varies, whole.value.type.rank + 1 - whole.varies)))
        axes = {axis for group in groups for axis in group}
        if not support(factors) <= axes:
            raise NotAffine(value.node, "the decay or the bonus is not one number per channel")
        result = product(factors, groups, self._extent, like=value)
        return ops.flip(result, axes=(groups.index((TIME,)),)) if self.loop.reverse and TIME in axes else result

    def _plain(self, value: Value, *groups: tuple[int, ...]) -> Value:
        return product(factors_of(value, tuple(range(1, value.type.rank + 1))), groups, self._extent, like=value)

    @property
    def _extent(self) -> Mapping[int, Dim]:
        return {TIME: self.loop.length, **{i + 1: n for i, n in enumerate(self.y.dims)}}


def _weight(exponent: Value, highest: Value) -> Value:
    """The value that a body has for exp(exponent - highest): equal nodes are one object."""
    result: Value = ops.exp(ops.sub(exponent, highest))
    return result


def _added(value: Value, past: Value, carry: Value, now: Value) -> tuple[Value, ...] | None:
    """The factors X of ``value = past * carry + now * X``, or ``None`` if it is something else."""
    for kept, new in both_orders(value.node) if value.op is ops.add else ():
        (m, old), (n, rest) = factors(kept), factors(new)
        if m == n == 1 and sorted(map(id_of, old)) == sorted(map(id_of, (past, carry))) and now in rest:
            left = list(rest)
            left.remove(now)
            return tuple(left)
    return None
