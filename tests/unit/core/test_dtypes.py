"""Which dtypes may be cast to which, exhaustively, and casts bit for bit as in JAX."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import templax as tx
from helpers import mark_slow
from templax._core.dtypes import (
    DTYPES,
    cast_into,
    class_of,
    host_cast_is_exact,
    int_fits,
    is_lossless,
    may_cast,
    parse_dtype,
)
from templax._restore import cast
from templax._restore.cast import cast_array

FLOATS = [
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e3m4", "float8_e4m3b11fnuz",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn", "bfloat16", "float16",
    "float32", "float64",
]  # fmt: skip
INTS = ["int2", "int4", "int8", "int16", "int32", "int64", "uint2", "uint4", "uint8", "uint16",
        "uint32", "uint64"]  # fmt: skip
COMPLEX = ["complex64", "complex128"]
NAMES = [*FLOATS, *INTS, *COMPLEX, "bool"]
ALL = [parse_dtype(name) for name in NAMES if name in DTYPES]  # ml_dtypes before 0.5 lacks some
PAIRS = [(a, b) for a, b in itertools.product(ALL, ALL) if a != b]


def every_value(dtype: np.dtype, sample: int = 300_000) -> np.ndarray:
    """Every value of dtypes up to 16 bits; a sample of wider ones, with subnormals and NaNs."""
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
def test_no_policy_allows_lossy_changes_of_kind(policy: str) -> None:
    """Float to int, narrowing of ints, complex to real, and between bool and numbers."""
    for a, b in PAIRS:
        never = (
            (class_of(a), class_of(b))
            in [("float", "int"), ("complex", "int"), ("complex", "float")]
            or "bool" in (class_of(a), class_of(b))
            or (class_of(a) == class_of(b) == "int" and not contains_range(b, a))
        )
        if never or policy == "exact":
            assert not may_cast(a, b, policy), (a, b)


def contains_range(wide: np.dtype, narrow: np.dtype) -> bool:
    w, n = ml_dtypes.iinfo(wide), ml_dtypes.iinfo(narrow)
    return int(w.min) <= int(n.min) and int(n.max) <= int(w.max)


def test_the_float_policy_allows_float_casts_and_lossless_ones() -> None:
    for a, b in PAIRS:
        both = class_of(a), class_of(b)
        want = both in [("float", "float"), ("complex", "complex")] or is_lossless(a, b)
        assert may_cast(a, b, "float") == want
        assert may_cast(a, b, "widen") == is_lossless(a, b)


@pytest.mark.parametrize("stored", [d for d in ALL if d.itemsize <= 2], ids=lambda d: d.name)
def test_lossless_casts_keep_every_value(stored: np.dtype) -> None:
    values = every_value(stored)
    for wanted in ALL:
        if wanted == stored or class_of(wanted) == "other":
            continue
        if class_of(stored) == "bool" or class_of(wanted) == "bool":
            assert not is_lossless(stored, wanted)
            continue
        with np.errstate(all="ignore"):
            there = values.astype(np.float64).astype(wanted)
            back = np.real(there.astype(np.complex128)).astype(np.float64)
            survives = np.array_equal(values.astype(np.float64), back, equal_nan=True)
        if class_of(wanted) != "int" or class_of(stored) == "int":
            assert is_lossless(stored, wanted) == survives, wanted


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
def test_lossless_of_wide_dtypes(stored: str, wanted: str, want: bool) -> None:
    assert is_lossless(parse_dtype(stored), parse_dtype(wanted)) == want


_JAX = [d for d in ALL if d.itemsize <= 4]
CASTS = [(a, b) for a, b in itertools.product(_JAX, _JAX) if a != b and may_cast(a, b, "float")]
if jax.__version_info__ < (0, 10):  # XLA rounds the first twice, and has other NaNs of the second
    CASTS = [
        (a, b)
        for a, b in CASTS
        if (a.name, b.name) != ("float32", "float8_e4m3fn") and a.name != "float8_e5m2"
    ]


_STORED = [d for d in _JAX if class_of(d) != "bool"]
_COMMON = ("float32", "bfloat16", "int4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stored",
    [
        *(d for d in _STORED if d.name in _COMMON),
        *mark_slow(*(d for d in _STORED if d.name not in _COMMON)),
    ],
    ids=lambda d: d.name,
)
def test_casts_equal_those_of_jax_bit_for_bit(stored: np.dtype) -> None:
    """Including NaN payloads and subnormals, whether numpy or XLA casts."""
    values = every_value(stored)
    for a, wanted in CASTS:
        if a != stored:
            continue
        want = np.asarray(jnp.asarray(values).astype(wanted))
        got = cast_array(values, wanted)
        assert got.dtype == wanted
        assert got.tobytes() == want.tobytes(), wanted
        if host_cast_is_exact(stored, wanted):
            out = np.empty_like(values, dtype=wanted)
            cast_into(out, values)
            assert out.tobytes() == want.tobytes(), wanted
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cast, "is_jax_loaded", lambda: False)
            without = cast_array(values, wanted)
        with np.errstate(invalid="ignore"):
            numbers = values == values  # not NaN, whose bits XLA chooses itself
        assert without[numbers].tobytes() == want[numbers].tobytes(), wanted


_NARROW = ("float6_e2m3fn", "float6_e3m2fn", "float8_e4m3fn")


@pytest.mark.skipif("float8_e8m0fnu" not in DTYPES, reason="ml_dtypes before 0.5")
@pytest.mark.parametrize("stored", [DTYPES[n] for n in _NARROW if n in DTYPES], ids=str)
def test_a_cast_that_ml_dtypes_lacks_goes_by_a_wider_dtype(stored: np.dtype) -> None:
    out = np.empty(3, DTYPES["float8_e8m0fnu"])
    cast_into(out, np.array([0.5, 1, 4], stored))
    assert out.astype(np.float32).tolist() == [0.5, 1, 4]


@pytest.mark.slow
def test_float64_is_cast_as_in_jax_without_x64() -> None:
    values = every_value(np.dtype("f8"), 50_000)
    for wanted in map(parse_dtype, ["float32", "bfloat16", "float16"]):
        with np.errstate(over="ignore", invalid="ignore"):
            want = np.asarray(jnp.asarray(values).astype(wanted))
        assert cast_array(values, wanted).tobytes() == want.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (1025,), (2, 3, 5)])
def test_casts_keep_the_shape(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 1.5, np.float16)
    got = cast_array(values, np.dtype(np.float32))
    assert got.shape == shape
    assert (got == 1.5).all()


@pytest.mark.parametrize(
    "name", ["object", "V8", "S3", "datetime64[s]", "os", "", "f4,i4", "__doc__"]
)
def test_names_that_are_not_numeric_dtypes_are_refused(name: str) -> None:
    with pytest.raises(TypeError):
        parse_dtype(name)


NUMBERS = sorted(
    {np.dtype(t).name for t in np.sctypeDict.values() if np.dtype(t).kind in "biufc"}
    | {
        n
        for n, t in vars(ml_dtypes).items()
        if isinstance(t, type) and issubclass(t, np.generic) and n == t.__name__
    }
)
"""The numeric dtypes of the installed numpy and ml_dtypes."""


def kind_of_name(name: str) -> str:
    """The kind of a dtype, judged by its name alone."""
    for kind in ("complex", "bool", "float", "int"):
        if kind in name:
            return kind
    raise AssertionError(name)


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


JAX_HAS = [
    n for n in NUMBERS if n in {d.name for d in ALL} or (n in DTYPES and n.startswith("float6"))
]
WIDE = [n for n in JAX_HAS if dtype_of(n).itemsize > 2]


@pytest.mark.parametrize("name", NUMBERS)
def test_each_dtype_is_classed_as_its_name_says(name: str) -> None:
    """A dtype that JAX lacks may be classed as "other", but never as a wrong kind."""
    found = class_of(dtype_of(name))
    if name in JAX_HAS or found != "other":
        assert found == kind_of_name(name)
        assert parse_dtype(name).name == name


def test_no_policy_allows_a_cast_to_a_narrower_kind() -> None:
    """For all installed dtypes, judged by their names."""
    order = {"int": 0, "float": 1, "complex": 2}
    wrong = []
    for a, b in itertools.permutations(NUMBERS, 2):
        kinds = kind_of_name(a), kind_of_name(b)
        loses = "bool" in kinds or order[kinds[0]] > order[kinds[1]]
        for policy in ("float", "widen", "exact"):
            if loses and may_cast(dtype_of(a), dtype_of(b), policy):
                wrong.append((a, b, policy))
    assert not wrong


@pytest.mark.parametrize("name", JAX_HAS)
def test_a_policy_allows_whatever_a_stricter_one_allows(name: str) -> None:
    for other in map(parse_dtype, JAX_HAS):
        allowed = [may_cast(parse_dtype(name), other, p) for p in ("exact", "widen", "float")]
        assert allowed == sorted(allowed)
        assert allowed[0] is False


@pytest.mark.parametrize("stored", ["longdouble", "clongdouble"])
def test_a_long_double_does_not_fit_a_double(stored: str) -> None:
    if np.finfo("longdouble").nmant == np.finfo("double").nmant:
        pytest.skip("long double is double here")
    for wanted in ("float64", "complex128", "float32", "complex64"):
        assert not is_lossless(np.dtype(stored), np.dtype(wanted)), wanted


def extremes_of(dtype: np.dtype) -> np.ndarray:
    """The largest and smallest values of a dtype, and values of its finest steps."""
    if class_of(dtype) == "int":
        info = ml_dtypes.iinfo(dtype)
        return np.array([0, 1, int(info.min), int(info.max), int(info.max) - 1], dtype)
    if class_of(dtype) == "complex":
        return np.repeat(extremes_of(np.dtype(f"f{dtype.itemsize // 2}")), 2).view(dtype)
    f = np.finfo(dtype)
    return np.array([0, f.max, -f.max, f.smallest_subnormal, 1 + f.eps, np.inf], dtype)


@pytest.mark.parametrize("stored", WIDE)
def test_lossless_casts_of_wide_dtypes_keep_their_extremes(stored: str) -> None:
    """These dtypes have too many values to try them all."""
    a = parse_dtype(stored)
    probes = extremes_of(a)
    order = ["int", "float", "complex"]
    for wanted in map(parse_dtype, JAX_HAS):
        if wanted == a or class_of(wanted) == "bool":
            continue
        if order.index(class_of(a)) > order.index(class_of(wanted)):
            assert not is_lossless(a, wanted), wanted
            continue
        with np.errstate(all="ignore"):
            if class_of(wanted) == "int":
                info = ml_dtypes.iinfo(wanted)
                survives = all(int(info.min) <= int(x) <= int(info.max) for x in probes)
            elif class_of(a) == "int":
                # As Python ints: a float may round up to a value outside the integer dtype.
                there = np.real(probes.astype(wanted)).astype(np.float64)
                survives = all(
                    np.isfinite(y) and int(y) == int(x) for x, y in zip(probes, there, strict=True)
                )
            else:
                there = probes.astype(wanted)
                back = (there if class_of(a) == "complex" else np.real(there)).astype(a)
                survives = probes.tobytes() == back.tobytes()
        assert is_lossless(a, wanted) == survives, wanted


def test_lossless_is_transitive() -> None:
    dtypes = [d for d in ALL if class_of(d) != "bool"]
    for a, b, c in itertools.product(dtypes, repeat=3):
        if is_lossless(a, b) and is_lossless(b, c):
            assert is_lossless(a, c), (a, b, c)


def test_integers_fit_exactly_within_the_bounds_of_a_dtype() -> None:
    for name in [name for name in INTS if name in DTYPES]:
        bits, signed = int(name.lstrip("uint")), not name.startswith("u")
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        dtype = parse_dtype(name)
        assert [int_fits(dtype, v) for v in (low - 1, low, 0, high, high + 1)] == [
            False,
            True,
            True,
            True,
            False,
        ]


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (a, b)
        for a, b in itertools.product([d for d in ALL if d.name in INTS], repeat=2)
        if a != b and may_cast(a, b, "widen")
    ],
    ids=lambda d: d.name,
)
def test_widening_integers_keeps_every_value(stored: np.dtype, wanted: np.dtype) -> None:
    """Including two-bit integers."""
    values = every_value(stored, 1000)
    got = cast_array(values, wanted)
    assert got.dtype == wanted
    assert [int(v) for v in got[:70_000]] == [int(v) for v in values[:70_000]]


@pytest.mark.parametrize("wanted", [d for d in ALL if class_of(d) == "float" and d.itemsize < 8],
                         ids=lambda d: d.name)  # fmt: skip
def test_float64_is_cast_to_any_float_as_in_jax(wanted: np.dtype) -> None:
    values = every_value(np.dtype("f8"), 20_000)
    with np.errstate(all="ignore"):
        want = np.asarray(jnp.asarray(values).astype(wanted))
    assert cast_array(values, wanted).tobytes() == want.tobytes()


def test_complex128_is_cast_to_complex64_as_in_jax() -> None:
    values = every_value(np.dtype("c16"), 20_000)
    with np.errstate(all="ignore"):
        want = np.asarray(jnp.asarray(values).astype(np.complex64))
    assert cast_array(values, np.dtype("c8")).tobytes() == want.tobytes()


@pytest.mark.parametrize("wanted", ["float64", "complex128", "int64"])
def test_casts_to_dtypes_that_jax_lacks_are_those_of_numpy(wanted: str) -> None:
    stored = np.dtype("i4" if wanted == "int64" else "f4")
    values = every_value(stored, 20_000)
    with np.errstate(all="ignore"):
        assert cast_array(values, parse_dtype(wanted)).tobytes() == values.astype(wanted).tobytes()


def test_a_cast_does_not_change_its_input() -> None:
    """Not even an input larger than a block, or one that is not contiguous."""
    values = np.arange(3_000_000, dtype=np.float32)
    before = values.tobytes()
    got = cast_array(values, np.dtype(np.float16))
    assert values.tobytes() == before
    assert np.array_equal(got[:2048], values[:2048])
    turned = values[:600].reshape(20, 30).T
    assert np.array_equal(cast_array(turned, np.dtype(np.float16)), turned)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", ["f4", "i4", "c8", "u2"])
def test_byte_order_is_not_part_of_a_dtype(code: str, order: str) -> None:
    values = np.arange(3).astype(order + code)
    native = np.dtype(code)
    leaf = jax.ShapeDtypeStruct((3,), native)
    checkpoint = tx.Recipe(lambda: {"w": values})
    for template in (leaf, np.zeros(3, code), np.zeros(3, order + code)):
        match = tx.check(checkpoint, {"w": template}, cast="exact")
        assert match.ok, str(match)
    got = tx.restore(checkpoint, {"w": leaf}, cast="exact")["w"]
    assert got.dtype == native
    assert np.array_equal(np.asarray(got), values)
