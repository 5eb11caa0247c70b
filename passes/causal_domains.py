"""Which moments a term of a causal sum runs over, and whether several terms together run over all of them up to now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from coilc.ir import Dim, Dims, Value, dims

from .decayed_terms import Ref, Term, without_last
from .index_algebra import NotExact, Space

NOW, THEN = dims.symbol("$now"), dims.symbol("$then")

Domain = tuple[str, ...]  # per digit of time, most significant first: equal, less, or any; how then relates to now


@dataclass(frozen=True)
class CausalSum:
    """``sum over then <= now of product(now_refs) * product(then_refs) * exp(decay after then, up to now)``.

    Index entries for time are ``NOW`` or ``THEN``; ``bound`` are the other indices summed over, named in order.

    Attributes:
        decays: products whose running sum, from after ``then`` to ``now``, is the exponent; read at ``NOW``.
        spared: the exponent ends before the decays at ``now``.
    """

    scale: float
    now: tuple[Ref, ...]
    then: tuple[Ref, ...]
    decays: tuple[tuple[Ref, ...], ...]
    bound: tuple[tuple[str, Dim], ...]
    spared: bool = False

    @property
    def key(self) -> object:
        """Equal for equal sums; factors come in any order."""
        bags = (frozenset(Counter(refs).items()) for refs in (self.now, self.then, *self.decays))
        return self.scale, next(bags), next(bags), frozenset(Counter(bags).items()), self.bound, self.spared


def moments(term: Term, space: Space) -> tuple[Dim, Dim]:
    """Now and then: the moment of the result, and the one that is summed over.

    Raises:
        NotExact: the term reads more than two moments, or only one.
    """
    moving = time_variables(term, space)
    entries = [e for r in term.refs for e in r.index]
    entries += [e for a in term.exponent for r in a.refs[a.axis is not None :] for e in r.index]
    entries += [a.point - 1 for a in term.exponent if a.axis is not None]
    touched = dict.fromkeys(e for e in entries if space.variables(e) & moving)
    now = [e for e in touched if space.variables(e) <= space.free]
    then = [e for e in touched if not space.variables(e) <= space.free]
    if len(then) == 1 and not now and len(term.guards) == 1:
        (guard,) = term.guards
        now = [e for e in (space.resolve(guard + then[0]),) if space.variables(e) <= space.free]
    if len(now) == 2 and now[1] - now[0] in (1, -1):  # a decay that ends before now is read up to there
        now = now[:1] if now[0] - now[1] == 1 else now[1:]
    if len(now) != 1 or len(then) != 1:
        raise NotExact(f"it reads {len(now)} moments of the result and {len(then)} that are summed over, not one each")
    return now[0], then[0]


def time_variables(term: Term, space: Space) -> frozenset[str]:
    """Variables that the term compares or has running sums over."""
    compared = (space.variables(g) for g in term.guards)
    points = (space.variables(a.point) for a in term.exponent if a.axis is not None)
    factors = (space.variables(f) for f in term.exponent.values())
    return frozenset().union(*compared, *points, *factors)


def causal_sum(term: Term, now: Dim, then: Dim, space: Space, rank: Callable[[Value], int]) -> CausalSum:
    """The term with its moments named.

    Args:
        rank: a fixed order of values, by which the other indices are named.

    Raises:
        NotExact: the exponent is not a running sum from after ``then`` to ``now``.
    """
    named = [_named(r, now, then) for r in term.refs]
    moving = space.variables(now) | space.variables(then)
    others = tuple(b for b in term.bound if not space.variables(b) & moving)
    decays, spared = _exponent(term, now, then)
    everything = [*named, *(r for decay in decays for r in decay)]
    bound = _renaming(sorted(everything, key=lambda r: rank(r.value)), others, space)
    for r in everything:
        if any(space.variables(e) & moving for e in r.index):
            raise NotExact("a moment is mixed with another index")
    move = lambda e: dims.substitute(e, {old: dims.symbol(new) for old, (new, _) in bound.items()})
    refs = [r.at(move) for r in named]
    then_refs = tuple(r for r in refs if THEN in r.index)
    if any(NOW in r.index for r in then_refs):
        raise NotExact("a factor depends on two moments and is no product")
    return CausalSum(
        term.scale,
        tuple(r for r in refs if THEN not in r.index),
        then_refs,
        tuple(tuple(r.at(move) for r in decay) for decay in decays),
        tuple(bound.values()),
        spared,
    )


def _named(ref: Ref, now: Dim, then: Dim) -> Ref:
    return replace(ref, index=tuple(NOW if e == now else THEN if e == then else e for e in ref.index))


def _exponent(term: Term, now: Dim, then: Dim) -> tuple[list[tuple[Ref, ...]], bool]:
    """The decays of the exponent, and whether it ends before those at ``now``."""
    term = replace(term, exponent=without_last(term.exponent))
    if term.exponent:
        with suppress(NotExact):
            return _decays(term, now - 1, now, then), True
    return _decays(term, now, now, then), False


def _decays(term: Term, until: Dim, now: Dim, then: Dim) -> list[tuple[Ref, ...]]:
    """The exponent as running sums from after ``then`` to ``until``."""
    found: list[tuple[Ref, ...]] = []
    rest = dict(term.exponent)
    while rest:
        atom, factor = rest.popitem()
        if atom.axis is None:
            if factor != until - then:
                raise NotExact("a constant in the exponent is not multiplied by the distance in time")
            found.append(atom.refs)
            continue
        sign = 1 if atom.point == until + 1 else -1
        other = atom.with_point(then + 1 if sign == 1 else until + 1)
        if atom.point not in (until + 1, then + 1) or factor != sign or rest.pop(other, None) != -sign:
            raise NotExact(f"the exponent does not add up to the decay from then to now: {show(term, now, then)}")
        found.append(atom.with_point(NOW).refs)
    return found


def show(term: Term, now: Dim, then: Dim) -> str:
    """The exponent for people, with P for a running sum."""

    def moment(e: Dim) -> str:
        for name, at in (("now", now), ("then", then)):
            if isinstance(e - at, int):
                return f"{name}{e - at:+d}" if e != at else name
        return str(e)

    return " ".join(
        f"{'+' if f == 1 else f'{f} *'} P({moment(a.point)})" for a, f in term.exponent.items() if a.axis is not None
    )


def _renaming(refs: Iterable[Ref], bound: Dims, space: Space) -> dict[str, tuple[str, Dim]]:
    """Names for bound variables by where they are first read, so that equal sums are equal."""
    names = frozenset().union(*(space.variables(b) for b in bound))
    found: dict[str, tuple[str, Dim]] = {}
    for r in refs:
        for e in r.index:
            for name in sorted(space.variables(e) & names):
                found.setdefault(name, (f"$sum{len(found)}", space.extents[name]))
    if len(found) != len(names):
        raise NotExact("an index is summed over that nothing reads")
    return found


# --- domains ---------------------------------------------------------------------------------------------------------


def domains(term: Term, now: Dim, then: Dim, space: Space, limits: Dims) -> set[Domain]:
    """How ``then`` relates to ``now`` in the term, as disjoint domains.

    Raises:
        NotExact: the guards leave out, or let in, something else.
    """
    digits = _digits(now, then, space)
    guards = {g for g in term.guards if not _implied(g, term, now, then, space, limits)}
    if now - then in guards and now - then not in {t - s for t, s in digits}:
        guards.remove(now - then)
        if {_relation(t, s, guards, space) for t, s in digits} != {"any"} or guards:
            raise NotExact("a mask over all of time meets another")
        return complete(len(digits))
    relations = tuple(_relation(t, s, guards, space) for t, s in digits)
    if guards:
        raise NotExact(f"a mask that does not compare moments: {', '.join(map(str, guards))} >= 0")
    found: list[Domain] = [()]
    for relation in relations:
        options = ("less", "equal") if relation == "less or equal" else (relation,)
        found = [(*d, option) for d in found for option in options]
    return set(found)


def complete(digits: int) -> set[Domain]:
    """``then <= now``, digit by digit."""
    now = ("equal",) * digits
    return {now, *(("equal",) * i + ("less",) + ("any",) * (digits - i - 1) for i in range(digits))}


def _implied(guard: Dim, term: Term, now: Dim, then: Dim, space: Space, limits: Dims) -> bool:
    """A condition that always holds: by extents, another condition, the size of the result, or because then <= now."""
    others = (g for g in term.guards if g != guard)
    if space.holds(guard) or (space.variables(guard) <= space.free and any(space.holds(guard - g) for g in others)):
        return True
    last = space.resolve(guard + then)
    ends = [guard] + ([last - now] if last != now else [])
    return any(always(g, space, limits) for g in ends)


def always(guard: Dim, space: Space, limits: Dims) -> bool:
    """Whether a condition on the result's index alone holds wherever ``limits`` are not negative."""
    known = space.variables(guard) <= space.free
    return known and any(space.holds(guard - space.resolve(limit)) for limit in (0, *limits))


def _digits(now: Dim, then: Dim, space: Space) -> list[tuple[Dim, Dim]]:
    """Pairs of digits of now and then, most significant first, by the factors that they have in both."""
    factors, rest = space.linear(now)
    if rest != 0:
        raise NotExact("the result starts in the middle of time")
    order = sorted(
        factors, key=lambda name: sum(dims.divide_exactly(factors[name], f) is not None for f in factors.values())
    )
    order.reverse()
    for above, below in pairwise(order):
        if factors[above] != factors[below] * space.extents[below]:
            raise NotExact("the moments of the result are not consecutive")
    theirs, constant = space.linear(then)
    pairs: list[tuple[Dim, Dim]] = []
    for name in order:
        factor = factors[name]
        whole = dims.divide_exactly(constant, factor)
        digit: Dim = 0 if whole is None else whole
        constant = constant - digit * factor
        for other in [n for n, f in theirs.items() if f == factor]:
            digit = digit + dims.symbol(other)
            del theirs[other]
        pairs.append((dims.symbol(name), digit))
    if theirs or constant != 0:
        raise NotExact("moments are counted in different chunks")
    return pairs


def _relation(now: Dim, then: Dim, guards: set[Dim], space: Space) -> str:
    """How one digit of then relates to that of now; removes the guards that say so."""
    if now == then:
        return "equal"
    factors, start = space.linear(then)
    (name, *more) = factors or ("",)
    if more or name in space.free or not name:
        raise NotExact("a moment that is summed over does not run through all of time")
    (mine,) = space.linear(now)[0]
    relation = "any"
    for text, guard in (("less or equal", now - then), ("less", now - then - 1)):
        if guard in guards:
            guards.remove(guard)
            relation = text
    last = space.extents[mine] - (2 if relation == "less" else 1)
    _full_range(then, start, space.extents[name] - 1 + start, last, relation, guards, space)
    return relation


def _full_range(then: Dim, low: Dim, high: Dim, last: Dim, relation: str, guards: set[Dim], space: Space) -> None:
    """Every moment from 0 on is summed, and none outside."""
    if then in guards:
        guards.remove(then)
        low = 0 if space.surely(-low) else low
    if low != 0:
        raise NotExact(f"the first moment that is summed is {low}")
    if relation == "any" and last - then in guards:
        guards.remove(last - then)
        high = last if space.surely(high - last) else high
    if not space.surely(high - last) or (relation == "any" and high != last):
        raise NotExact(f"the last moment that is summed is {high}, not {last}")
