"""Saves as Flax's msgpack: the file is the one that Flax itself writes, byte for byte."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax.core import FrozenDict, freeze
from flax.serialization import from_bytes, msgpack_restore, to_bytes
from flax.training.train_state import TrainState
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from helpers import count_examples
from templax._save import jobs, writer
from templax.formats.flax import write


class Pair(NamedTuple):
    second: Any
    first: Any


TREE = {
    "z": None,
    "b": {"w": np.arange(6, dtype="f4").reshape(2, 3)},
    "a": [np.ones(3, ml_dtypes.bfloat16), (np.float32(2), 3, 2.5, True, 1 + 2j)],
    "pair": Pair(np.zeros((0, 5)), {}),
    "big": np.arange(3_000_000, dtype="f4").reshape(3000, 1000),
    "numbers": {"neg": -5, "np64": np.float64(2), "i": np.int64(4), "c": np.complex64(1j)},
    "text": "hello",
    "fortran": np.asfortranarray(np.arange(12, dtype="i2").reshape(3, 4)),
    "empty": [],
}


def assert_same(got: Any, want: Any) -> None:
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        if isinstance(b, str):
            assert a == b
            continue
        x, y = np.asarray(a), np.asarray(b)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


@pytest.mark.parametrize("where", ["x.msgpack", "x"])
@pytest.mark.parametrize("wait", [True, False])
def test_a_tree_is_the_file_that_flax_writes(tmp_path: Path, where: str, wait: bool) -> None:
    saved = tx.save(tmp_path / where, TREE, format="msgpack", wait=wait).wait()
    path = tmp_path / where if where == "x.msgpack" else tmp_path / "x" / "checkpoint.msgpack"
    data = path.read_bytes()
    assert data == to_bytes(TREE)
    assert_same(from_bytes(TREE, data), TREE)
    restored = tx.restore(tmp_path / where, TREE)
    assert_same(restored, TREE)
    assert type(restored["a"][1][1]) is int
    assert saved.fingerprint == tx.fingerprint(TREE)
    assert (saved.nbytes, saved.leaves) == (len(data), len(jax.tree.leaves(TREE)))
    catalog = tx.open(tmp_path / where)
    assert catalog.format == "flax"
    assert catalog.fingerprints is None


_keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
_dtypes = st.sampled_from(["?", "u1", "i1", "<i2", "<u4", "<i8", "<f2", "<f4", "<f8", "<c8", "b"])


@st.composite
def _arrays(draw: st.DrawFn) -> Any:
    name = draw(_dtypes)
    dtype = np.dtype(ml_dtypes.bfloat16 if name == "b" else name)
    shape = draw(st.lists(st.integers(0, 5), max_size=3).map(tuple))
    nbytes = math.prod(shape) * dtype.itemsize
    data = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, nbytes, np.uint8)
    array = (data % 2 if dtype.kind == "b" else data).view(dtype).reshape(shape)
    how = draw(st.sampled_from(["numpy", "fortran", "scalar"]))
    return array[()] if how == "scalar" and not shape else np.asfortranarray(array)


_leaves = st.one_of(
    _arrays(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.complex_numbers(),
)
_trees = st.recursive(
    _leaves,
    lambda below: st.one_of(
        st.dictionaries(_keys, below, max_size=20),
        st.lists(below, max_size=4),
        st.lists(below, max_size=4).map(tuple),
        st.tuples(below, below).map(lambda pair: Pair(*pair)),
    ),
    max_leaves=30,
)


@pytest.mark.slow
@count_examples(150)
@given(tree=_trees)
def test_any_tree_is_the_file_that_flax_writes_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tree: Any
) -> None:
    path = tmp_path_factory.mktemp("save") / "x.msgpack"
    said = ""
    try:
        tx.save(path, tree)
    except tx.SaveError as error:
        said = str(error)
    if said:
        assert not path.exists()
        assert "an array or number of numpy" in said or "two leaves are named" in said
        return
    assert path.read_bytes() == to_bytes(tree)
    assert_same(tx.restore(path, tree), tree)


@pytest.mark.parametrize("threads", [1, 4])
def test_large_arrays_are_in_pieces_as_flax_cuts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    for module, name, size in (
        (flax.serialization, "MAX_CHUNK_SIZE", 1000),
        (write, "PIECE_BYTES", 1000),
        (writer, "STEP_BYTES", 300),
        (jobs, "SMALL_BYTES", 2048),
        (jobs, "PACK_BYTES", 4096),
        (jobs, "RUN_BYTES", 8192),
    ):
        monkeypatch.setattr(module, name, size)
    tree = {
        "small": {f"w{i}": np.arange(i, dtype="f4") for i in range(60)},
        "large": np.arange(5000, dtype="f8").reshape(5, 1000),
        "odd": np.arange(7003, dtype="u1").astype("c16"),
        "exact": np.zeros(1000, "u1"),
        "fortran": np.asfortranarray(np.arange(600, dtype="f4").reshape(20, 30)),
        "last": np.float32(1),
    }
    tx.save(tmp_path / "x.msgpack", tree, threads=threads)
    data = (tmp_path / "x.msgpack").read_bytes()
    assert data == to_bytes(tree)
    assert data.count(b"__msgpack_chunked_array__") == 3
    assert_same(msgpack_restore(data), tree)
    assert_same(tx.restore(tmp_path / "x.msgpack", tree), tree)


def test_objects_of_flax_and_optax_are_saved_as_flax_does(tmp_path: Path) -> None:
    params = freeze({"z": {"w": jnp.ones((2, 3))}, "a": {"b": jnp.zeros(3, jnp.bfloat16)}})
    state = TrainState.create(
        apply_fn=lambda *_: None, params=params, tx=optax.adamw(1e-3)
    ).replace(step=7)
    tx.save(tmp_path / "x.msgpack", state)
    assert (tmp_path / "x.msgpack").read_bytes() == to_bytes(state)
    assert_same(tx.restore(tmp_path / "x.msgpack", state), state)
    assert isinstance(params, FrozenDict)


@pytest.mark.slow
def test_dtypes_of_ml_dtypes_come_back_by_name(tmp_path: Path) -> None:
    tree = {
        name: jnp.arange(-3, 4).astype(name)
        for name in ("float8_e4m3fn", "float8_e5m2", "int4", "uint4", "bfloat16")
    }
    tx.save(tmp_path / "x.msgpack", tree)
    assert_same(tx.restore(tmp_path / "x.msgpack", tree), tree)
    peer = msgpack_restore((tmp_path / "x.msgpack").read_bytes())
    for name, value in tree.items():
        assert peer[name].dtype.name == name
        assert peer[name].astype("f4").tolist() == np.asarray(value).astype("f4").tolist()


def test_an_array_alone_is_a_tree(tmp_path: Path) -> None:
    tx.save(tmp_path / "x.msgpack", np.arange(5))
    assert (tmp_path / "x.msgpack").read_bytes() == to_bytes(np.arange(5))
    assert tx.restore(tmp_path / "x.msgpack", np.zeros(5, int)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"n": 1, "s": "x"}, "an array or number of numpy near its beginning, and here is none"),
        ({}, "an array or number of numpy near its beginning, and here is none"),
        ({"w": jax.random.key(0)}, "`w` is a typed PRNG key, .*: save jax.random.key_data"),
        ({"w": "PLACEHOLDER://w", "v": np.ones(1)}, "`w` is a string by which Orbax"),
        ({"w": "//GDAPlaceholder:0", "v": np.ones(1)}, "`w` is a string by which Orbax"),
        ({"kvstore": {"driver": "file"}, "v": np.ones(1)}, "`kvstore.driver` is a string by which"),
        ({"__msgpack_chunked_array__": np.ones(1)}, "is Flax's mark of an array in pieces"),
        ({f"k{i}": 1 for i in range(60_000)} | {"a": np.ones(1)}, "leaves in .* more than"),
        ({"e": [{} for _ in range(70_000)], "a": np.ones(1)}, "empty containers"),
    ],
)
def test_what_templax_would_not_read_is_refused(tmp_path: Path, tree: Any, said: str) -> None:
    with pytest.raises(tx.SaveError, match=said):
        tx.save(tmp_path / "x.msgpack", tree)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_most_leaves_that_are_read_are_written(tmp_path: Path) -> None:
    tree = {f"{i}": i for i in range(8000)} | {"a": np.ones(1)}
    tx.save(tmp_path / "x.msgpack", tree)
    assert tx.restore(tmp_path / "x.msgpack", tree) == tree


@pytest.mark.parametrize("empty", [{}, [], (), None])
def test_an_empty_container_under_the_mark_of_pieces_is_refused(tmp_path: Path, empty: Any) -> None:
    tree = {"a": {"__msgpack_chunked_array__": empty, "z": np.ones(2)}, "w": np.ones(2)}
    with pytest.raises(tx.SaveError, match="which is Flax's mark of an array in pieces"):
        tx.save(tmp_path / "x.msgpack", tree)
    assert not list(tmp_path.iterdir())
