"""Direct convolution: lanes along the last spatial axis, a few output channels per task.

Each element of x that is loaded feeds all channels of the block. At the edges of the last axis the loads are masked,
elsewhere they are plain; taps that fall outside the other axes are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import dims as d

from ..loops import for_each_task
from ..scalar import Expr, bind, dtype_name, on_device
from .anchor import Anchor
from .loops import i64, lanes, local, serial, unrolled, when

X, W = range(2)
SUMS = 8  # vectors of partial sums per task: enough independent multiply-adds to hide their latency


@dataclass(frozen=True)
class Tile:
    """What one task computes: ``channels`` output channels at ``width`` neighbouring places of the last axis."""

    channels: int
    width: int

    @staticmethod
    def of(k: Anchor, per_group: int) -> Tile:
        channels = next(c for c in range(min(SUMS, per_group), 0, -1) if per_group % c == 0)
        lanes = k.target.vector_bits // 32
        width = lanes * max(1, min(4, SUMS // channels))
        last = k.node.types[0].dims[-1]
        while isinstance(last, int) and width > last:
            width //= 2
        return Tile(channels, width)


def emit_conv(k: Anchor) -> None:
    """Write the body of the kernel: x[B, C, *S], w[O, C/groups, *K] -> y[B, O, *T]."""
    batch, channels, *space = k.node.types[0].dims
    groups = k.node.attrs["groups"]
    per_group = d.divide_exactly(channels, groups)
    tile = Tile.of(k, int(per_group) if isinstance(per_group, int) else 1)
    *outer, last = space
    count = (last + (tile.width - 1)) // tile.width
    blocks = d.divide_exactly(channels, tile.channels)
    assert blocks is not None, "the block of channels divides them"
    tasks = (batch, blocks, *outer, count)

    def task(p: Expr) -> None:
        b, block, *row, i = k.kernel.reader.unravel(p, tasks)
        first = bind(block * i64(tile.channels))
        _place(k, tile, b, first, row, i, last)

    for_each_task(k.kernel, d.size(tasks), d.size((batch, channels, *space, *k.dims(W)[1:])), task)


def _place(k: Anchor, tile: Tile, b: Expr, first: Expr, row: list[Expr], i: Expr, last: d.Dim) -> None:
    """The last block is moved back to end at the extent; a symbolic extent may be shorter than that."""
    extent = k.extent(last)
    if isinstance(last, int) or tile.width == 1:
        start = bind(tirx.min(i * i64(tile.width), extent - i64(tile.width)))
        return _tile(k, tile, b, first, row, start)
    with T.If(extent >= i64(tile.width)):
        with T.Then():
            _tile(k, tile, b, first, row, bind(tirx.min(i * i64(tile.width), extent - i64(tile.width))))
        with T.Else(), serial(extent) as j:
            _tile(k, Tile(tile.channels, 1), b, first, row, j)


def _tile(k: Anchor, tile: Tile, b: Expr, first: Expr, row: list[Expr], start: Expr) -> None:
    dtype = k.compute_dtype(X)
    sums = local((tile.channels, tile.width), dtype)
    seen = local((tile.width,), dtype)
    with unrolled(tile.channels) as o, lanes(tile.width) as lane:
        T.buffer_store(sums, tirx.const(0, dtype), [o, lane])
    inner = k.extent(k.dims(W)[1])
    # All channels of a tile belong to one group.
    group = tirx.truncdiv(first * i64(k.node.attrs["groups"]), k.extent(k.dims(W)[0]))
    origin = bind(group * inner)

    def tap(c: Expr, taps: list[Expr]) -> None:
        rows, valid = _source(k, row, taps[:-1])

        def multiply() -> None:
            _load(k, tile, seen, [b, origin + c, *rows], start, taps[-1])
            with unrolled(tile.channels) as o, lanes(tile.width) as lane:
                T.buffer_store(sums, sums[o, lane] + seen[lane] * k.read(W, first + o, c, *taps), [o, lane])

        if valid is None:
            multiply()
        else:
            with when(valid):
                multiply()

    with serial(inner) as c:
        _over_taps([k.fixed(n) for n in k.dims(W)[2:]], lambda taps: tap(c, taps))
    with unrolled(tile.channels) as o, lanes(tile.width) as lane:
        k.store(0, [b, first + o, *row, start + lane], sums[o, lane])


def _over_taps(window: list[int], body: Callable[[list[Expr]], None]) -> None:
    def nest(taps: list[Expr]) -> None:
        if len(taps) == len(window):
            body(taps)
        elif window[len(taps)] == 1:
            nest([*taps, i64(0)])
        else:
            with serial(window[len(taps)]) as i:
                nest([*taps, i])

    nest([])


def _source(k: Anchor, row: list[Expr], taps: list[Expr]) -> tuple[list[Expr], Expr | None]:
    """Where the outer spatial axes of x are read, and whether that is inside (``None``: always)."""
    places, tests = [], []
    for axis, (at, tap) in enumerate(zip(row, taps, strict=True)):
        low, high = k.node.attrs["padding"][axis]
        place = bind(at * i64(k.node.attrs["strides"][axis]) + tap * i64(k.node.attrs["dilation"][axis]) - i64(low))
        places.append(place)
        tests += [place >= i64(0)] * (low > 0) + [place < k.extent(k.dims(X)[2 + axis])] * (high > 0)
    return places, reduce(tirx.And, tests) if tests else None


def _load(k: Anchor, tile: Tile, seen: tirx.Buffer, lead: list[Expr], start: Expr, tap: Expr) -> None:
    """The elements of x that one tap of the last axis sees."""
    stride = k.node.attrs["strides"][-1]
    low, high = k.node.attrs["padding"][-1]
    at = bind(start * i64(stride) + tap * i64(k.node.attrs["dilation"][-1]) - i64(low))
    extent = k.extent(k.dims(X)[-1])

    def plain() -> None:
        with lanes(tile.width) as lane:
            T.buffer_store(seen, k.read(X, *lead, at + lane * i64(stride)), [lane])

    if low == 0 and high == 0:
        plain()
        return
    inside = tirx.And(at >= i64(0), at + i64((tile.width - 1) * stride) < extent)
    with T.If(inside):
        with T.Then():
            plain()
        with T.Else():
            _masked(k, tile, seen, lead, at, extent)


def _masked(k: Anchor, tile: Tile, seen: tirx.Buffer, lead: list[Expr], at: Expr, extent: Expr) -> None:
    """Zero outside of the axis."""
    stride, x = k.node.attrs["strides"][-1], k.operands[X]
    buffer = k.kernel.reader.buffers.get(x)
    vector = stride == 1 and tile.width > 1 and x.type.dtype.is_float and not on_device()
    if vector and buffer is not None and str(buffer.dtype) == str(seen.dtype):
        _masked_vector(tile, seen, buffer[k.kernel.reader.offset([*lead, at], x.dims)], at, extent)
        return
    with lanes(tile.width) as j:
        place = at + j * i64(stride)
        inside = tirx.And(place >= i64(0), place < extent)
        clamped = tirx.max(tirx.min(place, extent - i64(1)), i64(0))
        element = k.kernel.reader.unless_empty(x, [-1], partial(k.read, X, *lead, clamped))
        T.buffer_store(seen, tirx.Select(inside, element, tirx.const(0, str(seen.dtype))), [j])


def _masked_vector(tile: Tile, seen: tirx.Buffer, element: Expr, at: Expr, extent: Expr) -> None:
    """Neighbouring elements from ``element`` on, at place ``at`` of an axis; those outside of it are not touched."""
    zero = tirx.const(0, str(seen.dtype))
    lane = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), tile.width)
    first, end = (bind(_int32(v, tile.width)) for v in (-at, extent - at))
    mask = tirx.And(lane >= T.broadcast(first, tile.width), lane < T.broadcast(end, tile.width))
    window = T.decl_buffer((tile.width,), str(seen.dtype), data=T.address_of(element))
    loaded = T.masked_load(f"{dtype_name(zero)}x{tile.width}", window, lane, mask)
    T.buffer_store(seen, tirx.Select(mask, loaded, T.broadcast(zero, tile.width)), [lane])


def _int32(value: Expr, width: int) -> Expr:
    """A lane number from a distance that may exceed 32 bits."""
    return T.Cast("int32", tirx.max(tirx.min(value, i64(width)), i64(-1)))
