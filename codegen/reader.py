"""Pull-model evaluation of pointwise bodies: the element of a value at given indices, as a TIR expression.

Movement becomes index arithmetic and elementwise ops become expressions, so a prologue or epilogue of any length costs a
kernel nothing but a call of ``Reader.read``. Results are bound to variables of the statement frame that is open in the
IRBuilder and are reused in that frame and those inside it: expressions stay linear in the size of the body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, reduce
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from coilc.ir import Graph, UnsupportedError, Value
from coilc.ir import dims as d
from coilc.ir.dims import Dim, Dims
from coilc.ir.opdef import ELEMENTWISE

from .elementwise import evaluate
from .scalar import (
    Expr,
    bind,
    bind_looked_up,
    compute_dtype,
    constant,
    convert,
    decode,
    encode,
    guarded,
    may_be_empty,
    prefetch,
)

Indices = Sequence[Expr]
View = Callable[[Indices], Expr]
LARGEST_TABLE = 64  # elements of a constant array that become a chain of selects


def index(value: int | Expr) -> Expr:
    """An int64 expression."""
    return tirx.IntImm("int64", value) if isinstance(value, int) else value


def _key(x: Expr) -> Any:
    """Distinguishes index expressions by identity, and constants by value."""
    return ("constant", int(x.value)) if isinstance(x, tirx.IntImm) else hash(x)


class Reader:
    """Evaluates the values of one body.

    Args:
        body: the fused body; its inputs are in memory.
        buffers: for each value in memory, a buffer of its storage type, flat or with its dims.
        dims: for each symbol, an int64 expression.
        views: for values that are no dense buffer, such as a slice of a sequence, a function of the index.
    """

    def __init__(
        self,
        body: Graph,
        buffers: Mapping[Value, tirx.Buffer],
        dims: Mapping[str, Expr],
        views: Mapping[Value, View] | None = None,
    ) -> None:
        self.body, self.buffers, self.dims, self.views = body, dict(buffers), dims, dict(views or {})
        self._memo: dict[Any, dict[Any, tuple[Expr, Indices]]] = {}
        self._known: Mapping[Value, Expr] = {}
        self.least: dict[Any, int] = {}  # lower bounds of index variables, where the code being written has tested them
        self.fixed: dict[Value, Expr] = {}  # values that are in a register, whatever the indices: results per row

    def dim(self, dim: Dim) -> Expr:
        """A dimension as an int64 expression."""
        if isinstance(dim, int):
            return index(dim)
        return reduce(lambda a, b: a + b, (self._monomial(m, factor) for m, factor in dim.terms))

    def _monomial(self, monomial: d.Monomial, factor: int) -> Expr:
        atoms = [
            self.dims[atom] if isinstance(atom, str) else tirx.floordiv(self.dim(atom.numerator), index(atom.divisor))
            for atom in monomial
        ]
        parts = atoms if factor == 1 and atoms else [index(factor), *atoms]
        return reduce(lambda a, b: a * b, parts)

    def read(self, value: Value, indices: Indices, known: Mapping[Value, Expr] | None = None) -> Expr:
        """The element of ``value`` at ``indices``, in the compute type of its dtype.

        Args:
            known: values whose element at these very indices the caller has at hand: results of the anchor or of
                reductions. They are found wherever the walk reaches them, whatever the indices there.
        """
        outer, self._known = self._known, known if known is not None else self._known
        try:
            return self._read(value, tuple(indices))
        finally:
            self._known = outer

    def remember(self, value: Value, indices: Indices, element: Expr) -> None:
        """In the open frame, the element of ``value`` at these very indices, which are found by identity."""
        key = (value, *map(_key, indices))
        self._memo.setdefault(IRBuilder.current().frames[-1], {})[key] = (element, tuple(indices))

    def _read(self, value: Value, indices: Indices) -> Expr:
        if value in self._known:
            return self._known[value]
        if value in self.fixed:
            return self.fixed[value]
        if value.op.name == "constant" and value.type.size == 1:
            return constant(value.node.attrs["value"].value.item(), value.type.dtype)
        frames = list(IRBuilder.current().frames)
        key = (value, *map(_key, indices), *map(_key, self._known.values()))
        for frame in frames:
            found = self._memo.get(frame, {}).get(key)
            if found:
                return found[0]
        result = bind(self._evaluate(value, indices))
        # The indices are kept because their addresses are the key.
        self._memo.setdefault(frames[-1], {})[key] = (result, (*indices, *self._known.values()))
        return result

    def _evaluate(self, value: Value, indices: Indices) -> Expr:
        name = value.op.name
        if value in self.buffers:
            return self.load(value, indices)
        if value in self.views:
            return self.views[value](indices)
        if name == "cast":
            (operand,) = value.node.inputs
            return convert(self._read(operand, indices), operand.type.dtype, value.type.dtype)
        if ELEMENTWISE in value.op.traits:
            operands = [self._read(v, indices) for v in value.node.inputs]
            return evaluate(value.node, operands)
        if name in MOVES:
            return MOVES[name](self, value, indices)
        raise UnsupportedError("this cannot be evaluated element by element:", [(name, value.location)])

    def unless_empty(self, value: Value, axes: Iterable[int], read: Callable[[], Expr]) -> Expr:
        """``read()``, an element of ``value``, or zero where one of the axes has none: then nothing is read."""
        extents, zero = [value.dims[axis] for axis in axes], constant(0, value.type.dtype)
        if 0 in extents:
            return zero
        open_ = [self.dim(extent) > index(0) for extent in extents if may_be_empty(extent)]
        return guarded(reduce(tirx.And, open_), read, zero) if open_ else read()

    @contextmanager
    def knowing(self, i: Expr, bound: int) -> Iterator[None]:
        """Code that runs only where an index is not below a number."""
        self.least[_key(i)] = bound
        try:
            yield
        finally:
            del self.least[_key(i)]

    def is_at_least(self, i: Expr, bound: int) -> bool:
        """Whether an index is known not to be below a number."""
        if isinstance(i, tirx.IntImm):
            return int(i.value) >= bound
        if isinstance(i, tirx.Add | tirx.Sub) and isinstance(i.b, tirx.IntImm):
            return self.is_at_least(i.a, bound - int(i.b.value) * (1 if isinstance(i, tirx.Add) else -1))
        return self.least.get(_key(i), bound - 1) >= bound

    def memory_of(self, value: Value) -> tirx.Buffer | None:
        """The buffer that holds a value, perhaps under other dims."""
        while value.op.name == "reshape" and value not in self.buffers:
            (value,) = value.node.inputs
        return self.buffers.get(value)

    def load(self, value: Value, indices: Indices) -> Expr:
        """The element of a value in memory."""
        buffer = self.buffers[value]
        place = [self.offset(indices, value.dims)] if len(buffer.shape) == 1 else list(indices)
        return decode(buffer[place[0] if len(place) == 1 else tuple(place)], value.type.dtype)

    def offset(self, indices: Indices, dims: Dims) -> Expr:
        """The row-major position of a multi-index."""
        terms = [(i, dim) for i, dim in zip(indices, dims, strict=True) if dim != 1]
        if not terms:
            return index(0)
        return reduce(lambda total, term: total * self.dim(term[1]) + term[0], terms[1:], terms[0][0])

    def unravel(self, position: Expr, dims: Dims) -> list[Expr]:
        """The multi-index of a row-major position; axes of extent 1 get index 0."""
        indices: list[Expr] = []
        leading = next((axis for axis, dim in enumerate(dims) if dim != 1), 0)
        for axis in reversed(range(len(dims))):
            if dims[axis] == 1:
                indices.append(index(0))
            elif axis == leading:
                indices.append(position)
            else:
                extent = self.dim(dims[axis])
                indices.append(tirx.truncmod(position, extent))
                position = tirx.truncdiv(position, extent)
        return indices[::-1]


class Prefetcher(Reader):
    """Reads nothing: starts loading the cache lines that the elements which are asked for take, and gives zeros."""

    def _evaluate(self, value: Value, indices: Indices) -> Expr:
        if ELEMENTWISE not in value.op.traits and value.op.name != "cast":
            return super()._evaluate(value, indices)
        for operand in value.node.inputs:
            self._read(operand, indices)
        return constant(0, value.type.dtype)

    def load(self, value: Value, indices: Indices) -> Expr:
        if len(self.buffers[value].shape) == 1:
            prefetch(self.buffers[value], self.offset(indices, value.dims))
        return constant(0, value.type.dtype)


def store_element(buffer: tirx.Buffer, indices: Indices, value: Expr, dtype: Any) -> None:
    """Round ``value`` to the storage type of ``dtype`` and write it; a scalar output has one element."""
    T.buffer_store(buffer, encode(value, dtype), list(indices) or [index(0)])


# --- movement: from the indices of the result to an element of an operand ---------------------------------------------


def _clamp(i: Expr, extent: Expr, below: bool = True, above: bool = True) -> Expr:
    """An index that is safe to load from, where it may be below or above what there is."""
    i = tirx.min(i, extent - index(1)) if above else i
    return tirx.max(i, index(0)) if below else i


def _broadcast(reader: Reader, value: Value, indices: Indices) -> Expr:
    (x,) = value.node.inputs
    kept = indices[len(indices) - x.type.rank :]
    return reader._read(x, tuple(index(0) if dim == 1 else i for i, dim in zip(kept, x.dims, strict=True)))


def _reshape(reader: Reader, value: Value, indices: Indices) -> Expr:
    (x,) = value.node.inputs
    source = x
    while source.op.name == "reshape" and source not in reader.buffers:
        (source,) = source.node.inputs
    if source in reader.buffers and len(reader.buffers[source].shape) == 1:
        return decode(reader.buffers[source][reader.offset(indices, value.dims)], source.type.dtype)
    return reader._read(x, tuple(regroup(reader, indices, value.dims, x.dims)))


def regroup(reader: Reader, indices: Indices, dims: Dims, to: Dims) -> list[Expr]:
    """The index under other dims of the same element; axes that the reshape leaves alone keep their index."""
    result: list[Expr] = []
    for here, there in d.matching_groups(dims, to):
        position = reader.offset(indices[here], dims[here])
        result += reader.unravel(position, to[there])
    return result


def _transpose(reader: Reader, value: Value, indices: Indices) -> Expr:
    (x,) = value.node.inputs
    perm = value.node.attrs["perm"]
    return reader._read(x, tuple(indices[perm.index(axis)] for axis in range(len(perm))))


def _slice(reader: Reader, value: Value, indices: Indices) -> Expr:
    (x,) = value.node.inputs
    cuts = zip(indices, value.node.attrs["starts"], value.node.attrs["steps"], strict=True)
    return reader._read(x, tuple(_affine(reader, i, start, step) for i, start, step in cuts))


def _affine(reader: Reader, i: Expr, start: Dim, step: Dim) -> Expr:
    scaled = i if step == 1 else i * reader.dim(step)
    return scaled if start == 0 else scaled + reader.dim(start)


def _flip(reader: Reader, value: Value, indices: Indices) -> Expr:
    (x,) = value.node.inputs
    axes = {axis % len(indices) for axis in value.node.attrs["axes"]}
    turned = [reader.dim(x.dims[a] - 1) - i if a in axes else i for a, i in enumerate(indices)]
    return reader._read(x, tuple(turned))


def _concat(reader: Reader, value: Value, indices: Indices) -> Expr:
    """Every part is read, at an index clamped into it, and the right one selected: no branches in vector code."""
    axis = value.node.attrs["axis"] % len(indices)
    parts = _parts(reader, value, indices[axis], axis)
    result: Expr | None = None
    for number, (start, x) in enumerate(parts):
        local = _affine(reader, indices[axis], -start, 1)
        below, above = number > 0, number < len(parts) - 1
        inside = (*indices[:axis], bind(_clamp(local, reader.dim(x.dims[axis]), below, above)), *indices[axis + 1 :])
        element = reader.unless_empty(x, [axis] * (below or above), partial(reader._read, x, inside))
        result = element if result is None else tirx.Select(indices[axis] < reader.dim(start), result, element)
    assert result is not None, "a concat of nothing has no elements"
    return result


def _parts(reader: Reader, value: Value, i: Expr, axis: int) -> list[tuple[Dim, Value]]:
    """The operands of a concat that may hold the element, with where they start."""
    start: Dim = 0
    found: list[tuple[Dim, Value]] = []
    for x in value.node.inputs:
        if x.dims[axis] != 0:
            if isinstance(start, int) and reader.is_at_least(i, start):
                found = []
            elif isinstance(start, int) and isinstance(i, tirx.IntImm):
                break
            found.append((start, x))
        start = start + x.dims[axis]
    return found


def _pad(reader: Reader, value: Value, indices: Indices) -> Expr:
    (x,) = value.node.inputs
    low, high = value.node.attrs["low"], value.node.attrs["high"]
    inside, tests, padded = list(indices), [], []
    for axis, (before, after) in enumerate(zip(low, high, strict=True)):
        extent, place = reader.dim(x.dims[axis]), _affine(reader, indices[axis], -before, 1)
        below, above = before != 0 and not reader.is_at_least(place, 0), after != 0
        if before != 0 or above:
            shifted = bind(place)
            inside[axis] = bind(_clamp(shifted, extent, below, above))
            tests += [shifted >= index(0)] * below + [shifted < extent] * above
            padded += [axis] * (below or above)
    element = reader.unless_empty(x, padded, partial(reader._read, x, tuple(inside)))
    fill = constant(value.node.attrs["value"], value.type.dtype)
    return tirx.Select(reduce(tirx.And, tests), element, fill) if tests else element


def _iota(reader: Reader, value: Value, indices: Indices) -> Expr:
    return tirx.Cast(compute_dtype(value.type.dtype), indices[value.node.attrs["axis"] % len(indices)])


def _extent(reader: Reader, value: Value, indices: Indices) -> Expr:
    return tirx.Cast(compute_dtype(value.type.dtype), reader.dim(value.node.attrs["dim"]))


def wrapped(reader: Reader, i: Expr, dim: Dim) -> Expr:
    """An index read from a tensor: negative counts from the end; what is still outside is clamped into memory."""
    extent = reader.dim(dim)
    i = bind_looked_up(tirx.Cast("int64", i))
    return bind_looked_up(_clamp(tirx.Select(i < index(0), i + extent, i), extent))


def _take(reader: Reader, value: Value, indices: Indices) -> Expr:
    x, where = value.node.inputs
    axis = value.node.attrs["axis"] % x.type.rank
    inner = axis + where.type.rank
    i = wrapped(reader, reader._read(where, tuple(indices[axis:inner])), x.dims[axis])
    return reader.unless_empty(x, [axis], lambda: reader._read(x, (*indices[:axis], i, *indices[inner:])))


def _gather(reader: Reader, value: Value, indices: Indices) -> Expr:
    x, where = value.node.inputs
    axis = value.node.attrs["axis"] % x.type.rank
    i = wrapped(reader, reader._read(where, tuple(indices)), x.dims[axis])
    return reader.unless_empty(x, [axis], lambda: reader._read(x, (*indices[:axis], i, *indices[axis + 1 :])))


def _table(reader: Reader, value: Value, indices: Indices) -> Expr:
    """A small constant array: its elements in the code, picked by selects."""
    items = value.node.attrs["value"].value.ravel().tolist()
    if len(items) > LARGEST_TABLE:
        where = [(f"constant of {len(items)} elements", value.location)]
        raise UnsupportedError("this is too large for a kernel's code and should be a weight:", where)
    position = bind(reader.offset(indices, value.dims))
    elements = [constant(item, value.type.dtype) for item in items]
    pairs = list(enumerate(elements))[-2::-1]
    return reduce(lambda rest, pair: tirx.Select(tirx.EQ(position, index(pair[0])), pair[1], rest), pairs, elements[-1])


MOVES: Mapping[str, Callable[[Reader, Value, Indices], Expr]] = {
    "broadcast": _broadcast, "reshape": _reshape, "transpose": _transpose, "slice": _slice, "flip": _flip,
    "concat": _concat, "pad": _pad, "iota": _iota, "take": _take, "gather": _gather, "constant": _table,
    "extent": _extent,
}  # fmt: skip
