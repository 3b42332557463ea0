"""Directories of zarr arrays without files of Orbax or a group, and what may lie beside them."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts

import templax as tx
from helpers import CORPUS
from templax.errors import UnknownFormat

ONES = np.ones(4, np.float32)


def put_array(path: Path, values: Any, driver: str = "zarr") -> None:
    values = np.asarray(values)
    store = {"driver": "file", "path": f"{path}/"}
    spec = {"driver": driver, "kvstore": store, "create": True, "dtype": values.dtype.name}
    ts.open(spec, shape=values.shape).result().write(values).result()


@pytest.mark.parametrize("driver", ["zarr", "zarr3"])
def test_arrays_of_any_depth_without_a_group_are_one_tree(tmp_path: Path, driver: str) -> None:
    """TensorStore writes no groups."""
    path = tmp_path / "tree"
    values = {"step": np.int32(5), "params/w": np.ones((3, 4), np.float32), "params.b": ONES}
    for name, value in values.items():
        put_array(path / name, value, driver)
    (path / "notes.txt").write_text("by hand")
    (path / "step_0.pkl").write_bytes(pickle.dumps({"seed": 1}))
    catalog = tx.open(path)
    assert catalog.format == "zarr"
    assert catalog.metadata == {"not read": {"other files": "2: `notes.txt`, `step_0.pkl`"}}
    tree = {"step": np.int32(5), "params": {"w": values["params/w"], "b": ONES}}
    got = tx.restore(path, tree)
    np.testing.assert_array_equal(got["params"]["w"], tree["params"]["w"])
    np.testing.assert_array_equal(got["params"]["b"], ONES)
    assert got["step"] == 5
    put_array(tmp_path / "flat" / "step", np.int32(5), driver)
    diff = tx.diff(path, tmp_path / "flat")
    assert [leaf.name for leaf in diff.differing] == ["params.b", "params.w"]
    assert list(tx.open(path / "params").leaves) == ["w"]
    assert tx.open(path / "params" / "w").leaves[""].shape == (3, 4)


def test_such_a_tree_is_read_as_the_only_item_of_a_step_and_before_its_save_ended(
    tmp_path: Path,
) -> None:
    for name in ("7/state/step", "7/state/params/w", "8.orbax-checkpoint-tmp-0/state/params.w"):
        put_array(tmp_path / name, ONES)
    catalog = tx.open(tmp_path / "7")
    assert list(catalog.leaves) == ["params.w", "step"]
    assert (catalog.format, catalog.metadata["step"]) == ("orbax", 7)
    unfinished = tmp_path / "8.orbax-checkpoint-tmp-0" / "state"
    with pytest.raises(tx.Uncommitted):
        tx.open(unfinished)
    catalog = tx.open(unfinished, uncommitted="allow")
    assert (list(catalog.leaves), catalog.uncommitted is None) == (["params.w"], False)


def test_deeper_arrays_in_a_directory_of_orbax_without_metadata_are_leaves_that_are_not_read(
    tmp_path: Path,
) -> None:
    for name in ("a", "deep/b", "deep/er/c"):
        put_array(tmp_path / "x" / name, ONES)
    (tmp_path / "x" / "commit_success.txt").write_text("by Orbax")
    catalog = tx.open(tmp_path / "x")
    assert (catalog.format, list(catalog.leaves)) == ("orbax", ["a"])
    assert list(catalog.unread) == ["deep.b", "deep.er.c"]
    assert catalog.unread["deep.b"].startswith("without `_METADATA`, templax reads only")
    with pytest.raises(tx.TemplateError, match="one that templax does not read"):
        tx.restore(catalog, {"a": ONES})
    assert tx.restore(catalog, catalog.template())["deep"]["b"] is ...


GROUPS = {
    "zarr": (".zgroup", '{"zarr_format": 2}'),
    "zarr3": ("zarr.json", '{"zarr_format": 3, "node_type": "group"}'),
}


def make_crowd(path: Path, driver: str) -> None:
    """An array `mean.zarr`, a group `model.zarr`, an archive `x.npz`, and a pickle `opt.pkl`."""
    for name in ("mean.zarr", "model.zarr/w"):
        put_array(path / name, ONES, driver)
    file, text = GROUPS[driver]
    (path / "model.zarr" / file).write_text(text)
    np.savez(path / "x.npz", a=ONES)
    (path / "opt.pkl").write_bytes(pickle.dumps({"seed": 1}))


@pytest.mark.parametrize("driver", GROUPS)
def test_a_directory_of_arrays_and_other_checkpoints_lists_what_to_open(
    tmp_path: Path, driver: str
) -> None:
    path = tmp_path / "all"
    make_crowd(path, driver)
    said = "holds arrays, and other checkpoints in `model.zarr`, `x.npz`"
    with pytest.raises(UnknownFormat, match=re.escape(said)) as caught:
        tx.open(path)
    openable = [f'"{path}/{name}"' for name in ("x.npz", "mean.zarr", "model.zarr")]
    assert caught.value.hint == f"open {' or '.join(openable)}"
    with pytest.raises(UnknownFormat, match=re.escape(f"{path} {said}")):
        tx.open(tmp_path)
    (path / "x.npz").unlink()
    with pytest.raises(UnknownFormat, match=r"and other checkpoints in `model\.zarr`; hint"):
        tx.open(path)
    shutil.rmtree(path / "model.zarr")
    assert list(tx.open(path).leaves) == ["mean.zarr"]


@pytest.mark.parametrize("below", ["zarr", "orbax", "safetensors"])
def test_a_checkpoint_deep_below_arrays_is_not_a_part_of_their_tree(
    tmp_path: Path, below: str
) -> None:
    put_array(tmp_path / "step", np.int32(5))
    deep = tmp_path / "old" / "run"
    if below == "zarr":
        shutil.copytree(CORPUS / "zarr-2.18.7" / "tree.zarr", deep)
    else:
        tx.save(deep, {"w": ONES}, format=below)
    with pytest.raises(UnknownFormat, match="and other checkpoints in `old`; hint") as caught:
        tx.open(tmp_path)
    assert f'"{tmp_path}/step"' in str(caught.value.hint)


def test_a_file_beside_arrays_is_diagnosed_as_what_it_is(tmp_path: Path) -> None:
    put_array(tmp_path / "mean", ONES)
    (tmp_path / "opt.pkl").write_bytes(pickle.dumps({"seed": 1}))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (tmp_path / "a.safetensors").write_bytes(pointer)
    with pytest.raises(UnknownFormat, match=r"tx\.Recipe\(lambda: pickle\.loads"):
        tx.open(tmp_path / "opt.pkl")
    with pytest.raises(UnknownFormat, match="run `git lfs pull`"):
        tx.open(tmp_path / "a.safetensors")


def test_a_file_beside_arrays_is_not_restored_in_their_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put_array(tmp_path / "x" / name, ONES)
    tx.save(tmp_path / "x" / "m.safetensors", {"a": ONES + 1})
    said = "a directory that holds arrays, and other checkpoints in `m.safetensors`; hint: open "
    with pytest.raises(UnknownFormat, match=re.escape(said)):
        tx.restore(tmp_path / "x", {"a": ONES})
    assert tx.restore(tmp_path / "x" / "m.safetensors", {"a": ONES})["a"].tolist() == [
        *(ONES + 1).tolist()
    ]
