"""What abandoned saves leave behind: how it is found, and how it is removed."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import templax as tx
from disks import RefusingDisk, abandon_save, make_directory
from helpers import list_names, read_files
from templax.storage import Staging, leftovers
from templax.storage.disk import Disk
from templax.storage.leftovers import (
    TEMPORARY,
    delete_checkpoint,
    find_abandoned,
    find_abandoned_in,
    is_abandoned,
    remove_directory,
    temporary_path,
)
from templax.testing import FaultyDisk


def test_a_save_in_progress_is_not_stale(tmp_path: Path) -> None:
    with Staging(tmp_path / "a", overwrite=False) as staging:
        assert find_abandoned(tmp_path / "a") == []
        with pytest.raises(tx.SaveError) as caught:
            remove_directory(staging.directory)
        assert str(caught.value) == (
            f"Expected an abandoned save, found one in progress - file `{staging.directory}`; "
            "hint: wait for it, or end that process"
        )
        staging.put("x", b"1")
        staging.commit()
    assert read_files(tmp_path / "a") == {"x": b"1"}


@pytest.mark.slow
def test_the_directory_of_a_dead_process_is_stale_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from templax.storage.staging import Staging\n"
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
    assert read_files(Path(directory)) == {"x": b"1"}
    assert find_abandoned(tmp_path / "a") == []
    process.communicate("")
    assert find_abandoned(tmp_path / "a") == [directory]


@pytest.mark.slow
def test_only_leftovers_of_templax_for_this_name_are_stale(tmp_path: Path) -> None:
    left = abandon_save(tmp_path / "a")
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
    assert find_abandoned(tmp_path / "a") == [str(left)]
    assert find_abandoned(tmp_path / "nothing" / "a") == []
    (tmp_path / "file").write_bytes(b"")
    assert find_abandoned(tmp_path / "file" / "a") == []


@pytest.mark.slow
def test_two_processes_can_find_a_leftover_at_once(tmp_path: Path) -> None:
    left = abandon_save(tmp_path / "a")
    disk = Disk()
    fd = disk.open_directory(str(left))
    disk.lock(fd, shared=True)  # as a process that is looking holds it
    assert find_abandoned(tmp_path / "a") == [str(left)]
    disk.close(fd)


def _set_age(directory: Path, seconds: float) -> None:
    then = time.time() - seconds
    for path in [*directory.rglob("*"), directory]:
        os.utime(path, (then, then))


@pytest.mark.slow
def test_without_locks_a_leftover_is_stale_after_a_day_without_writes(tmp_path: Path) -> None:
    left = abandon_save(tmp_path / "a")
    none = RefusingDisk(lock=errno.ENOLCK)
    assert find_abandoned(tmp_path / "a", none) == []
    _set_age(left, leftovers.QUIET_S - 60)
    assert find_abandoned(tmp_path / "a", none) == []
    _set_age(left, leftovers.QUIET_S + 60)
    assert find_abandoned(tmp_path / "a", none) == [str(left)]
    os.utime(left / "d" / "part")  # one file is enough
    assert find_abandoned(tmp_path / "a", none) == []


def test_on_a_network_file_system_leftovers_of_other_machines_are_stale_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a local one, another host token means that this machine was restarted since."""
    mine = abandon_save(tmp_path / "a")
    host, random = mine.name.removeprefix(f"a{TEMPORARY}-templax-").split("-")
    other = mine.with_name(f"a{TEMPORARY}-templax-{int(host, 16) ^ 1:08x}-{random}")
    make_directory(other)
    assert find_abandoned(tmp_path / "a") == sorted(map(str, (mine, other)))
    monkeypatch.setattr("templax.storage.local._file_system", lambda path: "nfs4")
    assert find_abandoned(tmp_path / "a") == [str(mine)]
    _set_age(other, leftovers.QUIET_S + 60)
    assert find_abandoned(tmp_path / "a") == sorted(map(str, (mine, other)))


def test_a_leftover_without_a_lock_is_renamed_before_it_is_removed(tmp_path: Path) -> None:
    """Its writer then can't commit a directory that lost files."""
    with Staging(tmp_path / "a", overwrite=False, disk=RefusingDisk(lock=errno.ENOLCK)) as staging:
        staging.put("x", b"1")
        staging.put("y", b"2")
        with pytest.raises(tx.SaveError, match="can't remove: Permission denied"):
            remove_directory(
                staging.directory, RefusingDisk(unlink=errno.EACCES, lock=errno.ENOLCK)
            )
        (left,) = tmp_path.iterdir()
        assert left.name.startswith("a.orbax-checkpoint-tmp-templax-")
        assert str(left) != staging.directory
        with pytest.raises(tx.SaveError, match="can't finish: No such file or directory"):
            staging.commit()
    assert list_names(tmp_path) == [left.name]
    remove_directory(left)
    assert list_names(tmp_path) == []


def test_a_leftover_that_cannot_be_opened_is_stale_after_a_day(tmp_path: Path) -> None:
    """For example one of another user."""
    left = abandon_save(tmp_path / "a")
    closed = RefusingDisk(open_directory=errno.EACCES)
    assert find_abandoned(tmp_path / "a", closed) == []
    _set_age(left, leftovers.QUIET_S + 60)
    assert find_abandoned(tmp_path / "a", closed) == [str(left)]
    with pytest.raises(tx.SaveError, match="can't remove: Permission denied"):
        remove_directory(left, closed)


def test_looking_for_leftovers_on_a_failing_file_system_is_an_error(tmp_path: Path) -> None:
    abandon_save(tmp_path / "a")
    with pytest.raises(tx.SaveError) as caught:
        find_abandoned(tmp_path / "a", RefusingDisk(lock=errno.EIO))
    assert str(caught.value) == (
        f"can't look for abandoned saves: Input/output error - file `{tmp_path}`; hint: "
        "the device or the network fails, see the system's log; save elsewhere"
    )


def test_a_directory_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(tx.SaveError) as caught:
        find_abandoned(tmp_path / "a")
    assert str(caught.value) == (
        f"can't list: Permission denied - file `{tmp_path}`; hint: save where you may write"
    )


def test_removing_does_not_follow_links(tmp_path: Path) -> None:
    kept = make_directory(tmp_path / "kept")
    gone = make_directory(tmp_path / "gone")
    (gone / "link").symlink_to(kept)
    (gone / "file").symlink_to(kept / "sub" / "old")
    (tmp_path / "latest").symlink_to("kept")
    remove_directory(gone)
    delete_checkpoint(tmp_path / "latest")
    assert list_names(tmp_path) == ["kept"]
    assert read_files(kept) == {"sub/old": b"old"}


def test_removing_a_missing_directory_is_not_an_error(tmp_path: Path) -> None:
    remove_directory(tmp_path / "a")
    delete_checkpoint(tmp_path / "a")
    remove_directory(temporary_path(str(tmp_path / "a")))
    assert list_names(tmp_path) == []


def test_a_file_under_a_temporary_name_is_stale(tmp_path: Path) -> None:
    left = Path(temporary_path(str(tmp_path / "a")))
    left.write_bytes(b"")
    assert find_abandoned(tmp_path / "a") == [str(left)]
    remove_directory(left)
    assert list_names(tmp_path) == []


def test_a_checkpoint_is_renamed_before_any_of_its_files_is_removed(tmp_path: Path) -> None:
    for call in (remove_directory, delete_checkpoint):
        make_directory(tmp_path / "a")
        disk = FaultyDisk()
        call(tmp_path / "a", disk)
        order = [o.name for o in disk.trace]
        assert order.index("rename") < order.index("fsync") < order.index("unlink")
        moved = disk.trace[order.index("rename")]
        assert moved.to.startswith(f"{tmp_path}/a.orbax-checkpoint-tmp-templax-")
        assert list_names(tmp_path) == []


def test_a_locked_checkpoint_is_not_removed(tmp_path: Path) -> None:
    make_directory(tmp_path / "a")
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    disk = FaultyDisk()
    assert delete_checkpoint(tmp_path / "a", disk) is False
    with pytest.raises(
        tx.SaveError, match="Expected a directory that is not in use, found a lock on it - file"
    ):
        remove_directory(tmp_path / "a", disk)
    assert "rename" not in {o.name for o in disk.trace}
    os.close(fd)
    assert delete_checkpoint(tmp_path / "a") is True
    assert delete_checkpoint(tmp_path / "a") is True
    assert list_names(tmp_path) == []


def test_leftovers_of_other_programs_count_after_a_day_without_writes(tmp_path: Path) -> None:
    """Other programs take no locks."""
    (tmp_path / "a.orbax-checkpoint-tmp" / "b").mkdir(parents=True)
    (tmp_path / "a.orbax-checkpoint-tmp" / "b" / "c").touch()
    assert not is_abandoned(tmp_path / "a.orbax-checkpoint-tmp")
    for path in (tmp_path / "a.orbax-checkpoint-tmp", *tmp_path.rglob("?")):
        os.utime(path, (time.time() - leftovers.QUIET_S - 9,) * 2)
    assert is_abandoned(tmp_path / "a.orbax-checkpoint-tmp")
    (tmp_path / "a.orbax-checkpoint-tmp" / "b" / "c").write_bytes(b"d")
    assert not is_abandoned(tmp_path / "a.orbax-checkpoint-tmp")


@pytest.mark.slow
def test_the_parent_directory_is_synced_before_a_leftover_is_removed(tmp_path: Path) -> None:
    """The killed save may have swapped it out; a power loss would undo a swap not yet synced."""
    left, disk = abandon_save(tmp_path / "a"), FaultyDisk()
    remove_directory(left, disk)
    order = [(o.name, o.path) for o in disk.trace]
    first = next(i for i, (name, _) in enumerate(order) if name in ("unlink", "rmdir"))
    assert ("fsync", str(tmp_path)) in order[:first]
    assert list_names(tmp_path) == []


@pytest.mark.slow
def test_a_save_removes_leftovers_of_killed_saves(tmp_path: Path) -> None:
    left = [abandon_save(tmp_path / "a"), abandon_save(tmp_path / "a")]
    other = abandon_save(tmp_path / "b")
    with Staging(tmp_path / "a", overwrite=False) as live:
        live.put("x", b"1")
        with Staging(tmp_path / "a", overwrite=False) as staging:
            staging.put("x", b"2")
            assert all(map(os.path.exists, left))  # not before the new save is committed
            staging.commit()
        assert sorted(map(str, tmp_path.iterdir())) == sorted(
            [staging.path, live.directory, str(other)]
        )
    assert list_names(tmp_path) == sorted(["a", other.name])


@pytest.mark.slow
@pytest.mark.parametrize("reads", [True, False])
def test_a_save_succeeds_if_leftovers_cannot_be_removed(
    reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = abandon_save(tmp_path / "a")
    if not reads:
        monkeypatch.setattr(os, "listdir", Disk().rmdir)  # raises OSError
    with Staging(
        tmp_path / "a", overwrite=False, disk=RefusingDisk(unlink=errno.EACCES)
    ) as staging:
        staging.put("x", b"1")
        staging.commit()
    assert read_files(tmp_path / "a") == {"x": b"1"}
    assert staging.not_removed == ()
    assert left.exists()


@pytest.mark.parametrize(("code", "cleared"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_a_save_that_runs_out_of_space_removes_leftovers(
    code: int, cleared: bool, tmp_path: Path
) -> None:
    """That may be all the next attempt needs."""
    left = abandon_save(tmp_path / "a")
    staging = Staging(tmp_path / "a", overwrite=False, disk=RefusingDisk(write=code))
    with pytest.raises(tx.SaveError):
        staging.put("x", b"1")
    assert left.exists() != cleared


@pytest.mark.slow
def test_stale_in_lists_all_leftovers_of_a_directory(tmp_path: Path) -> None:
    assert find_abandoned_in(tmp_path / "nothing") == []
    left = [abandon_save(tmp_path / name) for name in ("a", "b", "b", "n" * 255)]
    (tmp_path / f"a{TEMPORARY}-17").mkdir()
    with Staging(tmp_path / "c", overwrite=False):
        assert find_abandoned_in(tmp_path) == sorted(map(str, left))


def test_threads_can_remove_a_directory_together(tmp_path: Path) -> None:
    for i in range(300):
        (tmp_path / "a" / str(i % 7)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / str(i % 7) / str(i)).write_bytes(b"")
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: leftovers.delete_tree(str(tmp_path / "a"), Disk()), range(4)):
            pass
    assert list_names(tmp_path) == []


@pytest.mark.slow
def test_a_directory_deeper_than_the_recursion_limit_is_removed(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.mkdir(tmp_path / "a")
    at = os.open("a", os.O_RDONLY, dir_fd=fd)
    for _ in range(1200):  # deeper than Python recurses
        os.mkdir("d", dir_fd=at)
        at, before = os.open("d", os.O_RDONLY, dir_fd=at), at
        os.close(before)
    os.close(at)
    os.close(fd)
    remove_directory(tmp_path / "a")
    assert list_names(tmp_path) == []


class BusyDisk(Disk):
    """A disk on which another process adds files to a directory just before it is removed."""

    def __init__(self, times: int):
        self.left = times

    def rmdir(self, path: str) -> None:
        if self.left:
            self.left -= 1
            Path(path, f"late{self.left}").mkdir()
            Path(path, f"late{self.left}", "file").write_bytes(b"x")
        super().rmdir(path)


def test_what_another_process_of_a_job_still_adds_is_deleted_too(tmp_path: Path) -> None:
    top = make_directory(tmp_path / "top")
    leftovers.delete_tree(str(top), BusyDisk(5))
    assert list_names(tmp_path) == []


def test_a_directory_that_never_becomes_empty_is_an_error(tmp_path: Path) -> None:
    top = make_directory(tmp_path / "top")
    with pytest.raises(OSError, match="not empty"):
        leftovers.delete_tree(str(top), BusyDisk(1000))
