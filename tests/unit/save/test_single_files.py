"""A destination whose name ends like a file of a format is a file of that format."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import templax as tx
from templax.storage import disk as disk_module
from templax.storage.leftovers import temporary_path

TREE = {"a": {"w": np.arange(6, dtype="f4")}, "b": np.arange(3)}


def list_names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("format", ["safetensors", "npz", "msgpack"])
@pytest.mark.parametrize("named", [True, False])
def test_the_suffix_makes_a_file_and_chooses_its_format(
    tmp_path: Path, format: str, named: bool
) -> None:
    path = tmp_path / f"x.{format}"
    options: dict[str, Any] = {"format": format} if named else {}
    saved = tx.save(path, TREE, **options)
    assert (saved.path, saved.nbytes) == (str(path), path.stat().st_size)
    assert list_names(tmp_path) == [f"x.{format}"]
    assert path.is_file()
    assert tx.restore(path, TREE)["b"].tolist() == [0, 1, 2]
    with pytest.raises(tx.AlreadyExists, match=r"found a file.*overwrite=True replaces it"):
        tx.save(path, TREE, **options)
    tx.save(path, {"b": np.ones(2)}, overwrite=True, **options)
    assert tx.restore(path, {"b": np.zeros(2)})["b"].tolist() == [1, 1]
    assert list_names(tmp_path) == [f"x.{format}"]


@pytest.mark.parametrize(
    ("name", "format", "said"),
    [
        ("x.npz", "safetensors", r"ends in `\.safetensors`, or format=\"npz\", got"),
        ("x.safetensors", "msgpack", r"ends in `\.msgpack`, or format=\"safetensors\", got"),
        ("x", "pickle", "format= one of `orbax`, `safetensors`, `npz`, `msgpack`, got 'pickle'"),
    ],
)
def test_a_suffix_of_another_format_is_refused(
    tmp_path: Path, name: str, format: Any, said: str
) -> None:
    with pytest.raises(tx.UsageError, match=said):
        tx.save(tmp_path / name, TREE, format=format)
    assert list_names(tmp_path) == []


def test_orbax_is_a_directory_whatever_its_name(tmp_path: Path) -> None:
    tx.save(tmp_path / "x.npz", TREE, format="orbax")
    assert (tmp_path / "x.npz").is_dir()
    assert tx.open(tmp_path / "x.npz").format == "orbax"


def test_a_slash_at_the_end_makes_a_directory(tmp_path: Path) -> None:
    tx.save(f"{tmp_path}/x.npz/", TREE, format="npz")
    assert list_names(tmp_path / "x.npz") == ["arrays.npz"]


def test_a_file_holds_a_whole_tree_unless_a_shard_size_forbids_it(tmp_path: Path) -> None:
    tree = {"a": np.ones(6, "f4"), "b": np.ones(10, "f4")}
    tx.save(tmp_path / "x.safetensors", tree, shard_size=64)
    assert load_file(tmp_path / "x.safetensors")["b"].tolist() == [1] * 10
    with pytest.raises(tx.UsageError, match=r"got one for 2; hint: .* without `\.safetensors`"):
        tx.save(tmp_path / "y.safetensors", tree, shard_size=40)
    assert list_names(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("format", ["npz", "msgpack"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metadata": {"a": "b"}}, "has no place for metadata"),
        ({"compression": "zstd"}, "has no compression, got compression='zstd'"),
        ({"shard_size": 10}, r"shard_size= is for format=\"safetensors\""),
    ],
)
def test_options_that_the_format_lacks_are_refused(
    tmp_path: Path, format: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(tx.UsageError, match=said):
        tx.save(tmp_path / "x", TREE, format=format, **options)


def test_overwriting_replaces_a_directory_of_one_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for format in ("npz", "msgpack", "safetensors", "npz", "orbax"):
        tx.save(path, TREE, format=format, overwrite=True)
        assert tx.restore(path, TREE)["b"].tolist() == [0, 1, 2]
    tx.save(path, TREE, format="npz", overwrite=True)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(tx.SaveError, match="replaces one checkpoint, found other files"):
        tx.save(path, TREE, format="npz", overwrite=True)
    with pytest.raises(tx.UnknownFormat):
        tx.open(path)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    tx.save(path, TREE)
    before = path.read_bytes()

    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk_module.DISK, "write", refuse, raising=False)
    with pytest.raises(tx.SaveError, match=r"No space left on device.*hint: make room"):
        tx.save(path, {"b": np.ones(2)}, overwrite=True)
    assert path.read_bytes() == before
    assert list_names(tmp_path) == ["x.npz"]


def test_what_a_killed_save_left_goes_with_the_next(tmp_path: Path) -> None:
    left = Path(temporary_path(str(tmp_path / "x.npz")))
    left.mkdir()
    (left / "arrays.npz").write_bytes(b"half")
    with pytest.raises(tx.NotFound):
        tx.open(tmp_path / "x.npz")
    tx.save(tmp_path / "x.npz", TREE)
    assert list_names(tmp_path) == ["x.npz"]


def test_a_save_in_the_background_is_a_file_once_it_has_ended(tmp_path: Path) -> None:
    tree = {"a": np.arange(1000.0)}
    saved = tx.save(tmp_path / "x.npz", tree, wait=False)
    tree["a"][:] = 0
    saved.wait()
    assert np.load(tmp_path / "x.npz")["a"].tolist() == list(range(1000))
