"""Compares blocks of numbers: how many differ, and by how much."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from .._core.dtypes import DTYPES, class_of, is_lossless, name_of

PIECE = 1 << 13
"""Elements that are compared at a time. What is computed of them stays in cache, and in memory that
malloc keeps: larger arrays go back to the system, and mapping them anew takes most of the time."""

_COMMON = tuple(
    dtype
    for name, dtype in DTYPES.items()
    if name in {"int16", "int32", "int64", "uint64", "float32", "float64"} or dtype.kind == "c"
)
"""Dtypes that hold all values of two others, the narrowest first."""


@dataclass(frozen=True, slots=True)
class ValueDiff:
    """How the values of two leaves of one shape differ.

    Maxima, `cosine` and `distance` are taken over the elements that are finite on both sides.

    Attributes:
        elements: How many each leaf has.
        differing: How many differ in their bits. -0.0 differs from 0.0 here, and so do NaNs with
            different payloads. Of leaves of different dtypes, the same as `unequal`.
        unequal: How many differ in value: -0.0 equals 0.0, and NaN equals NaN.
        max_abs: The largest absolute difference; an exact int of integers and bools.
        max_rel: The largest difference relative to the larger of the two magnitudes; from 0 to 2.
        max_ulps: The largest difference in units in the last place: how many numbers of the dtype
            lie from one to the other, where -0.0 and 0.0 are one number. Of complex numbers, of
            their parts. None if the dtypes are not the same float or complex dtype.
        cosine: The cosine of the angle between the two, taken as vectors. None where it is
            undefined: one of them is zero, or their norms are outside the range of a float64.
        distance: The norm of the difference relative to the larger of the two norms; from 0 to 2.
            None where those norms are outside the range of a float64.
        nan_a, nan_b: Elements that are NaN.
        inf_a, inf_b: Elements that are infinite.
        compared_as: The dtype that the values were compared in: their own or, if they have two, one
            that holds all values of both.
    """

    elements: int
    differing: int
    unequal: int
    max_abs: float
    max_rel: float
    max_ulps: int | None
    cosine: float | None
    distance: float | None
    nan_a: int
    nan_b: int
    inf_a: int
    inf_b: int
    compared_as: str


@functools.cache
def find_common_dtype(a: np.dtype, b: np.dtype) -> np.dtype | None:
    """A dtype that holds all values of both; None if there is none, or they are not numbers.

    >>> find_common_dtype(np.dtype("float16"), np.dtype("bfloat16"))
    dtype('float32')
    >>> find_common_dtype(np.dtype("int64"), np.dtype("float64")) is None
    True
    """
    if a == b:
        return a
    for dtype in (a, b, *_COMMON):
        if is_lossless(a, dtype) and is_lossless(b, dtype):
            return dtype
    return None


@dataclass(slots=True)
class Sums:
    """What is known of the elements compared so far. Those of two ranges can be added."""

    differing: int = 0
    unequal: int = 0
    max_abs: float = 0
    max_rel: float = 0.0
    max_ulps: int = 0
    square_a: float = 0.0
    square_b: float = 0.0
    product: float = 0.0
    square_diff: float = 0.0
    nan_a: int = 0
    nan_b: int = 0
    inf_a: int = 0
    inf_b: int = 0

    def add(self, other: Sums) -> None:
        for field in self.__slots__:
            mine, more = getattr(self, field), getattr(other, field)
            setattr(self, field, max(mine, more) if field.startswith("max_") else mine + more)


class ValueComparer:
    """Compares arrays of two dtypes that have a common one.

    Args:
        a, b: The dtypes, of which `find_common_dtype` finds one.
    """

    def __init__(self, a: np.dtype, b: np.dtype):
        common = find_common_dtype(a, b)
        assert common is not None
        self._common, self._same = common, a == b
        self._class = class_of(common)
        match self._class:
            case "float":
                self._work = np.dtype(np.float64)
            case "complex":
                self._work = np.dtype(np.complex128)
            case "bool" | "int":
                signed = common.kind == "b" or int(ml_dtypes.iinfo(common).min) < 0
                self._work = np.dtype(np.int64 if signed else np.uint64)
            case _:  # a dtype whose values numpy can't compute with: only bits are compared
                self._work = None
        self._bits = _Bits(a) if self._same else None

    def compare(self, a: np.ndarray, b: np.ndarray) -> Sums:
        """Compares two C-contiguous arrays of one shape."""
        sums, a, b = Sums(), a.reshape(-1), b.reshape(-1)
        with np.errstate(all="ignore"):
            for start in range(0, a.size, PIECE):
                sums.add(self._compare_piece(a[start : start + PIECE], b[start : start + PIECE]))
        return sums

    def _compare_piece(self, a: np.ndarray, b: np.ndarray) -> Sums:
        sums = Sums()
        differ = None if self._bits is None else self._bits.find_differing(a, b)
        if differ is not None:
            sums.differing = int(np.count_nonzero(differ))
        if self._work is None:
            sums.unequal = sums.differing
            return sums
        x = a.astype(self._work, copy=False)
        if differ is not None and not sums.differing:
            self._add_equal(x, sums)
            return sums
        y = b.astype(self._work, copy=False)
        if self._work.kind in "iu":
            _add_integers(x, y, sums)
        else:
            self._add_floats(a, b, x, y, sums)
        if differ is None:
            sums.differing = sums.unequal
        return sums

    def _add_equal(self, x: np.ndarray, sums: Sums) -> None:
        """Adds a piece whose two sides are the same."""
        if self._work is not None and self._work.kind in "fc":
            finite = np.isfinite(x)
            if not finite.all():
                sums.nan_a = sums.nan_b = int(np.count_nonzero(np.isnan(x)))
                sums.inf_a = sums.inf_b = x.size - int(np.count_nonzero(finite)) - sums.nan_a
                x = x[finite]
        else:
            x = x.astype(np.float64)
        sums.square_a = sums.square_b = sums.product = float(np.vdot(x, x).real)

    def _add_floats(
        self, a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray, sums: Sums
    ) -> None:
        finite_x, finite_y = np.isfinite(x), np.isfinite(y)
        both = finite_x & finite_y
        unequal = x != y
        if not both.all():
            nan_x, nan_y = np.isnan(x), np.isnan(y)
            sums.nan_a, sums.nan_b = int(np.count_nonzero(nan_x)), int(np.count_nonzero(nan_y))
            sums.inf_a = x.size - int(np.count_nonzero(finite_x)) - sums.nan_a
            sums.inf_b = y.size - int(np.count_nonzero(finite_y)) - sums.nan_b
            unequal &= ~_are_same_nan(x, y)
            a, b, x, y = a[both], b[both], x[both], y[both]
        sums.unequal = int(np.count_nonzero(unequal))
        if not x.size:
            return
        diff, larger = np.abs(x - y), np.maximum(np.abs(x), np.abs(y))
        sums.max_abs = float(diff.max())
        larger[larger == 0] = 1
        if math.isfinite(sums.max_abs):
            relative = diff / larger
        else:  # the difference of two large numbers is beyond the largest one
            relative = 2 * (np.abs(x / 2 - y / 2) / larger)
        sums.max_rel = float(relative.max())
        _add_norms(x, y, diff, sums)
        if self._bits is not None:
            sums.max_ulps = self._bits.find_max_ulps(a, b)


def _add_integers(x: np.ndarray, y: np.ndarray, sums: Sums) -> None:
    """Adds int64 or uint64 numbers, whose differences are exact as uint64."""
    sums.unequal = int(np.count_nonzero(x != y))
    u, v = x.view(np.uint64), y.view(np.uint64)
    diff = np.where(x >= y, u - v, v - u)
    sums.max_abs = int(diff.max())
    x, y, diff = x.astype(np.float64), y.astype(np.float64), diff.astype(np.float64)
    larger = np.maximum(np.abs(x), np.abs(y))
    larger[larger == 0] = 1
    sums.max_rel = float((diff / larger).max())
    _add_norms(x, y, diff, sums)


def _are_same_nan(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which elements are NaN in both. Of complex numbers, a part that is not NaN must be equal."""
    if x.dtype.kind != "c":
        return np.isnan(x) & np.isnan(y)
    parts = ((np.real(x), np.real(y)), (np.imag(x), np.imag(y)))
    real, imag = ((a == b) | (np.isnan(a) & np.isnan(b)) for a, b in parts)
    return real & imag


def _add_norms(x: np.ndarray, y: np.ndarray, diff: np.ndarray, sums: Sums) -> None:
    sums.square_a, sums.square_b = float(np.vdot(x, x).real), float(np.vdot(y, y).real)
    sums.product, sums.square_diff = float(np.vdot(x, y).real), float(np.vdot(diff, diff).real)


class _Bits:
    """The bits of the elements of a dtype, and their order.

    A float is a sign and a magnitude: the order of the magnitudes as integers is that of the
    numbers, and the next integer is the next number.
    """

    def __init__(self, dtype: np.dtype):
        self._parts = 2 if dtype.kind == "c" else 1
        size = dtype.itemsize // self._parts
        # Only dtypes that hold no numbers have elements of another size.
        self._unsigned = np.dtype(f"u{size}") if size in (1, 2, 4, 8) else None
        self._bytes, self._mask, self._sign = dtype.itemsize, None, 0
        kind = class_of(dtype)
        if kind in ("int", "float"):
            info = ml_dtypes.iinfo(dtype) if kind == "int" else ml_dtypes.finfo(dtype)
            if info.bits < 8:  # one element per byte, whose upper bits mean nothing
                self._mask = (1 << info.bits) - 1
        if kind in ("float", "complex"):
            bits = 8 * size if kind == "complex" else ml_dtypes.finfo(dtype).bits
            self._sign = 0 if dtype.name == "float8_e8m0fnu" else 1 << (bits - 1)

    def _view(self, array: np.ndarray) -> np.ndarray:
        if self._unsigned is None:
            return array.view(np.uint8).reshape(-1, self._bytes)
        view = array.view(self._unsigned)
        if self._mask is not None:
            view = view & self._mask
        return view.reshape(-1, self._parts) if self._parts > 1 else view

    def find_differing(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """For each element, whether its bits differ."""
        differ = self._view(a) != self._view(b)
        return differ if differ.ndim == 1 else differ.any(axis=1)

    def find_max_ulps(self, a: np.ndarray, b: np.ndarray) -> int:
        """The most numbers that lie from an element to the other. Neither may be NaN."""
        u, v = self._view(a), self._view(b)
        if not self._sign:
            return int((np.maximum(u, v) - np.minimum(u, v)).max())
        sign = u.dtype.type(self._sign)
        m, n = u & (sign - u.dtype.type(1)), v & (sign - u.dtype.type(1))
        apart = np.maximum(m, n) - np.minimum(m, n)
        opposite = ((u ^ v) & sign) != 0
        if not opposite.any():
            return int(apart.max())
        apart[opposite] = 0
        over_zero = m[opposite].astype(np.uint64) + n[opposite].astype(np.uint64)
        return max(int(apart.max()), int(over_zero.max()))


def summarise(sums: Sums, a: np.dtype, b: np.dtype, elements: int) -> ValueDiff:
    """The result for two leaves.

    Args:
        sums: Of all their elements.
        a, b: Their dtypes.
        elements: How many each has.
    """
    common = find_common_dtype(a, b)
    assert common is not None
    has_ulps = a == b and class_of(a) in ("float", "complex")
    norms = math.sqrt(sums.square_a), math.sqrt(sums.square_b)
    cosine = distance = None
    if sums.differing == 0:
        distance = 0.0
        cosine = 1.0 if norms[0] and math.isfinite(norms[0]) else None
    elif all(map(math.isfinite, (*norms, sums.product, sums.square_diff))):
        if all(norms):
            cosine = max(-1.0, min(1.0, sums.product / norms[0] / norms[1]))
        if any(norms):
            distance = math.sqrt(sums.square_diff) / max(norms)
        elif not sums.max_abs:
            distance = 0.0
    return ValueDiff(
        elements,
        sums.differing,
        sums.unequal,
        sums.max_abs,
        sums.max_rel,
        sums.max_ulps if has_ulps else None,
        cosine,
        distance,
        sums.nan_a,
        sums.nan_b,
        sums.inf_a,
        sums.inf_b,
        name_of(common),
    )
