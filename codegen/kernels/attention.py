"""Attention with a running softmax (FlashAttention, arXiv 2205.14135): the scores of a head never exist as a whole.

A task is one head and a block of queries, and goes through the keys in blocks: scores of the block, running maximum and
sum of each row, then the products with the values, rescaled whenever the maximum moves. Grouped heads read their group's
keys in place; key blocks that lie in the future or before the window are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

from tvm import DataType, tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import DTYPES, UnsupportedError, ops
from coilc.ir import dims as d

from ..accumulate import Accumulator
from ..elementwise import maximum
from ..math import exp
from ..scalar import Expr, bind, const, select
from .anchor import Anchor
from .loops import ceildiv, each_column, i64, lanes, local, parallel, product, serial, unravel
from .tile import Product, Tile

Q, K, V = range(3)
ROW_BLOCK, KEY_BLOCK = 64, 64
FEW_ROWS = 4
VECTORS_WITHOUT_MEMORY_OPERANDS = 2  # of a row of scores at a time; the exponential keeps ten constants in registers


@dataclass(frozen=True)
class Task:
    """One head's block of queries: where it is, and its local memory.

    Attributes:
        head: indices of the batch element and the head.
        group: indices of the batch element and the group of keys.
        first: the first query; ``count`` queries are valid.
        offset: if causal, query ``i`` sees keys up to ``offset + i``.
        begin: a multiple of the block of keys; what comes before is not visible to any of them.
        end: keys from here on are not visible to any of them.
    """

    k: Anchor
    tile: Tile
    head: tuple[Expr, Expr]
    group: tuple[Expr, Expr]
    first: Expr
    count: Expr
    offset: Expr
    begin: Expr
    end: Expr
    keys: tirx.Buffer
    scores: tirx.Buffer
    out: tirx.Buffer
    largest: tirx.Buffer
    total: tirx.Buffer


def emit_attention(k: Anchor) -> None:
    """Write the body of the kernel: q[B, H, L, E], k[B, G, S, E], v[B, G, S, F] -> o[B, H, L, F] with its epilogue."""
    batch, heads, length, size = k.dims(Q)
    groups, extent, columns = *k.dims(K)[1:3], k.dims(V)[3]
    if not isinstance(size, int) or not isinstance(columns, int):
        where = [(f"{k.operands[Q].type}, {k.operands[V].type}", k.node.location)]
        raise UnsupportedError("attention needs fixed head sizes:", where)
    per_group = d.divide_exactly(heads, groups)
    assert per_group is not None, "the op's type rule"
    tile = Tile.of(k.target, k.compute_dtype(Q), widest=KEY_BLOCK)
    extents = [k.extent(batch), k.extent(heads), ceildiv(k.extent(length), ROW_BLOCK)]
    with parallel(k, product(extents), d.size((batch, heads, length, extent, 2 * size + 2 * columns))) as index:
        b, head, block = unravel(index, extents)
        first = block * i64(ROW_BLOCK)
        count = tirx.min(k.extent(length) - first, i64(ROW_BLOCK))
        offset = bind(k.read("offset")) if k.has("offset") else i64(0)
        begin, end = _visible(k, offset + first, count, k.extent(extent))
        _run(
            Task(
                k, tile, (b, head), (b, tirx.truncdiv(head, k.extent(per_group))), first, count, offset, begin, end,
                keys=local((size, KEY_BLOCK), tile.dtype),
                scores=local((ROW_BLOCK, KEY_BLOCK), tile.dtype),
                out=local((ROW_BLOCK, -(-columns // tile.width) * tile.width), tile.dtype),
                largest=local((ROW_BLOCK,), tile.dtype),
                total=local((ROW_BLOCK,), tile.dtype),
            )
        )  # fmt: skip


def _visible(k: Anchor, position: Expr, count: Expr, extent: Expr) -> tuple[Expr, Expr]:
    """Where the keys begin (rounded down to a block) and end that some of ``count`` queries from ``position`` on see."""
    if not k.node.attrs["causal"]:
        return i64(0), extent
    end = bind(tirx.max(tirx.min(extent, position + count), i64(0)))
    window = k.node.attrs["window"]
    if window is None:
        return i64(0), end
    first = tirx.max(position - i64(window - 1), i64(0))
    return bind(tirx.truncdiv(first, i64(KEY_BLOCK)) * i64(KEY_BLOCK)), end


def _run(task: Task) -> None:
    k, tile, columns = task.k, task.tile, task.k.dims(V)[3]
    with serial(task.count) as i:
        T.buffer_store(task.largest, tirx.const(-inf, tile.dtype), [i])
        T.buffer_store(task.total, tirx.const(0, tile.dtype), [i])
        with serial(int(task.out.shape[1]) // tile.width) as part, lanes(tile.width) as j:
            T.buffer_store(task.out, tirx.const(0, tile.dtype), [i, part * i64(tile.width) + j])
    with serial(tirx.max(ceildiv(task.end - task.begin, KEY_BLOCK), i64(0))) as block:
        start = task.begin + block * i64(KEY_BLOCK)
        depth = tirx.min(task.end - start, i64(KEY_BLOCK))
        _score(task, start, depth)
        with serial(task.count) as i:
            _mask(task, start, depth, i)
            _weigh(task, depth, i)
        _add_values(task, start, depth)
    with serial(task.count) as i:
        scale = bind(tirx.const(1, tile.dtype) / tirx.max(task.total[i], tirx.const(1, tile.dtype)))
        with serial(ceildiv(columns, tile.width)) as part:
            each_column(
                columns,
                k.extent(columns),
                part * i64(tile.width),
                tile.width,
                lambda c: k.store(0, [*task.head, task.first + i, c], task.out[i, c] * scale),
            )


def _score(task: Task, start: Expr, depth: Expr) -> None:
    """scores[i, j] = scale * q . k for a block of keys."""
    rows = task.k.dims(Q)[2]
    if isinstance(rows, int):
        return _score_few(task, start, depth) if rows <= FEW_ROWS else _score_many(task, start, depth)
    with T.If(task.count <= i64(FEW_ROWS)):
        with T.Then():
            _score_few(task, start, depth)
        with T.Else():
            _score_many(task, start, depth)


def _scale(task: Task) -> Expr:
    scale, size = task.k.node.attrs["scale"], task.k.fixed(task.k.dims(Q)[3])
    return tirx.const(1 / sqrt(size) if scale is None else scale, task.tile.dtype)


def _score_few(task: Task, start: Expr, depth: Expr) -> None:
    """One dot product per score, the head's elements in lanes."""
    k = task.k
    with serial(depth) as j, serial(task.count) as i:
        score = task.tile.dot(
            k.extent(k.dims(Q)[3]),
            lambda n: k.read(Q, *task.head, task.first + i, n),
            lambda n: k.read(K, *task.group, start + j, n),
        )
        T.buffer_store(task.scores, score * _scale(task), [i, j])


def _score_many(task: Task, start: Expr, depth: Expr) -> None:
    """Keys are turned so that they are in lanes; those past the end are left as they are and masked later."""
    k, tile, size = task.k, task.tile, task.k.extent(task.k.dims(Q)[3])
    with serial(depth) as j, serial(size) as n:
        T.buffer_store(task.keys, k.read(K, *task.group, start + j, n), [n, j])
    with serial(ceildiv(task.count, tile.rows)) as step, serial(ceildiv(depth, tile.width)) as part:
        row, column = step * i64(tile.rows), part * i64(tile.width)
        product = Product(
            left=lambda i, n: k.read(Q, *task.head, task.first + row + i, n),
            right=lambda n, j: task.keys[n, column + j],
            write=lambda i, j, value: T.buffer_store(task.scores, value * _scale(task), [row + i, column + j]),
            stage=k.is_computed(Q),
        )
        tile.multiply(tirx.min(task.count - row, i64(tile.rows)), size, product)


def _mask(task: Task, start: Expr, depth: Expr, i: Expr) -> None:
    """Minus infinity where a key is hidden or past the end; a block within the keys reads its mask without clamping."""
    extent = task.k.extent(task.k.dims(K)[2])
    width, parts = _parts(task, depth)

    def visible(*, whole: bool) -> None:
        with serial(parts) as part, lanes(width) as lane:
            j = part * i64(width) + lane
            key = start + j
            at = key if whole else tirx.min(key, extent - i64(1))
            score = _masked(task, task.scores[i, j], task.first + i, at)
            hidden = [] if whole else [key >= task.end]
            hidden += _out_of_sight(task, key, task.first + i)
            for condition in hidden:
                score = select(condition, tirx.const(-inf, task.tile.dtype), score)
            T.buffer_store(task.scores, score, [i, j])

    with T.If(start + i64(KEY_BLOCK) <= extent):
        with T.Then():
            visible(whole=True)
        with T.Else():
            visible(whole=False)


def _parts(task: Task, depth: Expr) -> tuple[int, Expr | int]:
    """How many keys of a row are masked and weighed at a time, and how often, for the first ``depth`` of a block."""
    if task.k.target.memory_operands:
        return KEY_BLOCK, 1
    width = VECTORS_WITHOUT_MEMORY_OPERANDS * task.k.target.lanes(DataType(task.tile.dtype).bits)
    return width, ceildiv(depth, width)


def _out_of_sight(task: Task, key: Expr, query: Expr) -> list[Expr]:
    """Conditions under which a causal mask hides a key from a query."""
    attrs = task.k.node.attrs
    last = task.offset + query
    ahead = [key > last] if attrs["causal"] else []
    return ahead if attrs["window"] is None else [*ahead, key <= last - i64(attrs["window"])]


def _masked(task: Task, score: Expr, query: Expr, key: Expr) -> Expr:
    if not task.k.has("mask"):
        return score
    dims = task.k.dims("mask")
    full = (*task.head, query, key)[4 - len(dims) :]
    found = task.k.read("mask", *(i64(0) if dim == 1 else i for i, dim in zip(full, dims, strict=True)))
    if task.k.operands["mask"].type.dtype.kind == "bool":
        return select(found, score, tirx.const(-inf, task.tile.dtype))
    return score + found


def _weigh(task: Task, depth: Expr, i: Expr) -> None:
    """Scores to weights under the new maximum of the row; what was summed under the old one is rescaled."""
    tile, dtype = task.tile, DTYPES["f64" if task.tile.dtype == "float64" else "f32"]
    width, parts = _parts(task, depth)
    top = Accumulator.open(ops.max, dtype, width)
    with serial(parts) as part, lanes(width) as j:
        top.add(j, task.scores[i, part * i64(width) + j])
    largest = bind(maximum(task.largest[i], top.total()))
    shift = bind(select(largest == const(-inf, largest), const(0, largest), largest))
    factor = exp(bind(task.largest[i] - shift))
    weights = Accumulator.open(ops.sum, dtype, width)
    with serial(parts) as part, lanes(width) as j:
        place = [i, part * i64(width) + j]
        weight = exp(bind(task.scores[tuple(place)] - shift), nonpositive=True)
        T.buffer_store(task.scores, weight, place)
        weights.add(j, weight)
    T.buffer_store(task.total, task.total[i] * factor + weights.total(), [i])
    T.buffer_store(task.largest, largest, [i])
    with serial(int(task.out.shape[1]) // tile.width) as part, lanes(tile.width) as j:
        column = part * i64(tile.width) + j
        T.buffer_store(task.out, task.out[i, column] * factor, [i, column])


def _add_values(task: Task, start: Expr, depth: Expr) -> None:
    """out += weights @ v; a last tile of columns that is not full repeats the last column."""
    k, tile, columns = task.k, task.tile, task.k.fixed(task.k.dims(V)[3])
    with serial(ceildiv(task.count, tile.rows)) as step:
        row = step * i64(tile.rows)

        def multiply(column: Expr, last: Expr | None) -> None:
            def value(n: Expr, j: Expr) -> Expr:
                place = column + j if last is None else tirx.min(column + j, last)
                return k.read(V, *task.group, start + n, place)

            product = Product(
                left=lambda i, n: task.scores[row + i, n],
                right=value,
                write=lambda i, j, sums: T.buffer_store(
                    task.out, task.out[row + i, column + j] + sums, [row + i, column + j]
                ),
            )
            tile.multiply(tirx.min(task.count - row, i64(tile.rows)), depth, product)

        with serial(columns // tile.width) as part:
            multiply(part * i64(tile.width), None)
        if columns % tile.width:
            multiply(i64(columns // tile.width * tile.width), i64(columns - 1))
