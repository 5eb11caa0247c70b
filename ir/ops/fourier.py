"""Discrete Fourier transforms along one axis, NumPy's conventions: the length is the extent, the inverse divides by it.

They are composites. A known length is cut into small factors (Cooley and Tukey, 1965): each becomes a product with a small
constant matrix, so the matmul kernels do the work; a large prime becomes a convolution of a convenient length (Bluestein,
1970). A symbolic length is multiplied by its whole matrix, which is right and slow. Inside, a complex sequence is a real
tensor [outer, parts, n, inner]: parts is 2, or 1 where the imaginary part is zero or not wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import pi
from typing import Any, TypeAlias

import numpy as np

from .. import dims as d
from ..core import Value
from ..opdef import BadExample, Example, OpDef, literal
from ..types import DTYPES, DType, TensorType
from . import rules as r
from .elementwise import add, cast, complex, cos, div, eq, imag, logical_or, mod, mul, neg, real, sin, sub, where
from .indexing import take
from .linalg import matmul
from .movement import broadcast, concat, extent, flip, iota, pad, reshape, slice_axis, transpose

WIDEST = 32  # rows of the largest factor's matrix
DENSE = 128  # lengths without small factors are one matrix up to this size
STAGE_COST = 16  # passing over the data once more costs as much as this many rows
REAL = {"c64": DTYPES["f32"], "c128": DTYPES["f64"]}
COMPLEX = {"f32": DTYPES["c64"], "f64": DTYPES["c128"]}

# --- the transform of [outer, parts, n, inner] ------------------------------------------------------------------------


Transform: TypeAlias = Callable[..., Value]  # what ``transform`` takes and gives


@dataclass(frozen=True)
class Wave:
    """The exponential ``exp(sign 2 pi i (j k + before j + after k) / n)`` from element j to element k."""

    sign: int
    before: float = 0.0
    after: float = 0.0

    def at(self, n: int, j: np.ndarray, k: np.ndarray) -> np.ndarray:
        turns = (j * k % n + self.before * j + self.after * k) / n
        return np.exp(self.sign * 2j * pi * turns)


def transform(x: Value, wave: Wave, *, scale: float = 1.0, parts: int = 2) -> Value:
    """``scale * sum over j of wave(j, k) x_j`` of [outer, 1 or 2, n, inner], a known n; ``parts`` are kept."""
    outer, given, n, inner = x.dims
    assert isinstance(n, int)
    radix = factor(n)
    if radix is None:
        return _as_convolution(x, wave, scale, parts, transform)
    if radix == n:
        return reshape(_product(x, n, wave, scale, parts), dims=(outer, parts, n, inner))
    rest = n // radix
    split = reshape(x, dims=(outer, given, radix, rest * inner))
    first = _product(split, radix, replace(wave, after=0.0), scale, 2)
    twiddles = wave.at(n, np.arange(rest), np.arange(radix)[:, None])
    turned = turn(reshape(first, dims=(outer, 2, radix, rest, inner)), literal(pair(twiddles), x.type.dtype))
    columns = reshape(transpose(turned, perm=(0, 2, 1, 3, 4)), dims=(outer * radix, 2, rest, inner))
    second = transform(columns, replace(wave, before=0.0), parts=parts)
    joined = transpose(reshape(second, dims=(outer, radix, parts, rest, inner)), perm=(0, 2, 3, 1, 4))
    return reshape(joined, dims=(outer, parts, n, inner))


def _product(x: Value, n: int, wave: Wave, scale: float, parts: int) -> Value:
    """The matrix of size n applied to [outer, parts, n, columns]; result [outer, parts * n, columns]."""
    outer, given, _, columns = x.dims
    factors = wave.at(n, np.arange(n), np.arange(n)[:, None])
    re, im = factors.real, factors.imag
    whole = np.stack([np.stack([re, -im], axis=1), np.stack([im, re], axis=1)])  # [2, n, 2, n]
    matrix = literal(scale * whole[:parts, :, :given].reshape(parts * n, -1), x.type.dtype)
    spread = broadcast(matrix, dims=(outer, *matrix.dims))
    return matmul(spread, reshape(x, dims=(outer, given * n, columns)))


def pair(factors: np.ndarray) -> np.ndarray:
    """Complex numbers [...] as [1, 2, ..., 1]."""
    return np.stack([factors.real, factors.imag])[None, ..., None]


def turn(x: Value, by: Value) -> Value:
    """The complex product of [outer, 2, ...] with [1, 2, ...]."""
    re, im = (slice_axis(by, 1, i, i + 1) for i in (0, 1))
    return add(mul(x, re), mul(flip(x, axes=(1,)), concat(neg(im), im, axis=1)))


@cache
def factor(n: int) -> int | None:
    """The first factor to cut a length by: the length itself where one matrix is best, ``None`` where none will do."""
    return _plan(n)[1]


def matrix_rows(n: int) -> float:
    """Rows of small matrices that every element of a transform is multiplied with."""
    stages, rest = 0.0, n
    while (radix := factor(rest)) not in (None, rest):
        stages, rest = stages + float(radix or 0), rest // (radix or 1)
    return stages + (rest if factor(rest) else 4 * matrix_rows(convenient(2 * rest - 1)))


@cache
def _plan(n: int) -> tuple[float, int | None]:
    """Rows multiplied per element, and the first factor."""
    choices: list[tuple[float, int | None]] = [(float(n + STAGE_COST), n)] if n <= DENSE else []
    for radix in range(2, min(WIDEST, n // 2) + 1):
        if n % radix == 0:
            choices.append((radix + STAGE_COST + _plan(n // radix)[0], radix))
    if not choices:
        size = convenient(2 * n - 1)
        return 2 * _plan(size)[0] * size / n, None
    return min(choices, key=lambda choice: choice[0])


def convenient(n: int) -> int:
    """The smallest length from ``n`` on that has small factors only: a power of two, or three or five times one."""
    powers = [1 << k for k in range(n.bit_length() + 1)]
    return min(m * power for m in (1, 3, 5) for power in powers if m * power >= n)


def _as_convolution(x: Value, wave: Wave, scale: float, parts: int, by: Transform) -> Value:
    """A length with a large prime factor: jk = (jj + kk - (k - j)(k - j)) / 2 makes it a convolution with a chirp."""
    n = d.evaluate(x.dims[2], {})
    size, places = convenient(2 * n - 1), np.arange(n)
    chirp = np.exp(wave.sign * 1j * pi * (places**2 % (2 * n)) / n)
    before, after = (np.exp(wave.sign * 2j * pi * offset * places / n) for offset in (wave.before, wave.after))
    around = np.zeros(size, np.complex128)
    around[:n] = chirp.conj()
    around[size - n + 1 :] = chirp.conj()[:0:-1]

    def times(x: Value, factors: np.ndarray) -> Value:
        return turn(x, literal(pair(factors), x.type.dtype))

    both = x if x.dims[1] == 2 else pad(x, low=(0, 0, 0, 0), high=(0, 1, 0, 0), value=0.0)
    longer = pad(times(both, before * chirp), low=(0, 0, 0, 0), high=(0, 0, size - n, 0), value=0.0)
    spectrum = times(by(longer, Wave(-1)), np.fft.fft(around) / size)
    result = times(slice_axis(by(spectrum, Wave(1)), 2, 0, n), scale * after * chirp)
    return slice_axis(result, 1, 0, parts)


# --- dft: the transform as one kernel -----------------------------------------------------------------------------------

SMOOTH = (4, 2, 3, 5)  # factors that kernels of ``dft`` know


def by_tables(x: Value, wave: Wave, *, scale: float = 1.0, parts: int = 2) -> Value:
    """What ``transform`` gives, as one ``dft`` where the length has small factors only."""
    n = d.evaluate(x.dims[2], {})
    if factor(n) is None:
        return _as_convolution(x, wave, scale, parts, by_tables)
    if n < 2 or smooth_factors(n) is None:
        return transform(x, wave, scale=scale, parts=parts)
    places, zero, one = np.arange(n), np.array(0), np.array(1)
    edges = wave.at(n, places, zero), scale * wave.at(n, zero, places)
    tables = [literal(pair(w)[0, ..., 0], x.type.dtype) for w in (Wave(wave.sign).at(n, places, one), *edges)]
    y: Value = dft(x, *tables, parts=parts)
    return y


def smooth_factors(n: int) -> tuple[int, ...] | None:
    """``n`` as a product of factors in ``SMOOTH``."""
    found: list[int] = []
    for radix in SMOOTH:
        while n % radix == 0:
            found.append(radix)
            n //= radix
    return tuple(found) if n == 1 else None


def _dft(x: TensorType, roots: TensorType, before: TensorType, after: TensorType, *, parts: int) -> TensorType:
    r.of_kind(r.FLOAT, x)
    r.same_dtype(x, roots, before, after)
    outer, given, n, inner = r.ranked("x", x, ("outer", "parts", "n", "inner"))
    r.known("n", n)
    r.require(given in (1, 2) and parts in (1, 2), f"there are 1 or 2 parts, not {given} and {parts}")
    for name, table in {"roots": roots, "before": before, "after": after}.items():
        r.shaped(name, table, (2, n))
    return x.with_dims((outer, parts, n, inner))


def _dft_reference(x: Any, roots: Any, before: Any, after: Any, *, parts: int) -> Any:
    w, enter, leave = (t[0] + 1j * t[1] for t in (roots, before, after))
    z = x[:, 0] + 1j * x[:, 1] if x.shape[1] == 2 else x[:, 0]
    y = leave[:, None] * _by_roots(enter[:, None] * z, w)
    return np.stack([y.real, y.imag][:parts], axis=1).astype(x.dtype)


def _by_roots(x: Any, w: Any) -> Any:
    """Sum over j of w_(jk mod n) x_j along axis 1; for roots of unity, in the time that NumPy takes for it."""
    n = len(w)
    forward = np.fft.fft(np.eye(n, 1, -1)[:, 0])
    if np.allclose(w, forward, rtol=0, atol=1e-6):
        return np.fft.fft(x, axis=1)
    if np.allclose(w, forward.conj(), rtol=0, atol=1e-6):
        return n * np.fft.ifft(x, axis=1)
    return w[np.outer(np.arange(n), np.arange(n)) % n] @ x


def _dft_by_matrix(x: Value, roots: Value, before: Value, after: Value, *, parts: int) -> Value:
    outer, given, n, inner = x.dims
    assert isinstance(n, int)
    places = literal(np.outer(np.arange(n), np.arange(n)).ravel() % n)
    table = reshape(take(roots, places, axis=1), dims=(1, 2, n, n))
    columns = turn(table, reshape(before, dims=(1, 2, 1, n)))
    whole = turn(columns, reshape(after, dims=(1, 2, n, 1)))
    re, im = (reshape(slice_axis(whole, 1, i, i + 1), dims=(n, n)) for i in (0, 1))
    rows = [concat(re, neg(im), axis=1), concat(im, re, axis=1)] if given == 2 else [re, im]
    matrix = concat(*rows, axis=0) if parts == 2 else rows[0]
    product = matmul(broadcast(matrix, dims=(outer, *matrix.dims)), reshape(x, dims=(outer, given * n, inner)))
    return reshape(product, dims=(outer, parts, n, inner))


# --- by definition, for a symbolic length -----------------------------------------------------------------------------


def _waves(rows: d.Dim, columns: d.Dim, n: d.Dim, dtype: DType, outer: d.Dim) -> tuple[Value, Value]:
    """cos and sin of 2 pi j k / n, [outer, rows, columns]; j k is reduced as an integer, so that angles stay exact."""
    whole = DTYPES["i64"]
    j, k = (iota(dims=(rows, columns), axis=axis, dtype=whole) for axis in (0, 1))
    turns = cast(mod(mul(j, k), _count(n, whole)), dtype=dtype)
    angle = div(mul(turns, 2 * pi), _count(n, dtype))
    return broadcast(cos(angle), dims=(outer, rows, columns)), broadcast(sin(angle), dims=(outer, rows, columns))


def _count(n: d.Dim, dtype: DType) -> Value:
    return literal(n, dtype) if isinstance(n, int) else extent(dim=n, dtype=dtype)


# --- the ops ----------------------------------------------------------------------------------------------------------


def _arranged(x: Value, axis: int, apply: Callable[[Value], Value]) -> Value:
    """``apply`` works on [outer, n, inner]; the innermost axis is brought there unless it is the transformed one."""
    if axis == x.type.rank - 1 and axis > 0:
        perm = (axis, *range(axis))
        back = (*range(1, axis + 1), 0)
        return transpose(_arranged(transpose(x, perm=perm), 0, apply), perm=back)
    outer, inner = d.size(x.dims[:axis]), d.size(x.dims[axis + 1 :])
    y = apply(reshape(x, dims=(outer, x.dims[axis], inner)))
    return reshape(y, dims=(*x.dims[:axis], y.dims[1], *x.dims[axis + 1 :]))


def _stacked(*parts: Value) -> Value:
    """[outer, n, inner] parts as [outer, parts, n, inner]."""
    dims = (parts[0].dims[0], 1, *parts[0].dims[1:])
    shown = [reshape(p, dims=dims) for p in parts]
    return shown[0] if len(shown) == 1 else concat(*shown, axis=1)


def _part(x: Value, index: int) -> Value:
    return reshape(slice_axis(x, 1, index, index + 1), dims=(x.dims[0], *x.dims[2:]))


def complex_transform(x: Value, *, axis: int, sign: int, by: Transform = transform) -> Value:
    def apply(x: Value) -> Value:
        outer, n, _ = x.dims
        re, im = real(x), imag(x)
        if isinstance(n, int):
            y = by(_stacked(re, im), Wave(sign), scale=1.0 if sign < 0 else 1 / n)
            return complex(_part(y, 0), _part(y, 1))
        c, s = _waves(n, n, n, re.type.dtype, outer)
        forward = complex(
            sub(matmul(c, re), mul(float(sign), matmul(s, im))), add(matmul(c, im), mul(float(sign), matmul(s, re)))
        )
        if sign < 0:
            return forward
        size = _count(n, re.type.dtype)
        return complex(div(real(forward), size), div(imag(forward), size))

    return _arranged(x, axis, apply)


def real_transform(x: Value, *, axis: int, by: Transform = transform) -> Value:
    def apply(x: Value) -> Value:
        outer, n, _ = x.dims
        if isinstance(n, int):
            y = slice_axis(by(_stacked(x), Wave(-1)), 2, 0, n // 2 + 1)
            return complex(_part(y, 0), _part(y, 1))
        c, s = _waves(n // 2 + 1, n, n, x.type.dtype, outer)
        return complex(matmul(c, x), neg(matmul(s, x)))

    return _arranged(x, axis, apply)


def inverse_real_transform(x: Value, *, axis: int, n: d.Dim, by: Transform = transform) -> Value:
    def apply(x: Value) -> Value:
        re, im = real(x), imag(x)
        if isinstance(n, int):
            return _part(by(_mirrored(re, im, n), Wave(1), scale=1 / n, parts=1), 0)
        outer, half, _ = x.dims
        whole, dtype = DTYPES["i64"], re.type.dtype
        k = iota(dims=(half, 1), axis=0, dtype=whole)
        once = logical_or(eq(k, 0), eq(mul(k, 2), extent(dim=n, dtype=whole)))
        weight = div(cast(where(once, literal(1, whole), literal(2, whole)), dtype=dtype), _count(n, dtype))
        c, s = _waves(n, half, n, dtype, outer)
        return sub(matmul(c, mul(re, weight)), matmul(s, mul(im, weight)))

    return _arranged(x, axis, apply)


def _mirrored(re: Value, im: Value, n: int) -> Value:
    """The whole spectrum of a real sequence from its first half; what must be real in it is taken as real."""
    keep = np.ones((n // 2 + 1, 1))
    keep[[0, n // 2] if n % 2 == 0 else [0]] = 0
    im = mul(im, literal(keep, im.type.dtype))
    tails = (flip(slice_axis(part, 1, 1, (n + 1) // 2), axes=(1,)) for part in (re, neg(im)))
    whole = [concat(part, tail, axis=1) if n > 2 else part for part, tail in zip((re, im), tails, strict=True)]
    return _stacked(*whole)


def _flops(x: TensorType, *, axis: int, n: d.Dim | None = None) -> d.Dim:
    length = x.dims[axis] if n is None else n
    return 5 * x.size * (length.bit_length() if isinstance(length, int) else length)


def _fft(x: TensorType, *, axis: int) -> TensorType:
    r.of_kind(frozenset({"complex"}), x)
    return _nonempty(x, axis)


def _rfft(x: TensorType, *, axis: int) -> TensorType:
    r.require(x.dtype.name in COMPLEX, f"takes f32 or f64, not {x.dtype}; cast first")
    _nonempty(x, axis)
    return TensorType(COMPLEX[x.dtype.name], r.replace_dim(x, axis, x.dims[axis] // 2 + 1).dims)


def _irfft(x: TensorType, *, axis: int, n: d.Dim) -> TensorType:
    r.of_kind(frozenset({"complex"}), x)
    _nonempty(x, axis)
    r.require(x.dims[axis] == n // 2 + 1, f"a sequence of {n} has {n // 2 + 1} frequencies, not {x.dims[axis]}")
    return TensorType(REAL[x.dtype.name], r.replace_dim(x, axis, n).dims)


def _nonempty(x: TensorType, axis: int) -> TensorType:
    r.axis_of(x, axis)
    r.require(x.dims[axis] != 0, "there is no transform of nothing")
    return x


def _as_type(result: Any, x: Any) -> Any:
    """NumPy transforms in double precision; the result has the operand's."""
    single = x.dtype.itemsize == (8 if x.dtype.kind == "c" else 4)
    return result.astype({"c": np.complex64, "f": np.float32}[result.dtype.kind]) if single else result


def _wide(x: Any) -> Any:
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


_SEVERAL = ((2, 7, 3), (1, 3), (12, 1), (2, 48, 2), (149, 2))  # odd, short, two factors and three, a large prime


def _examples(dtype: str) -> tuple[Example, ...]:
    """Values so small that a sum is of order one, as the tolerance is."""
    axes = [int(dims[0] < 4) for dims in _SEVERAL]
    return tuple(
        Example((f"{dtype}{list(dims)}",), {"axis": a}, -0.2, 0.2) for dims, a in zip(_SEVERAL, axes, strict=True)
    )


def _dft_example(outer: int, given: int, n: int, inner: int, parts: int) -> Example:
    table, angles = f"f32[2, {n}]", 2 * np.pi * np.arange(n) / n
    roots = (tuple(np.cos(angles).tolist()), tuple(np.sin(angles).tolist()))
    types = (f"f32[{outer}, {given}, {n}, {inner}]", table, table, table)
    return Example(types, {"parts": parts}, -0.5, 0.5, values={1: roots})


dft = OpDef(
    "dft",
    infer=_dft,
    reference=_dft_reference,
    decompose=_dft_by_matrix,
    flops=lambda x, *_, **__: 5 * x.size * d.evaluate(x.dims[2], {}).bit_length(),
    examples=(_dft_example(2, 2, 6, 3, 2), _dft_example(1, 1, 8, 2, 2), _dft_example(2, 2, 5, 1, 1)),
    bad_examples=(
        BadExample(("f32[1, 2, 4, 3]", "f32[2, 3]", "f32[2, 4]", "f32[2, 4]"), {"parts": 2}, "roots must have dims"),
        BadExample(("f32[1, 3, 4, 3]", *("f32[2, 4]",) * 3), {"parts": 2}, "there are 1 or 2 parts"),
    ),
    doc=(
        "after_k * sum over j of roots_(jk mod n) before_j x_j, all complex, as [2, n] tables; of x [outer, 1 or 2, n, "
        "inner] the imaginary part may be missing, of the result it may be left out. Kernels rely on roots_t being the "
        "powers of roots_1, a root of unity of order n."
    ),
)
fft = OpDef(
    "fft",
    infer=_fft,
    reference=lambda x, *, axis: _as_type(np.fft.fft(_wide(x), axis=axis), x),
    decompose=lambda x, *, axis: complex_transform(x, axis=axis, sign=-1),
    flops=_flops,
    examples=_examples("c64"),
    bad_examples=(
        BadExample(("f32[4]",), {"axis": 0}, "takes complex operands"),
        BadExample(("c64[4]",), {"axis": -1}, "axis -1 is not in 0..0"),
        BadExample(("c64[2, 0]",), {"axis": 1}, "no transform of nothing"),
    ),
    doc="X_k = sum over j of exp(-2 pi i j k / n) x_j along the axis.",
)
ifft = OpDef(
    "ifft",
    infer=_fft,
    reference=lambda x, *, axis: _as_type(np.fft.ifft(_wide(x), axis=axis), x),
    decompose=lambda x, *, axis: complex_transform(x, axis=axis, sign=1),
    flops=_flops,
    examples=_examples("c64"),
    bad_examples=(BadExample(("f32[4]",), {"axis": 0}, "takes complex operands"),),
    doc="x_j = 1/n sum over k of exp(2 pi i j k / n) X_k along the axis.",
)
rfft = OpDef(
    "rfft",
    infer=_rfft,
    reference=lambda x, *, axis: _as_type(np.fft.rfft(_wide(x), axis=axis), x),
    decompose=lambda x, *, axis: real_transform(x, axis=axis),
    flops=_flops,
    examples=_examples("f32"),
    bad_examples=(BadExample(("c64[4]",), {"axis": 0}, "takes f32 or f64, not c64"),),
    doc="The first n // 2 + 1 frequencies of a real sequence; the others are their conjugates.",
)
irfft = OpDef(
    "irfft",
    infer=_irfft,
    reference=lambda x, *, axis, n: _as_type(np.fft.irfft(_wide(x), n=n, axis=axis), x),
    decompose=lambda x, *, axis, n: inverse_real_transform(x, axis=axis, n=n),
    flops=_flops,
    examples=(
        Example(("c64[2, 4, 3]",), {"axis": 1, "n": 7}),
        Example(("c64[2, 4]",), {"axis": 1, "n": 6}),
        Example(("c64[1, 3]",), {"axis": 0, "n": 1}),
        Example(("c64[2, 1]",), {"axis": 0, "n": 2}),
        Example(("c64[25, 2]",), {"axis": 0, "n": 48}),
        Example(("c64[75, 2]",), {"axis": 0, "n": 149}, -0.2, 0.2),
    ),
    bad_examples=(BadExample(("c64[4]",), {"axis": 0, "n": 8}, "a sequence of 8 has 5 frequencies, not 4"),),
    doc="The real sequence of length n that has these n // 2 + 1 frequencies.",
)
