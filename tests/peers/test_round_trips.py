"""Whatever `save` accepts is read back equal: by templax with and without its index, and by Orbax.

Trees are drawn at the limits that the readers have: odd keys, many dimensions and levels, sizes of
0, odd dtypes, long names, containers without leaves.
"""

from __future__ import annotations

import gc
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from helpers import assert_same_tree, count_examples, run_cli
from templax._core.dtypes import DTYPES
from templax.testing.strategies import values

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("collect_garbage_of_orbax"),
]


@pytest.fixture(scope="module")
def collect_garbage_of_orbax() -> Iterator[None]:
    """Collects what Orbax leaves open while its warnings are ignored."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


UNKNOWN_TO_ORBAX = {"uint2", "uint4", "float6_e2m3fn", "float6_e3m2fn", "float8_e4m3"}
"""Dtypes that Orbax can't save either; see `docs/reference/orbax-differences.md`."""

ODD_KEYS = [
    *("", ".", "..", "/", "//", "a", "a/", "/a", "a//", "a.b", "a.", ".a", "a/../b", "\\", "a\\"),
    *(
        "0",
        "-1",
        "None",
        ".zarray",
        "zarr.json",
        "manifest.ocdbt",
        "templax.index",
        "d",
        "_METADATA",
    ),
    *("\0", "\n", "\x1b[31m", "\x7f", "\x85", "\u2028", "\ufeff", "\U000e0001", "\udc80", "'", '"'),
    *(
        "`",
        "é",
        "e\u0301",
        "A",
        "ß",
        "漢",
        "\U0001f600",
        "{}",
        "%2F",
        "|",
        "?",
        "#",
        "*",
        "[0]",
        "~",
    ),
    *("n" * 300, "n" * 65526, "n" * 65527, "n" * 65528, "é" * 32763),
]

KEYS = st.sampled_from(ODD_KEYS) | st.text(max_size=4)


@st.composite
def shapes(draw: Any, longest: int = 2**50) -> tuple[int, ...]:
    """Up to 33 dimensions, a few of them not 1; one may be long where another is 0."""
    rank = draw(st.sampled_from([0, 1, 1, 2, 2, 3, 8, 31, 32, 33]))
    shape = [1] * rank
    for side in draw(st.lists(st.sampled_from([0, 2, 3, 5]), max_size=min(rank, 3))):
        shape[draw(st.integers(0, rank - 1))] = side
    if 0 in shape and rank > 1:
        at = shape.index(0)
        shape[at - 1 if at else at + 1] = draw(st.sampled_from([0, 1, 7, longest]))
    return tuple(shape)


@st.composite
def leaves(draw: Any) -> Any:
    """An array of NumPy or JAX, a key, a number, a string, or nothing."""
    kind = draw(
        st.sampled_from(["numpy", "numpy", "jax", "key", "number", "text", "none", "scalar"])
    )
    if kind == "none":
        return None
    if kind == "text":
        return draw(
            st.text(max_size=6) | st.sampled_from(["\udc80", "x\0\x1b\u2028", "n" * 70_000])
        )
    if kind == "number":
        numbers = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.booleans()
        return draw(numbers | st.sampled_from([2**63, 1j]))
    if kind == "key":
        shape = (1,) * draw(st.sampled_from([0, 1, 31, 32]))
        return jax.random.key(draw(st.integers(0, 9))).reshape(shape)
    # An array without elements takes JAX memory in proportion to its other dimensions.
    shape = () if kind == "scalar" else draw(shapes(2**50 if kind == "numpy" else 2**12))
    names = sorted(DTYPES) if kind == "numpy" else ["float32", "int8", "bfloat16", "bool", "uint32"]
    array = fill(shape, DTYPES[draw(st.sampled_from(names))], draw(st.integers(0, 99)))
    if kind == "scalar":
        return array[()]
    return jnp.asarray(array) if kind == "jax" else array


def fill(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    """Random bits, in narrow floats only those that count."""
    array = values(shape, dtype, seed)
    bits = {"float4": 0x0F, "float6": 0x3F}.get(dtype.name[:6])
    if bits is not None:
        flat = array.reshape(-1).view(np.uint8)
        flat &= np.uint8(bits)
    return array


def extend(inner: Any) -> Any:
    nodes = st.dictionaries(KEYS, inner, max_size=4) | st.lists(inner, max_size=3)
    return nodes | st.lists(inner, max_size=2).map(tuple)


def nest(tree: Any, levels: int, key: str) -> Any:
    for level in range(levels):
        tree = {key: tree} if level % 5 else [tree]
    return tree


@st.composite
def trees(draw: Any) -> Any:
    """Any tree of a few leaves, sometimes below many levels or beside many empty containers."""
    tree = draw(st.recursive(leaves(), extend, max_leaves=6))
    rare = draw(st.integers(0, 19))
    if rare == 0:
        levels = draw(st.sampled_from([20, 200, 250, 296, 300, 310]))
        tree = nest(tree, levels, draw(st.sampled_from(["", "a", "a/", "."])))
    if rare == 1:
        empty = draw(st.sampled_from([None, {}, [], ()]))
        many = {f"e{i}": empty for i in range(draw(st.sampled_from([10, 1000])))}
        tree = {"many": many, "tree": tree}
    return tree


METADATA = st.none() | st.dictionaries(
    st.text(max_size=3) | st.integers() | st.booleans() | st.none() | st.floats(),
    st.recursive(
        st.text(max_size=3) | st.integers() | st.floats() | st.booleans() | st.none(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=4,
    ),
    max_size=3,
)


def check_round_trip(directory: Path, tree: Any, metadata: Any, compression: str | None) -> bool:
    """Saves and reads again; returns whether the tree was accepted."""
    path = directory / "ckpt"
    try:
        saved = tx.save(path, tree, metadata=metadata, compression=compression)
    except (tx.SaveError, tx.UsageError) as error:
        str(error).encode()  # can be printed
        assert os.listdir(directory) == []
        return False
    index = path / "templax.index"
    for indexed in (True, False):
        catalog = tx.open(path)
        assert (catalog.fingerprints is not None) == indexed
        assert len(catalog.entries) == saved.leaves
        assert tx.verify(path).damages == ()
        assert_same_tree(tx.restore(path, tree), tree)
        tx.restore(path, catalog.template())
        assert_metadata(catalog.metadata.get("custom_metadata") or {}, metadata)
        if indexed:
            assert tx.fingerprint(catalog) == saved.fingerprint
        assert_listed(path, catalog)
        if indexed:
            index.unlink()
    if not {leaf.dtype.name for leaf in arrays(tree)} & UNKNOWN_TO_ORBAX:
        assert_same_in_orbax(path, tree)
    return True


def arrays(tree: Any) -> Iterator[Any]:
    return (x for x in jax.tree.leaves(tree) if isinstance(x, (np.ndarray, np.generic)))


def assert_metadata(found: Any, metadata: Any) -> None:
    """The same as JSON has it."""
    assert json.dumps(found) == json.dumps(json.loads(json.dumps(metadata or {})))


def assert_listed(path: Path, catalog: tx.Catalog) -> None:
    result = run_cli("ls", path, "--json")
    assert result.exit_code == 0, result.output
    listed = {leaf["name"]: leaf for leaf in json.loads(result.output)["leaves"]}
    assert set(listed) == {entry.name for entry in catalog.entries}
    for entry in catalog.entries:
        shown = listed[entry.name]
        assert tuple(shown["path"]) == entry.path
        assert (tuple(shown["shape"]), shown["dtype"]) == (entry.user_shape, entry.dtype_name)
    shown = run_cli("ls", path)
    assert shown.exit_code == 0, shown.output


def assert_same_in_orbax(path: Path, tree: Any) -> None:
    """Orbax restores the same, as its own checkpoints of such a tree: lists for tuples."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = orbax.PyTreeCheckpointer().restore(path)
    assert_same_tree(normalize(found), normalize(tree), kinds=False)


def normalize(tree: Any) -> Any:
    """The tree with lists for tuples, and numbers as text: Orbax keeps their values, not types."""
    if isinstance(tree, (list, tuple)):
        return [normalize(child) for child in tree]
    if isinstance(tree, dict):
        return {str(key): normalize(child) for key, child in tree.items()}
    if isinstance(tree, (np.generic, bool, int, float)):
        return repr(np.asarray(tree).item())
    return np.asarray(tree) if isinstance(tree, complex) else tree


@pytest.mark.parametrize("name", ["a/b", "a/", "/", "a~1b", "a~0", "a.b", ""])
def test_strings_that_orbax_saved_are_found_under_any_name(name, tmp_path):
    tree = {name: "text", "other": "x", "w": np.ones(2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        orbax.PyTreeCheckpointer().save(tmp_path / "ckpt", tree)
    assert_same_tree(tx.restore(tmp_path / "ckpt", tree), tree)


@pytest.mark.slow
@count_examples(300)
@given(tree=trees(), metadata=METADATA, compression=st.sampled_from([None, None, "zstd"]))
def test_what_a_save_accepts_is_read_back_equal(tree, metadata, compression):
    with TemporaryDirectory() as directory:
        check_round_trip(Path(directory), tree, metadata, compression)
