"""ATen's products and convolutions."""

from __future__ import annotations

import string
from collections.abc import Sequence

from coilc.ir import Dim, Dims, Value, ops
from coilc.ir.opdef import broadcast_dims
from coilc.ir.types import DTYPES

from .aten import Call, Scalar, aten, broadcast, cast, product, reshape, slice_axis, tensor, transpose

_I64 = DTYPES["i64"]


@aten("mm", "bmm")
def _mm(call: Call, x: Value, y: Value, *_: object) -> Value:
    return ops.matmul(cast(x, call.dtype), cast(y, call.dtype))


@aten("matmul", "mv", "dot", "vdot", "inner")
def _matmul(call: Call, x: Value, y: Value) -> Value:
    """torch.matmul: vectors are rows or columns, leading axes broadcast, and a shared right operand is one matrix."""
    a = x if x.type.rank > 1 else ops.reshape(x, dims=(1, x.dims[0]))
    b = y if y.type.rank > 1 else ops.reshape(y, dims=(y.dims[0], 1))
    if a.type.rank == 2 and b.type.rank > 2:  # one matrix for every column of y: the same product the other way round
        last = b.type.rank - 1
        swap = [*range(last - 1), last, last - 1]
        return reshape(transpose(ops.linear(transpose(b, swap), a), swap), call.dims)
    if b.type.rank == 2 and a.type.rank > 2:  # one matrix for every row of x
        flat = ops.matmul(reshape(a, (product(a.dims[:-1]), a.dims[-1])), b)
        return reshape(flat, call.dims)
    lead = broadcast_dims([a.dims[:-2], b.dims[:-2]])
    result = ops.matmul(broadcast(a, (*lead, *a.dims[-2:])), broadcast(b, (*lead, *b.dims[-2:])))
    return reshape(result, call.dims)


@aten("addmm", "baddbmm", "addmv")
def _addmm(call: Call, bias: Value, x: Value, y: Value, beta: Scalar = 1, alpha: Scalar = 1) -> Value:
    result = reshape(_matmul(call, x, y), call.dims) if y.type.rank == 1 else ops.matmul(x, y)
    result = result if alpha == 1 else ops.mul(result, tensor(alpha, call.dtype))
    if beta == 0:
        return result
    return ops.add(result, bias if beta == 1 else ops.mul(bias, tensor(beta, call.dtype)))


@aten("linear")
def _linear(call: Call, x: Value, weight: Value, bias: Value | None = None) -> Value:
    return ops.linear(x, weight, *([] if bias is None else [bias]))


@aten("outer", "ger")
def _outer(call: Call, x: Value, y: Value) -> Value:
    return ops.mul(
        ops.reshape(cast(x, call.dtype), dims=(*x.dims, 1)), ops.reshape(cast(y, call.dtype), dims=(1, *y.dims))
    )


@aten("bilinear")
def _bilinear(call: Call, x: Value, y: Value, weight: Value, bias: Value | None = None) -> Value:
    rows = [reshape(v, (product(v.dims[:-1]), v.dims[-1])) for v in (x, y)]
    result = reshape(ops.einsum(rows[0], weight, rows[1], equation="bi,oij,bj->bo"), call.dims)
    return result if bias is None else ops.add(result, bias)


# --- einsum -----------------------------------------------------------------------------------------------------------


@aten("einsum")
def _einsum(call: Call, equation: str, tensors: Sequence[Value], path: object = None) -> Value:
    terms, result = _explicit(equation.replace(" ", ""), [x.type.rank for x in tensors])
    values, squeezed = [], []
    extents = _letter_extents(terms, tensors)
    for term, x in zip(terms, tensors, strict=True):
        value, letters = _without_repeats(cast(x, call.dtype), term)
        value, letters = _without_ones(value, letters, extents)
        values.append(value)
        squeezed.append(letters)
    return reshape(ops.einsum(*values, equation=f"{','.join(squeezed)}->{result}"), call.dims)


def _explicit(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Letters for ``...`` and a written result, by the rules of torch.einsum."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    spare = [c for c in string.ascii_letters if c not in equation]
    widest = max(
        [rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True) if "..." in t], default=0
    )
    dots = "".join(spare[:widest])
    if not arrow:
        named = "".join(terms).replace(".", "")
        right = ("..." if dots else "") + "".join(sorted(c for c in set(named) if named.count(c) == 1))
    filled = []
    for term, rank in zip(terms, ranks, strict=True):
        missing = rank - len(term.replace("...", ""))
        filled.append(term.replace("...", dots[len(dots) - missing :] if missing else ""))
    return filled, right.replace("...", dots)


def _letter_extents(terms: Sequence[str], tensors: Sequence[Value]) -> dict[str, Dim]:
    extents: dict[str, Dim] = {}
    for term, x in zip(terms, tensors, strict=True):
        for letter, extent in zip(term, x.dims, strict=True):
            if extents.get(letter, 1) == 1:
                extents[letter] = extent
    return extents


def _without_repeats(x: Value, term: str) -> tuple[Value, str]:
    """Take the diagonal of letters that one operand repeats, ``ii``."""
    for letter in dict.fromkeys(term):
        while term.count(letter) > 1:
            a = term.index(letter)
            b = term.index(letter, a + 1)
            last = transpose(x, [i for i in range(x.type.rank) if i not in (a, b)] + [a, b])
            extent = last.dims[-1]
            flat = reshape(last, (*last.dims[:-2], extent * extent))
            places = ops.mul(ops.iota(dims=(extent,), axis=0, dtype=_I64), tensor(extent + 1, _I64))
            x = ops.take(flat, places, axis=flat.type.rank - 1)
            term = "".join(c for i, c in enumerate(term) if i not in (a, b)) + letter
    return x, term


def _without_ones(x: Value, term: str, extents: dict[str, Dim]) -> tuple[Value, str]:
    """Drop axes of extent 1 that broadcast against a larger one."""
    kept = [i for i, letter in enumerate(term) if x.dims[i] == extents[letter]]
    return reshape(x, tuple(x.dims[i] for i in kept)), "".join(term[i] for i in kept)


# --- convolution ------------------------------------------------------------------------------------------------------

Extents = int | Sequence[int]


def _spread(value: Extents, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


@aten("convolution", "conv1d", "conv2d", "conv3d", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def _conv(
    call: Call, x: Value, weight: Value, bias: Value | None = None, stride: Extents = 1, padding: Extents | str = 0,
    dilation: Extents = 1, *rest: object, **named: object,
) -> Value:  # fmt: skip
    transposed, output_padding, groups = _conv_rest(call, rest, named)
    spatial = weight.type.rank - 2
    strides, dilations = _spread(stride, spatial), _spread(dilation, spatial)
    pads = _conv_padding(padding, weight.dims[2:], dilations)
    batched = x if x.type.rank == spatial + 2 else ops.reshape(x, dims=(1, *x.dims))
    if transposed:
        result = _conv_transpose(batched, weight, strides, pads, _spread(output_padding, spatial), dilations, groups)
    else:
        result = ops.conv(batched, weight, strides=strides, padding=pads, dilation=dilations, groups=groups)
    if bias is not None:
        result = ops.add(result, ops.reshape(bias, dims=(bias.dims[0], *[1] * spatial)))
    return reshape(result, call.dims)


def _conv_rest(call: Call, rest: Sequence[object], named: dict[str, object]) -> tuple[bool, Extents, int]:
    if call.name == "aten.convolution.default":
        transposed, output_padding, groups = rest
        return bool(transposed), output_padding, groups  # type: ignore[return-value]
    return False, 0, rest[0] if rest else named.get("groups", 1)  # type: ignore[return-value]


def _conv_padding(padding: Extents | str, taps: Dims, dilation: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(taps)
    if padding == "same":
        totals = [step * (int(k) - 1) for step, k in zip(dilation, taps, strict=True)]  # type: ignore[arg-type]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in _spread(padding, len(taps)))  # type: ignore[arg-type]


@aten("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transposed(
    call: Call, x: Value, weight: Value, bias: Value | None = None, stride: Extents = 1, padding: Extents = 0,
    output_padding: Extents = 0, groups: int = 1, dilation: Extents = 1,
) -> Value:  # fmt: skip
    general = Call("aten.convolution.default", call.types, call.symbols)
    return _conv(general, x, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _conv_transpose(
    x: Value, weight: Value, strides: Sequence[int], pads: Sequence[tuple[int, int]], extra: Sequence[int],
    dilations: Sequence[int], groups: int,
) -> Value:  # fmt: skip
    """As a convolution of the input with zeros between its elements and the kernel reversed, roles exchanged."""
    spatial = len(strides)
    for i, stride in enumerate(strides):
        x = _spaced(x, 2 + i, stride)
    taps = weight.dims[2:]
    inputs, outputs = weight.dims[0], weight.dims[1]
    grouped = ops.reshape(weight, dims=(groups, _exact(inputs, groups), outputs, *taps))
    swapped = transpose(grouped, [0, 2, 1, *range(3, 3 + spatial)])
    kernel = ops.flip(
        reshape(swapped, (groups * outputs, _exact(inputs, groups), *taps)), axes=tuple(range(2, 2 + spatial))
    )
    reach = [step * (int(k) - 1) for step, k in zip(dilations, taps, strict=True)]  # type: ignore[arg-type]
    around = [(r - low, r - high + e) for r, (low, high), e in zip(reach, pads, extra, strict=True)]
    low = tuple(max(a, 0) for a, _ in around)
    high = tuple(max(b, 0) for _, b in around)
    for i, (a, b) in enumerate(around):
        x = slice_axis(x, 2 + i, max(-a, 0), x.dims[2 + i] - max(-b, 0))
    return ops.conv(
        x,
        kernel,
        strides=(1,) * spatial,
        padding=tuple(zip(low, high, strict=True)),
        dilation=tuple(dilations),
        groups=groups,
    )


def _exact(dim: Dim, divisor: int) -> Dim:
    return dim // divisor


def _spaced(x: Value, axis: int, stride: int) -> Value:
    """``stride - 1`` zeros between neighbours along ``axis``."""
    if stride == 1:
        return x
    extent = x.dims[axis]
    apart = ops.reshape(x, dims=(*x.dims[: axis + 1], 1, *x.dims[axis + 1 :]))
    zeros = tuple(0 for _ in apart.dims)
    filled = ops.pad(apart, low=zeros, high=(*zeros[: axis + 1], stride - 1, *zeros[axis + 2 :]), value=0.0)
    joined = ops.reshape(filled, dims=(*x.dims[:axis], extent * stride, *x.dims[axis + 1 :]))
    return slice_axis(joined, axis, 0, extent * stride - (stride - 1))
