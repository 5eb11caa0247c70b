"""Extents as torch writes them (SymInt over sympy) as dimensions of the IR, under the names that the user gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy
import torch
from torch.utils._sympy import functions as torch_sympy

from coilc.ir import Dim, UnsupportedError, dims, symbol
from coilc.ir.core import Range


class Symbols:
    """The symbols of one exported program.

    Args:
        names: sympy symbol name (``s72``) to IR symbol name (``L``).
        ranges: IR symbol name to its inclusive range.
    """

    def __init__(self, names: Mapping[str, str], ranges: Mapping[str, Range]) -> None:
        self.names, self.ranges = names, dict(ranges)

    def dim(self, extent: int | torch.SymInt) -> Dim:
        """The dimension that ``extent`` denotes.

        Raises:
            UnsupportedError: the extent depends on the values of a tensor, or is not a polynomial.
        """
        return int(extent) if isinstance(extent, int) else self.expression(extent.node.expr)

    def dims(self, shape: Any) -> tuple[Dim, ...]:
        return tuple(self.dim(extent) for extent in shape)

    def expression(self, expr: sympy.Expr) -> Dim:
        if isinstance(expr, sympy.Integer):
            return int(expr)
        if isinstance(expr, sympy.Symbol):
            return self._symbol(expr)
        rule = _RULES.get(type(expr))
        if rule is None:
            raise UnsupportedError(f"the extent {expr} is not a polynomial in the dynamic dimensions", ())
        return rule(self, *map(self.expression, expr.args))

    def _symbol(self, expr: sympy.Symbol) -> Dim:
        name = self.names.get(expr.name)
        if name is None:
            raise UnsupportedError("a shape depends on the values of a tensor", ())
        return symbol(name)

    def largest(self, a: Dim, b: Dim) -> Dim:
        """``max(a, b)`` where the ranges decide it."""
        low, high = dims.bounds(a - b, self.ranges)
        if low >= 0:
            return a
        if high is not None and high <= 0:
            return b
        raise UnsupportedError(f"which of the extents {a} and {b} is larger depends on the input", ())

    def narrow(self, dim: Dim, most: int) -> None:
        """Lower the upper limit of a symbol: the model cannot take more than ``most``."""
        for name, (low, high) in self.ranges.items():
            if dim == symbol(name):
                self.ranges[name] = (low, most if high is None else min(high, most))

    def smallest(self, a: Dim, b: Dim) -> Dim:
        return b if self.largest(a, b) is a else a


def _power(_: Symbols, base: Dim, exponent: Dim) -> Dim:
    if not isinstance(exponent, int) or exponent < 0:
        raise UnsupportedError(f"the extent ({base})**({exponent}) is not a polynomial", ())
    return dims.size([base] * exponent)


def _quotient(_: Symbols, dividend: Dim, divisor: Dim) -> Dim:
    exact = dims.divide_exactly(dividend, divisor)
    if exact is not None:
        return exact
    if not isinstance(divisor, int):
        raise UnsupportedError(f"the extent ({dividend})//({divisor}) divides by a dynamic dimension", ())
    return dividend // divisor


def _fold(step: Callable[[Symbols, Dim, Dim], Dim]) -> Callable[..., Dim]:
    def rule(symbols: Symbols, first: Dim, *rest: Dim) -> Dim:
        for item in rest:
            first = step(symbols, first, item)
        return first

    return rule


_RULES: Mapping[type, Callable[..., Dim]] = {
    sympy.Add: _fold(lambda _, a, b: a + b),
    sympy.Mul: _fold(lambda _, a, b: a * b),
    sympy.Pow: _power,
    torch_sympy.PowByNatural: _power,
    torch_sympy.FloorDiv: _quotient,
    torch_sympy.CleanDiv: _quotient,
    torch_sympy.Mod: lambda s, a, b: a - _quotient(s, a, b) * b,
    torch_sympy.PythonMod: lambda s, a, b: a - _quotient(s, a, b) * b,
    torch_sympy.Max: _fold(Symbols.largest),
    torch_sympy.Min: _fold(Symbols.smallest),
}


def symbols_of(program: torch.export.ExportedProgram, given: Mapping[str, str], inputs: Mapping[str, Any]) -> Symbols:
    """Name the program's symbols: as ``given``, otherwise after the first input axis that shows them (``ids_1``).

    Args:
        given: sympy symbol name to the user's name, for programs that coilc traced.
        inputs: input name to its fake tensor.
    """
    names: dict[str, str] = {}
    for name, tensor in inputs.items():
        for axis, extent in enumerate(tensor.shape):
            for free in _free_symbols(extent):
                names.setdefault(free, given.get(free, f"{name}_{axis}"))
    limits = {str(key): value for key, value in program.range_constraints.items()}
    return Symbols(names, {name: _range(limits.get(free)) for free, name in names.items()})


def _free_symbols(extent: int | torch.SymInt) -> list[str]:
    return [] if isinstance(extent, int) else sorted(s.name for s in extent.node.expr.free_symbols)


def _range(limits: Any) -> Range:
    """torch writes "not specialised to 0 or 1" as a lower bound of 0 or 2; both mean that any extent from 1 is fine."""
    if limits is None:
        return (1, None)
    low = int(limits.lower) if limits.lower > 2 else 1
    return (low, int(limits.upper) if isinstance(limits.upper, sympy.Integer) else None)
