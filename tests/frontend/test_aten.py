"""Every row of the ATen table: torch functions imported, interpreted and compared with eager, statically and dynamically."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coilc.frontend.convert import to_numpy
from coilc.frontend.torch_export import export
from coilc.ir import Module, interpret

DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64,
          "i32": torch.int32, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool, "c64": torch.complex64}  # fmt: skip
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-9}  # relative Frobenius norm; f32 below

Function = Callable[..., Any]


class Wrapped(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *xs: torch.Tensor) -> Any:
        return self.function(*xs)


def sample(spec: str, seed: int) -> torch.Tensor:
    """``f32[3, 4]``; a range may follow, ``i64[5]:0..3`` (both included)."""
    kind, extents, limits = re.fullmatch(r"(\w+)\[([\d, ]*)\](?::(.+))?", spec).groups()
    shape = [int(n) for n in extents.split(",") if n.strip()]
    low, high = (float(x) for x in limits.split("..")) if limits else (-2.0, 2.0)
    rng, dtype = np.random.default_rng(seed), DTYPES[kind]
    if dtype == torch.bool:
        return torch.from_numpy(rng.random(shape) < 0.5)
    if not dtype.is_floating_point and not dtype.is_complex:
        low = max(low, 0) if kind == "u8" else low
        return torch.from_numpy(rng.integers(int(low), int(high) + 1, shape)).to(dtype)
    values = rng.uniform(low, high, shape) + (1j * rng.uniform(low, high, shape) if dtype.is_complex else 0)
    return torch.from_numpy(np.asarray(values)).to(dtype)


def flat(result: Any) -> list[torch.Tensor]:
    items = result if isinstance(result, list | tuple) else [result]
    return [
        x
        for item in items
        for x in (flat(item) if isinstance(item, list | tuple) else [item])
        if isinstance(x, torch.Tensor)
    ]


def check(module: Module, function: Function, operands: list[torch.Tensor]) -> None:
    names = [v.node.attrs["name"] for v in module.entries["main"].inputs]
    found = interpret(module, dict(zip(names, map(to_numpy, operands), strict=True)))
    expected = flat(function(*operands))
    assert len(found) == len(expected)
    for array, tensor in zip(found.values(), expected, strict=True):
        agree(array, tensor)


def agree(array: np.ndarray, tensor: torch.Tensor) -> None:
    reference = to_numpy(tensor)
    assert array.shape == reference.shape
    assert array.dtype == reference.dtype
    if not tensor.is_floating_point() and not tensor.is_complex():
        np.testing.assert_array_equal(array, reference)
        return
    kind = np.complex128 if tensor.is_complex() else np.float64
    a, b = array.astype(kind), reference.astype(kind)
    np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
    finite = np.isfinite(b)
    np.testing.assert_array_equal(a[~finite], b[~finite])
    error = np.linalg.norm(a[finite] - b[finite])
    assert error <= TOLERANCE.get(tensor.dtype, 1e-5) * max(np.linalg.norm(b[finite]), 1e-3)


# --- the table --------------------------------------------------------------------------------------------------------

X, Y = "f32[3, 4]", "f32[3, 4]"
UNARY = [torch.abs, torch.neg, torch.sign, torch.exp, torch.expm1, torch.exp2, torch.sin, torch.cos, torch.tan, torch.atan,
         torch.tanh, torch.sinh, torch.cosh, torch.asinh, torch.erf, torch.erfc, torch.sigmoid, torch.floor, torch.ceil,
         torch.trunc, torch.round, torch.frac, torch.square, torch.reciprocal, torch.isnan, torch.isfinite, torch.isinf,
         torch.logical_not, torch.nan_to_num, torch.signbit, torch.sgn, torch.relu, torch.deg2rad, torch.sinc, F.silu,
         F.softplus, F.gelu, F.relu6, F.elu, F.selu, F.celu, F.leaky_relu, F.hardswish, F.hardsigmoid, F.hardtanh, F.mish,
         F.logsigmoid, F.softsign, F.tanhshrink, F.softshrink, F.hardshrink, torch.special.expit]  # fmt: skip
POSITIVE = [torch.log, torch.log2, torch.log10, torch.log1p, torch.sqrt, torch.rsqrt]
UNIT = [torch.asin, torch.acos, torch.atanh, torch.logit, torch.erfinv]
BINARY = [torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.fmax, torch.fmin, torch.atan2,
          torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge, torch.logical_and, torch.logical_or, torch.logical_xor,
          torch.remainder, torch.fmod, torch.hypot, torch.logaddexp, torch.floor_divide, torch.rsub, torch.copysign,
          torch.heaviside, torch.xlogy]  # fmt: skip
INTEGER = [
    torch.bitwise_and,
    torch.bitwise_or,
    torch.bitwise_xor,
    torch.add,
    torch.mul,
    torch.div,
    torch.eq,
    torch.maximum,
]

CASES: dict[str, tuple[Function, tuple[str, ...]]] = {
    **{f"{f.__name__}": (f, (X,)) for f in UNARY},
    **{f"{f.__name__}": (f, ("f32[3, 4]:0.1..4",)) for f in POSITIVE},
    **{f"{f.__name__}": (f, ("f32[3, 4]:0.05..0.95",)) for f in UNIT if f is not torch.erfinv},
    **{f"{f.__name__}": (f, (X, "f32[1, 4]:0.5..2")) for f in BINARY},
    **{f"{f.__name__}.i64": (f, ("i64[3, 4]:-9..9", "i64[4]:1..5")) for f in INTEGER},
    "acosh": (torch.acosh, ("f32[5]:1..4",)),
    "bitwise_not": (torch.bitwise_not, ("i32[5]:-9..9",)),
    "shift": (lambda x, y: (x << y, x >> y), ("i64[5]:-9..9", "i64[5]:0..4")),
    "exp of an integer": (torch.exp, ("i64[5]",)),
    "sqrt of a bool": (torch.sqrt, ("bool[5]",)),
    "floor of an integer": (torch.floor, ("i64[5]",)),
    "add with alpha": (lambda x, y: torch.add(x, y, alpha=2.5), (X, Y)),
    "add to bool": (lambda x: x + 1, ("bool[4]",)),
    "bool plus bool": (lambda x, y: x + y, ("bool[4]", "bool[4]")),
    "bool times float": (lambda x, y: x * y, ("bool[4]", "f32[4]")),
    "int times float number": (lambda x: x * 1.5, ("i64[4]",)),
    "half plus number": (lambda x: x + 1.5, ("f16[4]",)),
    "half plus float scalar tensor": (lambda x: x + torch.tensor(1.5), ("f16[4]",)),
    "bf16 plus f32": (lambda x, y: x + y, ("bf16[4]", "f32[4]")),
    "i8 plus u8": (lambda x, y: x + y, ("i8[4]", "u8[4]")),
    "compare mixed": (lambda x, y: x < y, ("i64[4]", "f32[4]")),
    "compare number": (lambda x: (x == 1, x > 0.5, x != 0), ("i64[4]",)),
    "integer division": (lambda x, y: (x // y, torch.div(x, y, rounding_mode="trunc"), x % y), ("i64[9]:-9..9", "i64[9]:1..4")),
    "float division modes": (lambda x, y: (torch.div(x, y, rounding_mode="floor"), torch.div(x, y, rounding_mode="trunc")), (X, "f32[3, 4]:0.5..2")),
    "pow": (lambda x: (x**2, x**3, x**0.5, x**-1, x**-0.5, x**1.7, 2.0**x), ("f32[5]:0.2..3",)),
    "pow tensor": (torch.pow, ("f32[5]:0.2..3", "f32[5]")),
    "pow integer": (lambda x: (x**2, x**3), ("i64[5]:0..5",)),
    "addcmul": (lambda x, y: torch.addcmul(x, x, y, value=0.5), (X, Y)),
    "addcdiv": (lambda x, y: torch.addcdiv(x, x, y, value=0.5), (X, "f32[3, 4]:0.5..2")),
    "lerp": (lambda x, y: (torch.lerp(x, y, 0.3), torch.lerp(x, y, x)), (X, Y)),
    "clamp": (lambda x: (x.clamp(-1, 1), x.clamp(min=0), x.clamp(max=0.5), x.clamp_min(0.1), x.clamp_max(0.1)), (X,)),
    "clamp tensor": (lambda x, y: torch.clamp(x, min=y), (X, Y)),
    "clamp integer": (lambda x: x.clamp(-1, 1), ("i64[6]:-5..5",)),
    "where": (lambda c, x: (torch.where(c, x, 0.0), torch.where(c, 1, x), torch.where(c, x, x * 2)), ("bool[3, 4]", X)),
    "masked_fill": (lambda c, x: x.masked_fill(c, -math.inf), ("bool[3, 4]", X)),
    "gelu tanh": (lambda x: F.gelu(x, approximate="tanh"), (X,)),
    "leaky_relu slope": (lambda x: F.leaky_relu(x, 0.3), (X,)),
    "elu alpha": (lambda x: F.elu(x, 0.3), (X,)),
    "softplus beta": (lambda x: F.softplus(x * 20, beta=2, threshold=10), (X,)),
    "prelu": (F.prelu, ("f32[2, 3, 4]", "f32[3]")),
    "glu": (F.glu, (X,)),
    "threshold": (lambda x: F.threshold(x, 0.1, 7.0), (X,)),
    "dropout": (lambda x: F.dropout(x, 0.5, training=False), (X,)),
    # complex
    "complex": (lambda x, y: torch.complex(x, y) * 2, (X, Y)),
    "complex arithmetic": (lambda x, y: (x * y, x + y, x - 1, x / y, x.conj() * y), ("c64[5]", "c64[5]")),
    "complex functions": (lambda x: (x.abs(), x.real, x.imag, torch.exp(x), x.angle()), ("c64[5]",)),
    "view_as_complex": (lambda x: torch.view_as_real(torch.view_as_complex(x) * 1j), ("f32[3, 4, 2]",)),
    "polar": (lambda x, y: torch.polar(x.abs(), y), (X, Y)),
    "complex times real": (lambda x, y: x * y, ("c64[4]", "f32[4]")),
    # movement
    "view": (lambda x: (x.view(2, 6), x.reshape(-1), x.view(1, 3, 4), x.flatten(), x.unflatten(1, (2, 2))), (X,)),
    "permute": (lambda x: (x.permute(2, 0, 1), x.transpose(0, -1), x.mT, x.movedim(0, 2)), ("f32[2, 3, 4]",)),
    "t": (lambda x: x.t() @ x, (X,)),
    "expand": (lambda x: (x.expand(5, 3, 4), x[:, :1].expand(-1, 6), torch.broadcast_to(x, (2, 3, 4))), (X,)),
    "squeeze": (lambda x: (x.squeeze(), x.squeeze(0), x.unsqueeze(-1), x[None]), ("f32[1, 3, 1]",)),
    "slice": (lambda x: (x[1:], x[:, :-1], x[::2], x[:, 1:3], x[-2:], x[5:], x[:, 1::2]), ("f32[7, 5]",)),
    "select": (lambda x: (x[0], x[-1], x[:, 2], x[..., -2]), ("f32[3, 4]",)),
    "split": (lambda x: (*x.split(2), *x.split([1, 3, 1]), *x.chunk(3), *x.tensor_split(2)), ("f32[5, 2]",)),
    "unbind": (lambda x: x.unbind(1), ("f32[2, 3]",)),
    "cat": (lambda x, y: (torch.cat([x, y]), torch.cat([x, y], -1), torch.stack([x, y], 1), torch.hstack([x, y])), (X, Y)),
    "cat mixed": (lambda x, y: torch.cat([x, y]), ("f32[2]", "i64[3]")),
    "flip roll": (lambda x: (x.flip(0), x.flip(-1, 0), x.roll(1, 0), x.roll(-2, 1), x.roll(3), x.roll((1, 2), (0, 1))), (X,)),
    "repeat": (lambda x: (x.repeat(2, 3), x.repeat(2, 1, 1), x.repeat_interleave(3, 1), x.tile(2)), (X,)),
    "pad": (lambda x: (F.pad(x, (1, 2)), F.pad(x, (0, 1, 2, 0), value=3.5), F.pad(x, (-1, 1))), (X,)),
    "pad modes": (lambda x: (F.pad(x, (2, 1), mode="reflect"), F.pad(x, (2, 1), mode="replicate"), F.pad(x, (2, 1), mode="circular")), ("f32[2, 3, 4]",)),
    "pad image": (lambda x: (F.pad(x, (1, 2, 2, 1), mode="reflect"), F.pad(x, (1, 2, 2, 1), mode="replicate")), ("f32[1, 2, 4, 5]",)),
    "diagonal": (lambda x: (x.diagonal(), x.diagonal(1), x.diagonal(-1), torch.diagonal(x, 0, 1, 0)), ("f32[3, 4]",)),
    "unfold": (lambda x: x.unfold(1, 3, 2), ("f32[2, 9]",)),
    "as_strided": (lambda x: x.as_strided((2, 3), (1, 2), 1), ("f32[12]",)),
    "tril triu": (lambda x: (x.tril(), x.triu(1), x.tril(-1)), ("f32[2, 4, 4]",)),
    "slice_scatter": (lambda x, y: (torch.slice_scatter(x, y, 0, 1, 3), torch.select_scatter(x, y[0], 0, 2)), ("f32[5, 4]", "f32[2, 4]")),
    "assign slice": (lambda x, y: _assigned(x, y), ("f32[5, 4]", "f32[2, 4]")),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), ("f32[1, 8, 2, 3]",)),
    "meshgrid": (lambda x, y: torch.meshgrid(x, y, indexing="ij"), ("f32[3]", "f32[4]")),
    # creation
    "arange": (lambda x: (torch.arange(5), torch.arange(1, 9, 2), torch.arange(0, 1, 0.25), x.shape[0] + torch.arange(3.0)), (X,)),
    "full": (lambda x: (torch.full((2, 3), 1.5), torch.zeros_like(x), torch.ones(2), x.new_ones(3), torch.full_like(x, 7), x.new_full((2,), 3)), (X,)),
    "eye linspace": (lambda x: (torch.eye(3), torch.eye(2, 3), torch.linspace(0, 1, 5), torch.scalar_tensor(2.0)), (X,)),
    "shape as a number": (lambda x: x / x.shape[1] + x.numel(), (X,)),
    # reductions
    "sum": (lambda x: (x.sum(), x.sum(0), x.sum((0, 1)), x.sum(-1, keepdim=True), x.bool().sum()), (X,)),
    "mean": (lambda x: (x.mean(), x.mean(0), x.mean((-1, 0), keepdim=True)), (X,)),
    "var std": (lambda x: (x.var(), x.var(0), x.std(1, unbiased=False), x.std(), x.var((0, 1), correction=0), *torch.var_mean(x, 1)), (X,)),
    "prod": (lambda x: (x.prod(), x.prod(1)), (X,)),
    "max min": (lambda x: (x.max(), x.min(), *x.max(1), *x.min(0, keepdim=True), x.amax((0, 1)), x.amin(-1)), (X,)),
    "argmax": (lambda x: (x.argmax(), x.argmax(1), x.argmin(0, keepdim=True)), (X,)),
    "any all": (lambda x: (x.any(), x.all(1), x.any(0, keepdim=True)), ("bool[3, 4]",)),
    "any of floats": (lambda x: (x.any(), x.all()), (X,)),
    "logsumexp": (lambda x: (x.logsumexp(1), x.logsumexp((0, 1))), (X,)),
    "norm": (lambda x: (x.norm(), x.norm(dim=1), x.norm(p=1, dim=0), torch.linalg.vector_norm(x, math.inf), F.normalize(x, dim=-1)), (X,)),
    "scalar reductions": (lambda x: (x.sum().sum(), x.sum().mean(), x.sum().max()), (X,)),
    "count_nonzero": (torch.count_nonzero, ("i64[3, 4]:0..1",)),
    "cumsum": (lambda x: (x.cumsum(0), x.cumsum(-1), x.cumprod(1), x.bool().cumsum(0)), (X,)),
    "logcumsumexp": (lambda x: (x.logcumsumexp(1), *x.cummax(1), *x.cummin(0)), (X,)),
    "diff": (lambda x: (x.diff(), x.diff(dim=0), x.diff(n=2)), (X,)),
    "sort": (lambda x: (*x.sort(1), *x.sort(0, descending=True), x.argsort(1), *x.topk(2), *x.topk(2, dim=0, largest=False)), (X,)),
    # products
    "matmul": (torch.matmul, ("f32[3, 4]", "f32[4, 5]")),
    "matmul batch": (torch.matmul, ("f32[2, 3, 4]", "f32[2, 4, 5]")),
    "matmul broadcast": (torch.matmul, ("f32[6, 1, 3, 4]", "f32[2, 4, 5]")),
    "matmul shared": (lambda x, w: (x @ w, w.t() @ x.transpose(1, 2)), ("f32[2, 3, 4]", "f32[4, 5]")),
    "matmul vector": (lambda x, v: (x @ v, v @ x.transpose(1, 2), torch.dot(v, v), torch.outer(v, v), torch.mv(x[0], v)), ("f32[2, 3, 4]", "f32[4]")),
    "mm bmm": (lambda x, y: (torch.mm(x, y), torch.bmm(x[None], y[None]), torch.addmm(x @ y, x, y, beta=0.5, alpha=2)), ("f32[3, 4]", "f32[4, 3]")),
    "baddbmm": (lambda b, x, y: torch.baddbmm(b, x, y, alpha=0.5), ("f32[2, 3, 3]", "f32[2, 3, 4]", "f32[2, 4, 3]")),
    "linear": (F.linear, ("f32[2, 3, 4]", "f32[5, 4]", "f32[5]")),
    "linear of a vector": (F.linear, ("f32[4]", "f32[5, 4]")),
    "bilinear": (F.bilinear, ("f32[3, 4]", "f32[3, 5]", "f32[2, 4, 5]")),
    "einsum": (lambda x, y: (torch.einsum("bij,bjk->bik", x, y), torch.einsum("bij,bjk", x, y), torch.einsum("...ij,...jk->...k", x, y)), ("f32[2, 3, 4]", "f32[2, 4, 5]")),
    "einsum broadcast": (lambda x, y: torch.einsum("bi,bj->bij", x, y), ("f32[1, 3]", "f32[2, 4]")),
    "einsum diagonal": (lambda x: (torch.einsum("ii->i", x), torch.einsum("ii", x), torch.einsum("ij->ji", x)), ("f32[4, 4]",)),
    "conv1d": (lambda x, w, b: (F.conv1d(x, w, b, padding=2), F.conv1d(x, w, stride=2, dilation=2), F.conv1d(x, w, padding="same")), ("f32[2, 4, 9]", "f32[6, 4, 3]", "f32[6]")),
    "conv depthwise": (lambda x, w: F.conv1d(x, w, groups=4, padding=2), ("f32[2, 4, 9]", "f32[4, 1, 3]")),
    "conv2d": (lambda x, w, b: (F.conv2d(x, w, b, stride=2, padding=1, groups=2), F.conv2d(x, w, groups=2)), ("f32[2, 4, 7, 6]", "f32[6, 2, 3, 3]", "f32[6]")),
    "conv3d": (F.conv3d, ("f32[1, 2, 4, 4, 4]", "f32[3, 2, 2, 2, 2]")),
    "conv unbatched": (F.conv1d, ("f32[4, 9]", "f32[6, 4, 3]")),
    "conv_transpose": (lambda x, w, b: (F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1), F.conv_transpose2d(x, w, groups=2, dilation=2)), ("f32[2, 4, 5, 4]", "f32[4, 3, 3, 3]", "f32[3]")),
    "conv_transpose1d": (lambda x, w: F.conv_transpose1d(x, w, stride=3), ("f32[2, 4, 5]", "f32[4, 3, 2]")),
    # layers
    "softmax": (lambda x: (x.softmax(-1), x.softmax(0), x.log_softmax(1), F.softmin(x, 1)), (X,)),
    "softmax dtype": (lambda x: x.softmax(-1, dtype=torch.float32), ("bf16[3, 4]",)),
    "layer_norm": (lambda x, w, b: (F.layer_norm(x, (4,), w, b), F.layer_norm(x, (4,)), F.layer_norm(x, (3, 4)), F.layer_norm(x, (4,), w)), ("f32[2, 3, 4]", "f32[4]", "f32[4]")),
    "rms_norm": (lambda x, w: (F.rms_norm(x, (4,), w, eps=1e-6), F.rms_norm(x, (4,))), ("f32[2, 3, 4]", "f32[4]")),
    "group_norm": (lambda x, w, b: (F.group_norm(x, 2, w, b), F.group_norm(x, 4)), ("f32[2, 4, 5]", "f32[4]", "f32[4]")),
    "instance_norm": (lambda x: F.instance_norm(x), ("f32[2, 4, 5]",)),
    "batch_norm": (lambda x, w, b, m, v: (F.batch_norm(x, m, v, w, b), F.batch_norm(x, m, v)), ("f32[2, 4, 5]", "f32[4]", "f32[4]", "f32[4]", "f32[4]:0.5..2")),
    "attention": (lambda q, k, v: (F.scaled_dot_product_attention(q, k, v), F.scaled_dot_product_attention(q, k, v, is_causal=True), F.scaled_dot_product_attention(q, k, v, scale=0.3)), ("f32[2, 3, 5, 4]", "f32[2, 3, 7, 4]", "f32[2, 3, 7, 6]")),
    "attention mask": (lambda q, m, f: (F.scaled_dot_product_attention(q, q, q, attn_mask=m), F.scaled_dot_product_attention(q, q, q, attn_mask=f)), ("f32[2, 3, 5, 4]", "bool[2, 1, 5, 5]", "f32[5, 5]")),
    "attention grouped": (lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True), ("f32[2, 4, 5, 4]", "f32[2, 2, 7, 4]")),
    "attention rank 3": (lambda q: F.scaled_dot_product_attention(q, q, q), ("f32[2, 5, 4]",)),
    "embedding": (F.embedding, ("i64[2, 3]:0..6", "f32[7, 4]")),
    "one_hot": (lambda x: F.one_hot(x, 5), ("i64[2, 3]:0..4",)),
    "max_pool": (lambda x: (F.max_pool2d(x, 2), F.max_pool2d(x, 3, 2, 1), F.max_pool2d(x, 2, ceil_mode=True)), ("f32[1, 2, 7, 7]",)),
    "avg_pool": (lambda x: (F.avg_pool2d(x, 2), F.avg_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), F.avg_pool2d(x, 2, ceil_mode=True)), ("f32[1, 2, 7, 7]",)),
    "pool 1d": (lambda x: (F.max_pool1d(x, 2), F.avg_pool1d(x, 3, 1, 1)), ("f32[1, 2, 7]",)),
    "adaptive_pool": (lambda x: (F.adaptive_avg_pool2d(x, 1), F.adaptive_avg_pool2d(x, (2, 3)), F.adaptive_avg_pool1d(x[0], 4)), ("f32[1, 2, 8, 7]",)),
    "interpolate": (lambda x: (F.interpolate(x, scale_factor=2.0), F.interpolate(x, size=(5, 9)), F.interpolate(x, scale_factor=2.0, mode="bilinear")), ("f32[1, 2, 3, 4]",)),
    "interpolate bicubic": (lambda x: F.interpolate(x, size=(6, 8), mode="bicubic"), ("f32[1, 2, 3, 4]",)),
    "losses": (lambda x, y: (F.mse_loss(x, y), F.l1_loss(x, y), F.smooth_l1_loss(x, y), F.cosine_similarity(x, y)), (X, Y)),
    "cross_entropy": (F.cross_entropy, ("f32[3, 5]", "i64[3]:0..4")),
    # indexing
    "gather": (lambda x, i: (x.gather(1, i), torch.take_along_dim(x, i, 1), x.gather(0, i % 3)), ("f32[3, 4]", "i64[3, 2]:0..3")),
    "index_select": (lambda x, i: (x.index_select(0, i), x[i], x[:, i], x[i.abs()], torch.take(x, i)), ("f32[4, 4]", "i64[2]:0..3")),
    "index negative": (lambda x, i: x[i], ("f32[4, 4]", "i64[2]:-4..-1")),
    "index pair": (lambda x, i: (x[i, i], x[i[:, None], i], x[:, i, i], x[i, :, i]), ("f32[4, 4, 4]", "i64[3]:-4..3")),
    "index arange": (lambda x: (x[torch.arange(3)[:, None], torch.arange(4)], x[torch.arange(3), torch.arange(3)]), ("f32[3, 4]",)),
    "index put": (lambda x, i, v: _index_put(x, i, v), ("f32[5, 4]", "i64[2]:0..4", "f32[2, 4]")),
    "assign mask": (lambda x, m: _assign_mask(x, m), (X, "bool[3, 4]")),
    "scatter": (lambda x, i, v: (x.scatter(1, i, v), x.scatter_add(1, i, v), x.scatter(1, i, 7.0), x.scatter_reduce(1, i, v, "amax"), x.scatter_reduce(1, i, v, "prod")), ("f32[3, 4]", "i64[3, 2]:0..3", "f32[3, 2]")),
    "scatter short": (lambda x, i, v: (x.scatter(0, i, v), x.scatter_add(0, i, v)), ("f32[3, 4]", "i64[2, 3]:0..2", "f32[2, 3]")),
    "index_add": (lambda x, i, v: (x.index_add(0, i, v), x.index_add(0, i, v, alpha=0.5), x.index_fill(1, i, 3.0)), ("f32[5, 4]", "i64[2]:0..3", "f32[2, 4]")),
    "bucketize": (lambda x, e: torch.bucketize(x, e.sort()[0], right=True), ("f32[9]", "f32[4]")),
    "copies": (lambda x: (x.clone(), x.detach() + 0, x.contiguous(), x.to(torch.float64), x.half(), x.bool(), x.long()), (X,)),
    "in place": (lambda x: _in_place(x), (X,)),
}  # fmt: skip


def _assigned(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    z = x.clone()
    z[1:3] = y
    z[:, 0] = 1.0
    return z


def _index_put(x: torch.Tensor, i: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a = x.clone()
    a[i] = v
    return a, x.index_put((i,), v, accumulate=True)


def _assign_mask(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    z = x.clone()
    z[m] = 5.0
    return z


def _in_place(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    y.mul_(2).add_(x)
    y[0].neg_()
    return y.relu_()


@pytest.mark.parametrize("name", CASES)
def test_row(name: str) -> None:
    function, specs = CASES[name]
    operands = [sample(spec, seed) for seed, spec in enumerate(specs)]
    with torch.no_grad():
        check(export(Wrapped(function), tuple(operands)), function, operands)


BOUNDS = st.none() | st.integers(-7, 7) | st.sampled_from([33, -33])


@given(extent=st.integers(0, 5), start=BOUNDS, stop=BOUNDS, step=st.integers(1, 4))
@example(extent=1, start=1, stop=33, step=3)
@settings(max_examples=40)
def test_slices_are_clamped_as_in_python(extent: int, start: int | None, stop: int | None, step: int) -> None:
    places = slice(start, stop, step)

    def read_and_write(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x.clone()
        y[:, places] = 7
        return x[:, places] * 2, y

    x = torch.arange(2.0 * extent).reshape(2, extent)
    with torch.no_grad():
        check(export(Wrapped(read_and_write), (x,)), read_and_write, [x])
