"""A save that fails, is interrupted or is given up: what it reports and what remains."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import templax as tx
from disks import RefusingDisk, make_directory
from helpers import list_names, read_files
from templax.storage import Staging
from templax.storage.disk import Disk
from templax.storage.leftovers import remove_directory
from templax.testing import FaultyDisk


def test_a_with_block_without_commit_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with Staging(tmp_path / "p/q/a", overwrite=False) as staging:
            staging.put("d/x", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list_names(tmp_path) == []


def test_giving_up_keeps_parent_directories_in_use(tmp_path: Path) -> None:
    with Staging(tmp_path / "p/q/a", overwrite=False):
        (tmp_path / "p" / "other").write_bytes(b"")
    assert list_names(tmp_path / "p") == ["other"]


def test_a_failure_in_one_thread_ends_the_save_for_all_threads(tmp_path: Path) -> None:
    """The others get the cause, and no thread writes to a descriptor that was closed."""
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
                "The save was abandoned after an error: No space left on device "
                f"- file `{tmp_path}/a`"
            )
    assert list_names(tmp_path) == []


def test_failed_saves_leave_no_descriptor_open(tmp_path: Path) -> None:
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


def test_a_full_disk_error_states_the_free_space_and_a_hint(tmp_path: Path) -> None:
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
    assert list_names(tmp_path) == []


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
def test_a_system_error_is_reported_with_a_hint(
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


def test_a_failed_sync_is_never_retried(tmp_path: Path) -> None:
    """A second call would report success: the kernel drops the error once it is reported."""

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
            with pytest.raises(tx.SaveError, match="abandoned after an error: Input/output error"):
                call()
        file.close()
    assert disk.calls == 1
    assert list_names(tmp_path) == []


def test_commit_fails_with_the_sync_that_it_waits_for(tmp_path: Path) -> None:
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
    assert list_names(tmp_path) == []


def test_files_changed_by_another_program_are_not_committed(tmp_path: Path) -> None:
    """Orbax removes all temporary directories when a manager starts."""
    for harm, problem in (
        (os.unlink, "can't finish: No such file or directory; nothing was saved and nothing is "),
        (lambda file: os.truncate(file, 1), "Another program changed what was written - file "),
    ):
        with Staging(tmp_path / "a", overwrite=False) as staging:
            staging.put("d/x", b"123")
            harm(os.path.join(staging.directory, "d/x"))
            with pytest.raises(tx.SaveError, match=problem):
                staging.commit()
        assert list_names(tmp_path) == []


def test_a_new_staging_directory_that_another_process_removes_is_made_again(tmp_path: Path) -> None:
    """Before it is locked, another process may take it for a leftover."""

    class Meddler(Disk):
        made = 0

        def mkdir(self, path: str) -> None:
            super().mkdir(path)
            self.made += 1
            if self.made == 1:  # lock it, as a process does that looks for leftovers
                self.looking = Disk.open_directory(self, path)
                Disk.lock(self, self.looking)
            if self.made == 2:  # remove it before it is opened
                remove_directory(path)

        def open_directory(self, path: str) -> int:
            fd = super().open_directory(path)
            if self.made in (3, 4):  # remove it after it is opened
                remove_directory(path)
            if self.made == 4:  # and make another in its place
                os.mkdir(path)
            return fd

    disk = Meddler()
    with Staging(tmp_path / "a", overwrite=False, disk=disk) as staging:
        assert disk.made == 5
        staging.put("x", b"1")
        staging.commit()
    disk.close(disk.looking)
    assert list_names(tmp_path) == ["a"]


def test_a_save_fails_if_its_directory_is_always_removed_at_once(tmp_path: Path) -> None:
    class Meddler(Disk):
        def mkdir(self, path: str) -> None:
            super().mkdir(path)
            remove_directory(path)

    with pytest.raises(tx.SaveError, match="can't save: No such file or directory; nothing was "):
        Staging(tmp_path / "a", overwrite=False, disk=Meddler())
    assert list_names(tmp_path) == []


def test_a_save_fails_if_the_target_keeps_changing(tmp_path: Path) -> None:
    with Staging(
        tmp_path / "a", overwrite=True, disk=RefusingDisk(rename=errno.ENOTEMPTY)
    ) as staging:
        staging.put("x", b"1")
        with pytest.raises(tx.SaveError, match="Other programs keep replacing this path - file"):
            staging.commit()
    assert list_names(tmp_path) == []


def test_a_parent_directory_that_another_save_removes_is_made_again(tmp_path: Path) -> None:
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
    assert read_files(tmp_path) == {"p/a/x": b"1"}


def test_an_interrupt_after_the_swap_keeps_the_new_checkpoint(tmp_path: Path) -> None:
    """The old one is removed only after the swap is synced."""

    class Interrupted(Disk):
        def exchange(self, one: str, other: str) -> None:
            super().exchange(one, other)
            if other == str(tmp_path / "a"):
                raise KeyboardInterrupt

    make_directory(tmp_path / "a")
    disk = FaultyDisk(disk=Interrupted())
    with Staging(tmp_path / "a", overwrite=True, disk=disk) as staging:
        staging.put("x", b"1")
        with pytest.raises(KeyboardInterrupt):
            staging.commit()
    assert read_files(tmp_path) == {"a/x": b"1"}
    move = [operation.to for operation in disk.trace].index(staging.path)
    order = [(operation.name, operation.path) for operation in disk.trace[move:]]
    assert order.index(("fsync", str(tmp_path))) < [name for name, _ in order].index("unlink")


@pytest.mark.parametrize("name", ["mkdir", "open_directory", "lock", "exchange", "rmdir"])
def test_an_interrupt_at_the_start_leaves_nothing(name: str, tmp_path: Path) -> None:
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

    make_directory(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        Staging(tmp_path / "a", overwrite=True, disk=Interrupted())
    assert list_names(tmp_path) == ["a"]


def test_an_interrupt_while_removing_the_old_checkpoint_does_not_stop_the_removal(
    tmp_path: Path,
) -> None:
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
    assert read_files(tmp_path) == {"a/x": b"1"}
