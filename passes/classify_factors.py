"""A tensor as a product of smaller ones: which axes of the product each factor really depends on.

``exp(dt[b, l, d] * A[d, n])`` has four axes and so do all its parts once they are broadcast; looking through broadcasts,
transposes, reshapes that add or drop dims of extent 1, and slices finds ``dt`` and ``A`` again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile, pairwise

from coilc.ir import Dim, Dims, Value, dims, literal, ops
from coilc.ir.opdef import ELEMENTWISE

from .simplify import scalar

Axes = tuple["int | None", ...]
MAX_DEPTH = 48  # how far back operands are looked at; deeper ones count as one factor


@dataclass(frozen=True)
class Factor:
    """``value`` runs along ``axes[i]`` of the product with its dim i; dims of extent 1 have no axis."""

    value: Value
    axes: Axes

    @property
    def support(self) -> frozenset[int]:
        return frozenset(axis for axis in self.axes if axis is not None)


def factors_of(value: Value, axes: Axes | None = None) -> tuple[Factor, ...]:
    """Factors of ``value``, whose dim i is axis ``axes[i]`` of the product (by default axis i)."""
    axes = tuple(range(value.type.rank)) if axes is None else axes
    return _factors(value, _without_units(axes, value.dims), 0)


def support(factors: Iterable[Factor]) -> frozenset[int]:
    """Every axis that some factor depends on."""
    return frozenset[int]().union(*(f.support for f in factors))


def removed(factors: Iterable[Factor], unwanted: Iterable[Factor]) -> tuple[Factor, ...] | None:
    """``factors`` less each of ``unwanted`` once; ``None`` when one of those is not among them."""
    rest = list(factors)
    for factor in unwanted:
        if factor not in rest:
            return None
        rest.remove(factor)
    return tuple(rest)


def _without_units(axes: Iterable[int | None], extents: Dims) -> Axes:
    return tuple(None if extent == 1 else axis for axis, extent in zip(axes, extents, strict=True))


def _factors(value: Value, axes: Axes, depth: int) -> tuple[Factor, ...]:
    found = _looked_through(value, axes, depth + 1) if depth < MAX_DEPTH else None
    return (Factor(value, axes),) if found is None else found


def _looked_through(value: Value, axes: Axes, depth: int) -> tuple[Factor, ...] | None:
    node = value.node
    if ELEMENTWISE in node.op.traits:
        return _of_elementwise(value, axes, depth)
    match node.op.name:
        case "broadcast":
            (x,) = node.inputs
            kept = axes[len(axes) - x.type.rank :]
            return _factors(x, _without_units(kept, x.dims), depth)
        case "transpose":
            places = {source: axes[i] for i, source in enumerate(node.attrs["perm"])}
            return _factors(node.inputs[0], tuple(places[i] for i in range(len(places))), depth)
        case "reshape":
            return _of_reshape(value, axes, depth)
        case "slice":
            return _of_slice(value, axes, depth)
        case "matmul" if node.inputs[0].dims[-1] == 1:
            x, y = node.inputs
            return _factors(x, _without_units(axes, x.dims), depth) + _factors(y, _without_units(axes, y.dims), depth)
        case "einsum":
            return _of_einsum(value, axes, depth)
    return None


def _of_einsum(value: Value, axes: Axes, depth: int) -> tuple[Factor, ...] | None:
    """An einsum that sums over nothing is a product."""
    given, result = value.node.attrs["equation"].split("->")
    terms = given.split(",")
    if any(len(set(term)) < len(term) or set(term) - set(result) for term in terms):
        return None
    axis_of = dict(zip(result, axes, strict=True))
    operands = zip(value.node.inputs, terms, strict=True)
    parts = (_factors(x, _without_units((axis_of[c] for c in term), x.dims), depth) for x, term in operands)
    return tuple(factor for part in parts for factor in part)


def _of_reshape(value: Value, axes: Axes, depth: int) -> tuple[Factor, ...] | None:
    (x,) = value.node.inputs
    if [n for n in x.dims if n != 1] != [n for n in value.dims if n != 1]:
        return None
    long = iter(axis for axis, extent in zip(axes, value.dims, strict=True) if extent != 1)
    return _factors(x, tuple(None if extent == 1 else next(long) for extent in x.dims), depth)


def _of_slice(value: Value, axes: Axes, depth: int) -> tuple[Factor, ...]:
    """Slice every factor on the axes that it has."""
    (x,) = value.node.inputs
    used = min((axis for axis in axes if axis is not None), default=0)  # slices of slices have numbers below 0 already
    ids = tuple(
        min(used, 0) - 1 - i if axis is None and n != 1 else axis
        for i, (axis, n) in enumerate(zip(axes, x.dims, strict=True))
    )
    bounds = {
        axis: tuple(value.node.attrs[name][i] for name in ("starts", "stops", "steps")) for i, axis in enumerate(ids)
    }
    return tuple(_sliced(f, bounds, set(ids) - set(axes)) for f in _factors(x, ids, depth))


def _sliced(factor: Factor, bounds: Mapping[int | None, tuple[Dim, ...]], single: Collection[int | None]) -> Factor:
    """The part of a factor that a slice leaves, which has one element along the axes ``single``."""
    whole = [(0, extent, 1) for extent in factor.value.dims]
    parts = [w if axis is None else bounds.get(axis, w) for axis, w in zip(factor.axes, whole, strict=True)]
    if parts == whole:
        return factor
    starts, stops, steps = zip(*parts, strict=True)
    part = ops.slice(factor.value, starts=starts, stops=stops, steps=steps)
    return Factor(part, _without_units((None if a in single else a for a in factor.axes), part.dims))


def _of_elementwise(value: Value, axes: Axes, depth: int) -> tuple[Factor, ...] | None:
    """A product has its operands' factors; any other op works on the axes that its operands depend on."""
    node = value.node
    operands = [_factors(x, axes, depth) for x in node.inputs]
    if node.op is ops.mul:
        return operands[0] + operands[1]
    if node.op is ops.neg:
        return (*operands[0], Factor(literal(-1, value.type.dtype), ()))
    needed = support(f for factors in operands for f in factors)
    if len(needed) == sum(axis is not None for axis in axes):
        return None
    extent = {axis: n for axis, n in zip(axes, value.dims, strict=True) if axis is not None}
    groups = tuple((axis,) for axis in sorted(needed))
    reduced = [product(factors, groups, extent, like=x) for factors, x in zip(operands, node.inputs, strict=True)]
    return (Factor(node.op(*reduced, **node.attrs), tuple(sorted(needed))),)


def product(
    factors: Sequence[Factor], groups: Sequence[Sequence[int]], extent: Mapping[int, Dim], *, like: Value
) -> Value:
    """Multiply ``factors`` into a tensor with one dim per group of axes; a factor without some axis repeats along it.

    Args:
        extent: the size of every axis in ``groups``.
        like: where the element type comes from when there is no factor (the product is then 1).
    """
    factors, groups, extent = _merged(factors, groups, extent)
    order = [axis for group in groups for axis in group]
    parts = [_arranged(f, order) for f in factors] or [literal(1, like.type.dtype)]
    result = parts[0]
    for part in parts[1:]:
        result = ops.mul(result, part)
    full = tuple(extent[axis] for axis in order)
    result = result if result.dims == full else ops.broadcast(result, dims=full)
    merged = tuple(dims.size(extent[axis] for axis in group) for group in groups)
    return result if result.dims == merged else ops.reshape(result, dims=merged)


def _merged(
    factors: Sequence[Factor], groups: Sequence[Sequence[int]], extent: Mapping[int, Dim]
) -> tuple[Sequence[Factor], Sequence[Sequence[int]], Mapping[int, Dim]]:
    """Axes of one group that every factor has side by side, or lacks, as one axis."""
    for place, group in enumerate(groups):
        for pair in pairwise(group):
            if all(_side_by_side(f, pair) for f in factors):
                fused = [axis for axis in group if axis != pair[1]]
                sizes = {**extent, pair[0]: extent[pair[0]] * extent[pair[1]]}
                rest = [_fused(f, pair) for f in factors]
                return _merged(rest, [*groups[:place], fused, *groups[place + 1 :]], sizes)
    return factors, groups, extent


def _side_by_side(factor: Factor, pair: tuple[int, int]) -> bool:
    return not factor.support & set(pair) or pair in pairwise(factor.axes)


def _fused(factor: Factor, pair: tuple[int, int]) -> Factor:
    if pair[0] not in factor.axes:
        return factor
    place, value = factor.axes.index(pair[0]), factor.value
    dims = (*value.dims[:place], value.dims[place] * value.dims[place + 1], *value.dims[place + 2 :])
    return Factor(ops.reshape(value, dims=dims), (*factor.axes[: place + 1], *factor.axes[place + 2 :]))


def _arranged(factor: Factor, order: Sequence[int]) -> Value:
    """The factor's dims in ``order``, with extent 1 for the axes that it lacks."""
    number = scalar(factor.value)
    if number is not None:
        return literal(number, factor.value.type.dtype)
    held = [i for i, axis in enumerate(factor.axes) if axis is not None]
    rest = [i for i, axis in enumerate(factor.axes) if axis is None]
    perm = (*sorted(held, key=lambda i: order.index(factor.axes[i])), *rest)
    moved = factor.value if perm == tuple(range(len(perm))) else ops.transpose(factor.value, perm=perm)
    extents = {axis: n for axis, n in zip(factor.axes, factor.value.dims, strict=True)}
    placed = tuple(dropwhile(lambda n: n == 1, (extents.get(axis, 1) for axis in order)))
    return moved if moved.dims == placed else ops.reshape(moved, dims=placed)
