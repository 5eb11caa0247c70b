"""argmax and argmin: every lane keeps its best element and where it was; the first of equals wins, NaN before all."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d
from coilc.ir import ops

from ..loops import blocks, lanes, whole_axis
from ..scalar import Expr, bind, dtype_name, is_nan
from ..team import Team, first_of, for_each_row
from .anchor import Anchor
from .loops import i64, local, serial

NOWHERE = 2**62


def emit_argument(k: Anchor) -> None:
    """Write the body of the kernel: the index of the best element along the axis."""
    x, axis = k.dims(0), k.node.attrs["axis"]
    outer, inner = x[:axis], x[axis + 1 :]
    width = k.target.vector_bits // 32 if not inner else 1
    while isinstance(x[axis], int) and width > max(x[axis], 1):
        width //= 2

    def task(p: Expr, team: Team | None) -> None:
        place = k.kernel.reader.unravel(p, (*outer, *inner))
        before, after = place[: len(outer)], place[len(outer) :]
        where = _best(k, width, lambda i: [*before, i, *after], team)
        kept = [i64(0)] if k.node.attrs["keepdims"] else []
        with first_of(team):
            k.store(0, [*before, *kept, *after], where)

    for_each_row(k.kernel, d.size((*outer, *inner)), x[axis], d.size(x), task)


def _best(k: Anchor, width: int, place: Callable[[Expr], list[Expr]], team: Team | None) -> Expr:
    better = _better(k)
    dtype = "int8" if k.compute_dtype(0) == "bool" else k.compute_dtype(0)
    best, where = local((width,), dtype), local((width,), "int64")

    def start(lane: Expr) -> None:
        T.buffer_store(best, tirx.const(0, dtype), [lane])
        T.buffer_store(where, i64(NOWHERE), [lane])

    def block(first: Expr, width: int) -> None:
        def element(lane: Expr) -> None:
            value = bind(T.Cast(dtype, k.read(0, *place(first + lane))))
            wins = bind(tirx.Or(tirx.EQ(where[lane], i64(NOWHERE)), better(value, best[lane])))
            T.buffer_store(best, tirx.Select(wins, value, best[lane]), [lane])
            T.buffer_store(where, tirx.Select(wins, first + lane, where[lane]), [lane])

        lanes(width, element)

    def better_of(one: list[Expr], other: list[Expr]) -> list[Expr]:
        (x, i), (y, j) = one, other
        equal = tirx.And(tirx.Not(better(x, y)), j < i)
        wins = bind(tirx.And(j < i64(NOWHERE), tirx.Or(tirx.EQ(i, i64(NOWHERE)), tirx.Or(better(y, x), equal))))
        return [tirx.Select(wins, y, x), tirx.Select(wins, j, i)]

    lanes(width, start)
    whole, zero = whole_axis(k.kernel, k.dims(0)[k.node.attrs["axis"]]), i64(0)
    if team is not None:
        team.each(whole.stop, lambda i: block(i, 1))
        return team.combine([best[zero], where[zero]], better_of)[1]
    blocks(whole, width, block)
    with serial(width, start=1) as lane:
        value, place_of_it = better_of([best[zero], where[zero]], [best[lane], where[lane]])
        T.buffer_store(best, value, [zero])
        T.buffer_store(where, place_of_it, [zero])
    return bind(where[zero])


def _better(k: Anchor) -> Callable[[Expr, Expr], Expr]:
    """Whether x beats y; a NaN beats every number and no NaN."""
    largest = k.node.op is ops.argmax

    def compare(x: Expr, y: Expr) -> Expr:
        beats = x > y if largest else x < y
        if not dtype_name(x).startswith("float"):
            return beats
        return tirx.Or(beats, tirx.And(is_nan(x), tirx.Not(is_nan(y))))

    return compare
