"""Who writes to a run and who reads a step, told between processes by locks on its files.

All are locks of the open file (flock): a process that dies gives them up. Where a file system has
none, everybody is taken to be alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress

from ..errors import SaveError
from ..storage.disk import DISK, Disk, save_error, try_lock
from ..storage.leftovers import sync_names

LOCK = ".templax.lock"
"""File in the directory of a run: who holds it is the one that saves there."""

_MOST_READ = 4096


class WriterLock:
    """The right to save to a run; one at a time has it, of all processes and in each.

    Args:
        directory: Of the run; made if it is not there.
    """

    def __init__(self, directory: str, disk: Disk = DISK):
        self._directory, self._disk = directory, disk
        self._held: weakref.finalize[[int, Disk], WriterLock] | None = None

    def acquire(self) -> None:
        """Gets the lock, if this object does not have it yet.

        Raises:
            SaveError: Somebody else has it; or the file system refuses.
        """
        if self._held is not None:
            return
        path = os.path.join(self._directory, LOCK)
        try:
            self._make()
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise save_error("save", path, error) from error
        try:
            if try_lock(fd, self._disk) is False:
                raise SaveError(
                    f"Expected to be the only one that saves to {self._directory}, found"
                    f" {_holder(os.pread(fd, _MOST_READ, 0))}",
                    file=path,
                    hint="close that templax.Manager, or wait until its process ends",
                )
            _write(fd)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and not isinstance(error, SaveError):
                raise save_error("lock", path, error) from error
            raise
        # A manager that is forgotten without being closed must not lock its successor out.
        self._held = weakref.finalize(self, _release, fd, self._disk)

    def _make(self) -> None:
        """Makes the directory, so that a loss of power does not take it away with the steps."""
        missing: list[str] = []
        directory = self._directory
        while not os.path.lexists(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        made: list[str] = []
        try:
            for directory in reversed(missing):
                with suppress(FileExistsError):  # another process was quicker
                    self._disk.mkdir(directory)
                    made.append(directory)
                sync_names(os.path.dirname(directory), self._disk)
        except BaseException:
            for directory in reversed(made):
                with suppress(OSError):
                    self._disk.rmdir(directory)
            raise

    def release(self) -> None:
        """Lets others have it; does nothing if it was never acquired."""
        if self._held is not None:
            self._held()
            self._held = None


def _release(fd: int, disk: Disk) -> None:
    with suppress(OSError):  # a file system without locks
        disk.unlock(fd)  # a forked child may have it open, too
    os.close(fd)


def _write(fd: int) -> None:
    """Says who holds the lock."""
    who = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(who).encode(), 0)


def _holder(text: bytes) -> str:
    """Words for what the lock file says of its holder."""
    try:
        who = json.loads(text)
        pid, host, since = who["pid"], who["host"], who["since"]
    except (ValueError, KeyError, TypeError):
        return "another process"
    if (pid, host) == (os.getpid(), socket.gethostname()):
        return f"another templax.Manager of this process, since {since}"
    return f"process {pid} on {host}, since {since}"


@contextmanager
def hold_for_reading(path: str, disk: Disk = DISK) -> Generator[bool, None, None]:
    """Keeps a step from being deleted while it is read.

    Yields:
        Whether it is there: False if it was deleted or replaced meanwhile.
    """
    fd, there = None, True  # what else is wrong with it is said by who reads it
    try:
        fd = disk.open_directory(path)
    except OSError as error:
        there = not isinstance(error, FileNotFoundError)
    if fd is None:
        yield there
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_SH)  # waits for who replaces or deletes it, if any
        yield _is_at(fd, path)
    finally:
        with suppress(OSError):
            disk.unlock(fd)  # a child that was forked meanwhile has it open, too
        disk.close(fd)


def _is_at(fd: int, path: str) -> bool:
    """Whether a path still names what is open."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
