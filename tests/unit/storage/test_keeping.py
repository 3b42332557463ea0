"""A directory that is replaced, but for what others put into it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import templax as tx
from templax.storage import keeping
from templax.storage.keeping import KeepingStaging
from templax.storage.source import Source


def list_others(source: Source) -> list[str]:
    return sorted(info.key.rstrip("/") for info in source.children() if info.key != "own")


def stage(path: Path) -> KeepingStaging:
    staging = KeepingStaging(str(path), overwrite=True, others=list_others)
    staging.put("own", b"new")
    return staging


def replace(path: Path) -> None:
    with stage(path) as staging:
        staging.commit()


def test_nothing_of_others_is_lost(tmp_path: Path) -> None:
    """Files, links and trees, with the same inodes; and the own files are replaced."""
    path = tmp_path / "ckpt"
    replace(path)
    (path / "config.json").write_text("{}")
    (path / "assets" / "deep").mkdir(parents=True)
    (path / "assets" / "deep" / "norm").write_text("1")
    (path / "assets" / "empty").mkdir()
    (path / "link").symlink_to("nowhere")
    os.mkfifo(path / "pipe")
    (path / "own").write_text("old")
    before = (path / "config.json").stat().st_ino
    replace(path)
    assert sorted(str(each.relative_to(path)) for each in path.rglob("*")) == [
        "assets",
        "assets/deep",
        "assets/deep/norm",
        "assets/empty",
        "config.json",
        "link",
        "own",
        "pipe",
    ]
    assert (path / "own").read_text() == "new"
    assert (path / "config.json").stat().st_ino == before
    assert os.readlink(path / "link") == "nowhere"
    assert os.listdir(tmp_path) == ["ckpt"]


def test_what_appears_or_changes_until_the_exchange_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may write a file in the meantime, or replace one."""
    path = tmp_path / "ckpt"
    replace(path)
    (path / "config.json").write_text("old")
    staging = stage(path)
    exchange = staging._exchange

    def write_and_exchange(one: str, other: str) -> None:
        (path / "late.json").write_text("late")
        (path / "new.json").write_text("changed")
        (path / "new.json").replace(path / "config.json")
        exchange(one, other)

    monkeypatch.setattr(staging, "_exchange", write_and_exchange)
    with staging:
        staging.commit()
    assert (path / "late.json").read_text() == "late"
    assert (path / "config.json").read_text() == "changed"
    assert (path / "own").read_text() == "new"


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ckpt"
    replace(path)
    (path / "config.json").write_text("{}")

    def refuse(*_: object) -> None:
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    replace(path)
    assert (path / "config.json").read_text() == "{}"


@pytest.mark.parametrize("late", [False, True])
def test_a_save_that_cannot_keep_everything_changes_nothing(
    late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the exchange, or after it, which is then undone."""
    path = tmp_path / "ckpt"
    replace(path)
    (path / "own").write_text("old")
    for name in ("a", "b", "c"):
        (path / name).write_text(name)
    staging = stage(path)
    link_names, calls = staging._link_names, []

    def link_some(*arguments: object) -> None:
        calls.append(arguments)
        monkeypatch.setattr(keeping, "MAX_KEPT", 2 if len(calls) > late else 10)
        link_names(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(staging, "_link_names", link_some)
    with staging, pytest.raises(tx.SaveError, match="at most 2 files"):
        staging.commit()
    assert len(calls) == 1 + late
    assert {each.name: each.read_text() for each in path.iterdir()} == {
        "a": "a",
        "b": "b",
        "c": "c",
        "own": "old",
    }
    assert os.listdir(tmp_path) == ["ckpt"]


def test_a_name_of_others_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "ckpt"
    path.mkdir()
    (path / "state").write_text("of somebody else")
    with stage(path) as staging:
        staging.put("state", b"mine")
        with pytest.raises(tx.SaveError, match="another name than `state`"):
            staging.commit()
    assert (path / "state").read_text() == "of somebody else"
