"""Floating-point numbers that a model computes from extents in Python (``1 / x.shape[1] ** 0.5``), as scalars of the IR."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy
from torch.utils._sympy import functions as torch_sympy

from coilc.ir import UnsupportedError, Value, literal, ops
from coilc.ir.types import f64

from .aten import dim_value
from .symbols import Symbols


def scalar(symbols: Symbols, expr: sympy.Expr) -> Value:
    """The number that ``expr`` denotes as ``f64[()]``, which is what Python computes in.

    Raises:
        UnsupportedError: it depends on the values of a tensor, or on a function without a counterpart.
    """
    if expr.is_number:
        return literal(float(expr), f64)
    if isinstance(expr, torch_sympy.ToFloat) or expr.is_integer:
        (extent,) = expr.args if isinstance(expr, torch_sympy.ToFloat) else (expr,)
        return dim_value(symbols.expression(extent), f64)
    rule = _RULES.get(type(expr))
    if rule is None:
        raise UnsupportedError(f"the number {expr} has no counterpart in the IR; compute it with tensors", ())
    first, *rest = (scalar(symbols, part) for part in expr.args)
    for part in rest:
        first = rule(first, part)
    return first if rest else rule(first)


_RULES: Mapping[type, Callable[..., Value]] = {
    sympy.Add: ops.add,
    sympy.Mul: ops.mul,
    sympy.Pow: ops.pow,
    torch_sympy.FloatPow: ops.pow,
    torch_sympy.FloatTrueDiv: ops.div,
    torch_sympy.IntTrueDiv: ops.div,
    torch_sympy.OpaqueUnaryFn_sqrt: ops.sqrt,
    torch_sympy.OpaqueUnaryFn_exp: ops.exp,
    torch_sympy.OpaqueUnaryFn_log: ops.log,
    torch_sympy.OpaqueUnaryFn_log2: ops.log2,
}
