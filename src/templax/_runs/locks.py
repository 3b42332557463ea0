"""Locks between processes: one may save to a run, and a step that is being read is not deleted.

All are `flock` locks of an open file, which the system releases when a process dies. On a file
system without locks, every process is assumed to be the only one.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import time
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress

from ..errors import SaveError
from ..storage.disk import DISK, Disk, check_can_save, save_error, try_lock
from ..storage.leftovers import sync_names

LOCK = ".templax.lock"
"""The file in the directory of a run that the process which saves there has locked."""

_MAX_HOLDER_BYTES = 4096
"""The most that is read of the lock file, whose content is only shown."""


class WriterLock:
    """The right to save to a run, which one object of one process has at a time.

    Args:
        directory: The directory of the run, created by `acquire` if it does not exist.
    """

    def __init__(self, directory: str, disk: Disk = DISK):
        self._directory, self._disk = directory, disk
        self._held: weakref.finalize[[int, Disk, int], WriterLock] | None = None

    def acquire(self) -> None:
        """Acquires the lock, unless this object has it already.

        Raises:
            SaveError: Somebody else has it; or the file system refuses.
        """
        if self._held is not None:
            return
        path = os.path.join(self._directory, LOCK)
        check_can_save(self._directory)
        try:
            self._make_directory()
            fd = _open_lock_file(path)
        except OSError as error:
            raise save_error("save", path, error) from error
        try:
            if try_lock(fd, self._disk) is False:
                raise SaveError(
                    f"Expected to be the only one that saves to {self._directory}, found"
                    f" {_describe_holder(os.pread(fd, _MAX_HOLDER_BYTES, 0))}",
                    file=path,
                    hint="close that templax.Manager, or wait until its process ends",
                )
            if not _names_open_file(fd, path, follow_symlinks=False):
                what = "Another program replaced the lock file meanwhile"
                raise SaveError(what, file=path, hint="save again")
            _write_holder(fd)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError) and not isinstance(error, SaveError):
                raise save_error("lock", path, error) from error
            raise
        # A manager that was dropped without being closed must not lock out its successor.
        self._held = weakref.finalize(self, _release, fd, self._disk, os.getpid())

    def _make_directory(self) -> None:
        """Makes the directory durably: a power loss must not remove it together with its steps."""
        missing: list[str] = []
        directory = self._directory
        while not os.path.lexists(directory):
            missing.append(directory)
            directory = os.path.dirname(directory)
        made: list[str] = []
        try:
            for directory in reversed(missing):
                with suppress(FileExistsError):  # another process was faster
                    self._disk.mkdir(directory)
                    made.append(directory)
                sync_names(os.path.dirname(directory), self._disk)
        except BaseException:
            for directory in reversed(made):
                with suppress(OSError):
                    self._disk.rmdir(directory)
            raise

    def release(self) -> None:
        """Releases the lock. Does nothing if this object does not have it."""
        if self._held is not None:
            self._held()
            self._held = None


def _open_lock_file(path: str) -> int:
    """Opens a lock file, creates it if there is none, and returns its descriptor.

    Its content is overwritten, so it must not be something else that somebody has put there, such
    as a link to another file.

    Raises:
        SaveError: It is not a regular file; or it has another name (a hard link) and was not
            written by templax.
        OSError: The file system refuses.
    """
    try:
        found = os.lstat(path).st_mode
        if not stat.S_ISREG(found):
            kind = "a link" if stat.S_ISLNK(found) else "something else"
            raise _not_a_lock_error(path, kind)
    except FileNotFoundError:
        pass
    # Something else may appear there in between: follow no link, wait for no pipe or device.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    status = os.fstat(fd)
    # Backups that copy a run by hard links share its lock file.
    if not stat.S_ISREG(status.st_mode) or (status.st_nlink > 1 and not _holds_lock_text(fd)):
        os.close(fd)
        raise _not_a_lock_error(path, "a file that has another name, too")
    return fd


def _holds_lock_text(fd: int) -> bool:
    """Whether a file is empty, or holds what `_write_holder` writes and nothing else."""
    text = os.pread(fd, _MAX_HOLDER_BYTES, 0)
    try:
        return not text or set(json.loads(text)) == {"pid", "host", "since"}
    except (ValueError, TypeError, RecursionError):
        return False


def _not_a_lock_error(path: str, found: str) -> SaveError:
    return SaveError(
        f"Expected the lock file of this run, found {found}",
        file=path,
        hint="remove it, unless a process saves there",
    )


def _release(fd: int, disk: Disk, process: int) -> None:
    if os.getpid() == process:  # a forked child shares the lock, which stays with its parent
        with suppress(OSError):  # a file system without locks
            disk.unlock(fd)  # closing is not enough: a forked child may have the file open too
    os.close(fd)


def _write_holder(fd: int) -> None:
    """Writes to the lock file who holds it."""
    who = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(who).encode(), 0)


def _describe_holder(text: bytes) -> str:
    """The holder of the lock in words, from the content of the lock file."""
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
        Whether the step exists: False if it was deleted or replaced meanwhile.
    """
    fd, exists = None, True
    try:
        fd = disk.open_directory(path)
    except OSError as error:
        # Any other problem is reported by the caller, when it reads the step.
        exists = not isinstance(error, FileNotFoundError)
    if fd is None:
        yield exists
        return
    try:
        with suppress(OSError):  # a file system without locks
            disk.lock(fd, shared=True, wait=True)  # a process may be replacing or deleting it
        yield _names_open_file(fd, path)
    finally:
        with suppress(OSError):
            disk.unlock(fd)  # a child that was forked meanwhile has the file open too
        disk.close(fd)


def _names_open_file(fd: int, path: str, follow_symlinks: bool = True) -> bool:
    """Whether a path still names the file that is open."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=follow_symlinks))
    except FileNotFoundError:
        return False
