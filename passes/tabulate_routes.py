"""Orders of tokens as tables: the routes of recurrences over grids."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from coilc.ir import DTYPES, Dims, Module, Node, TensorType, Value, dims, ops
from coilc.ir.core import substitute_attr

from .match import reshaped, transposed
from .project_before_routes import projection_rules
from .rewrite import on, rewrite_module
from .simplify import RULES as IDENTITIES
from .sink_transposes import RULES as SINKING
from .trace import Declined, no

CHAINED = frozenset({"reshape", "transpose", "slice", "flip", "concat", "take"})
LARGEST = 1 << 24  # elements that are followed to find a table
PRIMES = (3, 5, 7, 11, 13)  # stand for symbols while positions are followed


def tabulate_routes(module: Module) -> Module:
    """Compose movement that visits the tokens of one tensor in a fixed order into one ``take`` by a constant table.

    Before (the rows and the columns of a grid of 2 x 3 tokens, one after the other)::

        v0: f32[B, 6, 8] = reshape(x, dims=(B, 6, 8))
        v1: f32[B, 3, 2, 8] = transpose(x, perm=(0, 2, 1, 3))
        v2: f32[B, 6, 8] = reshape(v1, dims=(B, 6, 8))
        v3: f32[B, 12, 8] = concat(v0, v2, axis=1)

    After::

        v0: f32[B, 6, 8] = reshape(x, dims=(B, 6, 8))
        v1: i64[12] = constant(value=array(i64, [0, 1, 2, 3, 4, 5, 0, 3, 1, 4, 2, 5]))
        v2: f32[B, 12, 8] = take(v0, v1, axis=1)

    A kernel then reads one entry of the table per token, and the channels of the token as they lie in memory. Tables are
    composed, identities vanish, and projections are computed before a table rather than after it when that is no more
    work: ``linear(take(x)) = take(linear(x))``. See docs/routes.md.

    Needs: nothing. Guarantees: movement is exact; sums in projections are those that they were.
    """
    tables = Tables(module.weights)

    @on("concat", "flip", "slice", "take")
    def movement_along_route(node: Node) -> Value | Declined | None:
        """concat(x, flip(x), x[table], ...) = x[one table] when channels stay where they are"""
        return along_route(tables, node)

    rules = (movement_along_route, *projection_rules(tables))
    routed = rewrite_module(module, *rules, *IDENTITIES, *SINKING)
    return replace(routed, weights=tables.weights)


class Tables:
    """The tables of a module's routes, which are weights."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self.weights = dict(weights)
        self.names: dict[tuple[Dims, bytes], str] = {}

    def take(self, x: Value, table: np.ndarray, axis: int) -> Value:
        """The slices of ``x`` along ``axis`` in the order of ``table``."""
        key = (table.shape, table.tobytes())
        if key not in self.names:
            count = itertools.count(len(self.names))
            self.names[key] = next(name for i in count if (name := f"route.{i}") not in self.weights)
            self.weights[self.names[key]] = table
        where = ops.weight(name=self.names[key], type=TensorType(DTYPES["i64"], table.shape))
        result: Value = ops.take(x, where, axis=axis)
        return result

    def array(self, value: Value) -> np.ndarray | None:
        """The indices of a ``take``, when they are known."""
        if value.op is ops.reshape and (indices := self.array(value.node.inputs[0])) is not None:
            return indices.reshape(tuple(dims.evaluate(n, {}) for n in value.dims))
        if value.op is ops.constant:
            return np.asarray(value.node.attrs["value"].value)
        return self.weights.get(value.node.attrs["name"]) if value.op is ops.weight else None


def along_route(tables: Tables, node: Node) -> Value | Declined | None:
    """The rule for movement; a single flip or slice is arithmetic and stays."""
    value = Value(node)
    chain = _Chain(tables, value)
    if not chain.follows(node) and node.op is not ops.slice:
        return no("the order depends on an extent that is a symbol, or on indices that are computed")
    if not chain.has_table:
        return no("a flip that is not gathered or joined is arithmetic") if node.op is ops.flip else None
    if chain.elements > LARGEST:
        return no(f"more than {LARGEST} elements would have to be followed")
    source = chain.source
    if source is None:
        return None
    routes = [route for view in chain.views(source) if (route := _route(chain.places(view), view, value.dims))]
    if not routes:
        return no("more than whole tokens at fixed places is moved")
    best = min(routes, key=lambda route: route.table.size)
    if best.free[-1:] != (len(best.view) - 1,):
        return no("the innermost axis of the tensor is not moved as a whole")
    result = best.apply(tables, source, value.dims)
    return None if result == value else result


class _Chain:
    """Movement between a value and the tensors whose elements it may show."""

    def __init__(self, tables: Tables, value: Value) -> None:
        self.tables, self.value = tables, value
        self.nodes: dict[Node, None] = {}
        self.sources: dict[Value, None] = {}
        stack = [value]
        while stack:
            at = stack.pop()
            if self.follows(at.node):
                if at.node not in self.nodes:
                    self.nodes[at.node] = None
                    stack += at.node.inputs[:1] if at.op is ops.take else at.node.inputs
            else:
                self.sources[at] = None

    @property
    def elements(self) -> int:
        """How many positions there are to follow; none can be when symbols outnumber the primes."""
        shapes = [_bound(value.dims, self.bindings) for value in (self.value, *self.sources)] if self.bounded else []
        return sum(int(np.prod(shape)) for shape in shapes) if shapes else LARGEST + 1

    @cached_property
    def source(self) -> Value | None:
        """The one tensor that all elements are from; parts of others may have been overwritten."""
        for value, base in self.bases.items():
            if np.all((self.positions >= base) & (self.positions < base + np.prod(_bound(value.dims, self.bindings)))):
                return value
        return None

    @cached_property
    def bases(self) -> Mapping[Value, int]:
        """The position of each source's first element, all sources in a row."""
        sizes = [int(np.prod(_bound(value.dims, self.bindings))) for value in self.sources]
        return dict(zip(self.sources, itertools.accumulate(sizes, initial=0), strict=False))

    @property
    def has_table(self) -> bool:
        return any(node.op in (ops.concat, ops.take) for node in self.nodes)

    def follows(self, node: Node) -> bool:
        """Whether the node moves elements to places that no symbol decides."""
        if node.op.name not in CHAINED:
            return False
        x, attrs = node.inputs[0], node.attrs
        match node.op.name:
            case "take":
                return isinstance(x.dims[attrs["axis"]], int) and self.tables.array(node.inputs[1]) is not None
            case "concat":
                return all(isinstance(v.dims[attrs["axis"]], int) for v in node.inputs)
            case "flip":
                return all(isinstance(x.dims[axis], int) for axis in attrs["axes"])
            case "slice":
                cuts = zip(attrs["starts"], attrs["stops"], attrs["steps"], x.dims, strict=True)
                return all(cut[:3] == (0, cut[3], 1) or all(isinstance(n, int) for n in cut) for cut in cuts)
        return True

    def views(self, source: Value) -> Iterator[Dims]:
        """The source's dims, as it is and as it is first reshaped, without those of extent 1; none for one element."""
        reshapes = (n for n in self.nodes if n.inputs == (source,) and n.op is ops.reshape)
        found = [source.dims, *(n.types[0].dims for n in reshapes)]
        yield from filter(None, dict.fromkeys(tuple(n for n in found if n != 1) for found in found))

    @cached_property
    def symbols(self) -> list[str]:
        values = (*self.sources, *(v for node in self.nodes for v in node.results))
        return sorted({name for value in values for name in dims.symbols(value.dims)})

    @property
    def bounded(self) -> bool:
        return len(self.symbols) <= len(PRIMES)

    @cached_property
    def bindings(self) -> Mapping[str, int]:
        return dict(zip(self.symbols, PRIMES, strict=False))

    @cached_property
    def positions(self) -> np.ndarray:
        """For each element of the value, its row-major position in the sources; symbols are primes."""
        known: dict[Value, np.ndarray] = {}
        for source, base in self.bases.items():
            shape = _bound(source.dims, self.bindings)
            known[source] = base + np.arange(np.prod(shape, dtype=np.int64)).reshape(shape)
        order = [self.value]
        while order:
            value = order[-1]
            operands = value.node.inputs[:1] if value.op is ops.take else value.node.inputs
            missing = [v for v in operands if v not in known]
            if value not in known and missing:
                order += missing
                continue
            order.pop()
            if value not in known:
                attrs = {name: substitute_attr(a, self.bindings) for name, a in value.node.attrs.items()}
                arrays = [known[v] for v in operands]
                if value.op is ops.take:
                    arrays.append(np.asarray(self.tables.array(value.node.inputs[1])))
                known[value] = value.op.reference(*arrays, **attrs)
        return known[self.value]

    def places(self, view: Dims) -> tuple[np.ndarray, ...]:
        """For each element of the value, its index on every axis of the source under other dims."""
        assert self.source is not None
        return np.unravel_index(self.positions - self.bases[self.source], _bound(view, self.bindings))


def _bound(extents: Dims, bindings: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dims.evaluate(n, bindings) for n in extents)


@dataclass(frozen=True, eq=False)
class Route:
    """A value as tokens of a tensor in the order of a table.

    Attributes:
        view: dims of the tensor.
        free: axes of ``view`` that the value shows whole, or a stretch of: batch and channels.
        offsets: where that stretch starts, per free axis.
        shown: the value's axis for each free axis.
        along: the value's axes that walk through the table.
        table: positions over the other axes of ``view`` in row-major order; its axes are ``along``.
    """

    view: Dims
    free: tuple[int, ...]
    offsets: tuple[int, ...]
    shown: tuple[int, ...]
    along: tuple[int, ...]
    table: np.ndarray

    def apply(self, tables: Tables, source: Value, result: Dims) -> Value:
        """The value, whose dims are ``result``."""
        routed = tuple(axis for axis in range(len(self.view)) if axis not in self.free)
        x = self._stretch(reshaped(source, self.view), result)
        before = tuple(axis for axis in self.free if routed and axis < routed[0])
        after = tuple(axis for axis in self.free if axis not in before)
        x = transposed(x, (*before, *routed, *after))
        lead, tail = x.dims[: len(before)], x.dims[len(x.dims) - len(after) :]
        tokens = dims.size(self.view[axis] for axis in routed)
        if tokens == self.table.size and np.array_equal(self.table.ravel(), np.arange(self.table.size)):
            moved = reshaped(x, (*lead, *self.table.shape, *tail))
        else:
            moved = tables.take(reshaped(x, (*lead, tokens, *tail)), self.table, len(before))
        shown = dict(zip(self.free, self.shown, strict=True))
        axes = (*(shown[axis] for axis in before), *self.along, *(shown[axis] for axis in after))
        return reshaped(transposed(moved, tuple(map(axes.index, sorted(axes)))), result)

    def _stretch(self, x: Value, result: Dims) -> Value:
        starts, stops = [0] * len(self.view), list(self.view)
        for axis, start, shown in zip(self.free, self.offsets, self.shown, strict=True):
            starts[axis], stops[axis] = start, start + result[shown]
        if tuple(stops) == self.view and not any(starts):
            return x
        part: Value = ops.slice(x, starts=tuple(starts), stops=tuple(stops), steps=(1,) * len(self.view))
        return part


def _route(places: tuple[np.ndarray, ...], view: Dims, result: Dims) -> Route | None:
    """The route along which a value of dims ``result`` shows the ``places`` of a tensor of dims ``view``."""
    free: dict[int, tuple[int, int]] = {}
    for axis, place in enumerate(places):
        others = places[:axis] + places[axis + 1 :]
        for at, extent in enumerate(result):
            start = _stretch_along(place, at) if extent != 1 else None
            whole = extent == view[axis] and start == 0
            fits = whole or (start is not None and isinstance(extent, int) and isinstance(view[axis], int))
            if fits and all(_is_constant(other, at) for other in others):
                free[axis] = (at, start or 0)
    taken = {at for at, _ in free.values()}
    along = tuple(i for i, extent in enumerate(result) if i not in taken and extent != 1)
    routed = [axis for axis in range(len(view)) if axis not in free]
    extents = [*(view[axis] for axis in routed), *(result[i] for i in along)]
    if not routed or not all(isinstance(n, int) for n in extents):
        return None
    shape = tuple(int(view[axis]) for axis in routed)  # type: ignore[arg-type]
    table = np.ravel_multi_index(tuple(places[axis] for axis in routed), shape)
    table = table[tuple(slice(None) if i in along else 0 for i in range(len(result)))]
    shown, offsets = (tuple(pair[i] for pair in free.values()) for i in (0, 1))
    return Route(view, tuple(free), offsets, shown, along, np.ascontiguousarray(table))


def _stretch_along(place: np.ndarray, axis: int) -> int | None:
    """Where ``place`` starts if it counts up along one axis and depends on nothing else."""
    line = place[(0,) * axis + (slice(None),) + (0,) * (place.ndim - axis - 1)]
    counts = np.expand_dims(line[0] + np.arange(len(line)), tuple(i for i in range(place.ndim) if i != axis))
    return int(line[0]) if np.array_equal(place, np.broadcast_to(counts, place.shape)) else None


def _is_constant(place: np.ndarray, axis: int) -> bool:
    return bool(np.all(place == place.take([0], axis)))
