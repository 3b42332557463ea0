"""A single file is moved into place as a whole, and never replaces what it must not."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

import templax as tx
from disks import RefusingDisk
from templax.storage.disk import Disk
from templax.storage.file_staging import FileStaging
from templax.storage.leftovers import find_abandoned
from templax.testing import FaultyDisk, assert_durable


def save(path: Path, data: bytes, *, overwrite: bool = False, disk: Disk | None = None) -> None:
    with FileStaging(path, overwrite=overwrite, disk=disk or Disk()) as staging:
        staging.create("data").write(data)
        staging.commit()
    assert staging.committed
    assert staging.not_removed == ()


def test_the_file_appears_at_the_commit_with_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "made" / "x.npz"
    with FileStaging(path, overwrite=False) as staging:
        staging.create("data").write(b"new")
        assert not path.exists()
        staging.commit()
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["x.npz"]
    assert path.stat().st_nlink == 1


def test_a_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    save(tmp_path / "x", b"old")
    with pytest.raises(tx.AlreadyExists) as caught:
        save(tmp_path / "x", b"new")
    assert str(caught.value) == (
        f"Expected nothing, found a file - file `{tmp_path}/x`; hint: overwrite=True replaces it; "
        "or save under another name"
    )
    assert (tmp_path / "x").read_bytes() == b"old"
    with open(tmp_path / "x", "rb") as reader:
        save(tmp_path / "x", b"new", overwrite=True)
        assert reader.read() == b"old"
    assert (tmp_path / "x").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["directory", "link", "dangling", "pipe"])
def test_anything_but_a_file_stays(tmp_path: Path, kind: str, overwrite: bool) -> None:
    path = tmp_path / "x"
    (tmp_path / "other").write_bytes(b"other")
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("other" if kind == "link" else "nowhere")
    error = tx.SaveError if overwrite else tx.AlreadyExists
    with pytest.raises(error, match="Expected nothing or a file, found a "):
        save(path, b"new", overwrite=overwrite)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "x"]
    assert (tmp_path / "other").read_bytes() == b"other"


def test_a_file_that_appears_during_the_save_stays(tmp_path: Path) -> None:
    with FileStaging(tmp_path / "x", overwrite=False) as staging:
        staging.create("data").write(b"new")
        (tmp_path / "x").write_bytes(b"theirs")
        with pytest.raises(tx.AlreadyExists):
            staging.commit()
    assert (tmp_path / "x").read_bytes() == b"theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_that_vanishes_or_appears_is_no_obstacle_to_overwriting(tmp_path: Path) -> None:
    save(tmp_path / "x", b"old")
    with FileStaging(tmp_path / "x", overwrite=True) as staging:
        staging.create("data").write(b"new")
        (tmp_path / "x").unlink()
        staging.commit()
    with FileStaging(tmp_path / "y", overwrite=True) as staging:
        staging.create("data").write(b"new")
        (tmp_path / "y").write_bytes(b"theirs")
        staging.commit()
    assert [(tmp_path / name).read_bytes() for name in "xy"] == [b"new", b"new"]


def test_of_several_savers_one_wins(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            save(tmp_path / "x", bytes([i]) * 100)
        except tx.AlreadyExists as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 7
    assert len(set((tmp_path / "x").read_bytes())) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_system_without_swaps_replaces_by_a_rename(tmp_path: Path) -> None:
    save(tmp_path / "x", b"old")
    save(tmp_path / "x", b"new", overwrite=True, disk=RefusingDisk(exchange=errno.EINVAL))
    assert (tmp_path / "x").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_system_without_links_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(tx.SaveError, match=r"no hard links.*hint: save to a directory"):
        save(tmp_path / "x", b"new", disk=RefusingDisk(link=errno.EPERM))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_save_is_durable(tmp_path: Path, overwrite: bool) -> None:
    if overwrite:
        save(tmp_path / "x", b"old")
    disk = FaultyDisk()
    save(tmp_path / "x", b"new", overwrite=overwrite, disk=disk)
    assert_durable(disk.trace, tmp_path / "x")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_error_at_any_operation_leaves_the_old_state_or_the_new(
    tmp_path: Path, overwrite: bool, code: int
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    dry = FaultyDisk()
    save(path, b"new" * 9, overwrite=True, disk=dry)
    for at in range(len(dry.trace)):
        path.unlink(missing_ok=True)
        if overwrite:
            path.write_bytes(b"old")
        try:
            save(path, b"new" * 9, overwrite=overwrite, disk=FaultyDisk(at=at, fault=code))
            done = True
        except tx.SaveError as error:
            done = "it is in place" in str(error)
        except AssertionError:  # something could not be removed
            done = True
        found = path.read_bytes() if path.exists() else None
        assert found == (b"new" * 9 if done else b"old" if overwrite else None), at
        for left in tmp_path.iterdir():
            assert left == path or str(left) in find_abandoned(path), (at, left)


def test_a_file_system_without_links_is_found_before_anything_is_written(tmp_path: Path) -> None:
    disk = RefusingDisk(link=errno.EPERM)
    with pytest.raises(tx.SaveError, match="no hard links"):
        FileStaging(tmp_path / "x", overwrite=False, disk=disk)
    assert list(tmp_path.iterdir()) == []
