"""Links in checkpoints and runs, and neighbours that can't be read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import templax as tx
from helpers import run_cli
from templax.storage import Local

ONES: dict[str, Any] = {"w": np.ones(4, np.float32)}


def write_zarr(path: Path) -> Path:
    """An item without a database, in which an absent chunk means the fill value. Returns `path`."""
    (path / "w").mkdir(parents=True)
    about = {
        "zarr_format": 2, "shape": [4], "chunks": [2], "dtype": "<f4", "compressor": None,
        "fill_value": 0.0, "order": "C", "filters": None, "dimension_separator": ".",
    }  # fmt: skip
    (path / "w" / ".zarray").write_text(json.dumps(about))
    for chunk in "01":
        (path / "w" / chunk).write_bytes(np.ones(2, np.float32).tobytes())
    return path


def replace_by_link(path: Path, target: Path) -> Path:
    """Moves a file or directory elsewhere, and links to it. Returns the link."""
    shutil.move(path, target)
    path.symlink_to(target)
    return path


def restore_ones(path: Any) -> None:
    np.testing.assert_array_equal(tx.restore(path, ONES)["w"], ONES["w"])


@pytest.mark.parametrize("moved", ["w", "w/1", "w/.zarray"])
def test_a_part_of_an_array_linked_from_elsewhere_is_refused_by_name(tmp_path, moved):
    path = write_zarr(tmp_path / "z")
    link = replace_by_link(path / moved, tmp_path / "elsewhere")
    for call in (lambda: restore_ones(path), lambda: tx.plan(path, ONES), lambda: tx.verify(path)):
        with pytest.raises(tx.SourceError) as caught:
            call()
        text = f"can't read `{link}`: it is a link that leads out of {path}, to `{tmp_path}/else"
        assert str(caught.value).startswith(text)
    restore_ones(Local(path, follow_links=True))


def test_a_data_file_linked_from_elsewhere_is_refused_by_name(tmp_path):
    tx.save(tmp_path / "c", ONES)
    (data,) = (tmp_path / "c").rglob("d/*")
    replace_by_link(data, tmp_path / "elsewhere")
    with pytest.raises(tx.SourceError, match="is a link that leads out of"):
        restore_ones(tmp_path / "c")
    assert run_cli("verify", tmp_path / "c").exit_code == 2
    restore_ones(Local(tmp_path / "c", follow_links=True))


def test_a_link_to_nothing_is_not_an_absent_chunk(tmp_path):
    """An absent chunk would be filled. git-annex has such links until their files are fetched."""
    path = write_zarr(tmp_path / "z")
    (path / "w" / "1").unlink()
    (path / "w" / "1").symlink_to("../../annex/1")
    with pytest.raises(tx.Corrupted) as caught:
        restore_ones(path)
    what = "Expected a file, found a link to `../../annex/1`, where there is nothing"
    assert str(caught.value) == f"{what} - at `w`, file `w/1`"
    (damage,) = tx.verify(path).damages
    assert str(damage) == str(caught.value)


def test_links_that_no_leaf_needs_do_not_matter(tmp_path):
    for path in (write_zarr(tmp_path / "z"), tmp_path / "c"):
        if not path.exists():
            tx.save(path, ONES)
        (path / "loop").symlink_to("loop")
        (path / "up").symlink_to(".")
        (path / "root").symlink_to("/")
        (path / "gone").symlink_to("nowhere")
        restore_ones(path)
        assert tx.verify(path).ok


def test_an_array_linked_inside_its_item_is_read(tmp_path):
    path = write_zarr(tmp_path / "z")
    (path / "tied").symlink_to("w")
    tree = tx.restore(path, {"w": ONES["w"], "tied": ONES["w"]})
    np.testing.assert_array_equal(tree["tied"], ONES["w"])


def test_a_checkpoint_in_a_cache_of_hugging_face_is_read(tmp_path):
    tx.save(tmp_path / "c", ONES)
    write_zarr(tmp_path / "z")
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    for name in ("c", "z"):
        for file in [path for path in (tmp_path / name).rglob("*") if path.is_file()]:
            at = repository / "snapshots" / "0a1b" / file.relative_to(tmp_path)
            at.parent.mkdir(parents=True, exist_ok=True)
            blob = repository / "blobs" / os.urandom(8).hex()
            shutil.copy(file, blob)
            at.symlink_to(os.path.relpath(blob, at.parent))
    for name in ("c", "z"):
        path = repository / "snapshots" / "0a1b" / name
        restore_ones(path)
        assert tx.verify(path).ok
        assert run_cli("ls", path).exit_code == 0


def test_an_item_that_is_a_link_elsewhere_is_opened_by_its_own_path_only(tmp_path):
    step = tmp_path / "run" / "5"
    tx.save(step / "default", ONES)
    replace_by_link(step / "default", tmp_path / "elsewhere")
    for call in (tx.open, lambda step: tx.Manager(step.parent).restore(ONES)):
        with pytest.raises(tx.SourceError, match="default`: it is a link that leads out of"):
            call(step)
    restore_ones(step / "default")
    restore_ones(Local(step, follow_links=True))


def test_a_step_that_is_a_link_elsewhere_is_one_of_its_run(tmp_path):
    for step in ("4", "5"):
        tx.save(tmp_path / "run" / step, ONES)
    replace_by_link(tmp_path / "run" / "5", tmp_path / "5")
    manager = tx.Manager(tmp_path / "run")
    assert manager.latest() == 5
    np.testing.assert_array_equal(manager.restore(ONES)["w"], ONES["w"])
    assert "5" in run_cli("steps", tmp_path / "run").stdout


@pytest.mark.slow
def test_a_run_with_a_lattice_of_links_is_listed(tmp_path):
    run = tmp_path / "run"
    tx.save(run / "5", ONES)
    for level in range(24):
        (run / "5" / f"l{level}").mkdir()
        for name in ("a", "b"):
            (run / "5" / f"l{level}" / name).symlink_to(f"../l{level + 1}")
    for command in ("ls", "steps"):
        result = run_cli(command, run)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["ls", "steps", "verify", "template"])
def test_neighbours_that_cannot_be_read_do_not_matter(tmp_path, monkeypatch, command):
    """`lost+found`, another user's directories, a file on a failing disk."""
    for name in ("lost+found", "other"):
        (tmp_path / name).mkdir()
    tx.save(tmp_path / "run" / "5", ONES)
    (tmp_path / "run" / "lost+found").mkdir()
    (tmp_path / "run" / "5" / "notes").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if os.path.basename(os.fspath(path).rstrip("/")) in ("lost+found", "other", "notes"):
            raise PermissionError(13, os.strerror(13))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    path = tmp_path / "run" / ("" if command == "steps" else "5")
    result = run_cli(command, path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Permission" not in result.output
    if command == "steps":
        assert " ? " in result.stdout


def test_the_directory_above_a_checkpoint_need_not_be_listed(tmp_path, monkeypatch):
    """Others may pass through a directory of mode 0711, but not list it."""
    for step in ("5", "7/default"):
        tx.save(tmp_path / step, ONES)
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if os.fspath(path).rstrip("/") in (str(tmp_path), str(tmp_path / "7")):
            raise PermissionError(13, os.strerror(13))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    restore_ones(tmp_path / "5")
    restore_ones(tmp_path / "7" / "default")
    with pytest.raises(tx.NotFound, match=f"^There is nothing at {tmp_path}/6$"):
        tx.open(tmp_path / "6")
