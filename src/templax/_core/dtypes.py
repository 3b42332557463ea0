"""Dtypes: which casts are lossless, which a cast policy allows, and which numpy can do exactly."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np

Cast = Literal["float", "widen", "exact"]

CASTS: tuple[str, ...] = get_args(Cast)

WIDE = frozenset({"int64", "uint64", "float64", "complex128"})
"""Dtypes that a `jax.Array` can have only with `jax_enable_x64`."""

Class = Literal["bool", "int", "float", "complex", "other"]


@functools.cache
def name_of(dtype: np.dtype) -> str:
    """`dtype.name`, cached because numpy takes microseconds for it."""
    return dtype.name


@functools.cache
def class_of(dtype: np.dtype) -> Class:
    """The kind of number that a dtype holds. Knows the dtypes of ml_dtypes.

    >>> class_of(np.dtype("bfloat16")), class_of(np.dtype("int4")), class_of(np.dtype("S3"))
    ('float', 'int', 'other')
    """
    if dtype.kind in "bc":
        return "bool" if dtype.kind == "b" else "complex"
    if "complex" in dtype.name:  # complex dtypes of ml_dtypes, which finfo treats as floats
        return "other"
    for name, info in (("int", ml_dtypes.iinfo), ("float", ml_dtypes.finfo)):
        try:
            info(dtype)
        except (ValueError, TypeError, KeyError):
            continue
        return "int" if name == "int" else "float"
    return "other"


def read_number(value: Any) -> bool | int | float | None:
    """The number that a NumPy or JAX scalar, or an array of shape (), holds; None if it is none.

    >>> read_number(np.int64(3)), read_number(np.array(0.5)), read_number("3")
    (3, 0.5, None)
    """
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # a tracer, or a list of lists of different lengths
        return None
    kind = class_of(array.dtype) if array.shape == () else "other"
    if kind == "bool":
        return bool(array)
    return int(array) if kind == "int" else float(array) if kind == "float" else None


@functools.cache
def is_lossless(stored: np.dtype, wanted: np.dtype) -> bool:
    """Whether every value of `stored` can be represented in `wanted`.

    Bools are not numbers here. An integer dtype fits a float dtype whose significand is wide enough
    for all its values.

    >>> is_lossless(np.dtype("int8"), np.dtype("bfloat16"))
    True
    >>> is_lossless(np.dtype("int32"), np.dtype("float32"))
    False
    """
    if stored == wanted:
        return True
    classes = class_of(stored), class_of(wanted)
    match classes:
        case ("int", "int"):
            a, b = ml_dtypes.iinfo(stored), ml_dtypes.iinfo(wanted)
            return int(b.min) <= int(a.min) and int(a.max) <= int(b.max)
        case ("int", "float"):
            a, f = ml_dtypes.iinfo(stored), ml_dtypes.finfo(wanted)
            if int(a.min) < 0 and not _has_sign(wanted):
                return False
            largest = max(abs(int(a.min)), int(a.max))
            return largest <= 2 ** (f.nmant + 1) and largest <= float(f.max) and _has_zero(wanted)
        case ("float", "float"):
            return _float_fits(stored, wanted)
        case ("int" | "float", "complex"):
            return is_lossless(stored, _part_dtype(wanted))
        case ("complex", "complex"):
            return is_lossless(_part_dtype(stored), _part_dtype(wanted))
        case _:
            return False


def _float_fits(stored: np.dtype, wanted: np.dtype) -> bool:
    a, b = ml_dtypes.finfo(stored), ml_dtypes.finfo(wanted)
    # The 8-bit formats differ in whether they have a sign, a zero, infinities and NaN. So compare
    # all their values.
    if stored.itemsize == 1:
        values = np.arange(256, dtype=np.uint8).view(stored)
        with np.errstate(all="ignore"):
            wide = values.astype(np.float64)
            back = values.astype(np.float32).astype(wanted).astype(np.float64)
        return bool(np.array_equal(wide, back, equal_nan=True))
    return (
        b.nmant >= a.nmant
        and float(b.max) >= float(a.max)
        and float(b.smallest_subnormal) <= float(a.smallest_subnormal)
        and wanted.itemsize > stored.itemsize
    )


def _has_sign(dtype: np.dtype) -> bool:
    return dtype.name != "float8_e8m0fnu"


_has_zero = _has_sign  # float8_e8m0fnu has neither: it holds only powers of two


def _part_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the real and imaginary part of a complex dtype."""
    return np.dtype(f"f{dtype.itemsize // 2}")


def int_fits(dtype: np.dtype, value: int) -> bool:
    """Whether an integer dtype can represent `value`.

    >>> int_fits(np.dtype("uint8"), 255), int_fits(np.dtype("int4"), 8)
    (True, False)
    """
    info = ml_dtypes.iinfo(dtype)
    return int(info.min) <= value <= int(info.max)


def may_cast(stored: np.dtype, wanted: np.dtype, policy: Cast) -> bool:
    """Whether `policy` allows a cast from `stored` to `wanted`, which are different dtypes.

    `"exact"` allows no cast, `"widen"` allows lossless ones, and `"float"` additionally any float
    to any float and any complex to any complex. No policy allows float to int, a narrower int,
    complex to real, or casts between bool and numbers.

    >>> may_cast(np.dtype("float32"), np.dtype("bfloat16"), "float")
    True
    >>> may_cast(np.dtype("int64"), np.dtype("int32"), "float")
    False
    """
    if policy == "exact":
        return False
    if is_lossless(stored, wanted):
        return True
    classes = class_of(stored), class_of(wanted)
    return policy == "float" and classes in (("float", "float"), ("complex", "complex"))


# Pairs for which numpy's cast gives the same bits as XLA's on CPU, NaN payloads and subnormals
# included (tests/unit/core/test_dtypes.py tries every 8- and 16-bit pattern and many 32-bit ones).
# Other pairs differ: for f16 -> f32, numpy keeps signalling NaNs and XLA makes them quiet; for e5m2
# and f4, NaN is encoded differently; for 64-bit dtypes, XLA flushes subnormals to zero.
_HOST_EXACT = {
    ("float32", "bfloat16"),
    ("bfloat16", "float32"),
    ("float16", "bfloat16"),
    ("float32", "float8_e4m3fn"),
    ("bfloat16", "float8_e4m3fn"),
    ("float16", "float8_e4m3fn"),
    ("float8_e4m3fn", "float32"),
    ("float8_e4m3fn", "bfloat16"),
    ("float8_e4m3fn", "float16"),
    ("float8_e5m2", "float32"),
    ("float8_e5m2", "bfloat16"),
    ("float8_e5m2", "float16"),
}


def host_cast_is_exact(stored: np.dtype, wanted: np.dtype) -> bool:
    """Whether numpy's cast gives the same bits as `jnp.asarray(x).astype(wanted)` on CPU."""
    if class_of(stored) == "int" and class_of(wanted) == "int":
        # ml_dtypes can cast its 2-bit integers to few other dtypes.
        return "int2" not in stored.name and "int2" not in wanted.name
    return (stored.name, wanted.name) in _HOST_EXACT


def cast_into(out: np.ndarray, values: np.ndarray) -> None:
    """Casts `values` into `out`, of the same shape.

    Rounds to nearest, ties to even, and does not warn on overflow.
    """
    with np.errstate(all="ignore"):
        try:
            np.copyto(out, values, casting="unsafe")
        except TypeError:  # between some of its dtypes, ml_dtypes casts by no direct way
            wider = np.int8 if class_of(values.dtype) == "int" else np.float32
            np.copyto(out, values.astype(wider), casting="unsafe")


def count_lost(values: np.ndarray, cast: np.ndarray) -> int:
    """How many values a floating-point dtype can't hold, of an array that was cast to it.

    They are infinite, NaN or other numbers after the cast: a finite value is too large, or an
    infinite one or NaN has no equal. In a dtype without these two, whatever exceeds its largest
    number counts, even if that is the nearest.
    """
    finite, kept = np.isfinite(values), np.isfinite(cast)
    lost = finite != kept
    if not finite.all():
        lost |= np.isinf(values) & ~np.isinf(cast)
    if kept.all() and _is_always_finite(cast.dtype):  # too large a number becomes the largest
        largest = float(ml_dtypes.finfo(cast.dtype).max)
        lost |= finite & (np.abs(values.astype(np.float64)) > largest)
    return int(np.count_nonzero(lost))


@functools.cache
def _is_always_finite(dtype: np.dtype) -> bool:
    """Whether a dtype has neither infinity nor NaN, as those of four and six bits."""
    return bool(np.isfinite(np.array([np.inf, np.nan], np.float32).astype(dtype)).all())


_MAX_NAME = 64


def parse_dtype(name: str) -> np.dtype:
    """Returns the dtype that numpy or ml_dtypes calls `name`.

    Raises:
        TypeError: The dtype is unknown, or does not hold numbers.
    """
    if len(name) > _MAX_NAME:
        raise TypeError("no dtype has so long a name")  # numpy might build a huge structured dtype
    try:
        scalar = getattr(ml_dtypes, name, None)
        dtype = np.dtype(scalar if isinstance(scalar, type) else name)
    except (TypeError, ValueError, SyntaxError):
        raise TypeError(f"no dtype is called `{name}`") from None
    if class_of(dtype) == "other":
        raise TypeError(f"dtype `{name}` holds no numbers")
    return dtype


PYTHON_NAMES = {"i": "int", "f": "float", "b": "bool", "c": "complex"}
"""numpy kind → name of Python's number type."""

PYTHON_DTYPES = {
    int: np.dtype("i8"),
    float: np.dtype("f8"),
    bool: np.dtype("?"),
    complex: np.dtype("c16"),
}
"""Python's number type → the dtype of its values."""

NUMPY_NAMES = """bool int8 int16 int32 int64 uint8 uint16 uint32 uint64
float16 float32 float64 complex64 complex128"""

ML_NAMES = """bfloat16 int2 int4 uint2 uint4 float4_e2m1fn float6_e2m3fn float6_e3m2fn
float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz
float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"""

DTYPES: Mapping[str, np.dtype] = {
    **{name: np.dtype(name) for name in NUMPY_NAMES.split()},
    **{n: np.dtype(getattr(ml_dtypes, n)) for n in ML_NAMES.split() if hasattr(ml_dtypes, n)},
}
"""Name → dtype of every element type that can be read. Narrower ones are stored one per byte.
ml_dtypes before 0.5 lacks some."""


@functools.cache
def is_known(dtype: np.dtype) -> bool:
    """Whether a dtype is one of `DTYPES`."""
    return DTYPES.get(dtype.name) == dtype


UNNAMED_BYTE = np.dtype("V1")
"""Elements of one byte of which the file does not say what they are: numpy does not write the names
of the dtypes of ml_dtypes. They are read as what the template says."""


@functools.cache
def names_byte(dtype: np.dtype) -> bool:
    """Whether elements of `UNNAMED_BYTE` can be read as this dtype.

    >>> names_byte(np.dtype("uint8")), names_byte(np.dtype("int8"))
    (True, False)
    """
    return dtype.itemsize == 1 and (dtype.name in ML_NAMES.split() or dtype == np.uint8)


@functools.cache
def is_narrow_float(dtype: np.dtype) -> bool:
    """Whether a dtype is a float of less than 4 bytes, such as bfloat16."""
    return dtype.itemsize < 4 and class_of(dtype) == "float"


@functools.cache
def count_bits(dtype: np.dtype) -> int:
    """How many bits of an element hold its value: fewer than its bytes have for narrow numbers.

    >>> count_bits(np.dtype("int4")), count_bits(np.dtype("float32"))
    (4, 32)
    """
    match class_of(dtype):
        case "int":
            return ml_dtypes.iinfo(dtype).bits
        case "float":
            return ml_dtypes.finfo(dtype).bits
        case _:
            return 8 * dtype.itemsize
