"""Symbolic dimensions: integer polynomials in named symbols, with exact floor division by constants.

A dimension is an ``int`` or a ``SymDim`` in canonical form, so that structural equality is mathematical equality for
polynomials: ``B*L + L*B == 2*B*L``. ``(L + 63)//64`` is kept as an opaque atom once common factors are divided out.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import TypeAlias

from .errors import ParseError

Atom: TypeAlias = "str | Quotient"
Monomial: TypeAlias = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Quotient:
    """``numerator // divisor`` that does not divide exactly."""

    numerator: SymDim
    divisor: int

    def __str__(self) -> str:
        return f"(({self.numerator})//{self.divisor})"


@dataclass(frozen=True, slots=True)
class SymDim:
    """A polynomial with integer coefficients over symbols and quotients, never constant (constants are ``int``)."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        return _build((*self.terms, *_terms(other)))

    def __neg__(self) -> Dim:
        return _build((monomial, -factor) for monomial, factor in self.terms)

    def __sub__(self, other: Dim) -> Dim:
        return self + -other

    def __rsub__(self, other: int) -> Dim:
        return -self + other

    def __mul__(self, other: Dim) -> Dim:
        return _build((m + n, a * b) for m, a in self.terms for n, b in _terms(other))

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, divisor: int) -> Dim:
        """Floor division by a positive constant; whole multiples leave the quotient, ``(64*a + r)//64 = a + r//64``."""
        if not isinstance(divisor, int) or divisor <= 0:
            raise ParseError(f"a dimension can only be divided by a positive integer, not by {divisor}")
        whole = _build((m, f // divisor) for m, f in self.terms if m and f % divisor == 0)
        rest = _build((m, f) for m, f in self.terms if not m or f % divisor)
        if isinstance(rest, int):
            return whole + rest // divisor
        return whole + SymDim((((Quotient(rest, divisor),), 1),))

    def __mod__(self, divisor: int) -> Dim:
        return self - (self // divisor) * divisor

    def __str__(self) -> str:
        return " + ".join(_show(m, f) for m, f in self.terms).replace("+ -", "- ")

    __repr__ = __str__


Dim: TypeAlias = int | SymDim
Dims: TypeAlias = tuple[Dim, ...]


def _terms(dim: Dim) -> Iterable[tuple[Monomial, int]]:
    return dim.terms if isinstance(dim, SymDim) else (((), dim),)


def _order(monomial: Monomial) -> tuple[int, tuple[str, ...]]:
    return (-len(monomial), tuple(map(str, monomial)))


def _build(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for monomial, factor in terms:
        key = tuple(sorted(monomial, key=str))
        total[key] = total.get(key, 0) + factor
    kept = sorted(((m, f) for m, f in total.items() if f), key=lambda term: _order(term[0]))
    if not kept:
        return 0
    return kept[0][1] if kept == [((), kept[0][1])] else SymDim(tuple(kept))


def _show(monomial: Monomial, factor: int) -> str:
    parts = [] if factor == 1 and monomial else ["-1" if factor == -1 and monomial else str(factor)]
    return "*".join([*parts, *map(str, monomial)])


def symbol(name: str) -> SymDim:
    """The dimension called ``name``."""
    return SymDim((((name,), 1),))


def parse_dim(text: str) -> Dim:
    """Read a dimension from Python syntax: ``4*C + 1``, ``(L + 63)//64``."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ParseError(
            f"'{text}' is not a dimension; write an integer, a name, or sums and products of them"
        ) from None
    return dim_from_ast(tree)


_BINARY: dict[type[ast.operator], Callable[[Dim, Dim], Dim]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,  # type: ignore[operator]
    ast.Mod: lambda a, b: a % b,  # type: ignore[operator]
}


def dim_from_ast(tree: ast.expr) -> Dim:
    """The dimension that a Python expression denotes."""
    match tree:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -dim_from_ast(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](dim_from_ast(left), dim_from_ast(right))
    raise ParseError(
        f"'{ast.unparse(tree)}' is not a dimension; write an integer, a name, or sums and products of them"
    )


def symbols(dims: Dim | Iterable[Dim]) -> Iterator[str]:
    """Names of the symbols in ``dims``, with repetitions."""
    for dim in (dims,) if isinstance(dims, int | SymDim) else dims:
        for monomial, _ in _terms(dim):
            for atom in monomial:
                yield from (atom,) if isinstance(atom, str) else symbols(atom.numerator)


def substitute(dim: Dim, bindings: Mapping[str, Dim]) -> Dim:
    """Replace symbols; those not in ``bindings`` stay."""

    def atom_value(atom: Atom) -> Dim:
        if isinstance(atom, Quotient):
            return substitute(atom.numerator, bindings) // atom.divisor
        return bindings.get(atom, symbol(atom))

    start: Dim = 0
    return sum((reduce(lambda a, b: a * b, map(atom_value, m), f) for m, f in _terms(dim)), start)


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int:
    """The integer value of ``dim``.

    Raises:
        ParseError: a symbol of ``dim`` is not in ``bindings``.
    """
    value = substitute(dim, bindings)
    if not isinstance(value, int):
        raise ParseError(f"the dimension {dim} needs values for {', '.join(sorted(set(symbols(value))))}")
    return value


def size(dims: Iterable[Dim]) -> Dim:
    """Number of elements: the product of ``dims``."""
    one: Dim = 1
    return reduce(lambda a, b: a * b, dims, one)


def divide_exactly(dividend: Dim, divisor: Dim) -> Dim | None:
    """``dividend / divisor`` as a polynomial, or ``None`` when it is not one (multivariate long division)."""
    if divisor == 0:
        return None
    quotient: Dim = 0
    lead, lead_factor = next(iter(_terms(divisor)))
    while dividend != 0:
        monomial, factor = next(iter(_terms(dividend)))
        rest = list(monomial)
        for atom in lead:
            if atom not in rest:
                return None
            rest.remove(atom)
        if factor % lead_factor:
            return None
        step = _build([(tuple(rest), factor // lead_factor)])
        quotient, dividend = quotient + step, dividend - step * divisor
    return quotient


def bounds(dim: Dim, ranges: Mapping[str, tuple[int, int | None]]) -> tuple[int, int | None]:
    """Smallest and largest value of ``dim`` when each symbol stays in its (inclusive) range; ``None`` is unbounded.

    Terms are bounded one by one, so the result encloses the true range.
    """

    def atom_bounds(atom: Atom) -> tuple[int, int | None]:
        if isinstance(atom, str):
            return ranges.get(atom, (0, None))
        low, high = bounds(atom.numerator, ranges)
        return low // atom.divisor, None if high is None else high // atom.divisor

    total_low, total_high = 0, 0
    unbounded_low = unbounded_high = False
    for monomial, factor in _terms(dim):
        parts = [atom_bounds(atom) for atom in monomial]
        low = prod(p[0] for p in parts)
        high = None if any(p[1] is None for p in parts) else prod(p[1] or 0 for p in parts)
        small, large = (low, high) if factor > 0 else (high, low)
        unbounded_low |= small is None
        unbounded_high |= large is None
        total_low += (small or 0) * factor
        total_high += (large or 0) * factor
    return (-(2**62) if unbounded_low else total_low), (None if unbounded_high else total_high)
