"""A save of several items, each a tree or a JSON value: all are committed, or none."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import templax as tx
from helpers import count_bytes, read_files
from templax._hosts.agreement import open_call
from templax._save.background import start_save
from templax._save.destination import Destination
from templax._save.item import Json
from templax._save.options import make_options
from templax.formats.orbax.directory import list_items
from templax.storage import Local, Staging
from templax.testing import FaultyDisk


def _save(path: Any, items: dict[str, Any], *, wait: bool = True, **options: Any) -> tx.Saved:
    call = open_call("saving", str(path))
    destination = Destination(path)
    return start_save(
        call, str(path), items, make_options(**options), lambda: destination, wait=wait
    )


@pytest.fixture
def state() -> dict[str, Any]:
    return {"w": jnp.arange(6.0).reshape(2, 3), "layers": [np.arange(4), "text"], "n": 5}


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_trees_and_json_are_restored_by_item_name(
    tmp_path: Path, state: dict[str, Any], wait: bool, compression: str | None
) -> None:
    ema = {"w": np.full(1_200_000, 2.5, np.float32)}
    named = {"state": state, "ema": ema, "meta": Json({"lr": 0.5, "tags": ["a"]})}
    saved = _save(tmp_path / "s", named, wait=wait, compression=compression).wait()
    jax.tree.map(np.testing.assert_array_equal, tx.restore(tmp_path / "s/state", state), state)
    jax.tree.map(np.testing.assert_array_equal, tx.restore(tmp_path / "s/ema", ema), ema)
    assert json.loads((tmp_path / "s/meta/metadata").read_text()) == {"lr": 0.5, "tags": ["a"]}
    kinds = {"ema": "pytree", "meta": "json", "state": "pytree"}
    assert list_items(Local(str(tmp_path / "s"))) == kinds
    assert saved.leaves == 5
    assert saved.nbytes == count_bytes(tmp_path / "s")
    assert saved.fingerprint == tx.fingerprint({"state": state, "ema": ema})


def test_each_item_and_the_step_are_marked_as_committed(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    """As Orbax writes it, with the handler of each item."""
    _save(tmp_path / "s", {"state": state, "meta": Json(1)}, metadata={"run": "a"})
    marks = {f for f in read_files(tmp_path / "s") if f.endswith("commit_success.txt")}
    assert marks == {f"{at}commit_success.txt" for at in ("", "state/", "meta/")}
    metadata = json.loads((tmp_path / "s/_CHECKPOINT_METADATA").read_text())
    handlers = {name: text.rpartition(".")[2] for name, text in metadata["item_handlers"].items()}
    assert handlers == {"state": "StandardCheckpointHandler", "meta": "JsonCheckpointHandler"}
    assert metadata["custom_metadata"] == {"run": "a"}
    assert not (tmp_path / "s/state/_CHECKPOINT_METADATA").exists()


def test_a_json_item_can_be_saved_alone(tmp_path: Path) -> None:
    saved = _save(tmp_path / "s", {"": Json([1, None])})
    assert saved.leaves == 0
    assert set(read_files(tmp_path / "s")) == {
        "metadata",
        "_CHECKPOINT_METADATA",
        "commit_success.txt",
    }
    assert (tmp_path / "s/metadata").read_text() == "[1, null]"
    _save(tmp_path / "s", {"": Json(2)}, overwrite=True)
    assert (tmp_path / "s/metadata").read_text() == "2"


def test_a_foreign_file_named_like_a_json_item_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/metadata").write_text("mine")
    with pytest.raises(tx.SaveError, match="overwrite=True replaces one checkpoint, found other"):
        _save(tmp_path / "home", {"": Json(2)}, overwrite=True)
    assert (tmp_path / "home/metadata").read_text() == "mine"


def test_a_value_that_is_not_json_is_refused_before_any_write(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    with pytest.raises(tx.SaveError) as caught:
        _save(tmp_path / "s", {"state": state, "meta": Json({"x": jnp.ones(2)})})
    assert str(caught.value) == (
        "Expected JSON values to save as item `meta`: "
        "Object of type ArrayImpl is not JSON serializable"
    )
    assert not list(tmp_path.iterdir())
    with pytest.raises(tx.SaveError, match="the keys 1 and '1' are one in JSON"):
        _save(tmp_path / "s", {"state": state, "meta": Json({"x": {1: 2, "1": 3}})})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_values_of_all_items_may_change_once_a_background_save_returns(tmp_path: Path) -> None:
    one, two, note = np.arange(3_000_000), np.arange(3_000_000), {"n": [1]}
    saved = _save(tmp_path / "s", {"a": {"x": one}, "b": {"x": two}, "c": Json(note)}, wait=False)
    one[:] = two[:] = -1
    note["n"].append(2)
    saved.wait()
    for item in ("a", "b"):
        restored = tx.restore(tmp_path / "s" / item, {"x": np.zeros(3_000_000, np.int64)})
        np.testing.assert_array_equal(restored["x"], np.arange(3_000_000))
    assert (tmp_path / "s/c/metadata").read_text() == '{"n": [1]}'


def test_progress_counts_all_items(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    trees = {name: {"x": np.zeros(20_000_000, np.uint8)} for name in ("a", "b", "c")}
    _save(tmp_path / "s", trees, on_progress=lambda *at: seen.append(at), compression="zstd")
    assert seen == sorted(seen)
    assert {total for _, total in seen} == {60_000_000}
    assert {20_000_000, 40_000_000, 60_000_000} <= {done for done, _ in seen}


def test_a_failure_in_one_item_leaves_no_item(tmp_path: Path, state: dict[str, Any]) -> None:
    """Whichever operation fails, even long after the first item was written."""
    trees = {"a": state, "b": state, "meta": Json(1)}
    counted = FaultyDisk()
    _save(Staging(tmp_path / "whole", overwrite=False, disk=counted), trees, threads=1)
    (tmp_path / "runs").mkdir()
    faulty = [i for i, did in enumerate(counted.trace) if did.name in ("create", "write", "fsync")]
    for at in faulty[::5]:
        disk = FaultyDisk(at=at, fault=errno.EIO)
        with pytest.raises(tx.SaveError):
            _save(Staging(tmp_path / "runs/s", overwrite=False, disk=disk), trees, threads=1)
        assert not list((tmp_path / "runs").iterdir()), disk.trace[at]
