"""References mean what PyTorch means, for every op that PyTorch has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from coilc.ir import OPS
from coilc.ir.opdef import ELEMENTWISE

from .ops import Case, agree, awkward, cases, draw, inputs_of, name, run


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).resolve_conj().numpy()


def resolve(alias: str) -> Any:
    found: Any = torch.ops
    for part in alias.split("."):
        found = getattr(found, part)
    return found


def one_to_one(case: Case) -> str | None:
    """The torch overload that takes exactly the op's operands, for elementwise ops without attributes."""
    op = case[0]
    if ELEMENTWISE not in op.traits or op.attributes:
        return None
    return next((a for a in op.aliases.get("aten", ()) if not a.endswith("Scalar")), None)


ALIASES = [(op.name, alias) for op in OPS.values() for alias in op.aliases.get("aten", ())]
ELEMENTWISE_CASES = [case for case in cases() if one_to_one(case)]
# Inputs where PyTorch itself differs between its scalar and vector code, or returns what no definition asks for.
SHY = {"floor_div", "mod", "fmod", "pow", "gelu", "conj", "shift_left"}


def _flags(axes: tuple[int, ...], keepdims: bool) -> dict[str, Any]:
    return {"dim": axes, "keepdim": keepdims}


def _pool(x: torch.Tensor, kind: str, window: Any, strides: Any, padding: Any, dilation: Any) -> torch.Tensor:
    fill = -torch.inf if kind == "max" else 0.0
    x = F.pad(x, [edge for pair in reversed(padding) for edge in pair], value=fill)
    for axis, (size, stride, step) in enumerate(zip(window, strides, dilation, strict=True), x.ndim - len(window)):
        windows = x.unfold(axis, step * (size - 1) + 1, stride)[..., ::step]
        x = windows.amax(-1) if kind == "max" else windows.sum(-1)
    return x


def _conv(x: torch.Tensor, w: torch.Tensor, strides: Any, padding: Any, dilation: Any, groups: int) -> torch.Tensor:
    x = F.pad(x, [edge for pair in reversed(padding) for edge in pair])
    zeros = [0] * len(strides)
    return torch.convolution(x, w, None, strides, zeros, dilation, False, zeros, groups)


def _conv_transpose(x: torch.Tensor, w: torch.Tensor, *_: Any, **a: Any) -> torch.Tensor | None:
    if any(low != high for low, high in a["padding"]):
        return None
    low = [pair[0] for pair in a["padding"]]
    return torch.convolution(x, w, None, a["strides"], low, a["dilation"], True, a["output_padding"], a["groups"])


def _attention(
    q: Any, k: Any, v: Any, *rest: Any, optional: tuple[str, ...], scale: float | None, causal: bool, window: int | None
) -> torch.Tensor | None:
    if "offset" in optional or window is not None:
        return None
    mask = rest[0] if rest else None
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=True)


def _causal_conv1d(x: Any, w: Any, *rest: Any, optional: tuple[str, ...], activation: str) -> torch.Tensor:
    given = dict(zip(optional, rest, strict=True))
    state = given.get("state", torch.zeros(x.shape[0], w.shape[0] - 1, x.shape[2], dtype=x.dtype))
    window = torch.cat([state, x], 1).transpose(1, 2)
    y = F.conv1d(window, w.T[:, None], given.get("bias"), groups=x.shape[2]).transpose(1, 2)
    return F.silu(y) if activation == "silu" else y


CALLS: dict[str, Callable[..., Any]] = {
    "cast": lambda x, dtype: x.to(getattr(torch, str(np.dtype(dtype.numpy)))),
    "gelu": lambda x, approximate: F.gelu(x, approximate=approximate),
    "leaky_relu": lambda x, slope: F.leaky_relu(x, slope),
    "elu": lambda x, alpha: F.elu(x, alpha),
    "clamp": lambda x, low, high: torch.clamp(x, low, high),
    "broadcast": lambda x, dims: x.expand(dims),
    "transpose": lambda x, perm: x.permute(perm),
    "flip": lambda x, axes: x.flip(axes),
    "concat": lambda *xs, axis: torch.cat(xs, axis),
    "take": lambda x, i, axis: x.index_select(axis, i.flatten() % x.shape[axis]).reshape(
        *x.shape[:axis], *i.shape, *x.shape[axis + 1 :]
    ),
    "gather": lambda x, i, axis: x.gather(axis, i % x.shape[axis]),
    "sum": lambda x, axes, keepdims: torch.sum(x, **_flags(axes, keepdims)),
    "max": lambda x, axes, keepdims: torch.amax(x, **_flags(axes, keepdims)),
    "min": lambda x, axes, keepdims: torch.amin(x, **_flags(axes, keepdims)),
    "mean": lambda x, axes, keepdims: torch.mean(x, **_flags(axes, keepdims)),
    "any": lambda x, axes, keepdims: torch.any(x, **_flags(axes, keepdims)),
    "all": lambda x, axes, keepdims: torch.all(x, **_flags(axes, keepdims)),
    "logsumexp": lambda x, axes, keepdims: torch.logsumexp(x, **_flags(axes, keepdims)),
    "var": lambda x, axes, keepdims, correction: torch.var(x, correction=correction, **_flags(axes, keepdims)),
    "argmax": lambda x, axis, keepdims: torch.argmax(x, axis, keepdims),
    "argmin": lambda x, axis, keepdims: torch.argmin(x, axis, keepdims),
    "cumsum": lambda x, axis, reverse: None if reverse else torch.cumsum(x, axis),
    "cumprod": lambda x, axis, reverse: None if reverse else torch.cumprod(x, axis),
    "cummax": lambda x, axis, reverse: None if reverse else torch.cummax(x, axis)[0],
    "logcumsumexp": lambda x, axis, reverse: None if reverse else torch.logcumsumexp(x, axis),
    "sort": lambda x, axis, descending: torch.sort(x, stable=True, dim=axis, descending=descending),
    "matmul": torch.matmul,
    "linear": F.linear,
    "einsum": lambda *xs, equation: torch.einsum(equation, *xs),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "pool": _pool,
    "softmax": lambda x, axis: torch.softmax(x, axis),
    "log_softmax": lambda x, axis: torch.log_softmax(x, axis),
    "layer_norm": lambda x, *wb, eps: F.layer_norm(x, x.shape[-1:], *wb, eps=eps),
    "rms_norm": lambda x, *w, eps: F.rms_norm(x, x.shape[-1:], *w, eps=eps),
    "group_norm": lambda x, w, b, groups, eps: F.group_norm(x, groups, w, b, eps),
    "batch_norm": lambda x, w, b, mean, var, eps: F.batch_norm(x, mean, var, w, b, eps=eps),
    "attention": _attention,
    "causal_conv1d": _causal_conv1d,
    "fft": lambda x, axis: torch.fft.fft(x, dim=axis),
    "ifft": lambda x, axis: torch.fft.ifft(x, dim=axis),
    "rfft": lambda x, axis: torch.fft.rfft(x, dim=axis),
    "irfft": lambda x, axis, n: torch.fft.irfft(x, n, dim=axis),
}


@pytest.mark.parametrize("alias", [alias for _, alias in ALIASES])
def test_aliases_resolve(alias: str) -> None:
    assert isinstance(resolve(alias), torch._ops.OpOverload)


def test_aliases_name_one_op() -> None:
    names = [alias for _, alias in ALIASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", ELEMENTWISE_CASES, ids=name)
def test_elementwise_references_agree_with_torch(case: Case) -> None:
    overload = resolve(one_to_one(case) or "")
    extreme = awkward(*case) if case[0].name not in SHY else None
    for arrays in (draw(case[1]), *([extreme] if extreme else [])):
        (expected,) = run(case, arrays)
        agree(to_numpy(overload(*map(to_torch, arrays))), expected)


@pytest.mark.parametrize("case", [c for c in cases() if c[0].name in CALLS], ids=name)
def test_references_agree_with_torch(case: Case) -> None:
    op, example = case
    arrays = draw(example)
    attrs = op.node(*inputs_of(arrays), **example.attrs).attrs
    found = CALLS[op.name](*map(to_torch, arrays), **attrs)
    if found is None:
        pytest.skip("torch has no such form")
    for actual, expected in zip(found if isinstance(found, tuple) else (found,), run(case, arrays), strict=False):
        agree(to_numpy(actual).astype(expected.dtype), expected)
