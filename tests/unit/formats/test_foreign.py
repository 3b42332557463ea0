"""Files that others wrote: the hint in the error is followed, and gives their values."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import abstract
from templax.formats import foreign

TREE = {
    "dense": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, "f4")},
    "scale": np.full((), 2, np.float16),
}


def follow_hint(path: Path, template: Any, **names: Any) -> Any:
    """Restores from what the hint of the error says; `names` are what its code needs."""
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(path)
    hint = caught.value.hint
    assert hint is not None
    _, _, code = hint.rpartition("restore from ")
    known = {"tx": tx, "np": np, "jax": jax, "flax": flax, "eqx": eqx}
    known |= {"io": io, "pathlib": pathlib, "pickle": pickle}
    return tx.restore(eval(code, known | names), template)  # noqa: S307


def assert_equal(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("name", ["state.msgpack", 'with "quotes" and \\.msgpack', "checkpoint_10"])
def test_flax_msgpack(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(flax.serialization.to_bytes(TREE))
    assert_equal(follow_hint(tmp_path / name, abstract(TREE)), TREE)
    assert_equal(follow_hint(tmp_path, abstract(TREE)), TREE)  # the only file of the directory


def test_flax_msgpack_that_starts_with_a_bytes_entry(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(flax.serialization.msgpack_serialize({"a": b"\x00\x01" * 9, **TREE}))
    assert_equal(follow_hint(path, abstract(TREE)), TREE)


def test_flax_msgpack_of_a_train_state(tmp_path: Path) -> None:
    variables = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    path = tmp_path / "model"
    path.write_bytes(flax.serialization.to_bytes({"step": 7, "params": variables["params"]}))
    got = follow_hint(path, {"step": 0, "params": abstract(variables["params"])})
    assert got["step"] == 7
    assert_equal(got["params"], variables["params"])


def test_npz_and_npy(tmp_path: Path) -> None:
    flat = {"w": np.arange(6, dtype=np.float32), "b": np.ones(3, np.int32)}
    np.savez(tmp_path / "a.npz", **flat)
    np.savez_compressed(tmp_path / "b.npz", **flat)
    np.save(tmp_path / "c.npy", flat["w"])
    assert_equal(follow_hint(tmp_path / "a.npz", abstract(flat)), flat)
    assert_equal(follow_hint(tmp_path / "b.npz", abstract(flat)), flat)
    assert_equal(follow_hint(tmp_path / "c.npy", abstract(flat["w"])), flat["w"])


def test_a_pickle_is_never_loaded_by_templax(tmp_path: Path) -> None:
    path = tmp_path / "params.pkl"
    path.write_bytes(pickle.dumps(TREE))
    with pytest.raises(tx.UnknownFormat, match="hint: if you trust the file, restore from"):
        tx.open(path)
    assert_equal(follow_hint(path, abstract(TREE)), TREE)


@pytest.mark.parametrize("line", [b"", b'{"in": 2, "out": 3}\n', b"[1, 2]\n"])
def test_equinox(tmp_path: Path, line: bytes) -> None:
    model = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(0))
    path = tmp_path / "model.eqx"
    with path.open("wb") as file:
        file.write(line)
        eqx.tree_serialise_leaves(file, model)
    like = eqx.filter_eval_shape(eqx.nn.MLP, 2, 3, 4, 1, key=jax.random.key(0))
    got = follow_hint(path, like, model=like)
    assert_equal(eqx.filter(got, eqx.is_array), eqx.filter(model, eqx.is_array))
    if line:
        assert json.loads(path.read_bytes().partition(b"\n")[0])


def test_a_pytorch_file_that_is_refused_names_no_loader(tmp_path: Path) -> None:
    """PyTorch's own call would refuse it too, or run what the file says."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"args": Path("x")}))
    with pytest.raises(tx.Unsupported, match=r"no `pathlib\.\w+` in a pickle") as caught:
        tx.open(path)
    assert caught.value.leaf == "args"
    assert "restore from" not in str(caught.value)
    with pytest.raises(tx.UnknownFormat, match=r"`model\.pt` \(a PyTorch file\)"):
        tx.open(tmp_path)


def test_t5x(tmp_path: Path) -> None:
    """With a stand-in for T5X, which is not a dependency of the tests."""
    import msgspec

    spec = {"driver": "zarr", "dtype": "float32", "kvstore": {"driver": "file", "path": "w"}}
    (tmp_path / "checkpoint").write_bytes(msgspec.msgpack.encode({"target": {"w": spec}}))
    asked: list[str] = []

    def load(path: str) -> Any:
        asked.append(path)
        return TREE

    t5x: Any = types.SimpleNamespace(checkpoints=types.SimpleNamespace(load_t5x_checkpoint=load))
    with pytest.raises(tx.Unsupported) as caught:
        tx.open(tmp_path)
    code = str(caught.value.hint).removeprefix("restore from ")
    got = tx.restore(eval(code, {"tx": tx, "t5x": t5x}), abstract(TREE))  # noqa: S307
    assert_equal(got, TREE)
    assert asked == [str(tmp_path)]


def test_no_loader_is_named_that_would_fail(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, w=np.zeros(3))
    files = {
        "cut.npz": whole.read_bytes()[:-30],
        "cut.pkl": pickle.dumps(TREE)[:-1],
        "cut.npy": b"\x93NUMPY\x01\x00",
        "open.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', \n",
        "list.npy": b"\x93NUMPY\x01\x00\x08\x00{[]: 1}\n",
        "cut.msgpack": flax.serialization.to_bytes(TREE)[:-1],
    }
    np.savez(tmp_path / "objects.npz", w=np.array([{}], object), allow_pickle=True)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in (*files, "objects.npz"):
        with pytest.raises(tx.UnknownFormat) as caught:
            tx.open(tmp_path / name)
        assert caught.value.hint is None


def test_of_files_named_by_their_step_the_last_is_hinted_at(tmp_path: Path) -> None:
    """As `flax.training.checkpoints` left them before it used Orbax."""
    for step in (9, 10, 100):
        tree = TREE | {"scale": np.full((), step, np.float16)}
        (tmp_path / f"checkpoint_{step}").write_bytes(flax.serialization.to_bytes(tree))
    assert follow_hint(tmp_path, abstract(TREE))["scale"] == 100


def test_of_files_with_different_names_none_is_hinted_at(tmp_path: Path) -> None:
    for name in ("a.msgpack", "b.msgpack"):
        (tmp_path / name).write_bytes(flax.serialization.to_bytes(TREE))
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(tmp_path)
    assert str(caught.value) == (
        f"Expected a checkpoint that templax reads at {tmp_path}, got a directory of "
        "`a.msgpack` (a Flax msgpack file), `b.msgpack` (a Flax msgpack file)"
    )


def test_a_large_msgpack_file_is_recognised_by_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "_MAX_MSGPACK", 100)
    (tmp_path / "flax").write_bytes(flax.serialization.to_bytes({"w": np.zeros(100)}))
    (tmp_path / "other").write_bytes(b"\x81\xa1w\xc4\xc8" + bytes(200))
    with pytest.raises(tx.UnknownFormat, match="a Flax msgpack file"):
        tx.open(tmp_path / "flax")
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(tmp_path / "other")
    assert "Flax" not in str(caught.value)


def test_an_archive_with_very_many_members_gets_no_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "_MAX_MEMBERS", 2)
    np.savez(tmp_path / "few.npz", a=np.zeros(1), b=np.zeros(1))
    np.savez(tmp_path / "many.npz", a=np.zeros(1), b=np.zeros(1), c=np.zeros(1))
    for name, hinted in (("few.npz", True), ("many.npz", False)):
        with pytest.raises(tx.UnknownFormat) as caught:
            tx.open(tmp_path / name)
        assert (caught.value.hint is not None) == hinted
