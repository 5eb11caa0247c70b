"""Elementwise ops: result[i] depends on operands[i] only; operands have one dtype and equal dims."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..core import Value
from ..opdef import COMMUTATIVE, ELEMENTWISE, BadExample, Example, OpDef
from ..types import DTYPES, DType, Kind, TensorType, bool_
from . import rules as r

Range = tuple[float, float]
_ELEMENTWISE = frozenset({ELEMENTWISE})
_PARTS = {"c64": DTYPES["f32"], "c128": DTYPES["f64"]}
_WHOLE = {"f32": DTYPES["c64"], "f64": DTYPES["c128"]}
_OTHER = {"f32": "f64", "i64": "i32", "u8": "i8", "bool": "f32", "c64": "c128"}
_SAMPLE: dict[Kind, str] = {"float": "f32", "int": "i64", "uint": "u8", "bool": "bool", "complex": "c64"}


def _kinds_examples(kinds: frozenset[Kind], arity: int, limits: Range) -> tuple[Example, ...]:
    """One odd-sized example per kind of element, and one of length 1 in the widest float."""
    low, high = limits
    one = [Example(("f64[1]",) * arity, low=low, high=high)] if "float" in kinds else []
    samples = [_SAMPLE[k] for k in sorted(kinds)]
    whole = {"u8": (max(low, 0), high)}
    return (
        *(Example((f"{s}[3, 7]",) * arity, low=whole.get(s, limits)[0], high=whole.get(s, limits)[1]) for s in samples),
        *one,
    )


def _refused(kinds: frozenset[Kind], arity: int) -> tuple[BadExample, ...]:
    """An element type that the op does not take, and operands that differ."""
    outside = sorted(set(_SAMPLE) - kinds)
    wrong = [BadExample((f"{_SAMPLE[outside[0]]}[3]",) * arity, {}, "cast first")] if outside else []
    good = _SAMPLE[sorted(kinds)[0]]
    differ = BadExample((f"{good}[3]", f"{good}[4]"), {}, "do not broadcast together")
    extra = BadExample((f"{good}[3]", f"{good}[3]"), {}, "takes 1, not 2 operands")
    mixed = BadExample((f"{good}[3]", f"{_OTHER[good]}[3]"), {}, "cast")
    return (*wrong, differ, mixed) if arity == 2 else (*wrong, extra)


def _op(
    name: str,
    arity: int,
    reference: Callable[..., Any],
    aten: str,
    doc: str,
    kinds: frozenset[Kind],
    limits: Range = (-2.0, 2.0),
    result: Callable[[DType], DType] = lambda t: t,
    decompose: Callable[..., Any] | None = None,
    traits: frozenset[str] = frozenset(),
) -> OpDef:
    def infer(*operands: TensorType) -> TensorType:
        r.require(len(operands) == arity, f"takes {arity}, not {len(operands)} operands")
        r.of_kind(kinds, *operands)
        first = r.same_type(*operands)
        return first.with_dtype(result(first.dtype))

    return OpDef(
        name,
        infer,
        reference,
        decompose,
        traits=_ELEMENTWISE | traits,
        aliases={"aten": tuple(f"aten.{n}" for n in aten.split())},
        examples=_kinds_examples(kinds, arity, limits),
        bad_examples=_refused(kinds, arity),
        doc=doc,
    )


def _unary(
    name: str, reference: Callable[..., Any], doc: str, kinds: frozenset[Kind] = r.FLOAT, aten: str = "", **rest: Any
) -> OpDef:
    return _op(name, 1, reference, aten or f"{name}.default", doc, kinds, **rest)


def _binary(
    name: str, reference: Callable[..., Any], doc: str, kinds: frozenset[Kind], aten: str = "", **rest: Any
) -> OpDef:
    if rest.pop("commutative", False):
        rest["traits"] = frozenset({COMMUTATIVE})
    return _op(name, 2, reference, aten or f"{name}.Tensor {name}.Scalar", doc, kinds, **rest)


def _compare(name: str, reference: Callable[..., Any], sign: str, kinds: frozenset[Kind], **rest: Any) -> OpDef:
    return _binary(name, reference, f"Whether ``x {sign} y``.", kinds, result=lambda _: bool_, **rest)


def _erf(x: Any) -> Any:
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x)).astype(np.asarray(x).dtype)


def _sign(x: Any) -> Any:
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype)


def _sigmoid(x: Any) -> Any:
    small = np.exp(-np.abs(x))  # never overflows
    return np.where(x < 0, small, 1) / (1 + small)


def _softplus(x: Any) -> Any:
    return np.logaddexp(x, 0)


# --- core, one operand ----------------------------------------------------------------------------------------------

_POSITIVE = (0.1, 4.0)
neg = _unary("neg", np.negative, "``-x``.", r.NUMBER)
abs = _unary("abs", np.abs, "Magnitude; real for complex x.", r.NUMBER, result=lambda t: _PARTS.get(t.name, t))
sign = _unary("sign", _sign, "-1, 0 or 1; 0 for NaN, as in PyTorch.", r.REAL)
exp = _unary("exp", np.exp, "``e**x``.", r.FLOATING)
log = _unary("log", np.log, "Natural logarithm.", r.FLOATING, limits=_POSITIVE)
log1p = _unary("log1p", np.log1p, "``log(1 + x)``, accurate near 0.", limits=(-0.9, 2.0))
expm1 = _unary("expm1", np.expm1, "``exp(x) - 1``, accurate near 0.")
sqrt = _unary("sqrt", np.sqrt, "Square root.", r.FLOATING, limits=_POSITIVE)
rsqrt = _unary("rsqrt", lambda x: 1 / np.sqrt(x), "``1 / sqrt(x)``.", limits=_POSITIVE)
sin = _unary("sin", np.sin, "Sine; x in radians.", r.FLOATING)
cos = _unary("cos", np.cos, "Cosine; x in radians.", r.FLOATING)
tan = _unary("tan", np.tan, "Tangent; x in radians.", limits=(-1.0, 1.0))
atan = _unary("atan", np.arctan, "Inverse tangent, in radians.")
tanh = _unary("tanh", np.tanh, "Hyperbolic tangent.", r.FLOATING)
erf = _unary("erf", _erf, "Gauss error function.")
sigmoid = _unary("sigmoid", _sigmoid, "``1 / (1 + exp(-x))``.")
floor = _unary("floor", np.floor, "Largest integer at most x.")
ceil = _unary("ceil", np.ceil, "Smallest integer at least x.")
round = _unary("round", np.rint, "Nearest integer, halves to even.")
trunc = _unary("trunc", np.trunc, "Integer part, towards zero.")
logical_not = _unary("logical_not", np.logical_not, "``not x``.", r.BOOL)
bitwise_not = _unary("bitwise_not", np.bitwise_not, "Every bit inverted.", r.BITS)
isnan = _unary("isnan", np.isnan, "Whether x is NaN.", result=lambda _: bool_)
isinf = _unary("isinf", np.isinf, "Whether x is an infinity.", result=lambda _: bool_)


def _cast(x: TensorType, *, dtype: DType) -> TensorType:
    r.require(not x.dtype.is_complex or dtype.is_complex, f"complex to {dtype} would drop a part; use real or imag")
    return x.with_dtype(dtype)


_CASTS = ("f32 f64", "f64 bf16", "f32 i64", "i64 f32", "bool f32", "i32 bool", "f16 f32", "f32 c64", "u8 i8")
cast = OpDef(
    "cast",
    infer=_cast,
    reference=lambda x, *, dtype: np.asarray(x).astype(dtype.numpy),
    traits=_ELEMENTWISE,
    aliases={"aten": ("aten._to_copy.default",)},
    examples=tuple(Example((f"{a}[3, 5]",), {"dtype": DTYPES[b]}, low=0) for a, b in map(str.split, _CASTS)),
    bad_examples=(BadExample(("c64[3]",), {"dtype": DTYPES["f32"]}, "would drop a part"),),
    awkward=False,
    doc="Convert the element type; floats truncate to integers, nonzero becomes true.",
)

# --- core, two and three operands -----------------------------------------------------------------------------------

_BY = (1.0, 4.0)
add = _binary("add", np.add, "``x + y``.", r.NUMBER, commutative=True)
sub = _binary("sub", np.subtract, "``x - y``.", r.NUMBER)
mul = _binary("mul", np.multiply, "``x * y``.", r.NUMBER, commutative=True)
div = _binary("div", np.true_divide, "``x / y``.", r.FLOATING, limits=_BY)
floor_div = _binary(
    "floor_div", np.floor_divide, "``floor(x / y)``.", r.REAL, "floor_divide.default floor_divide.Scalar", limits=_BY
)
mod = _binary("mod", np.mod, "Remainder with the sign of y.", r.REAL, "remainder.Tensor remainder.Scalar", limits=_BY)
fmod = _binary("fmod", np.fmod, "Remainder with the sign of x.", r.REAL, limits=_BY)
pow = _binary(
    "pow",
    np.power,
    "``x ** y``; integers need y >= 0.",
    r.REAL,
    "pow.Tensor_Tensor pow.Tensor_Scalar",
    limits=_POSITIVE,
)
maximum = _binary("maximum", np.maximum, "Larger; NaN wins.", r.ORDERED, "maximum.default", commutative=True)
minimum = _binary("minimum", np.minimum, "Smaller; NaN wins.", r.ORDERED, "minimum.default", commutative=True)
atan2 = _binary("atan2", np.arctan2, "Angle of the point (y, x) for operands (y, x).", r.FLOAT, "atan2.default")
eq = _compare("eq", np.equal, "==", r.ANY, commutative=True)
ne = _compare("ne", np.not_equal, "!=", r.ANY, commutative=True)
lt = _compare("lt", np.less, "<", r.ORDERED)
le = _compare("le", np.less_equal, "<=", r.ORDERED)
gt = _compare("gt", np.greater, ">", r.ORDERED)
ge = _compare("ge", np.greater_equal, ">=", r.ORDERED)
logical_and = _binary("logical_and", np.logical_and, "Both.", r.BOOL, "logical_and.default", commutative=True)
logical_or = _binary("logical_or", np.logical_or, "Either.", r.BOOL, "logical_or.default", commutative=True)
logical_xor = _binary("logical_xor", np.logical_xor, "One of two.", r.BOOL, "logical_xor.default", commutative=True)
bitwise_and = _binary("bitwise_and", np.bitwise_and, "Bitwise and.", r.BITS, commutative=True)
bitwise_or = _binary("bitwise_or", np.bitwise_or, "Bitwise or.", r.BITS, commutative=True)
bitwise_xor = _binary("bitwise_xor", np.bitwise_xor, "Bitwise exclusive or.", r.BITS, commutative=True)
shift_left = _binary(
    "shift_left", np.left_shift, "``x << y``; y >= 0.", r.INTEGER, "bitwise_left_shift.Tensor", limits=(0, 4)
)
shift_right = _binary(
    "shift_right", np.right_shift, "``x >> y``; keeps the sign.", r.INTEGER, "bitwise_right_shift.Tensor", limits=(0, 4)
)


def _where(condition: TensorType, x: TensorType, y: TensorType) -> TensorType:
    r.require(condition.dtype == bool_, f"the condition must be bool, not {condition.dtype}")
    r.shaped("the condition", condition, x.dims)
    return r.same_type(x, y)


def _complex(re: TensorType, im: TensorType) -> TensorType:
    r.require(re.dtype.name in _WHOLE, f"parts must be f32 or f64, not {re.dtype}")
    return r.same_type(re, im).with_dtype(_WHOLE[re.dtype.name])


def _part(x: TensorType) -> TensorType:
    r.of_kind(frozenset({"complex"}), x)
    return x.with_dtype(_PARTS[x.dtype.name])


def _whole(re: Any, im: Any) -> Any:
    result = np.empty(np.shape(re), np.result_type(re, np.complex64))
    result.real, result.imag = re, im  # re + 1j*im would turn an infinite part into NaN
    return result


where = OpDef(
    "where",
    _where,
    np.where,
    traits=_ELEMENTWISE,
    aliases={"aten": ("aten.where.self",)},
    examples=(Example(("bool[3, 7]", "f32[3, 7]", "f32[3, 7]")), Example(("bool[1]", "i64[1]", "i64[1]"))),
    bad_examples=(BadExample(("i64[3]", "f32[3]", "f32[3]"), {}, "must be bool"),),
    doc="x where the condition holds, else y.",
)
complex = OpDef(
    "complex",
    _complex,
    _whole,
    traits=_ELEMENTWISE,
    aliases={"aten": ("aten.complex.default",)},
    examples=(Example(("f32[3, 7]", "f32[3, 7]")), Example(("f64[1]", "f64[1]"))),
    bad_examples=(BadExample(("bf16[3]", "bf16[3]"), {}, "f32 or f64"),),
    doc="``re + i*im``.",
)
_COMPLEX = (Example(("c64[3, 7]",)), Example(("c128[1]",)))
_NOT_COMPLEX = (BadExample(("f32[3]",), {}, "complex operands"),)
real = OpDef(
    "real",
    _part,
    np.real,
    traits=_ELEMENTWISE,
    aliases={"aten": ("aten.real.default",)},
    examples=_COMPLEX,
    bad_examples=_NOT_COMPLEX,
    doc="Real part.",
)
imag = OpDef(
    "imag",
    _part,
    np.imag,
    traits=_ELEMENTWISE,
    aliases={"aten": ("aten.imag.default",)},
    examples=_COMPLEX,
    bad_examples=_NOT_COMPLEX,
    doc="Imaginary part.",
)

# --- composite ------------------------------------------------------------------------------------------------------


def _composite(
    name: str, reference: Callable[..., Any], decompose: Callable[..., Any], doc: str, aten: str = "", **rest: Any
) -> OpDef:
    return _unary(name, reference, doc, aten=aten or f"{name}.default", decompose=decompose, **rest)


def _parametric(
    name: str,
    infer: Callable[..., TensorType],
    reference: Callable[..., Any],
    decompose: Callable[..., Any],
    doc: str,
    *attrs: Mapping[str, Any],
    aten: str = "",
) -> OpDef:
    """A float op of one operand with attributes; ``attrs`` are those of its examples."""
    return OpDef(
        name,
        infer,
        reference,
        decompose,
        traits=_ELEMENTWISE,
        aliases={"aten": tuple(f"aten.{n}" for n in (aten or f"{name}.default").split())},
        examples=(*(Example(("f32[3, 7]",), a) for a in attrs), Example(("f64[1]",), attrs[0])),
        bad_examples=(BadExample(("i64[3]",), attrs[0], "cast first"),),
        doc=doc,
    )


def _float_type(x: TensorType) -> TensorType:
    r.of_kind(r.FLOAT, x)
    return x


def _gelu_type(x: TensorType, *, approximate: str = "none") -> TensorType:
    r.require(approximate in ("none", "tanh"), f'approximate is "none" or "tanh", not "{approximate}"')
    return _float_type(x)


def _gelu_reference(x: Any, *, approximate: str) -> Any:
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _gelu(x: Value, *, approximate: str) -> Value:
    if approximate == "tanh":
        inner = mul(add(x, mul(mul(mul(x, x), x), 0.044715)), math.sqrt(2 / math.pi))
        return mul(mul(x, 0.5), add(tanh(inner), 1))
    return mul(mul(x, 0.5), add(erf(mul(x, math.sqrt(0.5))), 1))


def _clip(x: Value, low: float, high: float) -> Value:
    return minimum(maximum(x, low), high)


def _clamp_type(x: TensorType, *, low: float | None = None, high: float | None = None) -> TensorType:
    r.of_kind(r.REAL, x)
    r.require(low is None or high is None or low <= high, f"low {low} is above high {high}")
    return x


def _clamp(x: Value, *, low: float | None, high: float | None) -> Value:
    above = x if low is None else maximum(x, low)
    return above if high is None else minimum(above, high)


def _clamp_reference(x: Any, *, low: float | None, high: float | None) -> Any:
    above = x if low is None else np.maximum(x, low)
    return above if high is None else np.minimum(above, high)


relu = _composite(
    "relu",
    lambda x: np.maximum(x, 0),
    lambda x: maximum(x, 0),
    "``max(x, 0)``.",
    kinds=r.REAL,
)
silu = _composite(
    "silu",
    lambda x: x * _sigmoid(x),
    lambda x: mul(x, sigmoid(x)),
    "``x * sigmoid(x)``, also called swish.",
)
softplus = _composite(
    "softplus",
    _softplus,
    lambda x: add(maximum(x, 0), log1p(exp(neg(abs(x))))),  # log1p(exp(x)) overflows at x = 89 in f32
    "``log(1 + exp(x))``.",
)
logsigmoid = _composite(
    "logsigmoid",
    lambda x: -_softplus(-x),
    lambda x: neg(softplus(neg(x))),
    "``log(sigmoid(x))``.",
    "log_sigmoid.default",
)
reciprocal = _composite(
    "reciprocal",
    lambda x: 1 / x,
    lambda x: div(1, x),
    "``1 / x``.",
    kinds=r.FLOATING,
    limits=_BY,
)
square = _composite("square", np.square, lambda x: mul(x, x), "``x * x``.", kinds=r.NUMBER)
exp2 = _composite("exp2", np.exp2, lambda x: exp(mul(x, math.log(2))), "``2 ** x``.")
log2 = _composite("log2", np.log2, lambda x: mul(log(x), 1 / math.log(2)), "Logarithm to base 2.", limits=_POSITIVE)
log10 = _composite(
    "log10", np.log10, lambda x: mul(log(x), 1 / math.log(10)), "Logarithm to base 10.", limits=_POSITIVE
)
hardswish = _composite(
    "hardswish",
    lambda x: x * np.clip(x + 3, 0, 6) / 6,
    lambda x: mul(mul(x, _clip(add(x, 3), 0, 6)), 1 / 6),
    "``x * clip(x + 3, 0, 6) / 6``.",
)
hardsigmoid = _composite(
    "hardsigmoid",
    lambda x: np.clip(x + 3, 0, 6) / 6,
    lambda x: mul(_clip(add(x, 3), 0, 6), 1 / 6),
    "``clip(x + 3, 0, 6) / 6``.",
)
mish = _composite(
    "mish",
    lambda x: x * np.tanh(_softplus(x)),
    lambda x: mul(x, tanh(softplus(x))),
    "``x * tanh(softplus(x))``.",
)
isfinite = _composite(
    "isfinite",
    np.isfinite,
    lambda x: logical_not(logical_or(isnan(x), isinf(x))),
    "Whether x is neither infinite nor NaN.",
    result=lambda _: bool_,
)
conj = _composite(
    "conj",
    np.conj,
    lambda x: complex(real(x), neg(imag(x))),
    "Complex conjugate.",
    "_conj.default _conj_physical.default",
    kinds=frozenset({"complex"}),
)


def _logaddexp(x: Value, y: Value) -> Value:
    distance = where(eq(x, y), 0, sub(x, y))  # inf - inf is NaN
    return add(maximum(x, y), log1p(exp(neg(abs(distance)))))


logaddexp = _binary(
    "logaddexp",
    np.logaddexp,
    "``log(exp(x) + exp(y))`` without overflow.",
    r.FLOAT,
    "logaddexp.default",
    decompose=_logaddexp,
    commutative=True,
)
gelu = _parametric(
    "gelu",
    _gelu_type,
    _gelu_reference,
    _gelu,
    "Gaussian error linear unit, exact or by the tanh formula.",
    {"approximate": "none"},
    {"approximate": "tanh"},
)
leaky_relu = _parametric(
    "leaky_relu",
    lambda x, *, slope=0.01: _float_type(x),
    lambda x, *, slope: np.where(x > 0, x, slope * x),
    lambda x, *, slope: where(gt(x, 0), x, mul(x, slope)),
    "x where positive, else ``slope * x``.",
    {"slope": 0.01},
    {"slope": 0.2},
)
elu = _parametric(
    "elu",
    lambda x, *, alpha=1.0: _float_type(x),
    lambda x, *, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    lambda x, *, alpha: where(gt(x, 0), x, mul(expm1(minimum(x, 0)), alpha)),
    "x where positive, else ``alpha * (exp(x) - 1)``.",
    {"alpha": 1.0},
    {"alpha": 0.5},
)
clamp = OpDef(
    "clamp",
    _clamp_type,
    _clamp_reference,
    _clamp,
    traits=_ELEMENTWISE,
    aliases={"aten": ("aten.clamp.default",)},
    examples=(
        Example(("f32[3, 7]",), {"low": -0.5, "high": 1.0}),
        Example(("f64[1]",), {"low": 0.0, "high": None}),
        Example(("i64[5]",), {"low": None, "high": 1}, high=4),
    ),
    bad_examples=(BadExample(("f32[3]",), {"low": 2.0, "high": 1.0}, "is above high"),),
    doc="x held between low and high; None leaves that side open.",
)
