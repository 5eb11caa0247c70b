"""A loop that is RWKV-4's average of values weighted by exponentials of keys, with or without a running maximum."""

from __future__ import annotations

from collections.abc import Mapping

from coilc.ir import Dim, Node, Value, ops
from coilc.ir.ops.wkv import WKV_STATES

from .classify_affine import NotAffine
from .classify_factors import factors_of, product, support
from .classify_readout import TIME
from .loop_parts import Loop, from_front
from .match import both_orders, factors, id_of, is_scaled, scalar
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
    return _average(_WithMaximum, node)


@on("scan")
def scan_is_plain_wkv(node: Node) -> tuple[Value, ...] | Declined | None:
    """y = (a + exp(u + k) v) / (b + exp(u + k)), a and b fading by exp(w)   is   wkv(k, v, w, u)

    Before::

        def step(a, b, k, v, d, u):
            y = div(add(a, mul(exp(add(u, k)), v)), add(b, exp(add(u, k))))
            return {"a": add(mul(d, a), mul(exp(k), v)), "b": add(mul(d, b), exp(k)), "y": y}
        a, b, y = scan(a0, b0, k, v, d, u, body=step)

    After::

        y, a, b, m = wkv(k, v, log(d), u)    # a and b relative to exp(m)

    Needs: re-rolled graphs; a constant decay d that is not negative, or an exponential. Guarantees: equal up to rounding;
    finite where the loop's exponentials overflow.
    """
    return _average(_Plain, node)


def _average(kind: type[_Average], node: Node) -> tuple[Value, ...] | Declined | None:
    loop = Loop(node)
    if loop.carries != kind.carries:
        return None
    try:
        return kind(loop).as_op()
    except (NotAffine, NotParallel) as broken:
        return no(f"{broken.reason} ('{broken.node.op.name}')")


class _Average:
    """The parts of such a loop, as values of its body.

    Attributes:
        carries: how many there are.
        order: the places of the carries that are numerator, denominator and, if there is one, maximum.
        k, w, u: the key, the logarithm of the decay, and what the current token's key has added.
        v: factors of the value.
        y: the quotient.
    """

    carries: int
    order: tuple[int, ...]
    k: Value
    w: Value
    u: Value
    v: tuple[Value, ...]
    y: Value

    def __init__(self, loop: Loop) -> None:
        self.loop, self.time = loop, Parallel(loop)

    def starts(self) -> tuple[Value, ...] | None:
        """The first states of the op, or ``None`` at the start of a sequence."""
        raise NotImplementedError

    def ends(self, num: Value, den: Value, top: Value) -> tuple[Value, ...]:
        """The last carries in ``order``, from the last states of the op."""
        raise NotImplementedError

    def as_op(self) -> tuple[Value, ...]:
        """The loop's results from those of wkv."""
        loop, rank = self.loop, self.y.type.rank
        batch, channels = ((1,), tuple(range(2, rank + 1))) if rank > 1 else ((), (1,))
        sequence, states = (batch, (TIME,), channels), (batch, channels)
        value = self.v[0]
        for factor in self.v[1:]:
            value = ops.mul(value, factor)
        given = dict(zip(WKV_STATES, (self._plain(v, *states) for v in self.starts() or ()), strict=False))
        y, *last = ops.wkv(
            *(self._arranged(v, *sequence) for v in (self.k, value)),
            *(self._arranged(v, channels) for v in (self.w, self.u)),
            *given.values(),
            optional=tuple(given),
        )
        y = ops.transpose(ops.flip(y, axes=(1,)) if loop.reverse else y, perm=(1, 0, 2))
        self.time.known[self.y] = Timed(ops.reshape(y, dims=(loop.length, *self.y.dims)), True)
        ends = {i: ops.reshape(v, dims=self.y.dims) for i, v in zip(self.order, self.ends(*last), strict=True)}
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


class _WithMaximum(_Average):
    """Sums relative to the exponential of a running maximum, the third carry."""

    carries = 3

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
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

    def starts(self) -> tuple[Value, ...] | None:
        inits = tuple(self.loop.inits[i] for i in self.order)
        fresh = scalar(inits[0]) == scalar(inits[1]) == 0 and (scalar(inits[2]) or 0) < LOWEST
        return None if fresh else inits

    def ends(self, num: Value, den: Value, top: Value) -> tuple[Value, ...]:
        return num, den, top

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


class _Plain(_Average):
    """Sums as they are."""

    carries = 2

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        den, decay, now = self._sum_of_weights()
        num = 1 - den
        value = _added(loop.next_carries[num], decay, loop.body_carries[num], now)
        if not value:
            raise NotAffine(loop.next_carries[num].node, "the other carry is not a sum of weighted values")
        (self.k,), self.v, self.order = now.node.inputs, value, (num, den)
        self.w = self._logarithm(decay)
        self.y, own = self._quotient(*(loop.body_carries[i] for i in self.order))
        self.u = self._bonus(own, now)

    def _sum_of_weights(self) -> tuple[int, Value, Value]:
        """The carry b with b = d b + exp(k): its place, d and exp(k)."""
        for place, (carry, after) in enumerate(zip(self.loop.body_carries, self.loop.next_carries, strict=True)):
            for faded, now in both_orders(after.node) if after.op is ops.add else ():
                number, parts = factors(faded)
                if now.op is ops.exp and number == 1 and len(parts) == 2 and carry in parts:
                    return place, parts[parts[0] == carry], now
        raise NotAffine(self.loop.node, "no carry is a fading sum of exponentials")

    def _quotient(self, num: Value, den: Value) -> tuple[Value, Value]:
        """(num + e v) / (den + e), and e."""
        for node in self.loop.body.nodes:
            above, below = node.inputs if node.op is ops.div else (num, num)
            for other, own in both_orders(below.node) if below.op is ops.add else ():
                for past, share in both_orders(above.node) if above.op is ops.add else ():
                    if (other, past) == (den, num) and is_scaled(share, 1.0, *factors(own)[1], *self.v):
                        return Value(node), own
        raise NotAffine(self.loop.node, "no output is the quotient of the two sums, each with the current token added")

    def _bonus(self, own: Value, now: Value) -> Value:
        """u where ``own`` is exp(u + k) or exp(u) exp(k)."""
        number, parts = factors(own)
        if number == 1 and len(parts) == 2 and now in parts:
            return self._logarithm(parts[parts[0] == now])
        for u, k in (
            both_orders(own.node.inputs[0].node) if own.op is ops.exp and own.node.inputs[0].op is ops.add else ()
        ):
            if k == self.k:
                return u
        raise NotAffine(own.node, "the output does not weigh the current token by exp(u + k)")

    def _logarithm(self, value: Value) -> Value:
        """Raises:
        NotAffine: it may not have one.
        """
        if value.op is ops.exp:
            return value.node.inputs[0]
        whole = self.time.value(value).value
        while whole.op in (ops.broadcast, ops.reshape, ops.transpose):
            whole = whole.node.inputs[0]
        positive = whole.op in (ops.exp, ops.sigmoid)
        if not positive and (whole.op is not ops.constant or bool((whole.node.attrs["value"].value < 0).any())):
            raise NotAffine(value.node, "the decay or the bonus may be negative, so that it is no exponential")
        result: Value = ops.log(value)
        return result

    def starts(self) -> tuple[Value, ...] | None:
        num, den = (self.loop.inits[i] for i in self.order)
        return None if scalar(num) == scalar(den) == 0 else (num, den, ops.zeros(num.type))

    def ends(self, num: Value, den: Value, top: Value) -> tuple[Value, ...]:
        return ops.mul(num, ops.exp(top)), ops.mul(den, ops.exp(top))


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
