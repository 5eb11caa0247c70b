"""scatter and index_put: a copy of x, then the updates one after another, so that repeated places are well defined.

update_slice writes only the update: what it keeps of x is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from tvm import tirx

from coilc.ir import Value
from coilc.ir import dims as d
from coilc.ir.dims import Dims

from ..elementwise import maximum, minimum
from ..loops import alone, blocks, for_each_task, lanes, vector_loop, whole_axis
from ..reader import wrapped
from ..scalar import Expr, bind, decode, may_be_empty
from .anchor import Anchor
from .loops import i64, serial, when

COMBINE: Mapping[str, Callable[[Expr, Expr], Expr]] = {
    "set": lambda _, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": maximum,
    "min": minimum,
}


def emit_scatter(k: Anchor) -> None:
    """Write the body of the kernel: x[B.., n, C..], indices and updates [B.., m, C..]."""
    _copy(k)
    axis, combine = k.node.attrs["axis"] % len(k.dims(0)), COMBINE[k.node.attrs["reduce"]]

    def update(at: list[Expr]) -> None:
        i = wrapped(k.kernel.reader, k.read(1, *at), k.dims(0)[axis])
        _combine(k, [*at[:axis], i, *at[axis + 1 :]], k.read(2, *at), combine)

    with alone(), _unless_empty(k, k.dims(0)[axis : axis + 1]):
        _nest(k, k.dims(1), update)


def emit_index_put(k: Anchor) -> None:
    """Write the body of the kernel: x, updates [*I, *rest], one index operand [*I] per leading axis of x."""
    _copy(k)
    combine = COMBINE["add" if k.node.attrs["accumulate"] else "set"]
    count = len(k.node.inputs) - 2
    places, rest = k.dims(2), k.dims(0)[count:]

    def update(at: list[Expr]) -> None:
        target = [wrapped(k.kernel.reader, k.read(2 + i, *at), k.dims(0)[i]) for i in range(count)]
        if not rest:
            _combine(k, target, k.read(1, *at), combine)
            return

        def row(inner: list[Expr]) -> None:
            def block(start: Expr, width: int) -> None:
                def element(lane: Expr) -> None:
                    tail = [*inner, start + lane]
                    _combine(k, [*target, *tail], k.read(1, *at, *tail), combine)

                lanes(width, element)

            blocks(whole_axis(k.kernel, rest[-1]), k.target.vector_bits // 32, block)

        _nest(k, rest[:-1], row)

    with alone(), _unless_empty(k, k.dims(0)[:count]):
        _nest(k, places, update)


def _unless_empty(k: Anchor, extents: Dims) -> AbstractContextManager[None]:
    """What is written inside runs unless an axis has no elements, of which none could be updated."""
    open_ = [k.extent(extent) > i64(0) for extent in extents if may_be_empty(extent)]
    return when(tirx.all(*open_)) if open_ else nullcontext()


def emit_update_slice(k: Anchor) -> None:
    """Write the body of the kernel: x[B.., n, C..], update [B.., m, C..], start; the output holds x."""
    k.require_no_epilogue()
    axis, (*outer, last) = k.node.attrs["axis"], k.dims(1)
    extent = k.extent(k.dims(0)[axis])

    def task(p: Expr) -> None:
        row = k.kernel.reader.unravel(p, tuple(outer))
        # What lies outside is dropped anyway; so far outside that a sum would overflow, it must be.
        start = bind(tirx.max(tirx.min(k.read(2), extent), -k.extent(k.dims(1)[axis])))

        def element(j: Expr) -> None:
            at = [*row, j]
            k.store(0, [*at[:axis], start + at[axis], *at[axis + 1 :]], k.read(1, *at))

        if axis < len(outer):
            place = start + row[axis]
            with when(tirx.all(place >= 0, place < extent)):
                vector_loop(whole_axis(k.kernel, last), k.target.vector_bits // 32, element)
        else:
            with serial(k.extent(last)) as j, when(tirx.all(start + j >= 0, start + j < extent)):
                element(j)

    for_each_task(k.kernel, d.size(outer), d.size(k.dims(1)), task)


def _nest(k: Anchor, dims: Dims, body: Callable[[list[Expr]], None]) -> None:
    """Serial loops over ``dims`` in row-major order."""

    def nest(at: list[Expr]) -> None:
        if len(at) == len(dims):
            body(at)
            return
        with serial(k.extent(dims[len(at)])) as i:
            nest([*at, i])

    nest([])


def _copy(k: Anchor) -> None:
    """The result starts as x."""
    k.require_no_epilogue()
    *outer, last = k.dims(0) or (1,)

    def task(p: Expr) -> None:
        row = k.kernel.reader.unravel(p, tuple(outer))

        def element(j: Expr) -> None:
            place = [*row, j][: len(k.dims(0))]
            k.store(0, place, k.read(0, *place))

        vector_loop(whole_axis(k.kernel, last), k.target.vector_bits // 32, element)

    for_each_task(k.kernel, d.size(outer), d.size(k.dims(0)), task)


def _combine(k: Anchor, place: list[Expr], new: Expr, combine: Callable[[Expr, Expr], Expr]) -> None:
    """Update one element of every output; they are copies of the result, which has no epilogue."""
    for position in k.outputs_of[0]:
        value: Value = k.kernel.body.results[position]
        old = decode(k.kernel.outputs[position][tuple(place) if len(place) > 1 else place[0]], value.type.dtype)
        k.kernel.store(position, place, bind(combine(old, new)))
