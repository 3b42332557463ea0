"""What `overwrite=True` replaces, and what it does not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import jax.numpy as jnp
import pytest

import templax as tx
from helpers import CORPUS
from templax._save import destination
from templax.storage import Memory, Source, open_source
from templax.storage.request_errors import ObjectChanged

SAVED_BY_ORBAX = [
    path
    for path in sorted(CORPUS.glob("orbax-*"))
    if (path / "ckpt").is_dir() and (path / "ckpt" / "_CHECKPOINT_METADATA").exists()
]


def test_a_checkpoint_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"w": jnp.zeros(3)})
    with pytest.raises(tx.AlreadyExists, match="ckpt"):
        tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)})
    assert tx.restore(tmp_path / "ckpt", {"w": jnp.ones(3)})["w"].sum() == 0
    tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, overwrite=True)
    assert tx.restore(tmp_path / "ckpt", {"w": jnp.ones(3)})["w"].sum() == 3
    assert os.listdir(tmp_path) == ["ckpt"]


COLLECTIONS = {
    "one": ["cks/ema"],
    "two": ["cks/ema", "cks/raw"],
    "inside": ["cks", "cks/ema"],
    "run inside": ["cks", "cks/run/10"],
}


@pytest.mark.parametrize("what", sorted(COLLECTIONS))
def test_overwrite_refuses_a_directory_with_several_checkpoints(what: str, tmp_path: Path) -> None:
    """Nor a checkpoint with another checkpoint inside it."""
    tx.save(tmp_path / "one", {"w": jnp.ones(3)})
    for place in COLLECTIONS[what]:
        shutil.copytree(tmp_path / "one", tmp_path / place, dirs_exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(tx.SaveError, match="replaces one checkpoint, found"):
        tx.save(tmp_path / "cks", {"w": jnp.ones(3)}, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_overwrite_refuses_a_checkpoint_with_foreign_files(tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)})
    (tmp_path / "ckpt" / "notes.txt").write_text("...")
    with pytest.raises(tx.SaveError, match=r"found `notes\.txt` in it"):
        tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)}, overwrite=True)


@pytest.mark.parametrize("place", ["ema", "d/deeper"])
def test_saving_inside_a_checkpoint_is_refused(place: str, tmp_path: Path) -> None:
    tx.save(tmp_path / "ckpt", {"w": jnp.ones(3)})
    with pytest.raises(tx.SaveError, match="got one inside"):
        tx.save(tmp_path / "ckpt" / place, {"w": jnp.ones(3)})


@pytest.mark.parametrize("case", SAVED_BY_ORBAX, ids=lambda case: case.name)
def test_overwrite_replaces_checkpoints_of_any_orbax_version(case: Path, tmp_path: Path) -> None:
    found = sorted((case / "ckpt").iterdir())
    steps = [path for path in found if path.name.isdigit()]
    source = steps[0] if steps else case / "ckpt"
    shutil.copytree(source, tmp_path / "7")
    tx.save(tmp_path / "7", {"w": jnp.ones(3)}, overwrite=True)
    assert list(tx.open(tmp_path / "7").leaves) == ["w"]


@pytest.mark.parametrize("what", ["files", "steps"])
def test_overwrite_refuses_runs_and_other_directories(what: str, tmp_path: Path) -> None:
    """A run of several steps, for example, or a home directory."""
    (tmp_path / "run").mkdir()
    if what == "files":
        (tmp_path / "run" / "thesis.tex").write_text("...")
    else:
        tx.save(tmp_path / "run" / "10", {"w": jnp.ones(3)})
        tx.save(tmp_path / "run" / "20", {"w": jnp.ones(3)})
    before = sorted(tmp_path.rglob("*"))
    found = "other files" if what == "files" else "2 steps"
    with pytest.raises(tx.SaveError, match=f"replaces one checkpoint, found {found}"):
        tx.save(tmp_path / "run", {"w": jnp.ones(3)}, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("changes", [1, 3])
def test_a_destination_that_another_program_changes_is_examined_again(
    changes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    class Changing(Memory):
        def children(self) -> NoReturn:
            raise ObjectChanged("object `w` changed since the checkpoint was opened")

    def open_changing(url: Any, storage: Any) -> Source:
        opened.append(1)
        return Changing({}) if len(opened) <= changes else open_source(url, storage)

    monkeypatch.setattr(destination, "open_source", open_changing)
    if changes == 1:
        tx.save(tmp_path / "ckpt", {"w": jnp.zeros(3)})
        assert len(opened) == 2
    else:
        with pytest.raises(tx.SaveError, match=r"can't examine the destination: .* changed since"):
            tx.save(tmp_path / "ckpt", {"w": jnp.zeros(3)})
        assert os.listdir(tmp_path) == []
