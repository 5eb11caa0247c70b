"""Dims are polynomials: equal exactly when they are equal for every value of their symbols."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coilc.ir import ParseError, symbol
from coilc.ir import dims as d

B, L, D = symbol("B"), symbol("L"), symbol("D")
VALUES = st.fixed_dictionaries({name: st.integers(0, 40) for name in "BLD"})


def polynomials() -> st.SearchStrategy[d.Dim]:
    leaves = st.one_of(st.integers(-9, 9), st.sampled_from([B, L, D]))
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
            st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
        ),
        max_leaves=6,
    )


def quotients() -> st.SearchStrategy[d.Dim]:
    """Polynomials with floor divisions inside, nested ones too."""
    divided = st.tuples(polynomials(), st.integers(1, 6)).map(lambda p: p[0] // p[1])
    return st.one_of(
        polynomials(),
        divided,
        st.tuples(divided, polynomials(), st.integers(1, 6)).map(lambda p: (p[0] + p[1]) // p[2]),
    )


@given(polynomials(), polynomials(), polynomials())
def test_ring_laws(a: d.Dim, b: d.Dim, c: d.Dim) -> None:
    assert a + b == b + a
    assert a * b == b * a
    assert (a + b) + c == a + (b + c)
    assert a * (b + c) == a * b + a * c
    assert a - a == 0


@given(quotients(), quotients(), VALUES)
def test_evaluation_is_a_homomorphism(a: d.Dim, b: d.Dim, values: dict[str, int]) -> None:
    x, y = d.evaluate(a, values), d.evaluate(b, values)
    assert d.evaluate(a + b, values) == x + y
    assert d.evaluate(a * b, values) == x * y
    assert d.evaluate(a - b, values) == x - y


@given(quotients(), st.integers(1, 9), VALUES)
def test_floor_division_and_remainder(a: d.Dim, divisor: int, values: dict[str, int]) -> None:
    x = d.evaluate(a, values)
    assert d.evaluate(a // divisor, values) == x // divisor
    assert d.evaluate(a % divisor, values) == x % divisor


@given(polynomials(), polynomials())
def test_exact_division_undoes_multiplication(a: d.Dim, b: d.Dim) -> None:
    if b != 0:
        assert d.divide_exactly(a * b, b) == a


@given(polynomials(), polynomials())
def test_exact_division_is_exact(a: d.Dim, b: d.Dim) -> None:
    quotient = d.divide_exactly(a, b)
    assert quotient is None or quotient * b == a


@given(quotients(), VALUES, VALUES)
def test_bounds_enclose(a: d.Dim, one: dict[str, int], other: dict[str, int]) -> None:
    ranges = {name: (min(one[name], other[name]), max(one[name], other[name])) for name in one}
    low, high = d.bounds(a, ranges)
    assert high is not None
    assert low <= d.evaluate(a, one) <= high


@given(quotients())
def test_text_round_trips(a: d.Dim) -> None:
    assert d.parse_dim(str(a)) == a


@given(quotients(), polynomials(), VALUES)
def test_substitution_then_evaluation(a: d.Dim, b: d.Dim, values: dict[str, int]) -> None:
    inner = {**values, "L": d.evaluate(b, values)}
    assert d.evaluate(d.substitute(a, {"L": b}), values) == d.evaluate(a, inner)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((65 * L + 130) // 64, L + 2 + (L + 2) // 64),
        ((2 * L) // 4, L // 2),
        ((L // 2) // 2, L // 4),
        ((L - 1) // 2 + 1, (L + 1) // 2),
        (((L + 1) // 2 + 1) // 2, (L + 3) // 4),
        ((4 * B * L) // 2, 2 * B * L),
        (B * L + L * B, 2 * B * L),
        ((L + 3) % 1, 0),
    ],
)
def test_canonical_forms(left: d.Dim, right: d.Dim) -> None:
    assert left == right


@pytest.mark.parametrize(
    ("dim", "low", "high"),
    [
        (B * L - L, -7, None),
        (L - 1, 0, 7),
        (3 - L, -5, 2),
        ((L - 9) // 2, -4, -1),
        (-1 * B, -(2**62), -1),
        (symbol("free"), 0, None),
        (5, 5, 5),
    ],
)
def test_bounds(dim: d.Dim, low: int, high: int | None) -> None:
    ranges = {"B": (1, None), "L": (1, 8)}
    assert d.bounds(dim, ranges) == (low, high)


@pytest.mark.parametrize(
    ("dim", "value", "found"),
    [
        (4 * L + 1, 9, ("L", 2)),
        (L, 3, ("L", 3)),
        (4 * L + 1, 8, None),
        (B * L, 6, None),
        (L // 2, 3, None),
        (7, 7, None),
    ],
)
def test_solve(dim: d.Dim, value: int, found: tuple[str, int] | None) -> None:
    assert d.solve(dim, value) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L +", "'L +' is not a dimension"),
        ("L / 2", "'L / 2' is not a dimension"),
        ("f(L)", "'f(L)' is not a dimension"),
        ("True", "'True' is not a dimension"),
        ("L // 0", "only be divided by a positive integer, not by 0"),
        ("L // B", "only be divided by a positive integer, not by B"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(ParseError) as error:
        d.parse_dim(text)
    assert message in error.value.message


def test_unbound_symbols_are_named() -> None:
    with pytest.raises(ParseError, match="needs values for B, L"):
        d.evaluate(B * L, {})
