"""Which dtype may become which, exhaustively; and casts bit for bit as JAX does them."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import templax as tx
from templax._core.dtypes import (
    cast_into,
    class_of,
    host_cast_is_exact,
    int_fits,
    is_lossless,
    may_cast,
    parse_dtype,
)
from templax._restore.place import cast_array

FLOATS = [
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e3m4", "float8_e4m3b11fnuz",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn", "bfloat16", "float16",
    "float32", "float64",
]  # fmt: skip
INTS = ["int2", "int4", "int8", "int16", "int32", "int64", "uint2", "uint4", "uint8", "uint16",
        "uint32", "uint64"]  # fmt: skip
COMPLEX = ["complex64", "complex128"]
ALL = [parse_dtype(name) for name in [*FLOATS, *INTS, *COMPLEX, "bool"]]
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
        want = both in [("float", "float"), ("complex", "complex")] or is_lossless(a, b)
        assert may_cast(a, b, "float") == want
        assert may_cast(a, b, "widen") == is_lossless(a, b)


@pytest.mark.parametrize("stored", [d for d in ALL if d.itemsize <= 2], ids=lambda d: d.name)
def test_lossless_means_that_every_value_comes_back(stored: np.dtype) -> None:
    values = _every_value(stored)
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
def test_wide_dtypes_are_told_apart_too(stored: str, wanted: str, want: bool) -> None:
    assert is_lossless(parse_dtype(stored), parse_dtype(wanted)) == want


_JAX = [d for d in ALL if d.itemsize <= 4]
CASTS = [(a, b) for a, b in itertools.product(_JAX, _JAX) if a != b and may_cast(a, b, "float")]


@pytest.mark.parametrize("stored", [d for d in _JAX if class_of(d) != "bool"], ids=lambda d: d.name)
def test_casts_equal_those_of_jax_bit_for_bit(stored: np.dtype) -> None:
    """NaN payloads and subnormals included, whoever of numpy and XLA does them."""
    values = _every_value(stored)
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


def test_float64_is_cast_as_jax_does_with_64_bit_types_off() -> None:
    values = _every_value(np.dtype("f8"), 50_000)
    for wanted in map(parse_dtype, ["float32", "bfloat16", "float16"]):
        with np.errstate(over="ignore", invalid="ignore"):
            want = np.asarray(jnp.asarray(values).astype(wanted))
        assert cast_array(values, wanted).tobytes() == want.tobytes()


@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (1025,), (2, 3, 5)])
def test_casts_keep_any_shape(shape: tuple[int, ...]) -> None:
    values = np.full(shape, 1.5, np.float16)
    got = cast_array(values, np.dtype(np.float32))
    assert got.shape == shape
    assert (got == 1.5).all()


@pytest.mark.parametrize(
    "name", ["object", "V8", "S3", "datetime64[s]", "os", "", "f4,i4", "__doc__"]
)
def test_what_is_no_number_is_no_dtype(name: str) -> None:
    with pytest.raises(TypeError):
        parse_dtype(name)


# --- every dtype there is, by name


NUMBERS = sorted(
    {np.dtype(t).name for t in np.sctypeDict.values() if np.dtype(t).kind in "biufc"}
    | {
        n
        for n, t in vars(ml_dtypes).items()
        if isinstance(t, type) and issubclass(t, np.generic) and n == t.__name__
    }
)
"""What numpy and ml_dtypes of this environment have; new versions bring new ones."""


def _kind(name: str) -> str:
    """By its name alone."""
    for kind in ("complex", "bool", "float", "int"):
        if kind in name:
            return kind
    raise AssertionError(name)


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


JAX_HAS = [
    n for n in NUMBERS if n in {d.name for d in ALL} or n in ("float6_e2m3fn", "float6_e3m2fn")
]
WIDE = [n for n in JAX_HAS if _dtype(n).itemsize > 2]


@pytest.mark.parametrize("name", NUMBERS)
def test_each_dtype_of_numpy_and_ml_dtypes_is_classed_by_what_its_name_says(name: str) -> None:
    """One that no `jax.Array` holds may be no number to templax, but never another kind."""
    found = class_of(_dtype(name))
    if name in JAX_HAS or found != "other":
        assert found == _kind(name)
        assert parse_dtype(name).name == name


def test_no_policy_lets_any_dtype_change_its_kind_to_a_poorer_one() -> None:
    """Over all dtypes that are installed, by their names."""
    order = {"int": 0, "float": 1, "complex": 2}
    wrong = []
    for a, b in itertools.permutations(NUMBERS, 2):
        kinds = _kind(a), _kind(b)
        loses = "bool" in kinds or order[kinds[0]] > order[kinds[1]]
        for policy in ("float", "widen", "exact"):
            if loses and may_cast(_dtype(a), _dtype(b), policy):
                wrong.append((a, b, policy))
    assert not wrong


@pytest.mark.parametrize("name", JAX_HAS)
def test_a_policy_allows_what_a_stricter_one_does(name: str) -> None:
    for other in map(parse_dtype, JAX_HAS):
        allowed = [may_cast(parse_dtype(name), other, p) for p in ("exact", "widen", "float")]
        assert allowed == sorted(allowed)
        assert allowed[0] is False


@pytest.mark.parametrize("stored", ["longdouble", "clongdouble"])
def test_a_long_double_is_no_double(stored: str) -> None:
    if np.finfo("longdouble").nmant == np.finfo("double").nmant:
        pytest.skip("here it is")
    for wanted in ("float64", "complex128", "float32", "complex64"):
        assert not is_lossless(np.dtype(stored), np.dtype(wanted)), wanted


def _extremes(dtype: np.dtype) -> np.ndarray:
    """Largest, smallest, finest."""
    if class_of(dtype) == "int":
        info = ml_dtypes.iinfo(dtype)
        return np.array([0, 1, int(info.min), int(info.max), int(info.max) - 1], dtype)
    if class_of(dtype) == "complex":
        return np.repeat(_extremes(np.dtype(f"f{dtype.itemsize // 2}")), 2).view(dtype)
    f = np.finfo(dtype)
    return np.array([0, f.max, -f.max, f.smallest_subnormal, 1 + f.eps, np.inf], dtype)


@pytest.mark.parametrize("stored", WIDE)
def test_lossless_of_wide_dtypes_means_that_their_extremes_come_back(stored: str) -> None:
    """Of the dtypes with too many values to try them all."""
    a = parse_dtype(stored)
    probes = _extremes(a)
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
                # Python's ints: one that a float rounds up to may be none of the dtype.
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


def test_every_integer_is_held_within_its_bounds_only() -> None:
    for name in INTS:
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


# --- casts that involve what JAX has only with 64-bit types, or not at all


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        (a, b)
        for a, b in itertools.product(map(parse_dtype, INTS), repeat=2)
        if a != b and may_cast(a, b, "widen")
    ],
    ids=lambda d: d.name,
)
def test_every_widening_of_integers_keeps_every_value(stored: np.dtype, wanted: np.dtype) -> None:
    """The two-bit ones, which few have, included."""
    values = _every_value(stored, 1000)
    got = cast_array(values, wanted)
    assert got.dtype == wanted
    assert [int(v) for v in got[:70_000]] == [int(v) for v in values[:70_000]]


@pytest.mark.parametrize("wanted", [d for d in ALL if class_of(d) == "float" and d.itemsize < 8],
                         ids=lambda d: d.name)  # fmt: skip
def test_float64_becomes_any_float_as_jax_does_it(wanted: np.dtype) -> None:
    values = _every_value(np.dtype("f8"), 20_000)
    with np.errstate(all="ignore"):
        want = np.asarray(jnp.asarray(values).astype(wanted))
    assert cast_array(values, wanted).tobytes() == want.tobytes()


def test_complex128_becomes_complex64_as_jax_does_it() -> None:
    values = _every_value(np.dtype("c16"), 20_000)
    with np.errstate(all="ignore"):
        want = np.asarray(jnp.asarray(values).astype(np.complex64))
    assert cast_array(values, np.dtype("c8")).tobytes() == want.tobytes()


@pytest.mark.parametrize("wanted", ["float64", "complex128", "int64"])
def test_numpy_results_that_no_jax_array_holds_are_cast_by_numpy(wanted: str) -> None:
    stored = np.dtype("i4" if wanted == "int64" else "f4")
    values = _every_value(stored, 20_000)
    with np.errstate(all="ignore"):
        assert cast_array(values, parse_dtype(wanted)).tobytes() == values.astype(wanted).tobytes()


def test_a_cast_leaves_its_input_as_it_was() -> None:
    """Also one larger than a block, and one that is not contiguous."""
    values = np.arange(3_000_000, dtype=np.float32)
    before = values.tobytes()
    got = cast_array(values, np.dtype(np.float16))
    assert values.tobytes() == before
    assert np.array_equal(got[:2048], values[:2048])
    turned = values[:600].reshape(20, 30).T
    assert np.array_equal(cast_array(turned, np.dtype(np.float16)), turned)


# --- byte order is no part of a dtype


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", ["f4", "i4", "c8", "u2"])
def test_another_byte_order_is_no_other_dtype(code: str, order: str) -> None:
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
