"""ATen's network layers that the IR keeps whole: norms, softmax, attention, pooling, resizing, lookup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from coilc.ir import Dim, DType, Value, dims, ops
from coilc.ir.types import DTYPES

from .aten import TO_TORCH, Call, aten, axis_of, broadcast, cast, product, reshape, slice_axis, tensor
from .aten_linalg import Extents, _spread

_I64 = DTYPES["i64"]

# --- softmax ----------------------------------------------------------------------------------------------------------


@aten("softmax.int", "_softmax", "_safe_softmax")
def _softmax(call: Call, x: Value, dim: int, dtype: object = None) -> Value:
    value = cast(x, call.dtype)
    if x.type.rank == 0:
        return tensor(1, call.dtype)
    result = ops.softmax(value, axis=axis_of(x, dim))
    if "_safe" not in call.name:
        return result
    hidden = ops.all(ops.eq(value, -math.inf), axes=(axis_of(x, dim),), keepdims=True)
    return ops.where(broadcast(hidden, x.dims), tensor(0, call.dtype), result)


@aten("log_softmax.int", "_log_softmax")
def _log_softmax(call: Call, x: Value, dim: int, dtype: object = None) -> Value:
    return tensor(0, call.dtype) if x.type.rank == 0 else ops.log_softmax(cast(x, call.dtype), axis=axis_of(x, dim))


# --- norms ------------------------------------------------------------------------------------------------------------


@aten("layer_norm")
def _layer_norm(
    call: Call, x: Value, normalized_shape: Sequence[Dim], weight: Value | None = None, bias: Value | None = None,
    eps: float = 1e-5, cudnn_enable: bool = True,
) -> Value:  # fmt: skip
    rows, size = x.dims[: -len(normalized_shape)], product(normalized_shape)
    gain = broadcast(tensor(1, x.type.dtype), (size,)) if weight is None else reshape(weight, (size,))
    shift = broadcast(tensor(0, x.type.dtype), (size,)) if bias is None else reshape(bias, (size,))
    return reshape(ops.layer_norm(reshape(x, (*rows, size)), gain, shift, eps=float(eps)), call.dims)


@aten("native_layer_norm")
def _native_layer_norm(
    call: Call, x: Value, normalized_shape: Sequence[Dim], weight: Value | None, bias: Value | None, eps: float
) -> tuple[Value, Value, Value]:
    axes = tuple(range(x.type.rank - len(normalized_shape), x.type.rank))
    rstd = ops.rsqrt(ops.add(ops.var(x, axes=axes, keepdims=True, correction=0), float(eps)))
    return _layer_norm(call, x, normalized_shape, weight, bias, eps), ops.mean(x, axes=axes, keepdims=True), rstd


@aten("rms_norm")
def _rms_norm(
    call: Call, x: Value, normalized_shape: Sequence[Dim], weight: Value | None = None, eps: float | None = None
) -> Value:
    rows, size = x.dims[: -len(normalized_shape)], product(normalized_shape)
    gain = broadcast(tensor(1, x.type.dtype), (size,)) if weight is None else reshape(weight, (size,))
    return reshape(
        ops.rms_norm(reshape(x, (*rows, size)), gain, eps=_epsilon(x.type.dtype) if eps is None else eps), call.dims
    )


def _epsilon(dtype: DType) -> float:
    """torch's default: the gap after 1."""
    return torch.finfo(TO_TORCH[dtype]).eps


@aten("group_norm")
def _group_norm(
    call: Call, x: Value, num_groups: int, weight: Value | None = None, bias: Value | None = None, eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    grouped = reshape(x, (x.dims[0], num_groups, product(x.dims[1:]) // num_groups))
    mean = ops.mean(grouped, axes=(2,), keepdims=True)
    variance = ops.var(grouped, axes=(2,), keepdims=True, correction=0)
    normal = ops.mul(ops.sub(grouped, mean), ops.rsqrt(ops.add(variance, float(eps))))
    return _scale_and_shift(reshape(normal, x.dims), weight, bias)


@aten("native_group_norm")
def _native_group_norm(
    call: Call, x: Value, weight: Value | None, bias: Value | None, N: Dim, C: Dim, HxW: Dim, group: int, eps: float
) -> tuple[Value, Value, Value]:
    grouped = reshape(x, (x.dims[0], group, product(x.dims[1:]) // group))
    mean = ops.mean(grouped, axes=(2,), keepdims=False)
    rstd = ops.rsqrt(ops.add(ops.var(grouped, axes=(2,), keepdims=False, correction=0), float(eps)))
    return _group_norm(call, x, group, weight, bias, eps), mean, rstd


@aten("instance_norm")
def _instance_norm(
    call: Call, x: Value, weight: Value | None, bias: Value | None, running_mean: Value | None,
    running_var: Value | None, use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    if not use_input_stats:
        return _batch_norm(call, x, weight, bias, running_mean, running_var, False, momentum, eps)
    channels = x.dims[1]
    if not isinstance(channels, int):
        raise call.unsupported("instance_norm needs a known number of channels")
    return _group_norm(call, x, channels, weight, bias, eps)


def _scale_and_shift(x: Value, weight: Value | None, bias: Value | None) -> Value:
    """Per channel, axis 1."""
    column = lambda v: ops.reshape(v, dims=(v.dims[0], *[1] * (x.type.rank - 2)))
    x = x if weight is None else ops.mul(x, column(weight))
    return x if bias is None else ops.add(x, column(bias))


@aten("batch_norm")
def _batch_norm(
    call: Call, x: Value, weight: Value | None, bias: Value | None, running_mean: Value | None,
    running_var: Value | None, training: bool, momentum: float, eps: float, cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    if training or running_mean is None or running_var is None:
        axes = tuple(i for i in range(x.type.rank) if i != 1)
        mean, variance = ops.mean(x, axes=axes), ops.var(x, axes=axes, correction=0)
        if running_mean is not None and training:
            raise call.unsupported("batch_norm while training updates its statistics; export the module in eval mode")
    else:
        mean, variance = running_mean, running_var
    factor = ops.rsqrt(ops.add(variance, float(eps)))
    factor = factor if weight is None else ops.mul(factor, weight)
    shift = ops.neg(ops.mul(mean, factor))
    return _scale_and_shift(x, factor, shift if bias is None else ops.add(bias, shift))


@aten("_native_batch_norm_legit_no_training")
def _native_batch_norm(
    call: Call, x: Value, weight: Value | None, bias: Value | None, running_mean: Value, running_var: Value,
    momentum: float, eps: float,
) -> tuple[Value, Value, Value]:  # fmt: skip
    nothing = broadcast(tensor(0, x.type.dtype), (0,))
    return _batch_norm(call, x, weight, bias, running_mean, running_var, False, momentum, eps), nothing, nothing


# --- attention --------------------------------------------------------------------------------------------------------


@aten("scaled_dot_product_attention")
def _attention(
    call: Call, q: Value, k: Value, v: Value, attn_mask: Value | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Value:  # fmt: skip
    if dropout_p:
        raise call.unsupported("attention with dropout is random; export the module in eval mode")
    q4, k4, v4 = (_heads(x) for x in (q, k, v))
    if not enable_gqa:
        lead = (q4.dims[0], q4.dims[1])
        k4, v4 = (broadcast(x, (*lead, *x.dims[2:])) for x in (k4, v4))
    masks = {} if attn_mask is None else {"mask": _mask(attn_mask, q, call)}
    if scale is None:
        width = q.dims[-1]
        if not isinstance(width, int):
            raise call.unsupported("attention needs a known head size or an explicit scale")
        scale = 1 / math.sqrt(width)
    o = ops.attention(q4, k4, v4, *masks.values(), optional=tuple(masks), scale=float(scale), causal=is_causal)
    return reshape(o, call.dims)


@aten("_scaled_dot_product_flash_attention_for_cpu")
def _flash_attention(
    call: Call, q: Value, k: Value, v: Value, dropout_p: float = 0.0, is_causal: bool = False,
    attn_mask: Value | None = None, scale: float | None = None,
) -> tuple[Value, None]:  # fmt: skip
    """What run_decompositions leaves of attention on a CPU; the second result serves a backward pass."""
    return _attention(call, q, k, v, attn_mask, dropout_p, is_causal, scale), None


def _heads(x: Value) -> Value:
    """[..., H, L, E] as [B, H, L, E]."""
    if x.type.rank == 4:
        return x
    lead = (1, 1, *x.dims[:-2])[-2:] if x.type.rank < 4 else (product(x.dims[:-3]), x.dims[-3])
    return reshape(x, (*lead, *x.dims[-2:]))


def _mask(mask: Value, q: Value, call: Call) -> Value:
    """Broadcastable to [B, H, L, S], in the queries' dtype unless bool."""
    mask = mask if mask.type.dtype.kind == "bool" else cast(mask, call.dtype)
    if q.type.rank > 4:
        full = broadcast(mask, (*q.dims[:-2], *mask.dims[-2:]))
        return reshape(full, (product(q.dims[:-3]), *full.dims[-3:]))
    if q.type.rank == 4:
        return mask
    return reshape(mask, (*(1, 1, *mask.dims[:-2])[-2:], *mask.dims[-2:]))


# --- lookup -----------------------------------------------------------------------------------------------------------


@aten("embedding")
def _embedding(call: Call, weight: Value, indices: Value, *_: object, **__: object) -> Value:
    """Positions that the model counts itself read the table's first rows, which bounds the length by the table's."""
    counted = indices
    while counted.op.name in ("reshape", "broadcast") and counted.type.size == counted.node.inputs[0].type.size:
        counted = counted.node.inputs[0]
    if counted.op.name == "iota" and counted.type.rank == 1 and isinstance(weight.dims[0], int):
        call.symbols.narrow(counted.dims[0], weight.dims[0])
        return reshape(slice_axis(weight, 0, 0, counted.dims[0]), call.dims)
    return ops.take(weight, indices, axis=0)


@aten("one_hot")
def _one_hot(call: Call, x: Value, num_classes: int = -1) -> Value:
    if num_classes < 0:
        raise call.unsupported("one_hot needs num_classes; without it the size depends on the values")
    classes = ops.iota(dims=(*x.dims, num_classes), axis=x.type.rank, dtype=x.type.dtype)
    return cast(ops.eq(ops.reshape(x, dims=(*x.dims, 1)), classes), _I64)


# --- pooling ----------------------------------------------------------------------------------------------------------


def _pooled(x: Value, kind: str, window: Extents, stride: Extents | None, padding: Extents, dilation: Extents,
            spatial: int, ceil_mode: bool, call: Call) -> Value:  # fmt: skip
    sizes = _spread(window, spatial)
    steps = _spread(stride, spatial) if stride else sizes
    gaps, pads = _spread(dilation, spatial), _spread(padding, spatial)
    around = [(pad, pad) for pad in pads]
    if ceil_mode:  # as much more padding at the end as the last window needs
        for i, (extent, wanted) in enumerate(zip(x.dims[-spatial:], call.dims[-spatial:], strict=True)):
            needed = (wanted - 1) * steps[i] + gaps[i] * (sizes[i] - 1) + 1 - extent - pads[i]
            if not isinstance(needed, int):
                raise call.unsupported("pooling with ceil_mode needs known extents")
            around[i] = (pads[i], max(needed, pads[i]))
    return ops.pool(x, kind=kind, window=sizes, strides=steps, padding=tuple(around), dilation=gaps)


@aten("max_pool1d", "max_pool2d", "max_pool3d")
def _max_pool(call: Call, x: Value, kernel_size: Extents, stride: Extents | None = None, padding: Extents = 0,
              dilation: Extents = 1, ceil_mode: bool = False) -> Value:  # fmt: skip
    spatial = int(call.name.split("pool")[1][0])
    return _pooled(x, "max", kernel_size, stride, padding, dilation, spatial, ceil_mode, call)


@aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def _avg_pool(call: Call, x: Value, kernel_size: Extents, stride: Extents | None = None, padding: Extents = 0,
              ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None) -> Value:  # fmt: skip
    spatial = int(call.name.split("pool")[1][0])
    total = _pooled(x, "sum", kernel_size, stride, padding, 1, spatial, ceil_mode, call)
    if divisor_override:
        return ops.div(total, float(divisor_override))
    plain = not ceil_mode and (count_include_pad or not any(_spread(padding, spatial)))
    if plain:
        return ops.div(total, float(math.prod(_spread(kernel_size, spatial))))
    return ops.div(total, _window_sizes(x, call, kernel_size, stride, padding, spatial, ceil_mode, count_include_pad))


def _window_sizes(x: Value, call: Call, window: Extents, stride: Extents | None, padding: Extents, spatial: int,
                  ceil_mode: bool, with_padding: bool) -> Value:  # fmt: skip
    """How many elements each window averages: the pooled sum of ones."""
    ones = broadcast(tensor(1, x.type.dtype), x.dims)
    if not with_padding:
        return _pooled(ones, "sum", window, stride, padding, 1, spatial, ceil_mode, call)
    margin = (*[0] * (x.type.rank - spatial), *_spread(padding, spatial))
    padded = ops.pad(ones, low=margin, high=margin, value=1.0)
    return _pooled(padded, "sum", window, stride or window, 0, 1, spatial, ceil_mode, call)


@aten(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"
)
def _adaptive_avg_pool(call: Call, x: Value, output_size: Extents) -> Value:
    return _adaptive(call, x, output_size, "mean")


@aten("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(call: Call, x: Value, output_size: Extents) -> tuple[Value, None]:
    return _adaptive(call, x, output_size, "max"), None


def _adaptive(call: Call, x: Value, output_size: Extents, kind: str) -> Value:
    spatial = int(call.name.split("pool")[1][0])
    sizes = _spread(output_size, spatial)
    first = x.type.rank - spatial
    if all(size == 1 for size in sizes):
        return (ops.mean if kind == "mean" else ops.max)(x, axes=tuple(range(first, x.type.rank)), keepdims=True)
    for i, size in enumerate(sizes):
        x = _adaptive_axis(call, x, first + i, size, kind)
    return x


def _adaptive_axis(call: Call, x: Value, axis: int, size: int, kind: str) -> Value:
    """Cell i covers floor(i*n/size) to ceil((i+1)*n/size)."""
    extent, reduce = x.dims[axis], ops.mean if kind == "mean" else ops.max
    whole = dims.divide_exactly(extent, size)
    if whole is not None:
        apart = reshape(x, (*x.dims[:axis], size, whole, *x.dims[axis + 1 :]))
        return reduce(apart, axes=(axis + 1,), keepdims=False)
    if not isinstance(extent, int):
        raise call.unsupported("adaptive pooling of a dynamic axis needs an output size that divides it")
    cells = [(i * extent // size, -(-(i + 1) * extent // size)) for i in range(size)]
    return ops.concat(*(reduce(slice_axis(x, axis, a, b), axes=(axis,), keepdims=True) for a, b in cells), axis=axis)


# --- resizing ---------------------------------------------------------------------------------------------------------


@aten("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_nearest1d.vec", "upsample_nearest2d.vec",
      "upsample_nearest3d.vec")  # fmt: skip
def _upsample_nearest(call: Call, x: Value, output_size: object, *factors: Any, **named: Any) -> Value:
    """Scales come as one list (``vec``) or one argument per axis, or not at all when the size was asked for."""
    given = named.get("scale_factors") or (factors[0] if factors and isinstance(factors[0], list) else factors)
    scales = [scale for scale in given or () if scale]
    for axis in range(2, x.type.rank):
        x = _nearest_along(x, axis, call.dims[axis], scales[axis - 2] if scales else None)
    return x


def _nearest_along(x: Value, axis: int, wanted: Dim, scale: float | None) -> Value:
    extent = x.dims[axis]
    times = dims.divide_exactly(wanted, extent)
    if times is not None:
        before, after = x.dims[: axis + 1], x.dims[axis + 1 :]
        apart = broadcast(reshape(x, (*before, 1, *after)), (*before, times, *after))
        return reshape(apart, (*x.dims[:axis], wanted, *after))
    f32 = DTYPES["f32"]
    ratio = tensor(1.0 / scale, f32) if scale else ops.div(tensor(extent, f32), tensor(wanted, f32))
    place = cast(ops.floor(ops.mul(ops.iota(dims=(wanted,), axis=0, dtype=f32), ratio)), _I64)
    return ops.take(x, ops.minimum(place, tensor(extent - 1, _I64)), axis=axis)
