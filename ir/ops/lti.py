"""What does not change over time: convolutions as long as the sequence, and diagonal state spaces with their readout.

A state space with constant matrices is a convolution with the kernel C A^j B. ``long_conv`` is the form for many steps at
once, ``lti_scan`` the one that goes on from a state. Letters: B batch, L length, D channels, K taps, N state.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import dims as d
from ..core import Graph, Value
from ..opdef import MIXER, BadExample, Example, OpDef
from ..types import TensorType
from . import rules as r
from .elementwise import add, mul, real
from .movement import concat, expand_dims, slice_axis
from .precision import as_dtype, in_f32
from .recurrence import body_input, scan
from .reduce import sum
from .structural import zeros

# --- long_conv ------------------------------------------------------------------------------------------------------

_FUTURE = ("future",)


def _long_conv(x: TensorType, k: TensorType, *rest: TensorType, optional: tuple[str, ...] = ()) -> TensorType:
    r.of_kind(r.FLOATING, x)
    channels = r.ranked("x", x, "BLD")[2]
    extra = r.optional_operands(rest, optional, _FUTURE)
    r.same_dtype(x, k, *rest)
    for name, kernel in {"k": k, **extra}.items():
        taps = r.ranked(name, kernel, "KD")[0]
        r.shaped(name, kernel, (taps, channels))
    return x


def _long_conv_loop(x: Any, k: Any, *rest: Any, optional: tuple[str, ...]) -> Any:
    length = x.shape[1]
    y = np.zeros_like(x)
    for j in range(min(len(k), length)):
        y[:, j:] += k[j] * x[:, : length - j]
    for j in range(min(len(rest[0]), length - 1) if rest else 0):
        y[:, : length - 1 - j] += rest[0][j] * x[:, j + 1 :]
    return y


def _long_conv_by_scan(x: Value, k: Value, *rest: Value, optional: tuple[str, ...]) -> Value:
    y = _sliding(x, k, with_now=True, reverse=False)
    return add(y, _sliding(x, rest[0], with_now=False, reverse=True)) if rest else y


def _sliding(x: Value, k: Value, *, with_now: bool, reverse: bool) -> Value:
    """A window of inputs slides along; each step multiplies it by the kernel."""
    taps, (batch, _, channels) = k.dims[0], x.dims
    if taps == 0:
        return zeros(x.type)
    window = body_input("window", x.type.with_dims((batch, taps, channels)))
    now, kernel = body_input("x", x.type, without=1), body_input("k", k.type)
    moved = concat(expand_dims(now, 1), slice_axis(window, 1, 0, taps - 1), axis=1)
    y = sum(mul(moved if with_now else window, kernel), axes=(1,))
    body = Graph("body", (window, now, kernel), (("window", moved), ("y", y)))
    start = zeros(window.type)
    result: Value
    _, result = scan(start, x, k, body=body, carries=1, sequences=1, axis=1, reverse=reverse)
    return result


long_conv = OpDef(
    "long_conv",
    infer=_long_conv,
    traits=frozenset({MIXER}),
    reference=_long_conv_loop,
    decompose=in_f32(_long_conv, _long_conv_by_scan),
    flops=lambda x, *kernels, **_: d.size((2, x.size, _taps(kernels))),
    examples=(
        Example(("f32[2, 7, 3]", "f32[7, 3]")),
        Example(("f32[1, 1, 5]", "f32[1, 5]", "f32[1, 5]"), {"optional": _FUTURE}),
        Example(("f32[2, 9, 3]", "f32[4, 3]", "f32[12, 3]"), {"optional": _FUTURE}),
        Example(("f32[1, 77, 33]", "f32[90, 33]"), low=-0.5, high=0.5),
        Example(("bf16[1, 20, 3]", "bf16[20, 3]"), low=-0.5, high=0.5),
        Example(("c64[2, 7, 3]", "c64[7, 3]", "c64[6, 3]"), {"optional": _FUTURE}, -0.5, 0.5),
    ),
    bad_examples=(
        BadExample(("f32[2, 7, 3]", "f32[3, 7]"), {}, "k must have dims [3, 3]"),
        BadExample(("f32[2, 7, 3]", "f32[7, 3]", "f32[7, 4]"), {"optional": _FUTURE}, "future must have dims [7, 3]"),
        BadExample(("i32[2, 7, 3]", "i32[7, 3]"), {}, "takes complex or float operands"),
    ),
    doc=(
        "Each channel convolved with its own kernel, of any length: y_t = sum over j of k_j x_(t-j), plus the sum over "
        "j of future_j x_(t+1+j); x is zero outside the sequence."
    ),
)


def _taps(kernels: tuple[TensorType, ...]) -> d.Dim:
    total: d.Dim = 0
    for kernel in kernels:
        total = total + kernel.dims[0]
    return total


# --- lti_scan -------------------------------------------------------------------------------------------------------


def _lti_scan(
    x: TensorType, a: TensorType, c: TensorType, *rest: TensorType, optional: tuple[str, ...] = ()
) -> tuple[TensorType, TensorType]:
    r.of_kind(r.FLOAT, x)
    r.of_kind(r.FLOATING, a)
    batch, _, channels = r.ranked("x", x, "BLD")
    states = r.ranked("a", a, "ND")[0]
    extra = r.optional_operands(rest, optional, ("h0",))
    r.same_dtype(a, c, *rest)
    r.shaped("a", a, (states, channels))
    r.shaped("c", c, a.dims)
    last = a.with_dims((batch, *a.dims))
    for name, state in extra.items():
        r.shaped(name, state, last.dims)
    return x, last


def _lti_loop(x: Any, a: Any, c: Any, *rest: Any, optional: tuple[str, ...]) -> tuple[Any, Any]:
    h = rest[0] if rest else np.zeros((x.shape[0], *a.shape), a.dtype)
    y = np.empty_like(x)
    for t in range(x.shape[1]):
        h = a * h + x[:, t, None, :]
        y[:, t] = np.sum(c * h, axis=1).real
    return y, h


def _lti_by_scan(x: Value, a: Value, c: Value, *rest: Value, optional: tuple[str, ...]) -> tuple[Value, Value]:
    start = rest[0] if rest else zeros(a.type.with_dims((x.dims[0], *a.dims)))
    h, x_t, decay, readout = (
        body_input("h", start.type), body_input("x", x.type, without=1), body_input("a", a.type), body_input("c", c.type),
    )  # fmt: skip
    inflow = expand_dims(x_t, 1)
    after = add(mul(decay, h), as_dtype(inflow, a.type.dtype))
    weighted = mul(readout, after)
    y = sum(real(weighted) if a.type.dtype.is_complex else weighted, axes=(1,))
    body = Graph("body", (h, x_t, decay, readout), (("h", after), ("y", y)))
    last, ys = scan(start, x, a, c, body=body, carries=1, sequences=1, axis=1)
    return ys, last


_DECAYS = {1: (-0.7, 0.7)}
lti_scan = OpDef(
    "lti_scan",
    infer=_lti_scan,
    traits=frozenset({MIXER}),
    reference=_lti_loop,
    decompose=in_f32(_lti_scan, _lti_by_scan),
    flops=lambda x, a, *_, **__: d.size((16 if a.dtype.is_complex else 4, x.size, a.dims[0])),
    examples=(
        Example(("f32[2, 7, 3]", "f32[4, 3]", "f32[4, 3]"), ranges=_DECAYS),
        Example(("f32[2, 33, 5]", "c64[3, 5]", "c64[3, 5]", "c64[2, 3, 5]"), {"optional": ("h0",)}, ranges=_DECAYS),
        Example(("f32[1, 1, 1]", "c64[1, 1]", "c64[1, 1]"), ranges=_DECAYS),
        Example(("bf16[1, 63, 5]", "f32[3, 5]", "f32[3, 5]", "f32[1, 3, 5]"), {"optional": ("h0",)}, ranges=_DECAYS),
    ),
    bad_examples=(
        BadExample(("f32[2, 7, 3]", "f32[3, 4]", "f32[3, 4]"), {}, "a must have dims [3, 3]"),
        BadExample(("f32[2, 7, 3]", "c64[4, 3]", "f32[4, 3]"), {}, "one dtype"),
        BadExample(("c64[2, 7, 3]", "c64[4, 3]", "c64[4, 3]"), {}, "takes float operands"),
    ),
    doc=(
        "A diagonal state space that does not change over time (S4D, arXiv 2206.11893, section 3): h_t = a h_(t-1) + x_t; "
        "y_t = Re(sum over n of c_n h_tn), a convolution with Re(sum of c a^j). An input gain b is part of c. The state "
        "has a's dtype, complex or not."
    ),
)
