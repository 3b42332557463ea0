"""What a save may replace, and how the new directory takes the place of the old one."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

import templax as tx
from disks import RefusingDisk, make_directory
from helpers import list_names, read_files
from templax.storage import Staging
from templax.storage import disk as disk_module
from templax.storage.disk import Disk
from templax.storage.leftovers import find_abandoned, remove_directory


def test_a_directory_is_not_replaced_without_overwrite(tmp_path: Path) -> None:
    make_directory(tmp_path / "a")
    with pytest.raises(tx.AlreadyExists) as caught:
        Staging(tmp_path / "a", overwrite=False)
    assert str(caught.value) == (
        "Expected nothing or an empty directory, found one that is not empty "
        f"- file `{tmp_path}/a`; hint: overwrite=True replaces a checkpoint; "
        "or save under another name"
    )
    assert isinstance(caught.value, FileExistsError)
    assert list_names(tmp_path) == ["a"]


def test_overwrite_replaces_the_whole_directory(tmp_path: Path) -> None:
    make_directory(tmp_path / "a")
    with Staging(tmp_path / "a", overwrite=True) as staging:
        staging.put("new", b"new")
        assert read_files(tmp_path / "a") == {"sub/old": b"old"}
        staging.commit()
    assert read_files(tmp_path / "a") == {"new": b"new"}
    assert list_names(tmp_path) == ["a"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_directory_is_replaced(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with Staging(tmp_path / "a", overwrite=overwrite) as staging:
        staging.put("new", b"new")
        staging.commit()
    assert read_files(tmp_path / "a") == {"new": b"new"}


def _file(path: Path) -> str:
    path.write_bytes(b"mine")
    return "a file"


def _dangling(path: Path) -> str:
    path.symlink_to("nowhere")
    return "a symbolic link to `nowhere`"


def _link(path: Path) -> str:
    make_directory(path.with_name("there"))
    path.symlink_to("there")
    return "a symbolic link to `there`"


def _loop(path: Path) -> str:
    path.symlink_to(path.name)
    return f"a symbolic link to `{path.name}`"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("make", [_file, _dangling, _link, _loop])
def test_files_and_links_are_never_replaced(make: object, overwrite: bool, tmp_path: Path) -> None:
    """The target of a link is not replaced either: it may be in use under its own name."""
    found = make(tmp_path / "a")  # type: ignore[operator]
    before = list_names(tmp_path)
    with pytest.raises(tx.SaveError) as caught:
        Staging(tmp_path / "a", overwrite=overwrite)
    assert caught.value.what == f"Expected nothing or a directory, found {found}"
    assert caught.value.file == f"{tmp_path}/a"
    assert isinstance(caught.value, tx.AlreadyExists) == (not overwrite)
    assert list_names(tmp_path) == before


@pytest.mark.parametrize("make", [_file, _dangling, _link, _loop])
def test_files_and_links_made_during_a_save_are_not_replaced(make: object, tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=True) as staging:
        staging.put("new", b"new")
        found = make(tmp_path / "a")  # type: ignore[operator]
        before = os.lstat(tmp_path / "a")
        with pytest.raises(tx.SaveError, match=f"a directory, found {found}"):
            staging.commit()
    assert os.path.samestat(os.lstat(tmp_path / "a"), before)
    assert set(list_names(tmp_path)) <= {"a", "there"}


def test_a_directory_made_during_a_save_is_not_replaced_without_overwrite(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        staging.put("new", b"new")
        make_directory(tmp_path / "a")
        with pytest.raises(tx.AlreadyExists, match="found one that is not empty"):
            staging.commit()
    assert read_files(tmp_path / "a") == {"sub/old": b"old"}
    assert list_names(tmp_path) == ["a"]


def test_overwrite_replaces_a_directory_made_or_removed_during_the_save(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=True) as staging:
        staging.put("new", b"1")
        make_directory(tmp_path / "a")
        staging.commit()
    with Staging(tmp_path / "a", overwrite=True) as staging:
        staging.put("new", b"2")
        shutil.rmtree(tmp_path / "a")
        staging.commit()
    assert read_files(tmp_path / "a") == {"new": b"2"}
    assert list_names(tmp_path) == ["a"]


def test_of_concurrent_saves_exactly_one_remains(tmp_path: Path) -> None:
    with (
        Staging(tmp_path / "a", overwrite=False) as one,
        Staging(tmp_path / "a", overwrite=False) as two,
        Staging(tmp_path / "a", overwrite=True) as three,
    ):
        for name, staging in (("1", one), ("2", two), ("3", three)):
            staging.put(name, b"")
        one.commit()
        with pytest.raises(tx.AlreadyExists):
            two.commit()
        assert list_names(tmp_path / "a") == ["1"]
        three.commit()
    assert list_names(tmp_path / "a") == ["3"]
    assert list_names(tmp_path) == ["a"]


def test_a_save_succeeds_if_the_old_checkpoint_cannot_be_removed(tmp_path: Path) -> None:
    make_directory(tmp_path / "a")
    with Staging(tmp_path / "a", overwrite=True, disk=RefusingDisk(unlink=errno.EACCES)) as staging:
        staging.put("new", b"new")
        staging.commit()
    assert read_files(tmp_path / "a") == {"new": b"new"}
    assert staging.not_removed == (staging.directory,)
    assert read_files(Path(staging.directory)) == {"sub/old": b"old"}
    assert find_abandoned(tmp_path / "a") == [staging.directory]
    remove_directory(staging.directory)
    assert list_names(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_exchange_is_refused_before_any_write(
    code: int, tmp_path: Path
) -> None:
    make_directory(tmp_path / "a")
    with pytest.raises(tx.SaveError) as caught:
        Staging(tmp_path / "a", overwrite=True, disk=RefusingDisk(exchange=code))
    assert str(caught.value) == (
        "The file system can't swap two directories, so that for a moment neither the old "
        "checkpoint nor the new one would be there - file "
        f"`{tmp_path}/a`; hint: save under another name, then remove the old one"
    )
    assert read_files(tmp_path) == {"a/sub/old": b"old"}
    with Staging(tmp_path / "b", overwrite=True, disk=RefusingDisk(exchange=code)) as staging:
        staging.put("new", b"new")
        make_directory(tmp_path / "b")
        with pytest.raises(tx.SaveError, match="can't swap two directories"):
            staging.commit()
    assert read_files(tmp_path / "b") == {"sub/old": b"old"}
    assert list_names(tmp_path) == ["a", "b"]


def test_directories_that_cannot_be_synced_or_locked_are_accepted(tmp_path: Path) -> None:
    class Simple(RefusingDisk):
        def fsync(self, fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            super().fsync(fd)

    make_directory(tmp_path / "a")
    for code in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        with Staging(tmp_path / "a", overwrite=True, disk=Simple(lock=code)) as staging:
            staging.put("new", b"new")
            staging.commit()
    assert read_files(tmp_path / "a") == {"new": b"new"}


def test_a_mount_point_is_refused_before_any_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system refuses to rename it, empty or not."""
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(tmp_path / "a"))
    with pytest.raises(tx.SaveError) as caught:
        Staging(tmp_path / "a", overwrite=True)
    assert str(caught.value) == (
        "Expected a directory that can be replaced, found a mount point "
        f"- file `{tmp_path}/a`; hint: save below it"
    )
    assert list_names(tmp_path) == ["a"]


def test_a_failed_exchange_names_both_paths(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        Disk().exchange(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (caught.value.filename, caught.value.filename2) == (f"{tmp_path}/a", f"{tmp_path}/b")


def test_a_c_library_without_exchange_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old C libraries lack `renameat2`."""
    monkeypatch.setattr(disk_module, "_find_swap", lambda: None)
    make_directory(tmp_path / "a")
    with pytest.raises(tx.SaveError, match="can't swap two directories"):
        Staging(tmp_path / "a", overwrite=True)
    assert list_names(tmp_path) == ["a"]


def test_fsync_is_used_where_full_fsync_is_not_supported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has both; some of its file systems support only one."""
    monkeypatch.setattr(disk_module, "_FULL_FSYNC", 1 << 20)  # not a command of fcntl: EINVAL
    disk = Disk()
    fd = disk.create(str(tmp_path / "a"))
    disk.fsync(fd)
    disk.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.fsync(fd)
