"""ATen's views, joins and tensors made from nothing. Result dims are torch's own, so a row only has to move data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from coilc.ir import Dim, SymDim, Value, dims, literal, ops
from coilc.ir.types import DTYPES

from .aten import (
    Call,
    Operand,
    Scalar,
    aten,
    axis_of,
    broadcast,
    cast,
    concat,
    full,
    product,
    reshape,
    slice_axis,
    tensor,
    transpose,
)  # fmt: skip

_I64 = DTYPES["i64"]

# --- views ------------------------------------------------------------------------------------------------------------


@aten("view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias", "_reshape_copy", "flatten.using_ints",
      "unflatten.int", "unsqueeze", "unsqueeze_copy", "squeeze", "squeeze.dim", "squeeze.dims", "squeeze_copy",
      "squeeze_copy.dim", "squeeze_copy.dims")  # fmt: skip
def _reshape(call: Call, x: Value, *_: object, **__: object) -> Value:
    return reshape(x, call.dims)


@aten("expand", "expand_copy", "expand_as", "broadcast_to")
def _expand(call: Call, x: Value, *_: object, **__: object) -> Value:
    return broadcast(x, call.dims)


@aten("permute", "permute_copy")
def _permute(call: Call, x: Value, dims: Sequence[int]) -> Value:
    return transpose(x, [axis_of(x, axis) for axis in dims])


@aten("transpose.int", "transpose_copy.int", "swapaxes")
def _transpose(call: Call, x: Value, dim0: int, dim1: int) -> Value:
    perm = list(range(x.type.rank))
    if perm:
        a, b = axis_of(x, dim0), axis_of(x, dim1)
        perm[a], perm[b] = perm[b], perm[a]
    return transpose(x, perm)


@aten("t", "t_copy", "numpy_T", "mT", "adjoint")
def _t(call: Call, x: Value) -> Value:
    return x if x.type.rank < 2 else _transpose(call, x, -1, -2)


@aten("movedim.int", "movedim.intlist")
def _movedim(call: Call, x: Value, source: int | Sequence[int], destination: int | Sequence[int]) -> Value:
    froms = [axis_of(x, a) for a in ([source] if isinstance(source, int) else source)]
    tos = [axis_of(x, a) for a in ([destination] if isinstance(destination, int) else destination)]
    rest = iter(a for a in range(x.type.rank) if a not in froms)
    placed = dict(zip(tos, froms, strict=True))
    return transpose(x, [placed[i] if i in placed else next(rest) for i in range(x.type.rank)])


@aten("slice.Tensor", "slice_copy.Tensor")
def _slice(
    call: Call, x: Value, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1
) -> Value:
    axis = axis_of(x, dim)
    length = call.dims[axis]
    if length == x.dims[axis] and step == 1:
        return x
    if length == 0:
        return slice_axis(x, axis, 0, 0)
    first = _from_front(call, start or 0, x.dims[axis])
    return slice_axis(x, axis, first, first + length if step == 1 else first + (length - 1) * step + 1, step)


def _from_front(call: Call, index: Dim, extent: Dim) -> Dim:
    """A start that may count from the end, clamped into the axis as Python does."""
    low, high = dims.bounds(index, call.symbols.ranges)
    position = extent + index if high is not None and high < 0 else index
    if isinstance(position, int) and isinstance(extent, int):
        return min(max(position, 0), extent)
    if low < 0 and position is index:
        raise call.unsupported(f"whether the slice bound {index} counts from the end depends on the input")
    return position


@aten("select.int", "select_copy.int")
def _select(call: Call, x: Value, dim: int, index: Dim) -> Value:
    axis = axis_of(x, dim)
    first = _from_front(call, index, x.dims[axis])
    return reshape(slice_axis(x, axis, first, first + 1), call.dims)


@aten("split.Tensor", "split_with_sizes", "chunk", "tensor_split.sections", "split_copy.Tensor",
      "split_with_sizes_copy", "unsafe_split.Tensor", "unsafe_chunk", "split.sizes")  # fmt: skip
def _split(call: Call, x: Value, _: object, dim: int = 0) -> list[Value]:
    axis = axis_of(x, dim)
    start: Dim = 0
    parts = []
    for piece in call.types:
        parts.append(slice_axis(x, axis, start, start + piece.dims[axis]))
        start = start + piece.dims[axis]
    return parts


@aten("unbind.int", "unbind_copy.int")
def _unbind(call: Call, x: Value, dim: int = 0) -> list[Value]:
    axis = axis_of(x, dim)
    return [reshape(slice_axis(x, axis, i, i + 1), piece.dims) for i, piece in enumerate(call.types)]


@aten("narrow", "narrow_copy")
def _narrow(call: Call, x: Value, dim: int, start: Dim, length: Dim) -> Value:
    axis = axis_of(x, dim)
    first = _from_front(call, start, x.dims[axis])
    return slice_axis(x, axis, first, first + length)


@aten("diagonal", "diagonal_copy")
def _diagonal(call: Call, x: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    a, b = axis_of(x, dim1), axis_of(x, dim2)
    last = transpose(x, [i for i in range(x.type.rank) if i not in (a, b)] + [a, b])
    rows, columns = last.dims[-2:]
    count = call.dims[-1]
    flat = reshape(last, (*last.dims[:-2], rows * columns))
    steps = ops.mul(ops.iota(dims=(count,), axis=0, dtype=_I64), tensor(columns + 1, _I64))
    first = offset if offset >= 0 else columns * -offset
    return ops.take(flat, ops.add(steps, tensor(first, _I64)), axis=last.type.rank - 2)


@aten("unfold", "unfold_copy")
def _unfold(call: Call, x: Value, dimension: int, size: int, step: int) -> Value:
    axis = axis_of(x, dimension)
    count = call.dims[axis]
    starts = ops.mul(ops.iota(dims=(count, size), axis=0, dtype=_I64), step)
    windows = ops.take(x, ops.add(starts, ops.iota(dims=(count, size), axis=1, dtype=_I64)), axis=axis)
    order = [i for i in range(windows.type.rank) if i != axis + 1]
    return transpose(windows, [*order, axis + 1])


@aten("as_strided")
def _as_strided(call: Call, x: Value, size: Any, stride: Any, storage_offset: Dim | None = None) -> Value:
    """The elements at the strides; every value here is dense and row-major, so the storage is the value itself."""
    flat = reshape(x, (x.type.size,))
    places: Value = tensor(storage_offset or 0, _I64)
    for axis, step in enumerate(stride):
        if call.dims:
            places = ops.add(places, ops.mul(ops.iota(dims=call.dims, axis=axis, dtype=_I64), tensor(step, _I64)))
    return ops.take(flat, places, axis=0)


# --- rearrangements ---------------------------------------------------------------------------------------------------


@aten("flip")
def _flip(call: Call, x: Value, dims: Sequence[int]) -> Value:
    axes = tuple(sorted(axis_of(x, axis) for axis in dims))
    return ops.flip(x, axes=axes) if axes else x


@aten("roll")
def _roll(call: Call, x: Value, shifts: Sequence[Dim], dims: Sequence[int] = ()) -> Value:
    if not dims:
        return reshape(_roll_axis(call, reshape(x, (x.type.size,)), shifts[0], 0), call.dims)
    for shift, axis in zip(shifts, dims, strict=True):
        x = _roll_axis(call, x, shift, axis_of(x, axis))
    return x


def _roll_axis(call: Call, x: Value, shift: Dim, axis: int) -> Value:
    extent = x.dims[axis]
    if isinstance(shift, int) and isinstance(extent, int):
        start = -shift % extent if extent else 0
        return x if start == 0 else _rotated(x, axis, start)
    if isinstance(shift, int) and abs(shift) <= dims.bounds(extent, call.symbols.ranges)[0]:
        return x if shift == 0 else _rotated(x, axis, extent - shift if shift > 0 else -shift)
    count = tensor(extent, _I64)
    places = ops.sub(ops.iota(dims=(extent,), axis=0, dtype=_I64), tensor(shift, _I64))
    return ops.take(x, ops.mod(places, count), axis=axis)


def _rotated(x: Value, axis: int, start: Dim) -> Value:
    return ops.concat(slice_axis(x, axis, start, x.dims[axis]), slice_axis(x, axis, 0, start), axis=axis)


@aten("repeat")
def _repeat(call: Call, x: Value, repeats: Sequence[Dim]) -> Value:
    extents = (*[1] * (len(repeats) - x.type.rank), *x.dims)
    if any(extent == 1 for extent in extents) and all(1 in pair for pair in zip(extents, repeats, strict=True)):
        return broadcast(x, call.dims)
    apart = [d for extent in extents for d in (1, extent)]
    tiled = [d for pair in zip(repeats, extents, strict=True) for d in pair]
    return reshape(broadcast(reshape(x, apart), tuple(tiled)), call.dims)


@aten("repeat_interleave.self_int")
def _repeat_interleave(
    call: Call, x: Value, repeats: Dim, dim: int | None = None, output_size: Dim | None = None
) -> Value:
    flat = reshape(x, (x.type.size,)) if dim is None else x
    axis = 0 if dim is None else axis_of(x, dim)
    before, after = flat.dims[: axis + 1], flat.dims[axis + 1 :]
    return reshape(broadcast(reshape(flat, (*before, 1, *after)), (*before, repeats, *after)), call.dims)


@aten("cat", "concat", "concatenate")
def _cat(call: Call, tensors: Sequence[Value], dim: int = 0) -> Value:
    legacy = [x for x in tensors if x.dims != (0,) or call.type.rank == 1]  # torch skips empty one-dimensional operands
    return concat([cast(x, call.dtype) for x in legacy], axis_of(legacy[0], dim))


@aten("stack")
def _stack(call: Call, tensors: Sequence[Value], dim: int = 0) -> Value:
    axis = dim % call.type.rank
    parts = [cast(x, call.dtype) for x in tensors]
    return concat([reshape(x, (*x.dims[:axis], 1, *x.dims[axis:])) for x in parts], axis)


@aten("constant_pad_nd", "pad")
def _pad(call: Call, x: Value, pad: Sequence[Dim], mode: str | Scalar = 0, value: Scalar | None = None) -> Value:
    if isinstance(mode, str) and mode != "constant":
        return _pad_by_index(call, x, pad, mode)
    fill = (value if isinstance(mode, str) else mode) or 0
    for axis, low, high in _padding(call, x, pad):
        x = _pad_axis(call, x, axis, low, high, fill)
    return x


def _padding(call: Call, x: Value, pad: Sequence[Dim]) -> list[tuple[int, Dim, Dim]]:
    """(axis, low, high), from torch's flat list that starts at the last axis."""
    return [
        (x.type.rank - 1 - i // 2, pad[i], pad[i + 1]) for i in range(0, len(pad), 2) if (pad[i], pad[i + 1]) != (0, 0)
    ]


def _pad_axis(call: Call, x: Value, axis: int, low: Dim, high: Dim, fill: Any) -> Value:
    """Negative padding removes elements."""
    start, stop = _removed(call, low), _removed(call, high)
    x = slice_axis(x, axis, start, x.dims[axis] - stop)
    before, after = (low + start, high + stop)
    if before == 0 and after == 0:
        return x
    zeros = tuple(0 for _ in x.dims)
    place = lambda amount: (*zeros[:axis], amount, *zeros[axis + 1 :])
    return ops.pad(x, low=place(before), high=place(after), value=float(fill))


def _removed(call: Call, amount: Dim) -> Dim:
    low, high = dims.bounds(amount, call.symbols.ranges)
    if low >= 0:
        return 0
    if high is not None and high <= 0:
        return -amount
    raise call.unsupported(f"whether the padding {amount} adds or removes elements depends on the input")


def _pad_by_index(call: Call, x: Value, pad: Sequence[Dim], mode: str) -> Value:
    """Reflect, replicate and circular padding: the places to read along each axis."""
    for axis, low, high in _padding(call, x, pad):
        extent = x.dims[axis]
        total = low + extent + high
        place = ops.sub(ops.iota(dims=(total,), axis=0, dtype=_I64), tensor(low, _I64))
        last = tensor(extent - 1, _I64)
        if mode == "replicate":
            place = ops.minimum(ops.maximum(place, 0), last)
        elif mode == "circular":
            place = ops.mod(place, tensor(extent, _I64))
        else:
            place = ops.sub(last, ops.abs(ops.sub(last, ops.abs(place))))
        x = ops.take(x, place, axis=axis)
    return x


@aten("reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
def _reflection_pad(call: Call, x: Value, padding: Sequence[Dim]) -> Value:
    return _pad_by_index(call, x, padding, "reflect")


@aten("replication_pad1d", "replication_pad2d", "replication_pad3d")
def _replication_pad(call: Call, x: Value, padding: Sequence[Dim]) -> Value:
    return _pad_by_index(call, x, padding, "replicate")


@aten("slice_scatter")
def _slice_scatter(call: Call, x: Value, source: Value, dim: int = 0, start: Dim | None = None, end: Dim | None = None,
                   step: int = 1) -> Value:  # fmt: skip
    axis = axis_of(x, dim)
    source, first = cast(source, call.dtype), _from_front(call, start or 0, x.dims[axis])
    length = source.dims[axis]
    if length == 0:
        return x
    if step == 1:
        around = [slice_axis(x, axis, 0, first), source, slice_axis(x, axis, first + length, x.dims[axis])]
        return concat([part for part in around if part.dims[axis] != 0], axis)
    extent = x.dims[axis]
    if isinstance(first, int) and isinstance(length, int) and isinstance(extent, int):
        table = np.arange(extent)
        table[first::step][:length] = extent + np.arange(length)
        return ops.take(concat([x, source], axis), literal(table), axis=axis)
    places = ops.add(ops.mul(ops.iota(dims=source.dims, axis=axis, dtype=_I64), step), tensor(first, _I64))
    return ops.scatter(x, places, source, axis=axis)


@aten("select_scatter")
def _select_scatter(call: Call, x: Value, source: Value, dim: int, index: Dim) -> Value:
    axis = axis_of(x, dim)
    first = _from_front(call, index, x.dims[axis])
    column = reshape(source, (*x.dims[:axis], 1, *x.dims[axis + 1 :]))
    return _slice_scatter(call, x, column, axis, first, first + 1)


# --- tensors from nothing ---------------------------------------------------------------------------------------------


@aten("arange", "arange.start", "arange.start_step")
def _arange(call: Call, start: Scalar, end: Scalar | None = None, step: Scalar = 1, **_: object) -> Value:
    first = 0 if end is None else start
    integral = all(isinstance(x, int | SymDim) for x in (first, step))
    dtype = _I64 if integral else call.dtype
    count = ops.iota(dims=call.dims, axis=0, dtype=dtype)
    scaled = count if step == 1 else ops.mul(count, tensor(step, dtype))
    return cast(scaled if isinstance(first, int) and first == 0 else ops.add(scaled, tensor(first, dtype)), call.dtype)


@aten("linspace")
def _linspace(call: Call, start: float, end: float, steps: Dim, **_: object) -> Value:
    """From both ends to the middle, as torch does, so that the last element is ``end`` exactly."""
    f64 = DTYPES["f64"]
    if steps == 1:
        return full(call, start)
    i = ops.iota(dims=call.dims, axis=0, dtype=f64)
    gap = ops.div(tensor(float(end) - float(start), f64), tensor(steps - 1, f64))
    rising = ops.add(ops.mul(i, gap), float(start))
    falling = ops.sub(float(end), ops.mul(ops.sub(tensor(steps - 1, f64), i), gap))
    return cast(ops.where(ops.lt(ops.mul(i, 2.0), tensor(steps, f64)), rising, falling), call.dtype)


@aten("full", "full_like")
def _full(call: Call, like: object, fill_value: Operand, **_: object) -> Value:
    return full(call, fill_value)


@aten("fill.Scalar", "fill.Tensor")
def _fill(call: Call, like: Value, value: Operand) -> Value:
    return full(call, value)


@aten("scalar_tensor")
def _scalar_tensor(call: Call, value: Scalar, **_: object) -> Value:
    return full(call, value)


@aten("new_full")
def _new_full(call: Call, like: Value, size: object, fill_value: Operand, **_: object) -> Value:
    return full(call, fill_value)


@aten("zeros", "zeros_like", "new_zeros", "zero")
def _zeros(call: Call, *_: object, **__: object) -> Value:
    return full(call, 0)


@aten("empty.memory_format", "empty_like", "new_empty", "empty_permuted", "empty_strided", "new_empty_strided")
def _empty(call: Call, *_: object, **__: object) -> Value:
    """Uninitialised memory may hold anything, so zeros are as good as any."""
    return full(call, 0)


@aten("ones", "ones_like", "new_ones")
def _ones(call: Call, *_: object, **__: object) -> Value:
    return full(call, 1)


@aten("eye", "eye.m")
def _eye(call: Call, *_: object, **__: object) -> Value:
    return cast(ops.eq(*_row_and_column(call)), call.dtype)


@aten("tril")
def _tril(call: Call, x: Value, diagonal: int = 0) -> Value:
    row, column = _row_and_column(call)
    return ops.where(broadcast(ops.le(column, ops.add(row, diagonal)), x.dims), x, tensor(0, call.dtype))


@aten("triu")
def _triu(call: Call, x: Value, diagonal: int = 0) -> Value:
    row, column = _row_and_column(call)
    return ops.where(broadcast(ops.ge(column, ops.add(row, diagonal)), x.dims), x, tensor(0, call.dtype))


def _row_and_column(call: Call) -> tuple[Value, Value]:
    return (ops.iota(dims=call.dims[-2:], axis=0, dtype=_I64), ops.iota(dims=call.dims[-2:], axis=1, dtype=_I64))


@aten("tril_indices", "triu_indices")
def _tri_indices(call: Call, *_: object, **__: object) -> Value:
    raise call.unsupported("triangle indices are only supported where torch can evaluate them while exporting")


@aten("numel")
def _numel(call: Call, x: Value) -> Dim:
    return product(x.dims)


@aten("_shape_as_tensor")
def _shape_as_tensor(call: Call, x: Value) -> Value:
    return concat([reshape(tensor(extent, call.dtype), (1,)) for extent in x.dims], 0)


@aten("pixel_shuffle")
def _pixel_shuffle(call: Call, x: Value, upscale_factor: int) -> Value:
    r = upscale_factor
    *lead, channels, height, width = x.dims
    split = reshape(x, (*lead, dims.divide_exactly(channels, r * r) or 0, r, r, height, width))
    n = len(lead)
    return reshape(transpose(split, [*range(n + 1), n + 3, n + 1, n + 4, n + 2]), call.dims)
