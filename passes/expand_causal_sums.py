"""An element of a graph's value as a sum of terms: ``decayed_terms`` read off the ops, from the result backwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from coilc.ir import Dim, Dims, Node, Value, literal, ops

from .decayed_terms import Atom, Logarithm, Ref, Term, along, plus, possible, times, total
from .index_algebra import NotExact
from .match import both_orders, scalar
from .read_masks import MOVES, Masks, constant_array, powers, triangle

MAX_TERMS = 64

LINEAR = (
    "add",
    "sub",
    "neg",
    "mul",
    "div",
    "where",
    "concat",
    "pad",
    "sum",
    "cumsum",
    "matmul",
    "einsum",
    "linear_scan",
)
MASKS = ("logical_not", "logical_and", "bitwise_not", "bitwise_and")
FAMILY = (*MOVES, *LINEAR, *MASKS, "exp", "pow", "cast")


@dataclass
class Expansion(Masks):
    """Elements of values; what is not in ``mixing`` works on each moment alone and is read as it is.

    Attributes:
        past_padding: read what a tensor was padded from, under a guard, rather than the padded tensor.
    """

    mixing: Collection[Value]
    past_padding: bool = True

    # --- products ---------------------------------------------------------------------------------------------------

    def terms(self, value: Value, index: Dims) -> list[Term]:
        """Raises:
        NotExact: an op or an index that the algebra does not have.
        """
        if value not in self.mixing:
            return self.factors(value, index)
        rule = _PRODUCTS.get(value.op.name)
        if rule is None:
            raise NotExact(f"'{value.op.name}' of a sum over time")
        found = [t for t in rule(self, value.node, index) if possible(t, self.space)]
        if len(found) > MAX_TERMS:
            raise NotExact(f"more than {MAX_TERMS} products")
        return found

    def factors(self, value: Value, index: Dims) -> list[Term]:
        """A value that works on each moment alone, as a product of elements of smaller values."""
        number = scalar(value)
        if number is not None:
            return [Term(float(number))] if number else []
        node = value.node
        match node.op.name:
            case "mul":
                return product(*(self.factors(x, index) for x in node.inputs))
            case "broadcast" | "transpose" | "reshape":
                return self.factors(node.inputs[0], self.moved(node, index))
            case "pad" if self.past_padding and node.attrs["value"] == 0:
                return self._parts(node.inputs[0], node.types[0].dims, index, node.attrs["low"], self.factors)
        return [Term(refs=(Ref(value, index),))]

    def opened(self, ref: Ref) -> list[Term]:
        """An element that was read as it is, as a sum of products after all.

        Raises:
            NotExact: it is none.
        """
        rule = _PRODUCTS.get(ref.value.op.name)
        if rule is None or ref.value.op.name in ("add", "sub"):
            raise NotExact(f"'{ref.value.op.name}' compares two moments and is no product of theirs")
        return rule(self, ref.value.node, ref.index)

    def _parts(
        self, x: Value, whole: Dims, index: Dims, low: Dims, read: Callable[[Value, Dims], list[Term]]
    ) -> list[Term]:
        """An operand that fills its part of the result from ``low`` on; elsewhere the result, of dims ``whole``, is 0."""
        inner = tuple(e - start for e, start in zip(index, low, strict=True))
        ends = list(zip(inner, low, x.dims, whole, strict=True))
        guards = [e for e, start, _, _ in ends if start != 0]
        guards += [n - 1 - e for e, start, n, full in ends if start + n != full]
        return [term.where(*guards) for term in read(x, inner)]

    # --- exponents --------------------------------------------------------------------------------------------------

    def logarithm(self, value: Value, index: Dims) -> Logarithm:
        """A value under ``exp``."""
        if value not in self.mixing:
            return self._moment(value, index)
        node = value.node
        match node.op.name:
            case "add" | "sub":
                x, y = (self.logarithm(v, index) for v in node.inputs)
                return self._sum_of_logs(x, y if node.op is ops.add else self._negated(y))
            case "neg":
                return self._negated(self.logarithm(node.inputs[0], index))
            case "mul":
                return self._weighted(node, index)
            case "where":
                return self._chosen(node, index)
            case "cumsum" | "sum":
                return self._running(node, index)
            case "pad":
                return self._extended(node, index)
            case name if name in MOVES:
                return self.logarithm(node.inputs[0], self.moved(node, index))
        raise NotExact(f"'{node.op.name}' in an exponent")

    def _moment(self, value: Value, index: Dims) -> Logarithm:
        number = scalar(value)
        if number is not None:
            if number in (0, -math.inf):
                return Logarithm({}, kept=(-1,) if number else ())
            return Logarithm({Atom((Ref(literal(number, value.type.dtype), ()),)): 1})
        if value.op.name in ("broadcast", "transpose", "reshape"):
            return self._moment(value.node.inputs[0], self.moved(value.node, index))
        for x, y in both_orders(value.node) if value.op is ops.mul else ():
            with suppress(NotExact):
                return Logarithm(times(self._moment(x, index).exponent, self.number(y, index)))
        if value.op is ops.pad and self.past_padding and value.node.attrs["value"] == 0:
            (x,) = value.node.inputs
            inner = tuple(e - start for e, start in zip(index, value.node.attrs["low"], strict=True))
            return self._moment(x, inner)  # prefixes are constant outside of a tensor
        return Logarithm({Atom((Ref(value, index),)): 1})

    def _sum_of_logs(self, x: Logarithm, y: Logarithm) -> Logarithm:
        if x.present != y.present and (x.exponent and y.exponent):
            raise NotExact("two exponents that are masked with 0 in different places are added")
        return Logarithm(plus(x.exponent, y.exponent), x.present or y.present, (*x.kept, *y.kept))

    def _negated(self, x: Logarithm) -> Logarithm:
        if x.kept:
            raise NotExact("an exponent that is masked with -inf is negated")
        return Logarithm(times(x.exponent, -1), x.present)

    def _weighted(self, node: Node, index: Dims) -> Logarithm:
        """A running sum times something that works on each moment alone."""
        x, y = node.inputs if node.inputs[0] in self.mixing else node.inputs[::-1]
        if y in self.mixing:
            raise NotExact("two running sums are multiplied in an exponent")
        inner, others = self.logarithm(x, index), self.factors(y, index)
        if inner.kept or len(others) != 1:
            raise NotExact("a masked exponent is multiplied")
        (by,) = others
        if by.scale not in (1.0, -1.0):
            raise NotExact(f"an exponent is multiplied by {by.scale}")
        exponent = {atom.times(by.refs): factor * int(by.scale) for atom, factor in inner.exponent.items()}
        return Logarithm(exponent, (*inner.present, *by.guards))

    def _chosen(self, node: Node, index: Dims) -> Logarithm:
        condition, x, y = node.inputs
        guards: tuple[Dim, ...] = ()
        if scalar(x) is not None:
            guards, x, y = (-1 - self.guard(condition, index),), y, x
        else:
            guards = self.guards(condition, index)
        inner, number = self.logarithm(x, index), scalar(y)
        if number == -math.inf:
            return Logarithm(inner.exponent, inner.present, (*inner.kept, *guards))
        if number == 0 and not inner.kept:
            return Logarithm(inner.exponent, (*inner.present, *guards))
        raise NotExact(f"an exponent is masked with {number}")

    def _running(self, node: Node, index: Dims) -> Logarithm:
        """The sum of exponents over time, up to a moment or over all of it."""
        (x,) = node.inputs
        axis = _summed_axis(node)
        moment = self.space.fresh(x.dims[axis])
        first: Dim = 0
        last: Dim = x.dims[axis] - 1
        if node.op is ops.sum:
            behind = index[axis + 1 :] if node.attrs["keepdims"] else index[axis:]
        else:
            behind = index[axis + 1 :]
            first, last = (index[axis], last) if node.attrs["reverse"] else (first, index[axis])
        inner = self.logarithm(x, (*index[:axis], moment, *behind))
        if any(self.space.variables(g) & self.space.variables(moment) for g in inner.kept):
            raise NotExact("a running sum over -inf")
        return self._limited(inner, moment, first, last)

    def _limited(self, inner: Logarithm, moment: Dim, first: Dim, last: Dim) -> Logarithm:
        """Sum from ``first`` to ``last``, but only where the exponent is present."""
        present: list[Dim] = []
        for guard in inner.present:
            if not self.space.variables(guard) & self.space.variables(moment):
                present.append(guard)
                continue
            slope, start = along(guard, moment, self.space)
            if slope == 1 and self.space.holds(-start - first):
                first = -start
            elif slope == -1 and self.space.holds(last - start):
                last = start
            elif not (slope == 1 and self.space.holds(first + start)):
                raise NotExact("a mask inside a running sum")
            else:
                continue
            present.append(last - first + 1)
        return Logarithm(total(inner.exponent, moment, first, last, self.space), tuple(present), inner.kept)

    def _extended(self, node: Node, index: Dims) -> Logarithm:
        (x,) = node.inputs
        low, high, value = (node.attrs[name] for name in ("low", "high", "value"))
        inner = tuple(e - start for e, start in zip(index, low, strict=True))
        guards: list[Dim] = []
        for axis, (e, n) in enumerate(zip(inner, x.dims, strict=True)):
            before, after = ((*inner[:axis], end, *inner[axis + 1 :]) for end in (-1, n))
            if low[axis] != 0 and (value != 0 or not self._is_nothing(x, before)):
                guards.append(e)
            if high[axis] != 0 and (value != 0 or not self._is_nothing(x, after)):
                guards.append(n - 1 - e)
        found = self.logarithm(x, inner)
        if value == -math.inf:
            return Logarithm(found.exponent, found.present, (*found.kept, *guards))
        if value != 0:
            raise NotExact(f"an exponent is padded with {value}")
        return Logarithm(found.exponent, (*found.present, *guards), found.kept)

    def _is_nothing(self, x: Value, index: Dims) -> bool:
        """Whether an exponent outside of its tensor is 0 by itself: only prefixes before time begins, or after it ends."""
        exponent = self.logarithm(x, index).exponent
        early = all(a.axis is not None and self.space.holds(-a.point) for a in exponent)
        ends = all(a.axis is not None and self.space.holds(a.point - a.refs[0].value.dims[a.axis]) for a in exponent)
        return (early or ends) and sum_is_zero(exponent.values())


def sum_is_zero(numbers: Collection[Dim]) -> bool:
    result: Dim = 0
    for number in numbers:
        result = result + number
    return result == 0


def product(*factors: Sequence[Term]) -> list[Term]:
    """The product of sums, multiplied out."""
    found = [Term()]
    for terms in factors:
        found = [a * b for a in found for b in terms]
    return found


def _summed_axis(node: Node) -> int:
    axes: tuple[int, ...] = (node.attrs["axis"],) if node.op is ops.cumsum else node.attrs["axes"]
    if len(axes) != 1:
        raise NotExact("a sum over several axes in an exponent")
    return axes[0]


# --- one rule per op -------------------------------------------------------------------------------------------------

Rule = Callable[[Expansion, Node, Dims], list[Term]]


def _move(e: Expansion, node: Node, index: Dims) -> list[Term]:
    return e.terms(node.inputs[0], e.moved(node, index))


def _add(e: Expansion, node: Node, index: Dims) -> list[Term]:
    x, y = (e.terms(v, index) for v in node.inputs)
    return x + (y if node.op is ops.add else product([Term(-1.0)], y))


def _neg(e: Expansion, node: Node, index: Dims) -> list[Term]:
    return product([Term(-1.0)], e.terms(node.inputs[0], index))


def _mul(e: Expansion, node: Node, index: Dims) -> list[Term]:
    return product(*(e.terms(v, index) for v in node.inputs))


def _div(e: Expansion, node: Node, index: Dims) -> list[Term]:
    """By a product, or by something that is then read as it is, such as the sum of a row."""
    x, divisor = e.terms(node.inputs[0], index), node.inputs[1]
    parts = e.terms(divisor, index)
    if len(parts) != 1 or parts[0].guards or parts[0].bound:
        parts = e.factors(divisor, index)
    if len(parts) != 1 or parts[0].guards:
        raise NotExact("a sum over time is divided by something that is no product")
    (by,) = parts
    refs = tuple(Ref(ops.reciprocal(r.value), r.index) for r in by.refs)
    return product(x, [Term(1 / by.scale, refs, times(by.exponent, -1))])


def _exp(e: Expansion, node: Node, index: Dims) -> list[Term]:
    return e.logarithm(node.inputs[0], index).exponentials()


def _pow(e: Expansion, node: Node, index: Dims) -> list[Term]:
    """A constant to the power of a distance in time."""
    base, power = node.inputs
    found = e.factors(base, index)
    if len(found) != 1 or len(found[0].refs) != 1 or found[0].scale != 1:
        raise NotExact("the base of a power is no constant")
    (ref,) = found[0].refs
    if ref.value.op not in (ops.constant, ops.weight) or not (constant_array(ref.value.node, e.arrays) > 0).all():
        raise NotExact("the base of a power is not known to be positive")
    return [Term(exponent={Atom((Ref(ops.log(ref.value), ref.index),)): e.number(power, index)})]


def _where(e: Expansion, node: Node, index: Dims) -> list[Term]:
    condition, x, y = node.inputs
    if scalar(x) == 0:
        guard = e.guard(condition, index)
        return [t.where(-1 - guard) for t in e.terms(y, index)]
    if scalar(y) != 0:
        raise NotExact("a sum over time is masked with something else than 0")
    return [t.where(*e.guards(condition, index)) for t in e.terms(x, index)]


def _cast(e: Expansion, node: Node, index: Dims) -> list[Term]:
    (x,) = node.inputs
    if x.type.dtype.kind == "bool":
        return [Term(guards=e.guards(x, index))]
    raise NotExact("a sum over time changes its element type")


def _constant(e: Expansion, node: Node, index: Dims) -> list[Term]:
    array = constant_array(node, e.arrays)
    logarithm, first = powers(array) or (np.zeros(()), 0)
    if not logarithm.any():
        return [Term(guards=triangle(array, index))]
    *head, now, then = index
    decay = Ref(
        literal(logarithm.astype(array.dtype)),
        tuple(0 if n == 1 else i for i, n in zip(head, logarithm.shape, strict=True)),
    )
    return [Term(exponent={Atom((decay,)): now - then - first}, guards=(now - then - first,))]


def _concat(e: Expansion, node: Node, index: Dims) -> list[Term]:
    axis, start, found = node.attrs["axis"], 0, list[Term]()
    for x in node.inputs:
        low = tuple(start if i == axis else 0 for i in range(len(index)))
        found += e._parts(x, node.types[0].dims, index, low, e.terms)
        start = start + x.dims[axis]
    return found


def _pad(e: Expansion, node: Node, index: Dims) -> list[Term]:
    if node.attrs["value"] != 0:
        raise NotExact(f"a sum over time is padded with {node.attrs['value']}")
    return e._parts(node.inputs[0], node.types[0].dims, index, node.attrs["low"], e.terms)


def _sum(e: Expansion, node: Node, index: Dims) -> list[Term]:
    (x,) = node.inputs
    bound = {axis: e.space.fresh(x.dims[axis]) for axis in node.attrs["axes"]}
    kept = iter(index if not node.attrs["keepdims"] else [v for i, v in enumerate(index) if i not in bound])
    inner = tuple(bound[i] if i in bound else next(kept) for i in range(x.type.rank))
    return [t.summed(*bound.values()) for t in e.terms(x, inner)]


def _cumsum(e: Expansion, node: Node, index: Dims) -> list[Term]:
    (x,), axis = node.inputs, node.attrs["axis"]
    moment = e.space.fresh(x.dims[axis])
    inner = tuple(moment if i == axis else v for i, v in enumerate(index))
    guard = moment - index[axis] if node.attrs["reverse"] else index[axis] - moment
    return [t.where(guard).summed(moment) for t in e.terms(x, inner)]


def _matmul(e: Expansion, node: Node, index: Dims) -> list[Term]:
    x, y = node.inputs
    inner = e.space.fresh(x.dims[-1])

    def batch(v: Value) -> Dims:
        lead = index[len(index) - v.type.rank : -2]
        return tuple(0 if n == 1 else i for i, n in zip(lead, v.dims[:-2], strict=True))

    left, right = e.terms(x, (*batch(x), index[-2], inner)), e.terms(y, (*batch(y), inner, index[-1]))
    return [t.summed(inner) for t in product(left, right)]


def _einsum(e: Expansion, node: Node, index: Dims) -> list[Term]:
    given, result = node.attrs["equation"].split("->")
    letters = dict(zip(result, index, strict=True))
    bound: list[Dim] = []
    for term, x in zip(given.split(","), node.inputs, strict=True):
        for letter, extent in zip(term, x.dims, strict=True):
            if letter not in letters:
                letters[letter] = e.space.fresh(extent)
                bound.append(letters[letter])
    parts = [e.terms(x, tuple(letters[c] for c in term)) for term, x in zip(given.split(","), node.inputs, strict=True)]
    return [t.summed(*bound) for t in product(*parts)]


def _linear_scan(e: Expansion, node: Node, index: Dims) -> list[Term]:
    """h[t] = sum over s <= t of a[s + 1] ... a[t] b[s], and a[0] ... a[t] h0"""
    a, b, h0 = node.inputs
    axis = node.attrs["axis"]
    if node.attrs["reverse"]:
        raise NotExact("a loop over chunks that runs backwards")

    def at(moment: Dim) -> Dims:
        return tuple(moment if i == axis else v for i, v in enumerate(index))

    step, start = e.space.fresh(a.dims[axis]), e.space.fresh(a.dims[axis])
    decays = e.terms(a, at(step))
    if len(decays) != 1 or decays[0].refs or decays[0].guards or decays[0].bound or decays[0].scale != 1:
        raise NotExact("the decay from chunk to chunk is no exponential")
    exponent, now = decays[0].exponent, index[axis]
    since = Term(exponent=total(exponent, step, start + 1, now, e.space))
    entered = [t.where(now - start).summed(start) for t in product([since], e.terms(b, at(start)))]
    if scalar(h0) == 0:
        return entered
    first = tuple(v for i, v in enumerate(index) if i != axis)
    return entered + product([Term(exponent=total(exponent, step, 0, now, e.space))], e.terms(h0, first))


_PRODUCTS: dict[str, Rule] = {
    **dict.fromkeys(MOVES, _move),
    **dict.fromkeys(("add", "sub"), _add),
    "neg": _neg, "mul": _mul, "div": _div, "exp": _exp, "pow": _pow, "where": _where, "cast": _cast, "constant": _constant, "weight": _constant,
    "concat": _concat, "pad": _pad, "sum": _sum, "cumsum": _cumsum, "matmul": _matmul, "einsum": _einsum,
    "linear_scan": _linear_scan,
}  # fmt: skip
