"""Staged files: what is there when, what may be replaced, and what is left of killed saves."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import templax as tx
from templax.sources import (
    Memory,
    Sink,
    SinkFile,
    Staging,
    _disk,
    _leftovers,
    _staged_file,
    open_staging,
)
from templax.sources._disk import Disk
from templax.sources._leftovers import TEMPORARY, is_left, temporary
from templax.sources._staging import remove, stale, stale_in, withdraw
from templax.testing import FaultyDisk


def tree(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def full(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "old").write_bytes(b"old")
    return path


def dead(path: Path, disk: Disk | None = None) -> Path:
    """A staging directory of which nobody holds the lock any more."""
    staging = Staging(path, overwrite=True, disk=disk or Disk())
    staging.put("d/part", b"half of it")
    directory = staging.directory
    del staging
    gc.collect()
    return Path(directory)


class Without(Disk):
    """A disk that refuses some operations: name → errno."""

    def __init__(self, **refused: int):
        for name, code in refused.items():
            setattr(self, name, self._refuse(code))

    def _refuse(self, code: int) -> Callable[..., None]:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        return refuse


# --- writing


def test_files_are_there_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "7"
    staging = Staging(path, overwrite=False)
    assert staging.path == str(path)
    assert staging.directory.startswith(f"{path}.orbax-checkpoint-tmp-templax-")
    staging.put("d/e/f", b"1")
    staging.put("d/g", b"2")
    assert not path.exists()
    assert tree(Path(staging.directory)) == {"d/e/f": b"1", "d/g": b"2"}
    staging.commit()
    assert tree(path) == {"d/e/f": b"1", "d/g": b"2"}
    assert names(path.parent) == ["7"]
    assert staging.left == ()


def test_threads_write_to_one_file_at_their_own_offsets(tmp_path: Path) -> None:
    data = memoryview(os.urandom(1 << 20))
    with Staging(tmp_path / "a", overwrite=False) as staging:
        file = staging.create("data")
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda i: file.write(data[i : i + 4096], i), range(0, 1 << 20, 4096)):
                pass
        assert file.size == 1 << 20
        staging.commit()
    assert (tmp_path / "a" / "data").read_bytes() == data


def test_threads_create_files_in_one_directory(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        with ThreadPoolExecutor(8) as pool:
            for _ in pool.map(lambda i: staging.put(f"x/{i % 3}/{i}", b"%d" % i), range(64)):
                pass
        staging.commit()
    assert tree(tmp_path / "a") == {f"x/{i % 3}/{i}": b"%d" % i for i in range(64)}


def test_without_an_offset_bytes_follow_the_last(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        file = staging.create("data")
        assert file.size == 0
        file.write(b"123", 5)
        file.write(b"4")
        file.write(b"")
        assert file.size == 9
        file.close()
        file.close()
        assert file.size == 9
        staging.commit()
    assert (tmp_path / "a" / "data").read_bytes() == b"\0\0\0\0\x001234"


@pytest.mark.parametrize(
    "data",
    [
        np.arange(12, dtype=np.int32).reshape(3, 4),
        np.zeros((0, 5), np.float64),
        np.array(7, np.int16),
        memoryview(np.arange(4, dtype=np.complex64)),
        bytearray(b"123"),
    ],
)
def test_any_contiguous_buffer_is_written_as_it_is_in_memory(data: object, tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        staging.create("data").write(data)  # type: ignore[arg-type]
        staging.commit()
    assert (tmp_path / "a" / "data").read_bytes() == memoryview(data).tobytes()  # type: ignore[arg-type]


def test_a_write_is_one_call_on_the_memory_given(tmp_path: Path) -> None:
    """No copy, whatever the size."""
    seen: list[tuple[int, int]] = []

    class Watching(Disk):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            seen.append((np.frombuffer(data, np.uint8).ctypes.data, len(data)))
            return super().write(fd, data, offset)

    array = np.ones(9 << 20, np.uint8)
    with Staging(tmp_path / "a", overwrite=False, disk=Watching()) as staging:
        staging.create("data").write(memoryview(array)[64:], 0)
    assert seen == [(array.ctypes.data + 64, array.nbytes - 64)]


def test_large_writes_go_in_pieces_that_the_system_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _staged_file.PIECE <= 2**31 - 4096
    monkeypatch.setattr(_staged_file, "PIECE", 4)
    disk = FaultyDisk()
    with Staging(tmp_path / "a", overwrite=False, disk=disk) as staging:
        staging.create("data").write(b"0123456789", 2)
        staging.commit()
    assert (tmp_path / "a" / "data").read_bytes() == b"\0\x000123456789"
    assert [o.name for o in disk.trace].count("write") == 3


def test_what_the_system_takes_in_part_is_written_whole(tmp_path: Path) -> None:
    class Short(Disk):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            return super().write(fd, data[:3], offset)

    with Staging(tmp_path / "a", overwrite=False, disk=Short()) as staging:
        staging.put("data", b"0123456789")
        staging.commit()
    assert (tmp_path / "a" / "data").read_bytes() == b"0123456789"


def test_a_system_that_takes_nothing_is_an_error(tmp_path: Path) -> None:
    class Stuck(Disk):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            return 0

    with (
        Staging(tmp_path / "a", overwrite=False, disk=Stuck()) as staging,
        pytest.raises(tx.SaveError, match="can't write: Input/output error"),
    ):
        staging.put("data", b"0123456789")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_modes_are_what_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with Staging(tmp_path / "p" / "a", overwrite=False) as staging:
            staging.put("d/x", b"1")
            staging.commit()
    finally:
        os.umask(before)
    modes = {
        p: stat.S_IMODE((tmp_path / "p" / p).stat().st_mode) for p in ("", "a", "a/d", "a/d/x")
    }
    assert modes == {p: (0o666 if p == "a/d/x" else 0o777) & ~mask for p in modes}


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a\0b"])
def test_a_key_leads_nowhere_else(key: str, tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        with pytest.raises(tx.UsageError, match="Expected a path below the checkpoint, got "):
            staging.create(key)
        staging.put("still", b"works")
        staging.commit()
    assert names(tmp_path) == ["a"]


def test_a_key_is_created_once(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        staging.put("x", b"1")
        with pytest.raises(tx.SaveError, match="can't create: File exists"):
            staging.put("x", b"2")
    assert names(tmp_path) == []


def test_a_closed_file_takes_no_more(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        file = staging.create("x")
        file.close()
        with pytest.raises(tx.UsageError, match="Expected an open file, got one that was closed"):
            file.write(b"1")
        staging.commit()
    with pytest.raises(tx.SaveError, match="The save was given up or finished before"):
        file.write(b"1")
    with pytest.raises(tx.SaveError, match="The save was given up or finished before"):
        staging.put("y", b"1")
    with pytest.raises(tx.SaveError, match="The save was given up or finished before"):
        staging.commit()
    assert tree(tmp_path / "a") == {"x": b""}


# --- giving up


def test_a_block_that_ends_without_commit_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Staging(tmp_path / "p/q/a", overwrite=False) as staging:
            staging.put("d/x", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_parents_that_others_use_stay(tmp_path: Path) -> None:
    with Staging(tmp_path / "p/q/a", overwrite=False):
        (tmp_path / "p" / "other").write_bytes(b"")
    assert names(tmp_path / "p") == ["other"]


def test_what_fails_in_one_thread_ends_all(tmp_path: Path) -> None:
    """The others are told why, and nobody writes to a descriptor that is another file's by then."""
    started, go = threading.Event(), threading.Event()
    closed: list[int] = []

    class Slow(Disk):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            if bytes(data) == b"slow":
                started.set()
                assert go.wait(60)
                assert fd not in closed
            if bytes(data) == b"full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(fd, data, offset)

        def close(self, fd: int) -> None:
            closed.append(fd)
            super().close(fd)

    with Staging(tmp_path / "a", overwrite=False, disk=Slow()) as staging:
        one, two = staging.create("one"), staging.create("two")
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(one.write, b"slow")
            assert started.wait(60)
            with pytest.raises(tx.SaveError, match="can't write: No space left"):
                two.write(b"full")
            go.set()
            slow.result()
        assert len(closed) == 3  # both files and the directory
        for call in (lambda: one.write(b"more"), lambda: staging.create("c"), staging.commit):
            with pytest.raises(tx.SaveError) as caught:
                call()
            assert str(caught.value) == (
                "The save was given up or finished before after: No space left on device "
                f"- file `{tmp_path}/a`"
            )
    assert names(tmp_path) == []


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    listing = Path("/dev/fd")
    before = len(list(listing.iterdir()))
    errors = []
    for at in range(40):
        disk = FaultyDisk(at=at, fault=errno.EIO)
        try:
            with Staging(tmp_path / "a", overwrite=True, disk=disk) as staging:
                staging.create("b").write(b"1")
                staging.put("d/x", b"1")
                staging.commit()
        except tx.SaveError as error:
            errors.append(error)  # with its traceback
    assert len(errors) > 10
    assert len(list(listing.iterdir())) == before


def test_a_full_disk_says_what_is_free_and_what_to_do(tmp_path: Path) -> None:
    trace = FaultyDisk(at=4, fault=errno.ENOSPC)
    staging = Staging(tmp_path / "a", overwrite=False, disk=trace)
    with pytest.raises(tx.SaveError) as caught:
        staging.put("data", b"12345678")
    error = caught.value
    assert error.what == (
        "can't write: No space left on device; nothing was saved and nothing is left behind"
    )
    assert error.file == f"{staging.directory}/data"
    assert error.hint is not None
    free = int(error.hint.removeprefix("make room (").partition(" ")[0])
    assert free > 0
    assert error.hint == f"make room ({free} bytes are free now), or save elsewhere"
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.EDQUOT, "raise your quota, remove what you don't need, or save elsewhere"),
        (errno.EIO, "the device or the network fails, see the system's log; save elsewhere"),
        (errno.EACCES, "save where you may write"),
        (errno.EROFS, "save to a file system that is not mounted read-only"),
        (errno.EMFILE, "raise the limit of open files, `ulimit -n`"),
        (errno.EPIPE, None),
    ],
)
def test_what_the_disk_refuses_is_said_with_what_to_do(
    code: int, text: str | None, tmp_path: Path
) -> None:
    with pytest.raises(tx.SaveError) as caught:
        Staging(tmp_path / "a", overwrite=False, disk=FaultyDisk(at=0, fault=code))
    hint = "" if text is None else f"; hint: {text}"
    assert str(caught.value) == (
        f"can't save: {os.strerror(code)}; nothing was saved and nothing is left behind "
        f"- file `{tmp_path}/a`{hint}"
    )
    assert isinstance(caught.value.__cause__, OSError)


def test_a_failed_sync_is_never_tried_again(tmp_path: Path) -> None:
    """The second call would say that all is well."""

    class Once(Disk):
        calls = 0

        def fsync(self, fd: int) -> None:
            self.calls += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    disk = Once()
    with Staging(tmp_path / "a", overwrite=False, disk=disk) as staging:
        file = staging.create("x")
        file.write(b"1")
        with pytest.raises(tx.SaveError, match="can't sync: Input/output error"):
            file.sync()
        for call in (file.sync, staging.commit):
            with pytest.raises(tx.SaveError, match="given up or finished before after: Input/outp"):
                call()
        file.close()
    assert disk.calls == 1
    assert names(tmp_path) == []


def test_who_waits_for_a_failing_sync_does_not_commit(tmp_path: Path) -> None:
    started, go = threading.Event(), threading.Event()

    class Slow(Disk):
        def fsync(self, fd: int) -> None:
            started.set()
            assert go.wait(60)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Staging(tmp_path / "a", overwrite=False, disk=Slow()) as staging:
        file = staging.create("x")
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(file.sync)
            assert started.wait(60)
            second = pool.submit(staging.commit)
            go.set()
            for future in (first, second):
                with pytest.raises(tx.SaveError, match="Input/output error"):
                    future.result()
    assert names(tmp_path) == []


def test_what_another_program_removed_or_cut_is_not_committed(tmp_path: Path) -> None:
    """As Orbax removes all temporary directories when a manager starts."""
    for harm, problem in (
        (os.unlink, "can't finish: No such file or directory; nothing was saved and nothing is "),
        (lambda file: os.truncate(file, 1), "Another program changed what was written - file "),
    ):
        with Staging(tmp_path / "a", overwrite=False) as staging:
            staging.put("d/x", b"123")
            harm(os.path.join(staging.directory, "d/x"))
            with pytest.raises(tx.SaveError, match=problem):
                staging.commit()
        assert names(tmp_path) == []


# --- what is there already


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    full(tmp_path / "a")
    with pytest.raises(tx.Exists) as caught:
        Staging(tmp_path / "a", overwrite=False)
    assert str(caught.value) == (
        "Expected nothing or an empty directory, found one that is not empty "
        f"- file `{tmp_path}/a`; hint: overwrite=True replaces a checkpoint; "
        "or save under another name"
    )
    assert isinstance(caught.value, FileExistsError)
    assert names(tmp_path) == ["a"]


def test_overwrite_replaces_the_whole_directory(tmp_path: Path) -> None:
    full(tmp_path / "a")
    with Staging(tmp_path / "a", overwrite=True) as staging:
        staging.put("new", b"new")
        assert tree(tmp_path / "a") == {"sub/old": b"old"}
        staging.commit()
    assert tree(tmp_path / "a") == {"new": b"new"}
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_directory_counts_as_none(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with Staging(tmp_path / "a", overwrite=overwrite) as staging:
        staging.put("new", b"new")
        staging.commit()
    assert tree(tmp_path / "a") == {"new": b"new"}


def _file(path: Path) -> str:
    path.write_bytes(b"mine")
    return "a file"


def _dangling(path: Path) -> str:
    path.symlink_to("nowhere")
    return "a symbolic link to `nowhere`"


def _link(path: Path) -> str:
    full(path.with_name("there"))
    path.symlink_to("there")
    return "a symbolic link to `there`"


def _loop(path: Path) -> str:
    path.symlink_to(path.name)
    return f"a symbolic link to `{path.name}`"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("make", [_file, _dangling, _link, _loop])
def test_files_and_links_are_never_replaced(make: object, overwrite: bool, tmp_path: Path) -> None:
    """Nor is what a link points to: it may be in use under its own name."""
    found = make(tmp_path / "a")  # type: ignore[operator]
    before = names(tmp_path)
    with pytest.raises(tx.SaveError) as caught:
        Staging(tmp_path / "a", overwrite=overwrite)
    assert caught.value.what == f"Expected nothing or a directory, found {found}"
    assert caught.value.file == f"{tmp_path}/a"
    assert isinstance(caught.value, tx.Exists) == (not overwrite)
    assert names(tmp_path) == before


@pytest.mark.parametrize("make", [_file, _dangling, _link, _loop])
def test_files_and_links_that_come_meanwhile_are_not_replaced(make: object, tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=True) as staging:
        staging.put("new", b"new")
        found = make(tmp_path / "a")  # type: ignore[operator]
        before = os.lstat(tmp_path / "a")
        with pytest.raises(tx.SaveError, match=f"a directory, found {found}"):
            staging.commit()
    assert os.path.samestat(os.lstat(tmp_path / "a"), before)
    assert set(names(tmp_path)) <= {"a", "there"}


def test_a_directory_that_comes_meanwhile_is_not_replaced_unasked(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        staging.put("new", b"new")
        full(tmp_path / "a")
        with pytest.raises(tx.Exists, match="found one that is not empty"):
            staging.commit()
    assert tree(tmp_path / "a") == {"sub/old": b"old"}
    assert names(tmp_path) == ["a"]


def test_a_directory_that_comes_or_goes_meanwhile_is_replaced_if_asked(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=True) as staging:
        staging.put("new", b"1")
        full(tmp_path / "a")
        staging.commit()
    with Staging(tmp_path / "a", overwrite=True) as staging:
        staging.put("new", b"2")
        shutil.rmtree(tmp_path / "a")
        staging.commit()
    assert tree(tmp_path / "a") == {"new": b"2"}
    assert names(tmp_path) == ["a"]


def test_of_two_saves_at_once_one_is_there_and_nothing_else(tmp_path: Path) -> None:
    with (
        Staging(tmp_path / "a", overwrite=False) as one,
        Staging(tmp_path / "a", overwrite=False) as two,
        Staging(tmp_path / "a", overwrite=True) as three,
    ):
        for name, staging in (("1", one), ("2", two), ("3", three)):
            staging.put(name, b"")
        one.commit()
        with pytest.raises(tx.Exists):
            two.commit()
        assert names(tmp_path / "a") == ["1"]
        three.commit()
    assert names(tmp_path / "a") == ["3"]
    assert names(tmp_path) == ["a"]


def test_what_can_not_be_removed_is_no_failure_of_the_save(tmp_path: Path) -> None:
    full(tmp_path / "a")
    with Staging(tmp_path / "a", overwrite=True, disk=Without(unlink=errno.EACCES)) as staging:
        staging.put("new", b"new")
        staging.commit()
    assert tree(tmp_path / "a") == {"new": b"new"}
    assert staging.left == (staging.directory,)
    assert tree(Path(staging.directory)) == {"sub/old": b"old"}
    assert stale(tmp_path / "a") == [staging.directory]
    remove(staging.directory)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_can_not_swap_is_found_before_anything_is_written(
    code: int, tmp_path: Path
) -> None:
    full(tmp_path / "a")
    with pytest.raises(tx.SaveError) as caught:
        Staging(tmp_path / "a", overwrite=True, disk=Without(exchange=code))
    assert str(caught.value) == (
        "The file system can't swap two directories, so that for a moment neither the old "
        "checkpoint nor the new one would be there - file "
        f"`{tmp_path}/a`; hint: save under another name, then remove the old one"
    )
    assert tree(tmp_path) == {"a/sub/old": b"old"}
    with Staging(tmp_path / "b", overwrite=True, disk=Without(exchange=code)) as staging:
        staging.put("new", b"new")
        full(tmp_path / "b")
        with pytest.raises(tx.SaveError, match="can't swap two directories"):
            staging.commit()
    assert tree(tmp_path / "b") == {"sub/old": b"old"}
    assert names(tmp_path) == ["a", "b"]


def test_directories_that_can_not_be_synced_or_locked_are_no_obstacle(tmp_path: Path) -> None:
    class Simple(Without):
        def fsync(self, fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            super().fsync(fd)

    full(tmp_path / "a")
    for code in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        with Staging(tmp_path / "a", overwrite=True, disk=Simple(lock=code)) as staging:
            staging.put("new", b"new")
            staging.commit()
    assert tree(tmp_path / "a") == {"new": b"new"}


def test_a_mount_point_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty or not, the system lets nobody move it."""
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(tmp_path / "a"))
    with pytest.raises(tx.SaveError) as caught:
        Staging(tmp_path / "a", overwrite=True)
    assert str(caught.value) == (
        "Expected a directory that can be replaced, found a mount point "
        f"- file `{tmp_path}/a`; hint: save below it"
    )
    assert names(tmp_path) == ["a"]


# --- the disk


def test_an_exchange_says_why_not(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        Disk().exchange(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (caught.value.filename, caught.value.filename2) == (f"{tmp_path}/a", f"{tmp_path}/b")


def test_a_system_without_exchange_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an old C library."""
    monkeypatch.setattr(_disk, "_swap", lambda: None)
    full(tmp_path / "a")
    with pytest.raises(tx.SaveError, match="can't swap two directories"):
        Staging(tmp_path / "a", overwrite=True)
    assert names(tmp_path) == ["a"]


def test_where_the_full_sync_is_not_served_the_other_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has both; some of its file systems only one."""
    monkeypatch.setattr(_disk, "_FULL_FSYNC", 1 << 20)  # nobody's command: EINVAL
    disk = Disk()
    fd = disk.create(str(tmp_path / "a"))
    disk.fsync(fd)
    disk.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.fsync(fd)


# --- paths


def test_a_later_change_of_directory_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    staging = Staging("p/../q/./a/", overwrite=False)
    monkeypatch.chdir("/")
    staging.put("x", b"1")
    staging.commit()
    assert tree(tmp_path) == {"q/a/x": b"1"}
    monkeypatch.chdir(tmp_path / "q" / "a")
    with Staging(tmp_path / "q" / "a", overwrite=True) as staging:  # where we are
        staging.put("y", b"2")
        staging.commit()
    assert tree(tmp_path) == {"q/a/y": b"2"}


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    full(tmp_path / "b")
    assert dead(Path("~/a")).parent == tmp_path
    assert [Path(p).parent for p in stale("~/a")] == [tmp_path]
    remove(stale("~/a")[0])
    withdraw("~/b")
    assert names(tmp_path) == []


def test_parents_may_be_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    full(tmp_path / "real" / "a")
    with Staging(tmp_path / "link" / "a", overwrite=True) as staging:
        staging.put("x", b"1")
        staging.commit()
    assert tree(tmp_path / "real") == {"a/x": b"1"}


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/", "Expected a path with a name, got the root"),
        (
            "a.orbax-checkpoint-tmp-3",
            "Expected a name without `.orbax-checkpoint-tmp`, which marks saves that never "
            "finished",
        ),
        ("file/a", "can't save: Not a directory; nothing was saved and nothing is left behind"),
        ("file/p/a", "can't save: Not a directory; nothing was saved and nothing is left behind"),
        ("loop/a", "can't save: Too many levels of symbolic links; nothing was saved and nothing "),
        ("dangling/a", "can't save: No such file or directory; nothing was saved and nothing is "),
        ("n" * 256, "can't save: File name too long; nothing was saved and nothing is left behind"),
        ("p/" + "n" * 256, "can't save: File name too long; nothing was saved and nothing is left"),
        ("n" * 256 + "/a", "can't save: File name too long; nothing was saved and nothing is left"),
        (
            ("n" * 200 + "/") * 21 + "a",
            "can't save: File name too long; nothing was saved and nothing is lef",
        ),
    ],
)
def test_what_can_not_be_a_checkpoint_is_refused_at_once(
    path: str, what: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(tx.SaveError) as caught:
        Staging(os.path.join(tmp_path, path), overwrite=True)
    assert caught.value.what.startswith(what)
    assert caught.value.file is not None
    assert names(tmp_path) == ["dangling", "file", "loop"]


def test_the_error_of_a_long_name_says_so(tmp_path: Path) -> None:
    with pytest.raises(tx.SaveError) as caught:
        Staging(tmp_path / ("n" * 256), overwrite=False)
    assert str(caught.value) == (
        "can't save: File name too long; nothing was saved and nothing is left behind - file "
        f"`{tmp_path}/{'n' * 256}`; hint: save under a shorter name"
    )


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b"])
def test_what_can_not_be_a_path_is_no_path(path: str) -> None:
    for call in (lambda: Staging(path, overwrite=False), lambda: stale(path), lambda: remove(path)):
        with pytest.raises(tx.UsageError, match="Expected a path, got "):
            call()


@pytest.mark.parametrize(
    "name", ["n" * 255, "ü" * 127, "n" * 201, "n" * 200, os.fsdecode(b"\xff" * 255)]
)
def test_a_name_as_long_as_can_be(name: str, tmp_path: Path) -> None:
    """Its temporary name is shortened, and yet its own."""
    others = [tmp_path / (name[:-1] + "x"), tmp_path / name[:-1], tmp_path / name[:200]]
    path = tmp_path / name
    left = dead(path)
    assert TEMPORARY in left.name
    assert len(os.fsencode(left.name)) <= 255
    assert stale(path) == [str(left)]
    assert all(stale(other) == [] for other in others if other != path)
    with Staging(path, overwrite=False) as staging:
        staging.put("x", b"1")
        staging.commit()
    withdraw(path)
    remove(left)
    assert names(tmp_path) == []


def test_temporary_names_differ(tmp_path: Path) -> None:
    assert len({temporary(str(tmp_path / "a")) for _ in range(100)}) == 100


# --- what killed saves leave


def test_a_save_that_goes_on_is_not_stale(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        assert stale(tmp_path / "a") == []
        with pytest.raises(tx.SaveError) as caught:
            remove(staging.directory)
        assert str(caught.value) == (
            f"Expected what a save left, found one that goes on - file `{staging.directory}`; "
            "hint: wait for it, or end that process"
        )
        staging.put("x", b"1")
        staging.commit()
    assert tree(tmp_path / "a") == {"x": b"1"}


def test_what_a_dead_process_left_is_stale_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from templax.sources import Staging\n"
        "staging = Staging(sys.argv[1], overwrite=False)\n"
        "staging.put('x', b'1')\n"
        "print(staging.directory, flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    directory = process.stdout.readline().strip()
    assert tree(Path(directory)) == {"x": b"1"}
    assert stale(tmp_path / "a") == []
    process.communicate("")
    assert stale(tmp_path / "a") == [directory]


def test_only_what_templax_left_of_this_name_is_stale(tmp_path: Path) -> None:
    left = dead(tmp_path / "a")
    token = left.name.removeprefix("a")
    for other in (
        f"aa{token}",
        f"a.b{token}",
        f"A{token}",
        "a",
        f"a{TEMPORARY}-17",
        f"a{token}.bak",
    ):
        (tmp_path / other).mkdir()
    assert stale(tmp_path / "a") == [str(left)]
    assert stale(tmp_path / "nothing" / "a") == []
    (tmp_path / "file").write_bytes(b"")
    assert stale(tmp_path / "file" / "a") == []


def test_two_who_look_at_once_both_see_it(tmp_path: Path) -> None:
    left = dead(tmp_path / "a")
    disk = Disk()
    fd = disk.open_directory(str(left))
    disk.lock(fd, shared=True)  # as one that is looking holds it
    assert stale(tmp_path / "a") == [str(left)]
    disk.close(fd)


def test_a_directory_that_is_looked_at_as_it_is_made_is_made_again(tmp_path: Path) -> None:
    """Between its creation and its lock somebody may take it for left, and remove it."""

    class Meddler(Disk):
        made = 0

        def mkdir(self, path: str) -> None:
            super().mkdir(path)
            self.made += 1
            if self.made == 1:  # looks
                self.looking = Disk.open_directory(self, path)
                Disk.lock(self, self.looking)
            if self.made == 2:  # removes it before it is opened
                remove(path)

        def open_directory(self, path: str) -> int:
            fd = super().open_directory(path)
            if self.made in (3, 4):  # after
                remove(path)
            if self.made == 4:  # and makes another in its place
                os.mkdir(path)
            return fd

    disk = Meddler()
    with Staging(tmp_path / "a", overwrite=False, disk=disk) as staging:
        assert disk.made == 5
        staging.put("x", b"1")
        staging.commit()
    disk.close(disk.looking)
    assert names(tmp_path) == ["a"]


def test_where_everything_is_removed_at_once_nothing_is_saved(tmp_path: Path) -> None:
    class Meddler(Disk):
        def mkdir(self, path: str) -> None:
            super().mkdir(path)
            remove(path)

    with pytest.raises(tx.SaveError, match="can't save: No such file or directory; nothing was "):
        Staging(tmp_path / "a", overwrite=False, disk=Meddler())
    assert names(tmp_path) == []


def test_where_what_is_there_keeps_changing_nothing_is_saved(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=True, disk=Without(rename=errno.ENOTEMPTY)) as staging:
        staging.put("x", b"1")
        with pytest.raises(tx.SaveError, match="Other programs keep replacing what is here - file"):
            staging.commit()
    assert names(tmp_path) == []


def test_a_parent_that_another_save_removes_is_made_again(tmp_path: Path) -> None:
    class Meddler(Disk):
        made = 0

        def mkdir(self, path: str) -> None:
            self.made += 1
            if self.made == 2:
                os.rmdir(tmp_path / "p")
            super().mkdir(path)

    with Staging(tmp_path / "p" / "a", overwrite=False, disk=Meddler()) as staging:
        staging.put("x", b"1")
        staging.commit()
    assert tree(tmp_path) == {"p/a/x": b"1"}


def _aged(directory: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in [*directory.rglob("*"), directory]:
        os.utime(path, (then, then))


def test_where_locks_tell_nothing_a_day_of_silence_does(tmp_path: Path) -> None:
    left = dead(tmp_path / "a")
    none = Without(lock=errno.ENOLCK)
    assert stale(tmp_path / "a", none) == []
    _aged(left, _leftovers.QUIET_S - 60)
    assert stale(tmp_path / "a", none) == []
    _aged(left, _leftovers.QUIET_S + 60)
    assert stale(tmp_path / "a", none) == [str(left)]
    os.utime(left / "d" / "part")  # one file is enough
    assert stale(tmp_path / "a", none) == []


def test_locks_of_other_machines_are_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network file system; on a local one it was this machine, before it was started anew."""
    mine = dead(tmp_path / "a")
    host, random = mine.name.removeprefix(f"a{TEMPORARY}-templax-").split("-")
    other = mine.with_name(f"a{TEMPORARY}-templax-{int(host, 16) ^ 1:08x}-{random}")
    full(other)
    assert stale(tmp_path / "a") == sorted(map(str, (mine, other)))
    monkeypatch.setattr("templax.sources._local._file_system", lambda path: "nfs4")
    assert stale(tmp_path / "a") == [str(mine)]
    _aged(other, _leftovers.QUIET_S + 60)
    assert stale(tmp_path / "a") == sorted(map(str, (mine, other)))


def test_what_may_be_written_to_is_renamed_before_it_is_removed(tmp_path: Path) -> None:
    """Its writer then can't move what is cut to pieces into its place."""
    with Staging(tmp_path / "a", overwrite=False, disk=Without(lock=errno.ENOLCK)) as staging:
        staging.put("x", b"1")
        staging.put("y", b"2")
        with pytest.raises(tx.SaveError, match="can't remove: Permission denied"):
            remove(staging.directory, Without(unlink=errno.EACCES, lock=errno.ENOLCK))
        (left,) = tmp_path.iterdir()
        assert left.name.startswith("a.orbax-checkpoint-tmp-templax-")
        assert str(left) != staging.directory
        with pytest.raises(tx.SaveError, match="can't finish: No such file or directory"):
            staging.commit()
    assert names(tmp_path) == [left.name]
    remove(left)
    assert names(tmp_path) == []


def test_what_can_not_be_opened_is_stale_after_a_day(tmp_path: Path) -> None:
    """As another user's."""
    left = dead(tmp_path / "a")
    closed = Without(open_directory=errno.EACCES)
    assert stale(tmp_path / "a", closed) == []
    _aged(left, _leftovers.QUIET_S + 60)
    assert stale(tmp_path / "a", closed) == [str(left)]
    with pytest.raises(tx.SaveError, match="can't remove: Permission denied"):
        remove(left, closed)


def test_a_file_system_that_fails_tells_nothing_of_what_is_left(tmp_path: Path) -> None:
    dead(tmp_path / "a")
    with pytest.raises(tx.SaveError) as caught:
        stale(tmp_path / "a", Without(lock=errno.EIO))
    assert str(caught.value) == (
        f"can't look for what saves left in: Input/output error - file `{tmp_path}`; hint: "
        "the device or the network fails, see the system's log; save elsewhere"
    )


def test_what_can_not_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(tx.SaveError) as caught:
        stale(tmp_path / "a")
    assert str(caught.value) == (
        f"can't list: Permission denied - file `{tmp_path}`; hint: save where you may write"
    )


# --- removing


def test_removing_follows_no_links(tmp_path: Path) -> None:
    kept = full(tmp_path / "kept")
    gone = full(tmp_path / "gone")
    (gone / "link").symlink_to(kept)
    (gone / "file").symlink_to(kept / "sub" / "old")
    (tmp_path / "latest").symlink_to("kept")
    remove(gone)
    withdraw(tmp_path / "latest")
    assert names(tmp_path) == ["kept"]
    assert tree(kept) == {"sub/old": b"old"}


def test_removing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove(tmp_path / "a")
    withdraw(tmp_path / "a")
    remove(temporary(str(tmp_path / "a")))
    assert names(tmp_path) == []


def test_a_file_that_was_to_be_removed_is_stale(tmp_path: Path) -> None:
    left = Path(temporary(str(tmp_path / "a")))
    left.write_bytes(b"")
    assert stale(tmp_path / "a") == [str(left)]
    remove(left)
    assert names(tmp_path) == []


def test_a_checkpoint_loses_its_name_before_anything_of_it_is_removed(tmp_path: Path) -> None:
    for call in (remove, withdraw):
        full(tmp_path / "a")
        disk = FaultyDisk()
        call(tmp_path / "a", disk)
        order = [o.name for o in disk.trace]
        assert order.index("rename") < order.index("fsync") < order.index("unlink")
        moved = disk.trace[order.index("rename")]
        assert moved.to.startswith(f"{tmp_path}/a.orbax-checkpoint-tmp-templax-")
        assert names(tmp_path) == []


def test_what_somebody_holds_a_lock_on_is_left_whole(tmp_path: Path) -> None:
    full(tmp_path / "a")
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    disk = FaultyDisk()
    assert withdraw(tmp_path / "a", disk) is False
    with pytest.raises(tx.SaveError, match="Expected what nobody uses, found a lock on it - file"):
        remove(tmp_path / "a", disk)
    assert "rename" not in {o.name for o in disk.trace}
    os.close(fd)
    assert withdraw(tmp_path / "a") is True
    assert withdraw(tmp_path / "a") is True
    assert names(tmp_path) == []


def test_what_others_left_is_dead_when_nothing_was_written_for_a_day(tmp_path: Path) -> None:
    """They take no locks that could be asked."""
    (tmp_path / "a.orbax-checkpoint-tmp" / "b").mkdir(parents=True)
    (tmp_path / "a.orbax-checkpoint-tmp" / "b" / "c").touch()
    assert not is_left(tmp_path / "a.orbax-checkpoint-tmp")
    for path in (tmp_path / "a.orbax-checkpoint-tmp", *tmp_path.rglob("?")):
        os.utime(path, (time.time() - _leftovers.QUIET_S - 9,) * 2)
    assert is_left(tmp_path / "a.orbax-checkpoint-tmp")
    (tmp_path / "a.orbax-checkpoint-tmp" / "b" / "c").write_bytes(b"d")
    assert not is_left(tmp_path / "a.orbax-checkpoint-tmp")


def test_what_lies_around_a_leftover_is_synced_before_it_is_removed(tmp_path: Path) -> None:
    """The save that was killed may have swapped it out; a loss of power would swap it back."""
    left, disk = dead(tmp_path / "a"), FaultyDisk()
    remove(left, disk)
    order = [(o.name, o.path) for o in disk.trace]
    first = next(i for i, (name, _) in enumerate(order) if name in ("unlink", "rmdir"))
    assert ("fsync", str(tmp_path)) in order[:first]
    assert names(tmp_path) == []


def test_a_save_removes_what_killed_ones_left(tmp_path: Path) -> None:
    left = [dead(tmp_path / "a"), dead(tmp_path / "a")]
    other = dead(tmp_path / "b")
    with Staging(tmp_path / "a", overwrite=False) as live:
        live.put("x", b"1")
        with Staging(tmp_path / "a", overwrite=False) as staging:
            staging.put("x", b"2")
            assert all(map(os.path.exists, left))  # not before it is done
            staging.commit()
        assert sorted(map(str, tmp_path.iterdir())) == sorted(
            [staging.path, live.directory, str(other)]
        )
    assert names(tmp_path) == sorted(["a", other.name])


@pytest.mark.parametrize("reads", [True, False])
def test_what_can_not_be_removed_of_a_killed_save_fails_no_other(
    reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = dead(tmp_path / "a")
    if not reads:
        monkeypatch.setattr(os, "listdir", Disk().rmdir)  # raises OSError
    with Staging(tmp_path / "a", overwrite=False, disk=Without(unlink=errno.EACCES)) as staging:
        staging.put("x", b"1")
        staging.commit()
    assert tree(tmp_path / "a") == {"x": b"1"}
    assert staging.left == ()
    assert left.exists()


@pytest.mark.parametrize(("code", "cleared"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_a_save_that_lacks_space_removes_what_killed_ones_left(
    code: int, cleared: bool, tmp_path: Path
) -> None:
    """The next try may need no more than that."""
    left = dead(tmp_path / "a")
    staging = Staging(tmp_path / "a", overwrite=False, disk=Without(write=code))
    with pytest.raises(tx.SaveError):
        staging.put("x", b"1")
    assert left.exists() != cleared


def test_all_that_is_left_in_a_directory(tmp_path: Path) -> None:
    assert stale_in(tmp_path / "nothing") == []
    left = [dead(tmp_path / name) for name in ("a", "b", "b", "n" * 255)]
    (tmp_path / f"a{TEMPORARY}-17").mkdir()
    with Staging(tmp_path / "c", overwrite=False):
        assert stale_in(tmp_path) == sorted(map(str, left))


def test_interrupted_behind_the_move_it_is_there_to_stay(tmp_path: Path) -> None:
    """And what it replaced is removed only then."""

    class Interrupted(Disk):
        def exchange(self, one: str, other: str) -> None:
            super().exchange(one, other)
            if other == str(tmp_path / "a"):
                raise KeyboardInterrupt

    full(tmp_path / "a")
    disk = FaultyDisk(disk=Interrupted())
    with Staging(tmp_path / "a", overwrite=True, disk=disk) as staging:
        staging.put("x", b"1")
        with pytest.raises(KeyboardInterrupt):
            staging.commit()
    assert tree(tmp_path) == {"a/x": b"1"}
    move = [operation.to for operation in disk.trace].index(staging.path)
    order = [(operation.name, operation.path) for operation in disk.trace[move:]]
    assert order.index(("fsync", str(tmp_path))) < [name for name, _ in order].index("unlink")


@pytest.mark.parametrize("name", ["mkdir", "open_directory", "lock", "exchange", "rmdir"])
def test_interrupted_as_it_begins_nothing_is_left(name: str, tmp_path: Path) -> None:
    class Interrupted(Disk):
        def __init__(self) -> None:
            real = getattr(super(), name)
            done: list[bool] = []

            def interrupted(*args: Any, **options: Any) -> Any:
                result = real(*args, **options)
                if not done:
                    done.append(True)
                    raise KeyboardInterrupt
                return result

            setattr(self, name, interrupted)

    full(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        Staging(tmp_path / "a", overwrite=True, disk=Interrupted())
    assert names(tmp_path) == ["a"]


def test_interrupted_as_it_removes_it_goes_on_to_remove(tmp_path: Path) -> None:
    class Interrupted(Disk):
        count = 0

        def unlink(self, path: str) -> None:
            self.count += 1
            if self.count == 2:
                raise KeyboardInterrupt
            super().unlink(path)

    (tmp_path / "a").mkdir()
    for i in range(4):
        (tmp_path / "a" / str(i)).write_bytes(b"1")
    with Staging(tmp_path / "a", overwrite=True, disk=Interrupted()) as staging:
        staging.put("x", b"1")
        with pytest.raises(KeyboardInterrupt):
            staging.commit()
    assert tree(tmp_path) == {"a/x": b"1"}


def test_what_two_remove_at_once_is_removed(tmp_path: Path) -> None:
    for i in range(300):
        (tmp_path / "a" / str(i % 7)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / str(i % 7) / str(i)).write_bytes(b"")
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: _leftovers.delete(str(tmp_path / "a"), Disk()), range(4)):
            pass
    assert names(tmp_path) == []


def test_a_deep_tree_is_removed(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.mkdir(tmp_path / "a")
    at = os.open("a", os.O_RDONLY, dir_fd=fd)
    for _ in range(1200):  # deeper than Python recurses
        os.mkdir("d", dir_fd=at)
        at, before = os.open("d", os.O_RDONLY, dir_fd=at), at
        os.close(before)
    os.close(at)
    os.close(fd)
    remove(tmp_path / "a")
    assert names(tmp_path) == []


# --- where a URL leads


def test_paths_and_file_urls_are_staged(tmp_path: Path) -> None:
    for i, url in enumerate((str(tmp_path / "0"), tmp_path / "1", f"file://{tmp_path}/%32")):
        sink = open_staging(url, overwrite=False)
        assert isinstance(sink, Sink)
        assert sink.path == f"{tmp_path}/{i}"
        file = sink.create("x")
        assert isinstance(file, SinkFile)
        file.close()
        sink.commit()
        assert tree(tmp_path / str(i)) == {"x": b""}
        with pytest.raises(tx.Exists):
            open_staging(url, overwrite=False)


def test_a_sink_is_returned_as_it_is(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        assert open_staging(staging, overwrite=True) is staging
    assert not isinstance(Memory({}), Sink)


def test_what_is_not_served_is_named() -> None:
    with pytest.raises(tx.SourceError) as caught:
        open_staging("s3://bucket/ckpt", overwrite=False)
    assert str(caught.value) == (
        "templax writes local files; `s3://` is not served by this version; "
        "hint: save to a local directory, then copy that"
    )
    with pytest.raises(tx.SourceError, match="writes local files, not those of host `far`"):
        open_staging("file://far/ckpt", overwrite=False)
    with pytest.raises(tx.UsageError, match='Expected a path, got ""'):
        open_staging("", overwrite=False)
    with pytest.raises(tx.UsageError, match="Expected a path"):
        open_staging("a\0b", overwrite=False)


def test_either_hand_in_a_save_may_make_a_directory_first(tmp_path: Path) -> None:
    """Processes write to the same item at once."""
    with Staging(tmp_path / "new", overwrite=False) as begun:
        joined = Staging.join(begun.path, begun.directory)
        joined.put("item/d/theirs", b"1")
        begun.put("item/d/ours", b"2")
        begun.put("other/ours", b"3")
        joined.put("other/theirs", b"4")
        joined.commit()
        begun.commit()
    found = {str(f.relative_to(tmp_path / "new")) for f in tmp_path.rglob("new/*/**/*")}
    assert {"item/d/theirs", "item/d/ours", "other/ours", "other/theirs"} <= found
