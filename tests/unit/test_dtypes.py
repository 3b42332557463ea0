"""Which dtype may become which, exhaustively; and casts bit for bit as JAX does them."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from templax._dtypes import (
    cast_into,
    class_of,
    host_cast_is_exact,
    lossless,
    may_cast,
    parse,
)
from templax._place import cast

FLOATS = [
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e3m4", "float8_e4m3b11fnuz",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn", "bfloat16", "float16",
    "float32", "float64",
]  # fmt: skip
INTS = ["int2", "int4", "int8", "int16", "int32", "int64", "uint2", "uint4", "uint8", "uint16",
        "uint32", "uint64"]  # fmt: skip
COMPLEX = ["complex64", "complex128"]
ALL = [parse(name) for name in [*FLOATS, *INTS, *COMPLEX, "bool"]]
PAIRS = [(a, b) for a, b in itertools.product(ALL, ALL) if a != b]


def _every_value(dtype: np.dtype, sample: int = 300_000) -> np.ndarray:
    """Every pattern of up to 16 bits; of wider ones a sample, with subnormals and NaNs."""
    if dtype.name in ("int2", "int4", "uint2", "uint4"):
        info = ml_dtypes.iinfo(dtype)
        return np.arange(int(info.min), int(info.max) + 1).astype(dtype)
    if dtype.name == "float4_e2m1fn":
        return np.arange(16, dtype=np.uint8).view(dtype)
    if dtype.itemsize <= 2:
        return np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}").view(dtype)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, sample * dtype.itemsize, np.uint8).view(dtype)
    if class_of(dtype) != "float":
        return bits
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-45, 65504, 3.4e38], dtype)
    near_one = rng.standard_normal(sample).astype(dtype)
    return np.concatenate([bits, edges, near_one])


@pytest.mark.parametrize("policy", ["exact", "widen", "float"])
def test_what_no_policy_allows(policy: str) -> None:
    """Float to int, narrowing of ints, complex to real, and between bool and numbers."""
    for a, b in PAIRS:
        never = (
            (class_of(a), class_of(b))
            in [("float", "int"), ("complex", "int"), ("complex", "float")]
            or "bool" in (class_of(a), class_of(b))
            or (class_of(a) == class_of(b) == "int" and not _contains(b, a))
        )
        if never or policy == "exact":
            assert not may_cast(a, b, policy), (a, b)


def _contains(wide: np.dtype, narrow: np.dtype) -> bool:
    w, n = ml_dtypes.iinfo(wide), ml_dtypes.iinfo(narrow)
    return int(w.min) <= int(n.min) and int(n.max) <= int(w.max)


def test_the_default_allows_any_float_to_any_float_and_what_loses_nothing() -> None:
    for a, b in PAIRS:
        both = class_of(a), class_of(b)
        want = both in [("float", "float"), ("complex", "complex")] or lossless(a, b)
        assert may_cast(a, b, "float") == want
        assert may_cast(a, b, "widen") == lossless(a, b)


@pytest.mark.parametrize("stored", [d for d in ALL if d.itemsize <= 2], ids=lambda d: d.name)
def test_lossless_means_that_every_value_comes_back(stored: np.dtype) -> None:
    values = _every_value(stored)
    for wanted in ALL:
        if wanted == stored or class_of(wanted) == "other":
            continue
        if class_of(stored) == "bool" or class_of(wanted) == "bool":
            assert not lossless(stored, wanted)
            continue
        with np.errstate(all="ignore"):
            there = values.astype(np.float64).astype(wanted)
            back = np.real(there.astype(np.complex128)).astype(np.float64)
            survives = np.array_equal(values.astype(np.float64), back, equal_nan=True)
        if class_of(wanted) != "int" or class_of(stored) == "int":
            assert lossless(stored, wanted) == survives, wanted


@pytest.mark.parametrize(
    ("stored", "wanted", "want"),
    [
        ("int32", "float32", False),
        ("int32", "float64", True),
        ("int64", "float64", False),
        ("float32", "float64", True),
        ("float64", "complex64", False),
        ("float32", "complex64", True),
        ("complex64", "complex128", True),
        ("uint32", "int64", True),
        ("uint64", "int64", False),
        ("float16", "bfloat16", False),
    ],
)
def test_wide_dtypes_are_told_apart_too(stored: str, wanted: str, want: bool) -> None:
    assert lossless(parse(stored), parse(wanted)) == want


_JAX = [d for d in ALL if d.itemsize <= 4 and d.name not in ("int2", "uint2")]
CASTS = [(a, b) for a, b in itertools.product(_JAX, _JAX) if a != b and may_cast(a, b, "float")]


@pytest.mark.parametrize("stored", [d for d in _JAX if class_of(d) != "bool"], ids=lambda d: d.name)
def test_casts_equal_those_of_jax_bit_for_bit(stored: np.dtype) -> None:
    """NaN payloads and subnormals included, whoever of numpy and XLA does them."""
    values = _every_value(stored)
    for a, wanted in CASTS:
        if a != stored:
            continue
        want = np.asarray(jnp.asarray(values).astype(wanted))
        got = cast(values, wanted)
        assert got.dtype == wanted
        assert got.tobytes() == want.tobytes(), wanted
        if host_cast_is_exact(stored, wanted):
            out = np.empty_like(values, dtype=wanted)
            cast_into(out, values)
            assert out.tobytes() == want.tobytes(), wanted


def test_float64_is_cast_as_jax_does_with_64_bit_types_off() -> None:
    values = _every_value(np.dtype("f8"), 50_000)
    for wanted in map(parse, ["float32", "bfloat16", "float16"]):
        with np.errstate(over="ignore", invalid="ignore"):
            want = np.asarray(jnp.asarray(values).astype(wanted))
        assert cast(values, wanted).tobytes() == want.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (1025,), (2, 3, 5)])
def test_casts_keep_any_shape(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 1.5, np.float16)
    got = cast(values, np.dtype(np.float32))
    assert got.shape == shape
    assert (got == 1.5).all()


@pytest.mark.parametrize(
    "name", ["object", "V8", "S3", "datetime64[s]", "os", "", "f4,i4", "__doc__"]
)
def test_what_is_no_number_is_no_dtype(name: str) -> None:
    with pytest.raises(TypeError):
        parse(name)
