"""Symbolic dimensions: integer polynomials in named symbols, with exact floor division by constants.

A dimension is an ``int`` or a ``SymDim`` in canonical form, so that structural equality is mathematical equality for
polynomials: ``B*L + L*B == 2*B*L``. ``(L + 63)//64`` is kept as an opaque atom once common factors are divided out.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import gcd, inf
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
        numerator = str(self.numerator)
        return f"{numerator if numerator.isidentifier() else f'({numerator})'}//{self.divisor}"


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
        """Floor division by a positive constant.

        Whole multiples leave the quotient, ``(65*L + 130)//64 == L + 2 + (L + 2)//64``; common factors cancel,
        ``(2*L)//4 == L//2``; nested divisions join, ``(L//2)//2 == L//4``.
        """
        if not isinstance(divisor, int) or divisor <= 0:
            raise ParseError(f"a dimension can only be divided by a positive integer, not by {divisor}")
        whole = _build((m, f // divisor) for m, f in self.terms)
        rest = _build((m, f % divisor) for m, f in self.terms)
        return whole + (rest // divisor if isinstance(rest, int) else _quotient(rest, divisor))

    def __mod__(self, divisor: int) -> Dim:
        return self - (self // divisor) * divisor

    def __str__(self) -> str:
        return " + ".join(_show(m, f) for m, f in self.terms).replace("+ -", "- ")

    __repr__ = __str__


Dim: TypeAlias = int | SymDim
Dims: TypeAlias = tuple[Dim, ...]


def _terms(dim: Dim) -> Iterable[tuple[Monomial, int]]:
    return dim.terms if isinstance(dim, SymDim) else (((), dim),)


def _quotient(numerator: SymDim, divisor: int) -> Dim:
    """``numerator // divisor`` as an atom in lowest terms."""
    common = gcd(divisor, *(factor for _, factor in numerator.terms))
    atoms = [m for m, _ in numerator.terms if m]
    numerator, divisor = SymDim(tuple((m, f // common) for m, f in numerator.terms)), divisor // common
    if divisor == 1:
        return numerator
    match atoms:
        case [(Quotient() as inner,)] if numerator.terms[0][1] == 1:
            offset = _build(t for t in numerator.terms if not t[0])
            return (inner.numerator + offset * inner.divisor) // (inner.divisor * divisor)
    return SymDim((((Quotient(numerator, divisor),), 1),))


def _rank(atom: Atom) -> tuple[bool, str]:
    return isinstance(atom, Quotient), str(atom)


def _order(monomial: Monomial) -> tuple[int, tuple[tuple[bool, str], ...]]:
    """Graded lexicographic: the order is kept by multiplication, which long division relies on."""
    return (-len(monomial), tuple(map(_rank, monomial)))


def _build(terms: Iterable[tuple[Monomial, int]]) -> Dim:
    total: dict[Monomial, int] = {}
    for monomial, factor in terms:
        key = tuple(sorted(monomial, key=_rank))
        total[key] = total.get(key, 0) + factor
    kept = sorted(((m, f) for m, f in total.items() if f), key=lambda term: _order(term[0]))
    if not kept:
        return 0
    return kept[0][1] if kept == [((), kept[0][1])] else SymDim(tuple(kept))


def _show(monomial: Monomial, factor: int) -> str:
    parts = [] if factor == 1 and monomial else [str(factor)]
    alone = not parts and len(monomial) == 1
    return "*".join([*parts, *(str(a) if alone or isinstance(a, str) else f"({a})" for a in monomial)])


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
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
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

    total: Dim = 0
    for monomial, factor in _terms(dim):
        total = total + size((factor, *map(atom_value, monomial)))
    return total


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
    result: Dim = 1
    for dim in dims:
        result = result * dim
    return result


def matching_groups(dims: Dims, to: Dims) -> list[tuple[slice, slice]]:
    """The finest cut of two dims of one size into consecutive groups of equal size.

    ``[B, L, 64]`` and ``[B*L, 8, 8]`` give ``([B, L], [B*L])`` and ``([64], [8, 8])``.
    """
    groups: list[tuple[slice, slice]] = []
    start, first, extent = 0, 0, size(())
    ends = [size(to[: j + 1]) for j in range(len(to))]
    for i, dim in enumerate(dims):
        extent = extent * dim
        last = i + 1 == len(dims)
        end = len(to) if last else next((j + 1 for j in range(first, len(to)) if ends[j] == extent), None)
        if end is not None:
            groups.append((slice(start, i + 1), slice(first, end)))
            start, first = i + 1, end
    return groups or [(slice(0, 0), slice(0, len(to)))]


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

    A symbol without a range is at least 0. Terms are bounded one by one, so the result encloses the true range; what
    has no lower bound gets ``-2**62``.
    """
    low, high = _interval(dim, ranges)
    return (int(low) if low > -inf else -(2**62)), (int(high) if high < inf else None)


def _interval(dim: Dim, ranges: Mapping[str, tuple[int, int | None]]) -> tuple[float, float]:
    """``bounds`` with infinities, which are floats; what is finite stays an exact ``int``."""
    low: float = 0
    high: float = 0
    for monomial, factor in _terms(dim):
        term: tuple[float, float] = (factor, factor)
        for atom in monomial:
            corners = [a * b if a and b else 0 for a in term for b in _atom_interval(atom, ranges)]
            term = min(corners), max(corners)
        low, high = low + term[0], high + term[1]
    return _with_remainder(dim, ranges, low, high)


def _with_remainder(
    dim: Dim, ranges: Mapping[str, tuple[int, int | None]], low: float, high: float
) -> tuple[float, float]:
    """Tighter ends from ``n - d * (n // d)``, a remainder, which is from 0 to d - 1."""
    for monomial, factor in _terms(dim):
        match monomial:
            case (Quotient() as atom,) if factor % atom.divisor == 0:
                times = -(factor // atom.divisor)
                rest = dim - times * atom.numerator - _build([(monomial, factor)])
                if rest != dim and len(list(_terms(rest))) < len(list(_terms(dim))):
                    ends = sorted((0, times * (atom.divisor - 1)))
                    least, most = _interval(rest, ranges)
                    low, high = max(low, least + ends[0]), min(high, most + ends[1])
    return low, high


def _atom_interval(atom: Atom, ranges: Mapping[str, tuple[int, int | None]]) -> tuple[float, float]:
    if isinstance(atom, str):
        low, high = ranges.get(atom, (0, None))
        return low, inf if high is None else high
    ends = _interval(atom.numerator, ranges)
    return tuple(end if abs(end) == inf else end // atom.divisor for end in ends)  # type: ignore[return-value]


def solve(dim: Dim, value: int) -> tuple[str, int] | None:
    """The one symbol of ``dim`` and what it must be for ``dim`` to equal ``value``.

    ``None`` when ``dim`` is not of the form ``a*S + b``, or no integer fits.
    """
    if not isinstance(dim, SymDim) or len(set(symbols(dim))) != 1:
        return None
    (monomial, factor), *rest = dim.terms
    if len(monomial) != 1 or not isinstance(monomial[0], str) or any(m for m, _ in rest):
        return None
    left = value - sum(f for _, f in rest)
    return (monomial[0], left // factor) if left % factor == 0 else None
