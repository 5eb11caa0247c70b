"""The distances: exact on small arrays, defined on awkward ones."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from coilc.comparison.metrics import TOLERANCE, difference, tolerance_for


def test_relative_error_is_that_of_frobenius() -> None:
    found = difference(np.float32([3, 4.5]), np.float32([3, 4]))
    assert found.max_abs_error == 0.5
    assert found.relative_error == pytest.approx(0.1)
    assert found.cosine == pytest.approx(27 / (math.hypot(3, 4.5) * 5))


def test_equal_arrays_have_no_error() -> None:
    x = np.random.default_rng(0).standard_normal((3, 5))
    found = difference(x, x)
    assert (found.max_abs_error, found.relative_error) == (0, 0)
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_the_same_special_value_in_the_same_place_is_no_error(value: float) -> None:
    x = np.array([1.0, value])
    assert difference(x, x).relative_error == 0


@pytest.mark.parametrize(("mine", "theirs"), [(math.nan, 1.0), (1.0, math.inf), (math.inf, -math.inf)])
def test_a_special_value_in_one_place_only_is_an_infinite_error(mine: float, theirs: float) -> None:
    assert difference(np.array([mine]), np.array([theirs])).relative_error == math.inf


def test_against_zeros_the_error_is_absolute() -> None:
    found = difference(np.array([3.0, 4.0]), np.zeros(2))
    assert found.relative_error == 5
    assert found.cosine == 0
    assert difference(np.zeros(2), np.zeros(2)).cosine == 1


def test_integers_count_elements_that_differ() -> None:
    found = difference(np.array([1, 2, 9, 4]), np.array([1, 2, 3, 4]))
    assert (found.max_abs_error, found.relative_error) == (6, 0.25)


def test_empty_and_complex_arrays() -> None:
    assert difference(np.zeros((0, 3)), np.zeros((0, 3))).relative_error == 0
    assert difference(np.array([1 + 1j]), np.array([1 - 1j])).max_abs_error == pytest.approx(2)


def test_argmax_agreement_is_for_scores() -> None:
    actual, expected = np.float32([[1, 2], [2, 1]]), np.float32([[1, 2], [1, 2]])
    assert difference(actual, expected, "logits").argmax_agreement == 0.5
    assert difference(actual, expected, "hidden").argmax_agreement is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.complex64])
def test_every_float_dtype_has_a_tolerance(dtype: type) -> None:
    array = np.zeros(1, dtype)
    assert tolerance_for(array) == TOLERANCE[array.dtype.name] > 0
    assert tolerance_for(array, 0.5) == 0.5


def test_a_lower_precision_is_judged_by_its_own_row() -> None:
    single, double, half = (np.zeros(1, t) for t in (np.float32, np.float64, np.float16))
    assert tolerance_for(single, None, "bf16") == TOLERANCE["bfloat16"]
    assert tolerance_for(single, None, "bf16", "int8") == TOLERANCE["int8"]
    assert tolerance_for(double, None, "fp16") == TOLERANCE["float16"]
    assert tolerance_for(half, None, "fp32") == TOLERANCE["float16"]
    assert tolerance_for(np.zeros(1, ml_dtypes.bfloat16), None, "fp16") == TOLERANCE["bfloat16"]
    assert tolerance_for(np.zeros(1, np.int64), None, "bf16", "int8") == 0


def test_integers_must_be_equal_whatever_is_allowed() -> None:
    assert tolerance_for(np.zeros(1, np.int64), 0.5) == 0
