"""What `diff` says of two arrays, against numpy on the whole of them."""

from __future__ import annotations

import fractions
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from templax._audit import diff_values
from templax._audit.diff_values import ValueComparer, ValueDiff, find_common_dtype, summarise
from templax._core.dtypes import DTYPES, class_of

FLOATS = [dtype for dtype in DTYPES.values() if class_of(dtype) == "float"]
SMALL_FLOATS = [dtype for dtype in FLOATS if dtype.itemsize <= 2]
INTS = [dtype for dtype in DTYPES.values() if class_of(dtype) == "int"]


def compare(a: np.ndarray, b: np.ndarray) -> ValueDiff:
    sums = ValueComparer(a.dtype, b.dtype).compare(a, b)
    return summarise(sums, a.dtype, b.dtype, a.size)


def from_bits(dtype: np.dtype, *bits: int) -> np.ndarray:
    return np.array(bits, f"u{dtype.itemsize}").view(dtype)


def all_values(dtype: np.dtype) -> np.ndarray:
    """Every bit pattern of a narrow dtype."""
    return np.arange(1 << ml_dtypes.finfo(dtype).bits, dtype=f"u{dtype.itemsize}").view(dtype)


@pytest.mark.parametrize("dtype", SMALL_FLOATS, ids=lambda dtype: dtype.name)
def test_a_float_is_one_ulp_from_the_next(dtype: np.dtype) -> None:
    values = all_values(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        wide = values.astype(np.float64)
    ordered = values[np.isfinite(wide)]
    ordered = ordered[np.argsort(wide[np.isfinite(wide)], kind="stable")]
    wide = ordered.astype(np.float64)
    for i in range(0, len(ordered) - 1, max(1, len(ordered) // 500)):
        found = compare(ordered[i : i + 1], ordered[i + 1 : i + 2])
        assert found.max_ulps == (1 if wide[i] != wide[i + 1] else 0)
        assert found.differing == 1
    distinct = len(np.unique(wide))
    assert compare(ordered[:1], ordered[-1:]).max_ulps == distinct - 1


@pytest.mark.parametrize("dtype", [np.dtype("f4"), np.dtype("f8")], ids=str)
def test_ulps_at_the_edges_of_a_wide_float(dtype: np.dtype) -> None:
    info, one = np.finfo(dtype), np.ones(1, dtype)
    zero, smallest = np.zeros(1, dtype), np.array([info.smallest_subnormal], dtype)
    assert compare(one, np.nextafter(one, 2)).max_ulps == 1
    assert compare(zero, smallest).max_ulps == 1
    assert compare(-smallest, smallest).max_ulps == 2
    assert compare(-zero, smallest).max_ulps == 1
    largest = np.array([info.max], dtype)
    bits = largest.view(f"u{dtype.itemsize}")
    assert compare(-largest, largest).max_ulps == 2 * int(bits[0])


def test_the_sign_of_zero_is_a_difference_of_bits_only() -> None:
    found = compare(np.array([0.0, 1.0]), np.array([-0.0, 1.0]))
    assert (found.differing, found.unequal, found.max_abs, found.max_ulps) == (1, 0, 0, 0)
    assert found.distance == 0


def test_nans_are_equal_and_their_payloads_are_bits() -> None:
    dtype = np.dtype(np.float32)
    a, b = from_bits(dtype, 0x7FC00000, 0x7FC00000, 0), from_bits(dtype, 0x7FC00000, 0x7FC00001, 0)
    found = compare(a, b)
    assert (found.differing, found.unequal) == (1, 0)
    assert (found.nan_a, found.nan_b) == (2, 2)
    assert (found.max_abs, found.max_ulps) == (0, 0)


def test_infinities_and_nans_are_counted_and_not_measured() -> None:
    a = np.array([np.inf, -np.inf, np.inf, np.nan, 1.0, 2.0])
    b = np.array([np.inf, np.inf, 3.0, 4.0, 1.0, 2.5])
    found = compare(a, b)
    assert (found.nan_a, found.nan_b, found.inf_a, found.inf_b) == (1, 0, 3, 2)
    assert (found.differing, found.unequal) == (4, 4)
    assert (found.max_abs, found.max_rel) == (0.5, 0.2)


def test_a_difference_beyond_the_largest_float() -> None:
    largest = np.array([np.finfo(np.float64).max])
    found = compare(largest, -largest)
    assert (found.max_abs, found.max_rel, found.cosine, found.distance) == (math.inf, 2, None, None)


def test_differences_of_wide_integers_are_exact() -> None:
    ends = np.iinfo(np.int64)
    found = compare(np.array([ends.min, 5]), np.array([ends.max, 5]))
    assert (found.max_abs, found.differing, found.max_ulps) == (2**64 - 1, 1, None)
    found = compare(np.array([0], np.uint64), np.array([2**64 - 1], np.uint64))
    assert found.max_abs == 2**64 - 1
    assert isinstance(found.max_abs, int)


def test_the_unused_bits_of_narrow_elements_do_not_count() -> None:
    dtype = DTYPES["int4"]
    found = compare(from_bits(dtype, 0x0F, 0x03), from_bits(dtype, 0xFF, 0x04))
    assert (found.differing, found.unequal, found.max_abs) == (1, 1, 1)


def test_complex_numbers_are_compared_as_such() -> None:
    a = np.array([3 + 4j, 1, np.nan, complex(0.0, -0.0)], np.complex64)
    b = np.array([0, 1, 1, 0], np.complex64)
    found = compare(a, b)
    assert (found.max_abs, found.max_rel, found.differing, found.unequal) == (5, 1, 3, 2)
    assert (found.nan_a, found.nan_b) == (1, 0)
    one, next_one = np.array([1 + 1j], np.complex64), np.array([1 + 1j], np.complex64)
    next_one.view(np.float32)[1] = np.nextafter(np.float32(1), np.float32(2))
    assert compare(one, next_one).max_ulps == 1


@pytest.mark.parametrize("a", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_any_two_dtypes_are_compared_exactly_or_not_at_all(a: np.dtype) -> None:
    for b in DTYPES.values():
        common = find_common_dtype(a, b)
        assert common == find_common_dtype(b, a)
        if common is not None:
            x, y = np.ones(3, np.int8).astype(a), np.ones(3, np.int8).astype(b)
            assert compare(x, y).unequal == 0


def exact(value: Any) -> fractions.Fraction:
    return fractions.Fraction(value.item() if class_of(value.dtype) == "int" else float(value))


@given(st.data())
def test_statistics_are_those_of_exact_arithmetic(data: Any) -> None:
    """Of two dtypes, and of arrays of several pieces."""
    dtypes = st.sampled_from([*FLOATS, *INTS])
    a, b = data.draw(dtypes), data.draw(dtypes)
    if data.draw(st.booleans()):
        b = a
    if find_common_dtype(a, b) is None:
        return
    n = data.draw(st.integers(1, 12))
    arrays: list[np.ndarray] = []
    for dtype in (a, b):
        bits = data.draw(npst.arrays(f"u{dtype.itemsize}", n))
        info = ml_dtypes.iinfo(dtype) if dtype in INTS else ml_dtypes.finfo(dtype)
        if info.bits < 8:
            bits &= (1 << info.bits) - 1
        arrays.append(bits.view(dtype))
    if a == b:
        same = data.draw(npst.arrays(bool, n))
        one, other = (array.view(f"u{a.itemsize}") for array in arrays)
        arrays[1] = np.where(same, one, other).view(a)
    piece = diff_values.PIECE
    diff_values.PIECE = data.draw(st.integers(1, 12))
    try:
        found = compare(*arrays)
    finally:
        diff_values.PIECE = piece
    x, y = arrays
    with np.errstate(invalid="ignore"):
        wide = [v.astype(np.float64) for v in (x, y)]
    finite = np.isfinite(wide[0]) & np.isfinite(wide[1])
    p = [exact(v) for v in x[finite]]
    q = [exact(v) for v in y[finite]]
    assert found.nan_a == np.isnan(wide[0]).sum()
    assert found.nan_b == np.isnan(wide[1]).sum()
    assert found.inf_a == np.isinf(wide[0]).sum()
    assert found.inf_b == np.isinf(wide[1]).sum()
    nonfinite = ~finite & ~((wide[0] == wide[1]) | (np.isnan(wide[0]) & np.isnan(wide[1])))
    assert found.unequal == sum(i != j for i, j in zip(p, q, strict=True)) + nonfinite.sum()
    if a == b:
        unsigned = f"u{a.itemsize}"
        assert found.differing == (x.view(unsigned) != y.view(unsigned)).sum()
    differences = [abs(i - j) for i, j in zip(p, q, strict=True)]
    largest = max(differences, default=fractions.Fraction(0))
    if largest > fractions.Fraction(np.finfo(np.float64).max):
        assert found.max_abs == math.inf
        return
    assert found.max_abs == pytest.approx(float(largest), rel=1e-15)
    relative = [d / max(abs(i), abs(j)) for d, i, j in zip(differences, p, q, strict=True) if d]
    assert found.max_rel == pytest.approx(float(max(relative, default=0)), rel=1e-12, abs=1e-300)
    squares = sum(i * i for i in p), sum(j * j for j in q)
    if found.differing and all(1e-250 < s < 1e250 for s in squares):
        product = sum(i * j for i, j in zip(p, q, strict=True))
        norms = [math.sqrt(s) for s in squares]
        assert found.cosine == pytest.approx(float(product) / norms[0] / norms[1], abs=1e-9)
        distance = math.sqrt(sum(d * d for d in differences)) / max(norms)
        assert found.distance == pytest.approx(distance, rel=1e-9)
