"""Taken from Orbax's own tests: unfinished saves and missing files."""

import json
import shutil

import pytest

import templax as tx
import templax.compat.orbax as compat
from helpers import assert_same_tree


@pytest.mark.parametrize("suffix", [".orbax-checkpoint-tmp", ".orbax-checkpoint-tmp-12345"])
def test_a_temporary_directory_is_refused(checkpoint, suffix, golden, golden_template):
    """Unless the caller allows it; nothing is deleted."""
    path = checkpoint.with_name(checkpoint.name + suffix)
    checkpoint.rename(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(tx.Uncommitted) as caught:
        tx.restore(path, golden_template)
    assert path.name in str(caught.value)
    opened = tx.open(path, uncommitted="allow")
    assert_same_tree(tx.restore(opened, golden_template), golden)
    assert sorted(path.rglob("*")) == before


def test_unfinished_steps_are_neither_listed_nor_deleted(saved, tmp_path, golden):
    """Neither by a manager of the compatibility layer nor by `open`."""
    root = tmp_path / "manager"
    shutil.copytree(saved.root / "manager", root)
    (root / "2").rename(root / "2.orbax-checkpoint-tmp")
    before = sorted(root.rglob("*"))
    manager = compat.CheckpointManager(root)
    assert manager.all_steps() == [1]
    assert_same_tree(manager.restore(manager.latest_step()), golden)
    with pytest.raises(tx.UnknownFormat, match="latest committed step is 1"):
        tx.open(root)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("promise", [True, False])
def test_an_unwritten_chunk_is_an_error(saved, tmp_path, promise, golden_template):
    """It is not read as zeros, as the array has no fill value, whatever `_METADATA` promises."""
    path = tmp_path / "x"
    shutil.copytree(saved.files, path)
    text = json.loads((path / "_METADATA").read_text())
    text["store_array_data_equal_to_fill_value"] = promise
    (path / "_METADATA").write_text(json.dumps(text))
    (path / "b.c" / "0").unlink()
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(path, golden_template)
    assert (caught.value.leaf, caught.value.file) == ("b.c", "b.c/0")


def test_a_lost_zarray_is_named(saved, tmp_path, golden_template):
    """A copy by `*` leaves out files whose names start with a dot."""
    path = tmp_path / "x"
    shutil.copytree(saved.files, path)
    (path / "a" / ".zarray").unlink()
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(path, golden_template)
    assert caught.value.leaf == "a"
    assert ".zarray" in str(caught.value)


@pytest.mark.parametrize("call", ["restore", "check", "open"])
def test_a_missing_path_is_not_found(tmp_path, call, golden_template):
    """A `FileNotFoundError` names the path."""
    path = tmp_path / "nope"
    with pytest.raises(FileNotFoundError) as caught:
        tx.open(path) if call == "open" else getattr(tx, call)(path, golden_template)
    assert isinstance(caught.value, tx.NotFound)
    assert str(path) in str(caught.value)
