"""A sum over the past as the recurrence that computes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from coilc.ir import Dim, Dims, Value, dims, literal, ops

from .causal_domains import NOW, THEN, CausalSum
from .classify_affine import NotAffine
from .classify_factors import Factor, factors_of, product, support
from .classify_gated_linear_attention import as_attention
from .classify_readout import TIME, Decaying, Named, split_axes
from .classify_selective_scan import as_selective
from .decayed_terms import Ref, Term
from .index_algebra import NotExact, Space


class Emission:
    """Tensors with one axis per index variable, and time as axis 0, from elements; and back to the dims of ``root``.

    Attributes:
        strict: whether the sum ends before ``now``, so that the state is read before its update.
    """

    def __init__(self, space: Space, root: Value, index: Dims, now: Dim, strict: bool = False) -> None:
        self.space, self.root, self.now, self.strict = space, root, now, strict
        self.index = tuple(map(space.resolve, index))
        (*places,) = (n for e, n in zip(self.index, root.dims, strict=True) if e == now)
        self.axes: dict[str, int] = {}
        self.extent: dict[int, Dim] = {TIME: places[0] if places else space.greatest(now) + 1}
        if self.index[0] == 0:
            self._add_axis("$batch of 1", 1)
        for e in self.index:
            strides = {n: stride for n, stride in space.linear(e)[0].items() if n not in space.variables(now)}
            for name in reversed(_by_stride(strides, space.extents)):
                self._add_axis(name, space.extents[name])

    def _add_axis(self, name: str, extent: Dim) -> None:
        self.axes[name] = len(self.axes) + 1
        self.extent[self.axes[name]] = extent

    def result(self, found: CausalSum, rest: Sequence[Term]) -> Value:
        """``root``, by a recurrence for ``found``, plus ``rest``.

        Raises:
            NotExact: no recurrence has a name for it.
        """
        for name, extent in found.bound:
            self._add_axis(name, extent)
        summed = frozenset(self.axes[name] for name, _ in found.bound)
        now, then = ([self.factor(r) for r in refs] for refs in (found.now, found.then))
        if any(f.value.type.dtype is not self.root.type.dtype for f in (*now, *then)):
            raise NotExact("its factors have different element types")
        decay = [f for refs in found.decays for f in self._decay(refs)]
        if self.strict and not found.spared:  # the state of the step before decays once more
            now += decay
        query = [f for f in now if f.support & summed]
        y = self._recurrence(decay, then, query, summed)
        total = _scaled(self._arranged([y, *(f for f in now if not f.support & summed)]), found.scale)
        for term in rest:
            total = ops.add(total, _scaled(self._arranged([self.factor(r) for r in term.refs]), term.scale))
        return total

    def _decay(self, refs: Iterable[Ref]) -> Sequence[Factor]:
        """The factor by which a step multiplies the state."""
        factors = [self.factor(r) for r in refs]
        largest_first = sorted(factors, key=lambda f: -len(f.support))
        axes = tuple(dict.fromkeys(axis for f in largest_first for axis in f.axes if axis is not None))
        exponent = product(factors, [(axis,) for axis in axes], self.extent, like=self.root)
        return factors_of(ops.exp(exponent), axes)

    def _recurrence(
        self, decay: Sequence[Factor], update: Sequence[Factor], query: Sequence[Factor], summed: frozenset[int]
    ) -> Factor:
        held = sorted({*(support((*decay, *update, *query)) - {TIME}), *([1] if self.extent.get(1) == 1 else [])})
        renamed = {TIME: TIME, **{axis: i + 1 for i, axis in enumerate(held)}}

        def state(factors: Iterable[Factor]) -> tuple[Factor, ...]:
            whole = (f for factor in factors for f in factors_of(factor.value, factor.axes))
            return tuple(Factor(f.value, tuple(a if a is None else renamed[a] for a in f.axes)) for f in whole)

        dtype = self.root.type.dtype
        parts = Decaying(
            origin=self.root.node,
            length=self.extent[TIME],
            reverse=False,
            start=ops.broadcast(literal(0.0, dtype), dims=tuple(self.extent[axis] for axis in held)),
            decay=state(decay),
            update=state(update),
            query=state(query),
            contracted=frozenset(renamed[axis] for axis in summed),
            added=() if self.strict else None,
        )
        if not summed:
            return self._by_states(decay, update, query, summed)
        try:
            out, _, groups, _ = _named(parts)
        except NotExact:
            if any(f.support - {TIME} >= {a for a in held if self.extent[a] != 1} for f in update):
                return self._by_states(decay, update, query, summed)
            raise
        (y,) = split_axes(out, groups, parts.extent)
        return Factor(y.value, tuple(a if not a else held[a - 1] for a in y.axes))

    def _by_states(
        self, decay: Sequence[Factor], update: Sequence[Factor], query: Sequence[Factor], summed: frozenset[int]
    ) -> Factor:
        """A state that is no larger than what is added to it: all states at once, then what is read from them."""
        axes = (TIME, *sorted(support((*decay, *update, *query)) - {TIME}))
        groups, dims_ = [(axis,) for axis in axes], tuple(self.extent[axis] for axis in axes)
        inflow = product(update, groups, self.extent, like=self.root)
        if decay:
            start = ops.broadcast(literal(0.0, self.root.type.dtype), dims=dims_[1:])
            factors = product(decay, groups, self.extent, like=self.root)
            states = ops.linear_scan(factors, inflow, start, axis=0, reverse=False)[0]
        else:
            states = ops.cumsum(inflow, axis=0, reverse=False)
        if self.strict:
            none = tuple(0 for _ in axes)
            before = ops.slice_axis(states, 0, 0, states.dims[0] - 1)
            states = ops.pad(before, low=(1, *none[1:]), high=none, value=0.0)
        read = product([*query, _without_units(Factor(states, axes))], groups, self.extent, like=self.root)
        y = ops.sum(read, axes=tuple(axes.index(a) for a in sorted(summed)), keepdims=False) if summed else read
        return _without_units(Factor(y, tuple(axis for axis in axes if axis not in summed)))

    # --- elements to tensors and back -------------------------------------------------------------------------------

    def factor(self, ref: Ref) -> Factor:
        """Raises:
        NotExact: the tensor is not read from end to end.
        """
        value, axes = ref.value, list[int]()
        for i, (e, extent) in enumerate(zip(ref.index, ref.value.dims, strict=True)):
            if e in (NOW, THEN, self.now):
                value = self._shortened(value, i)
                axes.append(TIME)
            else:
                axes += self._merged_axes(e, extent)
        if len(set(axes)) != len(axes):
            raise NotExact("a tensor is read along its diagonal")
        shape = tuple(self.extent[axis] for axis in axes)
        return _without_units(Factor(value if value.dims == shape else ops.reshape(value, dims=shape), tuple(axes)))

    def _shortened(self, value: Value, axis: int) -> Value:
        """As many moments as the result has."""
        extent, length = value.dims[axis], self.extent[TIME]
        if not self.space.surely(extent - length):
            raise NotExact(f"a sequence of {extent} is read up to {length}")
        return value if extent == length else ops.slice_axis(value, axis, 0, length)

    def _merged_axes(self, e: Dim, extent: Dim) -> list[int]:
        """The axes that an index counts through, most significant first; together they run through the extent."""
        names = [n for n in dims.symbols(e) if n in self.axes]
        strides = {n: dims.substitute(e, {**dict.fromkeys(names, 0), n: 1}) for n in names}
        reached, order = dims.size(()), list[int]()
        for name in _by_stride(strides, {n: self.extent[self.axes[n]] for n in names}):
            if strides[name] != reached:
                raise NotExact("a tensor is read in steps")
            order.insert(0, self.axes[name])
            reached = reached * self.extent[self.axes[name]]
        if dims.substitute(e, dict.fromkeys(names, 0)) != 0 or reached != extent:
            raise NotExact(f"a tensor with an axis of {extent} is not read from end to end")
        return order

    def _arranged(self, factors: Sequence[Factor]) -> Value:
        """A product with the dims of the result."""
        strides, _ = self.space.linear(self.now)
        sizes = {name: self.space.extents[name] for name in strides}
        digits = {name: len(self.extent) + i for i, name in enumerate(_by_stride(strides, sizes))}
        extent = {**self.extent, **{axis: sizes[name] for name, axis in digits.items()}}
        groups: list[Sequence[int]] = []
        for e, n in zip(self.index, self.root.dims, strict=True):
            held = [digits[name] for name in digits if name in self.space.variables(e)]
            groups.append((TIME,) if e == self.now else held[::-1] or self._merged_axes(e, n))
        if (TIME,) not in groups:
            factors = [_in_digits(f, [*digits.values()][::-1], extent) for f in factors]
        return product(factors, groups, extent, like=self.root)


def _by_stride(strides: Mapping[str, Dim], extents: Mapping[str, Dim]) -> list[str]:
    """Names of digits, least significant first."""
    order: list[str] = []
    reached: Dim = 1
    while len(order) < len(strides):
        name = next((n for n, stride in strides.items() if stride == reached and n not in order), None)
        if name is None:
            raise NotExact("an index counts in steps")
        order.append(name)
        reached = reached * extents[name]
    return order


def _in_digits(f: Factor, digits: Sequence[int], extent: Mapping[int, Dim]) -> Factor:
    """Time as several axes."""
    if TIME not in f.support:
        return f
    place = f.axes.index(TIME)
    axes = (*f.axes[:place], *digits, *f.axes[place + 1 :])
    shape = (*f.value.dims[:place], *(extent[axis] for axis in digits), *f.value.dims[place + 1 :])
    return Factor(ops.reshape(f.value, dims=shape), axes)


def _without_units(f: Factor) -> Factor:
    return Factor(f.value, tuple(None if n == 1 else axis for axis, n in zip(f.axes, f.value.dims, strict=True)))


def _scaled(value: Value, by: float) -> Value:
    return value if by == 1 else ops.mul(value, by)


def _named(parts: Decaying) -> Named:
    """Raises:
    NotExact: no op is this recurrence.
    """
    reasons: list[str] = []
    for form in (as_selective, as_attention):
        try:
            return form(parts)
        except NotAffine as broken:
            reasons.append(broken.reason)
    raise NotExact("the recurrence has no name: " + "; ".join(reasons))
