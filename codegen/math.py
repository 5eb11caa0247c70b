"""Transcendental functions as vector-safe arithmetic.

The intrinsics of TIR become one libm call per lane; these stay in vector registers on every CPU. Errors are below 1e-6
relative over the whole range of fp32, infinities and NaN are right, and subnormal results of ``exp`` are flushed to zero
where exponents are arithmetic on integers.
``tests/codegen/test_math_sweep.py`` goes through all exponents; the largest relative errors that it finds in normal results
are exp 3.7e-7, exp2 2.1e-7, expm1 1.3e-7, log 0.8e-7, log1p 1.4e-7, sigmoid 3.9e-7, softplus 3.7e-7, tanh 1.7e-7;
silu, as a product with a sigmoid, 4.3e-7, and zero where that is flushed: below -87.3, where it is smaller than 1.1e-36.
fp64 goes through LLVM's intrinsics, most of which call libm once per lane. On a device, whose threads are scalar, the
functions of its own library are used.

Two rules keep the arithmetic as written: never build with fast-math, and hide a rounding trick such as ``(t + M) - M``
behind ``opaque``, because TIR's simplifier treats floats as reals. Polynomials are minimax fits in the relative error,
highest power first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import inf, log, pi

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .scalar import Expr, bind, const, dtype_name, intrinsic, is_nan, on_device, processor_has, reinterpret, select
from .vector_instructions import FRACTION, TIMES_POWER, of_elements

EXP2 = (1.327647166e-03, 9.675541471e-03, 5.550713276e-02, 2.402211972e-01, 6.931469671e-01, 1.000000072e00)
EXP2_WIDE = (1.015076578e-07, 1.325944812e-06, 1.525298225e-05, 1.540343471e-04, 1.333355762e-03, 9.618129192e-03,
             5.550410867e-02, 2.402265070e-01, 6.931471806e-01, 1.0)  # fmt: skip
EXP2_UP = (1.867130070e-03, 9.017030322e-03, 5.579991310e-02, 2.401644502e-01, 6.931513118e-01, 1.0)  # in [0, 1]
EXP_UP = (1.166936618e-02, 3.906264852e-02, 1.675549025e-01, 4.998708369e-01, 1.000005960e00, 1.0)  # in [0, log(2)]
EXPM1 = (1.388252267e-03, 8.366514036e-03, 4.166719965e-02, 1.666654367e-01, 4.999999816e-01)  # (e^r - 1 - r) / r^2
LOG = (6.746640642e-02, -1.167565546e-01, 1.188816423e-01, -1.240558850e-01, 1.421955205e-01, -1.666799586e-01,
       2.000211867e-01, -2.500000960e-01, 3.333331260e-01)  # fmt: skip  # (log(1 + f) - f + f^2/2) / f^3
ATAN = (2.849955034e-03, -1.606890866e-02, 4.269201162e-02, -7.504340511e-02, 1.064095846e-01, -1.420365183e-01,
        1.999262057e-01, -3.333307343e-01, 9.999999848e-01)  # fmt: skip  # atan(z) / z over z^2, z in [0, 1]
ERF = (8.316814815e-05, -8.130024000e-04, 5.199907918e-03, -2.685894217e-02, 1.128368721e-01, -3.761263319e-01,
       1.128379167e00)  # fmt: skip  # erf(x) / x over x^2, x in [0, 0.93]
ERFC = (-1.949459178e-04, 3.033684746e-03, -2.218974834e-02, 1.038563195e-01, 6.372658104e-01, 1.127627368e00,
        2.070157445e-04)  # fmt: skip  # -log(1 - erf(x)), x in [0.92, 4]
ERF_WIDE = (-3.09496625455745785e-13, 9.22460721325891541e-12, -2.03710201566864541e-10, 4.11571928566323460e-09,
            -7.51155113191718435e-08, 1.22338279201148519e-06, -1.75371695201767978e-05, 2.17517156024925318e-04,
            -2.28548556112936332e-03, 1.98524966889856991e-02, -1.40536089022717969e-01,
            9.65468738669867599e-01)  # fmt: skip  # erf(x) / x over 2 x^2 - 1, x in [0, 1]
ERFC_WIDE = (-6.37471083727272561e-08, 7.11886613129319855e-08, 3.22686808911532496e-07, -6.80984412092230259e-07,
             6.29921970310639769e-07, -1.49379215769120538e-06, 3.67580886793168045e-06, -4.91742605750062241e-06,
             1.33432404977160717e-06, 1.86537786965863372e-05, -9.08495000265432799e-05, 3.07763083870501758e-04,
             -8.93588044167490368e-04, 2.37400786544730109e-03, -5.95370297968591568e-03, 1.43845472511336669e-02,
             -3.41284111824967026e-02, 8.16509097675456597e-02, 6.04220659214193923, 1.81652489709122911e+01,
             1.41124374021481671e+01)  # fmt: skip  # -log(1 - erf(x)) over (x - 3.5) / 2.5, x in [1, 6]
SIN = (-1.951665545e-04, 8.332173541e-03, -1.666665487e-01)  # (sin(r) - r) / r^3 over r^2, |r| <= pi/4
COS = (2.443241254e-05, -1.388730986e-03, 4.166664555e-02)  # (cos(r) - 1 + r^2/2) / r^4 over r^2

LOG2_E = 1.4426950408889634
LOG2_E_LOW = 1.925963033500623e-08  # what fp32 leaves out of log2(e)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # the first has few bits: its products with exponents are exact
ROUND = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer, which then sits in the low bits
ROUND_WIDE = 6755399441055744.0  # 1.5 * 2**52, the same for fp64
EXP_LOWEST, EXP_HIGHEST = -87.33654, 88.72283  # exp is flushed to zero below, infinite above
EXP_ZERO, EXP_INFINITE = -105.0, 89.0  # no subnormal number, and no normal one


def polynomial(coefficients: Sequence[float], x: Expr) -> Expr:
    """Horner's rule, highest power first."""
    first, *rest = (const(c, x) for c in coefficients)
    return bind(reduce(lambda total, c: total * x + c, rest, first))


def bits(x: Expr) -> Expr:
    """The representation of a float as a signed integer of the same width."""
    return reinterpret("int32" if dtype_name(x) == "float32" else "int64", x)


def opaque(x: Expr) -> Expr:
    """The same float, through a round trip that the simplifier does not see through."""
    return reinterpret(dtype_name(x), bits(x))


def copy_sign(magnitude: Expr, sign: Expr) -> Expr:
    """``magnitude`` (not negative) with the sign bit of ``sign``."""
    mask = tirx.const(-(2**31) if dtype_name(sign) == "float32" else -(2**63), bits(sign).ty.dtype)
    return reinterpret(dtype_name(sign), tirx.bitwise_or(bits(magnitude), tirx.bitwise_and(bits(sign), mask)))


def absolute(x: Expr) -> Expr:
    return bind(intrinsic("fabs", x))


def square_root(x: Expr) -> Expr:
    return bind(intrinsic("sqrt", x))


def _fma(a: Expr, b: Expr, c: Expr) -> Expr:
    return bind(intrinsic("fma", a, b, c))


def _wide(x: Expr) -> bool:
    return dtype_name(x) == "float64"


def _has_function(x: Expr) -> bool:
    """Whether the target's own function is better than a polynomial: in fp64, and on devices, which have fast ones."""
    return _wide(x) or on_device()


# --- exponentials -----------------------------------------------------------------------------------------------------


def _scaled(p: Expr, shifted: Expr) -> Expr:
    """``p * 2**n``, n being in the low bits of ``shifted``: an addition to the exponent field."""
    return bind(reinterpret("float32", bits(p) + tirx.shift_left(bits(shifted), tirx.const(23, "int32"))))


def _power_of_two(shifted: Expr) -> Expr:
    """``2**n`` for n <= 127, n being in the low bits of ``shifted``."""
    exponent = tirx.shift_left(bits(shifted), tirx.const(23, "int32"))
    return bind(reinterpret("float32", exponent + tirx.const(0x3F800000, "int32")))


def _split(t: Expr) -> tuple[Expr, Expr]:
    """The integer nearest to ``t``, as a float and in the low bits of a float."""
    shifted = bind(t + const(ROUND, t))
    return bind(opaque(shifted) - const(ROUND, t)), shifted


def has_scale() -> bool:
    """Whether fractions and products with powers of two are instructions, right for infinities and NaN."""
    return processor_has("avx512dq")


def _fraction(t: Expr) -> Expr:
    """``t - floor(t)``; zero for an infinity."""
    return bind(of_elements(FRACTION, t))


def _times_power(p: Expr, t: Expr) -> Expr:
    """``p * 2**floor(t)``; zero for t = -inf, infinite for t = inf, whatever p is."""
    return bind(of_elements(TIMES_POWER, p, t))


def exp2(t: Expr) -> Expr:
    """2**t; zero below 2**-126."""
    if _has_function(t):
        return bind(intrinsic("exp2", t))
    if has_scale():
        return _times_power(polynomial(EXP2_UP, _fraction(t)), t)
    in_range = select(t < const(-126.0, t), const(0.0, t), exp2_in_range(t))
    return bind(select(t < const(128.0, t), in_range, t * const(inf, t)))  # NaN too


def exp2_in_range(t: Expr) -> Expr:
    """2**t in fp32 for -126 <= t < 128."""
    whole, shifted = _split(t)
    return _scaled(polynomial(EXP2, bind(t - whole)), shifted)


def exp(x: Expr, *, nonpositive: bool = False) -> Expr:
    """e**x; ``nonpositive`` promises that x <= 0 and saves the test for overflow."""
    if _has_function(x):
        return bind(intrinsic("exp", x))
    if has_scale():
        return _exp_by_scale(x, nonpositive)
    whole, shifted = _split(x * const(LOG2_E, x))
    rest = _fma(x, const(LOG2_E_LOW, x), _fma(x, const(LOG2_E, x), -whole))
    p = polynomial(EXP2, rest)
    if nonpositive:
        return bind(select(x < const(EXP_LOWEST, x), const(0.0, x), p * _power_of_two(shifted)))
    # The bits of a NaN are no number to add to, and x * inf is infinity or NaN.
    in_range = select(x < const(EXP_LOWEST, x), const(0.0, x), _scaled(p, shifted))
    return bind(select(x <= const(EXP_HIGHEST, x), in_range, x * const(inf, x)))


def _exp_by_scale(x: Expr, nonpositive: bool) -> Expr:
    x = bind(select(x < const(EXP_ZERO, x), const(EXP_ZERO, x), x))  # so that the rest below is one
    x = x if nonpositive else bind(select(x > const(EXP_INFINITE, x), const(EXP_INFINITE, x), x))
    t = bind(x * const(LOG2_E, x))
    whole = bind(t - _fraction(t))
    return _times_power(polynomial(EXP_UP, _fma(whole, const(-log(2), x), x)), whole)


def expm1(x: Expr) -> Expr:
    """e**x - 1 without cancellation near zero."""
    if on_device():
        return bind(intrinsic("expm1", x))
    if _wide(x):
        return _expm1_wide(x)
    whole, shifted = _split(x * const(LOG2_E, x))
    r = _fma(whole, const(-LN2_LOW, x), _fma(whole, const(-LN2_HIGH, x), x))
    small = bind(r + r * r * polynomial(EXPM1, r))
    half = _scaled(const(0.5, x), shifted)  # half the scale, which does not overflow
    result = bind((half * small + (half - const(0.5, x))) * const(2.0, x))
    result = select(x > const(EXP_HIGHEST, x), const(inf, x), select(x < const(-18.0, x), const(-1.0, x), result))
    return bind(select(absolute(x) < const(1e-8, x), x, result))  # keeps the sign of zero


def _expm1_wide(x: Expr) -> Expr:
    """(u - 1) * x / log(u) for u = e**x: the errors of the numerator and of the logarithm cancel (W. Kahan)."""
    u = exp(x)
    less = bind(opaque(u) - const(1.0, x))
    middle = bind(less * bind(x / natural_log(u)))
    outside = tirx.Or(tirx.EQ(less, const(-1.0, x)), tirx.EQ(u, const(inf, x)))
    return bind(select(tirx.EQ(u, const(1.0, x)), x, select(outside, less, middle)))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e**-x)."""
    return bind(_quotient(const(1.0, x), const(1.0, x) + exp(-x)))


def silu(x: Expr) -> Expr:
    """x * sigmoid(x)."""
    return bind(_quotient(x, const(1.0, x) + exp(-x)))


def _quotient(x: Expr, y: Expr) -> Expr:
    """x / y; on a device in fp32 within 2 ulp and without a branch, zero for y above 2**126."""
    if on_device() and dtype_name(x) == "float32":
        return tirx.call_pure_extern("float32", "__fdividef", x, y)
    return x / y


def tanh(x: Expr) -> Expr:
    """Through expm1, so that it is accurate near zero."""
    if _has_function(x):
        return bind(intrinsic("tanh", x))
    magnitude = absolute(x)
    doubled = bind(select(magnitude > const(10.0, x), const(20.0, x), magnitude + magnitude))
    e = expm1(doubled)
    return bind(copy_sign(bind(e / (e + const(2.0, x))), x))


# --- logarithms -------------------------------------------------------------------------------------------------------


def _exponent_and_mantissa(x: Expr) -> tuple[Expr, Expr]:
    """For positive x = m * 2**e with m in [sqrt(1/2), sqrt(2)): e as int32, and m; subnormals are scaled up first."""
    tiny = bind(select(x < const(1.17549435e-38, x), const(1.0, x), const(0.0, x)))
    scaled = bind(bits(bind(x * (const(1.0, x) + tiny * const(2.0**24 - 1, x)))))
    exponent = bind(tirx.shift_right(scaled - tirx.const(0x3F3504F3, "int32"), tirx.const(23, "int32")))
    mantissa = reinterpret("float32", scaled - tirx.shift_left(exponent, tirx.const(23, "int32")))
    return bind(exponent - T.Cast("int32", tiny) * tirx.const(24, "int32")), bind(mantissa)


def _log_domain(x: Expr, result: Expr) -> Expr:
    """The value at zero, below zero and at infinity; NaN passes."""
    result = select(tirx.EQ(x, const(0.0, x)), const(-inf, x), result)
    result = select(x < const(0.0, x), const(float("nan"), x), result)
    return bind(select(tirx.EQ(x, const(inf, x)), const(inf, x), select(is_nan(x), x, result)))


def _log_positive(x: Expr) -> Expr:
    exponent, mantissa = _exponent_and_mantissa(x)
    e, f = bind(T.Cast("float32", exponent)), bind(mantissa - const(1.0, x))
    square = bind(f * f)
    tail = bind(f * square * polynomial(LOG, f) + e * const(LN2_LOW, x) - square * const(0.5, x))
    return bind((f + tail) + e * const(LN2_HIGH, x))


def natural_log(x: Expr) -> Expr:
    """log(x): -inf at 0, NaN below."""
    return bind(intrinsic("log", x)) if _has_function(x) else _log_domain(x, _log_positive(x))


def log1p(x: Expr) -> Expr:
    """log(1 + x); what the addition rounds away is put back to first order."""
    if on_device():
        return bind(intrinsic("log1p", x))
    u = bind(x + const(1.0, x))
    lost = bind(x - (opaque(u) - const(1.0, x)))
    result = _log_domain(u, bind((natural_log(u) if _wide(x) else _log_positive(u)) + lost / u))
    return bind(select(absolute(x) < const(1e-8, x), x, result))


def softplus(x: Expr) -> Expr:
    """log(1 + e**x) without overflow: max(x, 0) + log(1 + e**-|x|)."""
    positive = bind(select(x > const(0.0, x), x, const(0.0, x)))
    small = exp(-absolute(x), nonpositive=True)
    if _has_function(x):
        return bind(select(is_nan(x), x, positive + log1p(small)))
    return bind(positive + _log1p_of_fraction(small))


def _log1p_of_fraction(x: Expr) -> Expr:
    """log(1 + x) for 0 <= x <= 1, through 1 + x = 2 * (1 + f) where that makes f smaller; NaN passes."""
    large = bind(x > const(2**0.5 - 1, x))
    f = bind(select(large, x * const(0.5, x) - const(0.5, x), x))
    square = bind(f * f)
    rest = bind(f * square * polynomial(LOG, f) - square * const(0.5, x))
    return bind(f + rest + select(large, const(log(2), x), const(0.0, x)))


def power(x: Expr, y: Expr) -> Expr:
    """x**y by C's rules. fp32 goes through fp64, in which the product y*log2(x) keeps enough bits."""
    simple = None if _wide(x) else _constant_power(x, y)
    if simple is not None:
        return bind(simple)
    return bind(intrinsic("pow", x, y)) if _has_function(x) else _power(x, y)


def _constant_power(x: Expr, y: Expr) -> Expr | None:
    if not isinstance(y, tirx.FloatImm):
        return None
    rows: dict[float, Callable[[], Expr]] = {
        -1.0: lambda: const(1.0, x) / x,
        -0.5: lambda: const(1.0, x) / square_root(x),
        0.0: lambda: const(1.0, x),
        0.5: lambda: square_root(x),
        1.0: lambda: x,
        2.0: lambda: x * x,
        3.0: lambda: x * x * x,
        4.0: lambda: bind(x * x) * bind(x * x),
    }
    return rows[float(y.value)]() if float(y.value) in rows else None


def _power(x: Expr, y: Expr) -> Expr:
    magnitude = absolute(x)
    t = bind(T.Cast("float64", y) * _log2_wide(magnitude))
    t = bind(tirx.max(tirx.min(t, const(1000.0, t)), const(-1000.0, t)))
    shifted = bind(t + const(ROUND_WIDE, t))
    p = polynomial(EXP2_WIDE, bind(t - (opaque(shifted) - const(ROUND_WIDE, t))))
    raised = reinterpret("float64", bits(p) + tirx.shift_left(bits(shifted), tirx.const(52, "int64")))
    result = bind(T.Cast("float32", bind(raised)))
    whole = bind(intrinsic("trunc", y))
    half = bind(intrinsic("trunc", y * const(0.5, y)) * const(2.0, y))
    odd = tirx.And(tirx.EQ(whole, y), tirx.Not(tirx.EQ(half, whole)))
    negative = bind(bits(x) < tirx.const(0, "int32"))
    undefined = tirx.And(x < const(0.0, x), tirx.And(tirx.Not(tirx.EQ(whole, y)), magnitude < const(inf, x)))
    result = select(undefined, const(float("nan"), x), select(tirx.And(odd, negative), -result, result))
    result = select(is_nan(x), x, select(is_nan(y), y, result))
    flat = tirx.And(tirx.EQ(magnitude, const(1.0, x)), tirx.EQ(absolute(y), const(inf, x)))
    one = tirx.Or(tirx.Or(tirx.EQ(y, const(0.0, y)), tirx.EQ(x, const(1.0, x))), flat)
    return bind(select(one, const(1.0, x), result))


def _log2_wide(x: Expr) -> Expr:
    """log2 of a non-negative fp32 in fp64, relative error 1e-12; 2000 stands for the logarithm of infinity."""
    exponent, mantissa = _exponent_and_mantissa(x)
    m = bind(T.Cast("float64", mantissa))
    s = bind((m - const(1.0, m)) / (m + const(1.0, m)))
    series = polynomial([2 / (k * log(2)) for k in range(15, 0, -2)], bind(s * s))
    result = bind(T.Cast("float64", exponent) + s * series)
    result = select(
        tirx.EQ(x, const(0.0, x)), const(-1e300, m), select(tirx.EQ(x, const(inf, x)), const(1e300, m), result)
    )
    return bind(result)


# --- the error function and trigonometry ------------------------------------------------------------------------------


def erf(x: Expr) -> Expr:
    """Error function: a polynomial near zero, 1 - e**-polynomial beyond."""
    if on_device():
        return bind(intrinsic("erf", x))
    if _wide(x):
        return _erf_wide(x)
    magnitude = absolute(x)
    near = bind(magnitude * polynomial(ERF, bind(x * x)))
    clipped = bind(select(magnitude > const(4.0, x), const(4.0, x), magnitude))
    far = bind(const(1.0, x) - exp(-polynomial(ERFC, clipped), nonpositive=True))
    return bind(copy_sign(bind(select(magnitude < const(0.92, x), near, far)), x))


def _erf_wide(x: Expr) -> Expr:
    magnitude, one = absolute(x), const(1.0, x)
    near = bind(magnitude * polynomial(ERF_WIDE, bind(const(2.0, x) * x * x - one)))
    clipped = bind(select(magnitude > const(6.0, x), const(6.0, x), magnitude))
    far = bind(one - exp(-polynomial(ERFC_WIDE, bind((clipped - const(3.5, x)) * const(0.4, x)))))
    return bind(copy_sign(bind(select(magnitude < one, near, far)), x))


def _quadrant(x: Expr) -> tuple[Expr, Expr]:
    """x - q*pi/2 in [-pi/4, pi/4] and the integer q; fp64 arithmetic keeps the rest exact to 1e-7 for |x| < 1e15."""
    wide = bind(T.Cast("float64", x))
    shifted = bind(wide * const(2 / pi, wide) + const(ROUND_WIDE, wide))
    q = bind(opaque(shifted) - const(ROUND_WIDE, wide))
    rest = _fma(q, const(-6.123233995736766e-17, wide), _fma(q, const(-pi / 2, wide), wide))
    return bind(T.Cast("float32", rest)), bind(T.Cast("int32", bits(shifted)))


def _sine_of_quadrant(r: Expr, q: Expr) -> Expr:
    square = bind(r * r)
    sine = bind(r + r * square * polynomial(SIN, square))
    cosine = bind(const(1.0, r) - square * const(0.5, r) + square * square * polynomial(COS, square))
    one, two = tirx.const(1, "int32"), tirx.const(2, "int32")
    value = bind(select(tirx.EQ(tirx.bitwise_and(q, one), one), cosine, sine))
    return bind(select(tirx.EQ(tirx.bitwise_and(q, two), two), -value, value))


def sin(x: Expr) -> Expr:
    if _has_function(x):
        return bind(intrinsic("sin", x))
    return _sine_of_quadrant(*_quadrant(x))


def cos(x: Expr) -> Expr:
    if _has_function(x):
        return bind(intrinsic("cos", x))
    r, q = _quadrant(x)
    return _sine_of_quadrant(r, bind(q + tirx.const(1, "int32")))


def tan(x: Expr) -> Expr:
    if _has_function(x):
        return bind(intrinsic("tan", x))
    r, q = _quadrant(x)
    return bind(_sine_of_quadrant(r, q) / _sine_of_quadrant(r, bind(q + tirx.const(1, "int32"))))


def _atan_of_ratio(small: Expr, large: Expr) -> Expr:
    """atan(small / large) for 0 <= small <= large; equal infinities give pi/4."""
    ratio = bind(select(tirx.EQ(small, large), const(1.0, small), small / large))
    ratio = bind(select(tirx.EQ(large, const(0.0, large)), const(0.0, small), ratio))
    return bind(ratio * polynomial(ATAN, bind(ratio * ratio)))


def atan(x: Expr) -> Expr:
    if _has_function(x):
        return bind(intrinsic("atan", x))
    return atan2(x, const(1.0, x))


def atan2(y: Expr, x: Expr) -> Expr:
    """The angle of the point (x, y), in [-pi, pi]."""
    if _has_function(x):
        return bind(intrinsic("atan2", y, x))
    across, up = absolute(x), absolute(y)
    steep = bind(up > across)
    angle = _atan_of_ratio(bind(select(steep, across, up)), bind(select(steep, up, across)))
    angle = bind(select(steep, const(pi / 2, x) - angle, angle))
    angle = bind(select(bits(x) < tirx.const(0, "int32"), const(pi, x) - angle, angle))
    angle = bind(copy_sign(angle, y))
    return bind(select(is_nan(x), x, select(is_nan(y), y, angle)))


def remainder(x: Expr, y: Expr) -> Expr:
    """C's fmod: the sign of x; exact for quotients up to 2**300.

    Multiples of y * 2**s are taken off for falling s. Each quotient has at most 50 bits, and what remains has no more bits
    than the operands, so that one fused multiply-add gives it exactly.
    """
    if on_device():
        return bind(intrinsic("fmod", x, y))
    rest, divisor = (bind(T.Cast("float64", absolute(v))) for v in (x, y))
    for shift in range(250, -1, -50):
        part = bind(divisor * const(2.0**shift, divisor))
        times = bind(intrinsic("trunc", rest / part))
        less = _fma(-times, part, rest)
        less = bind(select(less < const(0.0, less), less + part, less))
        rest = bind(select(times > const(0.0, less), less, rest))
    rest = bind(select(tirx.EQ(divisor, const(0.0, divisor)), const(float("nan"), divisor), rest))
    unbounded = tirx.Or(is_nan(y), tirx.EQ(absolute(x), const(inf, x)))
    result = bind(select(unbounded, const(float("nan"), x), T.Cast(dtype_name(x), rest)))
    return bind(select(is_nan(x), x, copy_sign(result, x)))
