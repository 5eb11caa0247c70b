"""One row per elementwise op: operands in registers to the result in a register."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from coilc.ir import Node, UnsupportedError

from . import math
from .scalar import Expr, bind, const, dtype_name, intrinsic, is_nan, on_device, select


def evaluate(node: Node, operands: list[Expr]) -> Expr:
    """One elementwise op on registers."""
    if node.op.name not in SCALARS:
        raise UnsupportedError("this op has no scalar code:", [(node.op.name, node.location)])
    return SCALARS[node.op.name](*operands)


def _is_float(x: Expr) -> bool:
    return dtype_name(x).startswith("float")


def _rounding(name: str) -> Callable[[Expr], Expr]:
    return lambda x: intrinsic(name, x) if _is_float(x) else x


def _negate(x: Expr) -> Expr:
    return x * const(-1, x) if _is_float(x) else const(0, x) - x


def _absolute(x: Expr) -> Expr:
    if _is_float(x):
        return intrinsic("fabs", x)
    return x if dtype_name(x).startswith("u") else select(x < const(0, x), const(0, x) - x, x)


def _sign(x: Expr) -> Expr:
    """Zero for NaN."""
    negative = const(0, x) if dtype_name(x).startswith("u") else select(x < const(0, x), const(-1, x), const(0, x))
    return select(x > const(0, x), const(1, x), negative)


def maximum(x: Expr, y: Expr) -> Expr:
    """The larger one; a NaN wins."""
    if dtype_name(x) == "bool":
        return tirx.Or(x, y)
    return _with_nan("maximum", "fmax", x, y) if _is_float(x) else tirx.max(x, y)


def minimum(x: Expr, y: Expr) -> Expr:
    """The smaller one; a NaN wins."""
    if dtype_name(x) == "bool":
        return tirx.And(x, y)
    return _with_nan("minimum", "fmin", x, y) if _is_float(x) else tirx.min(x, y)


def _with_nan(name: str, device_name: str, x: Expr, y: Expr) -> Expr:
    """A comparison in which NaN wins; the function of a device, as C's, prefers the number."""
    if not on_device():
        return intrinsic(name, x, y)
    return select(is_nan(x), x, select(is_nan(y), y, intrinsic(device_name, x, y)))


def _not_equal(x: Expr, y: Expr) -> Expr:
    return is_nan(x) if x.same_as(y) and _is_float(x) else tirx.Not(_equal(x, y))


def _equal(x: Expr, y: Expr) -> Expr:
    if dtype_name(x) == "bool":
        return tirx.Not(_xor(x, y))
    return tirx.Not(is_nan(x)) if x.same_as(y) and _is_float(x) else tirx.EQ(x, y)


def _xor(x: Expr, y: Expr) -> Expr:
    return tirx.Or(tirx.And(x, tirx.Not(y)), tirx.And(y, tirx.Not(x)))


def _ordered(compare: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    """Bools compare as integers."""

    def row(x: Expr, y: Expr) -> Expr:
        x, y = (T.Cast("int8", v) if dtype_name(v) == "bool" else v for v in (x, y))
        return compare(x, y)

    return row


def _bits(on_bool: Callable[..., Expr], on_integers: Callable[..., Expr]) -> Callable[..., Expr]:
    return lambda *xs: on_bool(*xs) if dtype_name(xs[0]) == "bool" else on_integers(*xs)


def _truth(x: Expr) -> Expr:
    return x if dtype_name(x) == "bool" else tirx.Not(tirx.EQ(x, const(0, x)))


def _add(x: Expr, y: Expr) -> Expr:
    return tirx.Or(x, y) if dtype_name(x) == "bool" else x + y


def _multiply(x: Expr, y: Expr) -> Expr:
    if dtype_name(x) == "bool":
        return tirx.And(x, y)
    zero = next((v for v in (x, y) if isinstance(v, tirx.FloatImm) and v.value == 0.0), None)
    if zero is not None:  # the builder would fold NaN * 0 to 0
        return intrinsic("fma", x, y, const(-0.0, x))
    return x * y


def _divisor(y: Expr) -> Expr:
    """Integer division by zero traps on x86; the result there is set to zero afterwards, as NumPy does."""
    return bind(select(tirx.EQ(y, const(0, y)), const(1, y), y))


def _divide(x: Expr, y: Expr) -> Expr:
    return x / y if _is_float(x) else tirx.truncdiv(x, _divisor(y))


def _floor_divide(x: Expr, y: Expr) -> Expr:
    if _is_float(x):
        return _float_floor_divide(x, y)
    return select(tirx.EQ(y, const(0, y)), const(0, x), tirx.floordiv(x, _divisor(y)))


def _float_floor_divide(x: Expr, y: Expr) -> Expr:
    """From the remainder, so that an exact quotient is not rounded up to the next integer."""
    rest = bind(math.remainder(x, y))
    quotient = bind((x - rest) / y)
    below = tirx.And(tirx.Not(tirx.EQ(rest, const(0, x))), _xor(rest < const(0, x), y < const(0, y)))
    quotient = bind(select(below, quotient - const(1.0, x), quotient))
    whole = bind(intrinsic("floor", quotient))
    whole = bind(select(quotient - whole > const(0.5, x), whole + const(1.0, x), whole))
    return bind(select(tirx.EQ(y, const(0, y)), x / y, whole))


def _modulo(x: Expr, y: Expr) -> Expr:
    """The remainder with the sign of y."""
    if not _is_float(x):
        return select(tirx.EQ(y, const(0, y)), const(0, x), tirx.floormod(x, _divisor(y)))
    rest = bind(math.remainder(x, y))
    other_sign = tirx.And(tirx.Not(tirx.EQ(rest, const(0, x))), _xor(rest < const(0, x), y < const(0, y)))
    return bind(select(other_sign, rest + y, select(tirx.EQ(rest, const(0, x)), math.copy_sign(const(0, x), y), rest)))


def _remainder(x: Expr, y: Expr) -> Expr:
    if _is_float(x):
        return math.remainder(x, y)
    return select(tirx.EQ(y, const(0, y)), const(0, x), tirx.truncmod(x, _divisor(y)))


def _power(x: Expr, y: Expr) -> Expr:
    if _is_float(x):
        return math.power(x, y)
    result, base = const(1, x), x
    for bit in range(6):  # an exponent above 63 overflows whatever the base
        present = tirx.EQ(tirx.bitwise_and(tirx.shift_right(y, const(bit, y)), const(1, y)), const(1, y))
        result = bind(select(present, result * base, result))
        base = bind(base * base)
    return result


SCALARS: Mapping[str, Callable[..., Expr]] = {
    "neg": _negate,
    "abs": _absolute,
    "sign": _sign,
    "exp": math.exp,
    "exp2": math.exp2,
    "softplus": math.softplus,
    "log": math.natural_log,
    "log1p": math.log1p,
    "expm1": math.expm1,
    "sqrt": math.square_root,
    "rsqrt": lambda x: const(1.0, x) / math.square_root(x),
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "atan": math.atan,
    "tanh": math.tanh,
    "erf": math.erf,
    "sigmoid": math.sigmoid,
    "floor": _rounding("floor"),
    "ceil": _rounding("ceil"),
    "round": _rounding("roundeven"),
    "trunc": _rounding("trunc"),
    "logical_not": lambda x: tirx.Not(_truth(x)),
    "isnan": lambda x: is_nan(x) if _is_float(x) else T.bool(False),
    "isinf": lambda x: tirx.EQ(intrinsic("fabs", x), const(float("inf"), x)) if _is_float(x) else T.bool(False),
    "bitwise_not": _bits(tirx.Not, tirx.bitwise_not),
    "add": _add,
    "sub": lambda x, y: x - y,
    "mul": _multiply,
    "div": _divide,
    "floor_div": _floor_divide,
    "mod": _modulo,
    "fmod": _remainder,
    "pow": _power,
    "maximum": maximum,
    "minimum": minimum,
    "atan2": math.atan2,
    "eq": _equal,
    "ne": _not_equal,
    "lt": _ordered(lambda x, y: x < y),
    "le": _ordered(lambda x, y: x <= y),
    "gt": _ordered(lambda x, y: x > y),
    "ge": _ordered(lambda x, y: x >= y),
    "logical_and": lambda x, y: tirx.And(_truth(x), _truth(y)),
    "logical_or": lambda x, y: tirx.Or(_truth(x), _truth(y)),
    "logical_xor": lambda x, y: _xor(_truth(x), _truth(y)),
    "bitwise_and": _bits(tirx.And, tirx.bitwise_and),
    "bitwise_or": _bits(tirx.Or, tirx.bitwise_or),
    "bitwise_xor": _bits(_xor, tirx.bitwise_xor),
    "shift_left": tirx.shift_left,
    "shift_right": tirx.shift_right,
    "where": select,
}
