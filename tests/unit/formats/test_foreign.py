"""Files that others wrote: the hint in the error is followed, and gives their values."""

from __future__ import annotations

import io
import pathlib
import pickle
import zipfile
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

import templax as tx
from helpers import CORPUS, abstract

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
    known = {"tx": tx, "np": np, "jax": jax, "eqx": eqx}
    known |= {"io": io, "pathlib": pathlib, "pickle": pickle}
    return tx.restore(eval(code, known | names), template)  # noqa: S307


def assert_equal(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_pickle_is_never_loaded_by_templax(tmp_path: Path) -> None:
    path = tmp_path / "params.pkl"
    path.write_bytes(pickle.dumps(TREE))
    with pytest.raises(tx.UnknownFormat, match="hint: if you trust the file, restore from"):
        tx.open(path)
    assert_equal(follow_hint(path, abstract(TREE)), TREE)


def test_a_pytorch_file_that_is_refused_names_no_loader(tmp_path: Path) -> None:
    """PyTorch's own call would refuse it too, or run what the file says."""
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"args": Path("x")}))
    with pytest.raises(tx.Unsupported, match=r"no `pathlib(\._local)?\.\w+` in a pickle") as caught:
        tx.open(path)
    assert caught.value.leaf == "args"
    assert "restore from" not in str(caught.value)
    with pytest.raises(tx.UnknownFormat, match=r"`model\.pt` \(a PyTorch file\)"):
        tx.open(tmp_path)


def test_no_loader_is_named_that_would_fail(tmp_path: Path) -> None:
    files = {
        "cut.pkl": pickle.dumps(TREE)[:-1],
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in files:
        with pytest.raises(tx.UnknownFormat) as caught:
            tx.open(tmp_path / name)
        assert caught.value.hint is None


def test_of_files_named_by_their_step_the_last_is_hinted_at(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        tree = TREE | {"scale": np.full((), step, np.float16)}
        (tmp_path / f"params_{step}.pkl").write_bytes(pickle.dumps(tree))
    assert follow_hint(tmp_path, abstract(TREE))["scale"] == 100


def test_of_files_with_different_names_none_is_hinted_at(tmp_path: Path) -> None:
    for name in ("a.pkl", "b.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(TREE))
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(tmp_path)
    pickled = "a Python pickle, which templax never loads"
    assert str(caught.value) == (
        f"Expected a checkpoint that templax reads at {tmp_path}, got a directory of "
        f"`a.pkl` ({pickled}), `b.pkl` ({pickled})"
    )


def test_an_onnx_model_is_named_with_the_call_that_reads_its_weights(tmp_path: Path) -> None:
    path = CORPUS / "onnx" / "model.onnx"
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(path)
    assert str(caught.value) == (
        f"Expected a checkpoint that templax reads at {path}, got an ONNX model; hint: restore from"
        " tx.Recipe(lambda: {t.name: onnx.numpy_helper.to_array(t) for t in"
        f' onnx.load("{path}").graph.initializer}})'
    )
    data = path.read_bytes()
    for other in (data[:10], data[:2] + data, b"\x10" + data[1:], data[:138]):
        (tmp_path / "x").write_bytes(other)
        with pytest.raises(tx.UnknownFormat, match="got a file of another kind"):
            tx.open(tmp_path / "x")
