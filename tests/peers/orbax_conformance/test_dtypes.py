"""Taken from Orbax's own tests: dtypes and casts."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import SingleDeviceSharding

import templax as tx
from helpers import abstract, assert_same_tree, catch_mismatches, restore_as_saved, save_with_orbax

S = jax.ShapeDtypeStruct
CASTS = [
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("bfloat16", "float32"),
    ("float16", "bfloat16"),
    ("int8", "int32"),
    ("int16", "float32"),
    ("uint8", "int16"),
]
REFUSED = [
    ("int32", "int16"),
    ("int32", "bfloat16"),
    ("float32", "int32"),
    ("bfloat16", "int32"),
    ("int32", "uint32"),
    ("bool", "int32"),
    ("complex64", "float32"),
]


def numbers(dtype: str) -> jax.Array:
    values = np.linspace(-100, 100, 41) if dtype[0] not in "ub" else np.arange(41)
    return jnp.asarray(values).astype(dtype)


@pytest.mark.parametrize(("stored", "wanted"), CASTS)
def test_casts_give_what_orbax_gives(tmp_path, stored, wanted):
    """Bit for bit, and as JAX casts; one warning announces them."""
    path = save_with_orbax(tmp_path / "x", {"x": numbers(stored)})
    sharding = SingleDeviceSharding(jax.devices()[0])
    template = {"x": S((41,), wanted, sharding=sharding)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ocp.StandardCheckpointer().restore(path, template)
    with pytest.warns(tx.CastWarning, match=f"{stored} to {wanted}") as caught:
        ours = tx.restore(path, template)
    assert len(caught) == 1
    assert_same_tree(ours, theirs)
    assert_same_tree(ours, {"x": numbers(stored).astype(wanted)})
    assert catch_mismatches(path, template, cast="exact") == [("dtype", "x")]


@pytest.mark.parametrize(("stored", "wanted"), REFUSED)
def test_lossy_casts_are_refused(tmp_path, stored, wanted):
    """With every value of `cast`; Orbax does them silently."""
    path = save_with_orbax(tmp_path / "x", {"x": numbers(stored)})
    for cast in ("float", "widen", "exact"):
        assert catch_mismatches(path, {"x": S((41,), wanted)}, cast=cast) == [("dtype", "x")]


def test_python_numbers_keep_their_type(tmp_path):
    """`int` for a stored 1.5 is an error, not 1."""
    path = save_with_orbax(tmp_path / "x", {"f": 1.5, "i": 3})
    assert tx.restore(path, {"f": float, "i": int}) == {"f": 1.5, "i": 3}
    assert tx.restore(path, {"f": 0.0, "i": 0}) == {"f": 1.5, "i": 3}
    assert catch_mismatches(path, {"f": int, "i": 0}) == [("dtype", "f")]


DTYPES = [
    "bool",
    "int4",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "float8_e4m3fn",
    "float8_e5m2",
    "bfloat16",
    "float16",
    "float32",
    "complex64",
]


@pytest.mark.slow
@pytest.mark.parametrize("zarr3", [False, True])
def test_every_dtype_is_restored(tmp_path, zarr3):
    """With its bits; int4 stays int4."""
    names = [name for name in DTYPES if not (zarr3 and name == "complex64")]
    tree = {name: numbers(name)[20:28].reshape(2, 4) for name in names}
    path = save_with_orbax(tmp_path / "x", tree, use_zarr3=zarr3)
    assert_same_tree(tx.restore(path, abstract(tree)), tree)
    assert_same_tree(restore_as_saved(path), tree)


def test_64_bit_dtypes_are_restored_as_numpy(tmp_path):
    """They keep every bit without `jax_enable_x64`."""
    tree = {"i": np.array([2**62 + 1]), "f": np.array([1 / 3]), "c": np.array([1j / 3])}
    path = save_with_orbax(tmp_path / "x", tree)
    assert_same_tree(tx.restore(path, tree), tree)
    assert_same_tree(restore_as_saved(path), tree)
