"""The changes that templax makes to a file system, and error messages for when it refuses them."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..errors import SaveError

fcntl: Any = None  # None on Windows
with suppress(ImportError):
    import fcntl

_FULL_FSYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)

_UNSUPPORTED = frozenset(
    (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY)
)
"""Error codes by which a file system says that it does not support an operation."""


class Disk:
    """One method per operation; each makes one system call and raises only `OSError`.

    A subclass may record, delay or refuse operations, as `templax.testing.FaultyDisk` does. Reading
    and listing are not included, since they change nothing. Thread-safe.
    """

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def create(self, path: str) -> int:
        """Creates an empty file and returns its descriptor. Fails if the file exists."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def open_directory(self, path: str) -> int:
        """Opens a directory in order to sync or lock it; returns the descriptor.

        Windows refuses this with a `PermissionError`.
        """
        return os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """Writes the start of `data`; returns how many bytes were written, which may be fewer."""
        return os.pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        """Makes what was written to a file, or the names in a directory, survive a power loss.

        Never retry this after a failure: the bytes may be lost, and the second call may still
        report success.
        """
        if _FULL_FSYNC is not None:  # macOS: fsync alone leaves the bytes in the drive's cache
            try:
                fcntl.fcntl(fd, _FULL_FSYNC)
                return
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        os.fsync(fd)

    def lock(self, fd: int, shared: bool = False, wait: bool = False) -> None:
        """Locks an open file or directory; released at the latest when the process ends.

        Raises:
            BlockingIOError: Another process holds a lock, and `wait` is False.
        """
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(fd, how if wait else how | fcntl.LOCK_NB)

    def unlock(self, fd: int) -> None:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_UN)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Moves a directory. May replace an empty directory, but never one that is not empty."""
        os.rename(old, new)

    def link(self, old: str, new: str) -> None:
        """Gives a file a second name. Fails if that exists."""
        os.link(old, new)

    def exchange(self, one: str, other: str) -> None:
        """Swaps two directories or files in one step, so that both paths exist at every moment."""
        swap = _find_swap()
        if swap is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), one, None, other)
        if swap(os.fsencode(one), os.fsencode(other)) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), one, None, other)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def rmdir(self, path: str) -> None:
        os.rmdir(path)


DISK = Disk()
"""The real file system."""


def check_can_save(path: str) -> None:
    """Refuses to change anything on a system that lacks what a safe change needs: Windows.

    Raises:
        SaveError: Python offers no file locks there, or no writes at a position.
    """
    missing = [f"`os.{name}`" for name in ("pwrite", "O_DIRECTORY") if not hasattr(os, name)]
    if fcntl is None:
        missing.insert(0, "`fcntl`")
    if missing:
        raise SaveError(
            f"templax can't save or delete on this system (`{sys.platform}`), where Python has no"
            f" {' and no '.join(missing)}",
            file=path,
            hint="save on Linux or macOS, or under WSL; reading works here",
        )


class Descriptor:
    """A file descriptor that is closed when the last reference to it is gone.

    A save may be abandoned while other threads are writing. If the descriptor were closed under
    them, the program could have reused its number for another file by the time they write.
    """

    fd = -1

    def __init__(self, disk: Disk, fd: int):
        self._disk, self.fd = disk, fd

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._disk.close(fd)

    def __del__(self) -> None:
        if self.fd >= 0:
            with suppress(OSError):
                self.close()


def unlock(descriptor: Descriptor | None, disk: Disk = DISK) -> None:
    """Unlocks and closes what is open."""
    if descriptor is not None and descriptor.fd >= 0:
        # Unlock explicitly: a forked child shares the lock, so closing would not release it.
        with suppress(OSError):
            disk.unlock(descriptor.fd)
        with suppress(OSError):
            descriptor.close()


@functools.cache
def _find_swap() -> Callable[[bytes, bytes], int] | None:
    """The function that swaps two paths: renameat2(2) on Linux, renamex_np(2) on macOS.

    None if the C library is too old to have it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        renamex = getattr(libc, "renamex_np", None)
        if renamex is None:
            return None
        renamex.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
        return lambda one, other: renamex(one, other, 2)  # RENAME_SWAP
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is None:
        return None
    path = [ctypes.c_int, ctypes.c_char_p]
    renameat2.argtypes = [*path, *path, ctypes.c_uint]
    cwd = -100  # AT_FDCWD
    return lambda one, other: renameat2(cwd, one, cwd, other, 2)  # RENAME_EXCHANGE


def cannot_swap(error: OSError) -> bool:
    """Whether the error of `exchange` says that the file system does not support it."""
    return error.errno in _UNSUPPORTED


def try_lock(fd: int, disk: Disk, *, shared: bool = False) -> bool | None:
    """Tries to lock an open file or directory, without waiting.

    Returns:
        True if it is locked now, False if another process holds a lock, None if the file system
        has no locks for it.
    """
    try:
        disk.lock(fd, shared)
    except BlockingIOError:
        return False
    except OSError as error:
        # EBADF: NFS locks only what is open for writing, which a directory can't be.
        if error.errno in _UNSUPPORTED or error.errno in (errno.EBADF, errno.ENOLCK):
            return None
        raise
    return True


def sync_directory(fd: int, disk: Disk) -> None:
    """Makes the names in a directory durable, if the file system supports that."""
    try:
        disk.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


_HINTS: dict[int, str] = {
    errno.EACCES: "save where you may write",
    errno.EPERM: "save where you may write",
    errno.EROFS: "save to a file system that is not mounted read-only",
    errno.EDQUOT: "raise your quota, remove what you don't need, or save elsewhere",
    errno.EFBIG: "save to a file system, or under a limit (`ulimit -f`), that takes larger files",
    errno.EIO: "the device or the network fails, see the system's log; save elsewhere",
    errno.ESTALE: "the server lost the directory; save again",
    errno.EMFILE: "raise the limit of open files, `ulimit -n`",
    errno.ENFILE: "the whole system has too many files open; close some",
    errno.ENAMETOOLONG: "save under a shorter name",
    errno.ENOTDIR: "a directory on the way is a file; save elsewhere",
    errno.ELOOP: "symbolic links on the way go in a circle; save elsewhere",
    errno.ENOENT: "another program removed it meanwhile, or a link on the way leads nowhere",
    errno.EBUSY: "is it a mount point? save below it",
    errno.EXDEV: "is it a mount point? save below it",
}


def save_error(action: str, path: str, error: OSError, rest: str = "") -> SaveError:
    """Turns an error of the disk into one that tells the user what failed and what to do.

    Args:
        action: What failed, as a verb such as "write".
        path: The file or directory concerned, unless `error` names one.
        error: As the disk raised it.
        rest: What became of the save; appended to the reason.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = _HINTS.get(error.errno or 0)
    if error.errno == errno.ENOSPC:
        free = _count_free_bytes(path)
        now = "" if free is None else f" ({free} bytes are free now)"
        hint = f"make room{now}, or save elsewhere"
    named = error.filename2 or error.filename  # the destination, for a rename
    file = named if isinstance(named, str) else path
    return SaveError(f"can't {action}: {reason}{rest}", file=file, hint=hint)


def _count_free_bytes(path: str) -> int | None:
    """Bytes still available on the file system of `path`, or None if unknown."""
    while True:
        try:
            stats = os.statvfs(path)
        except FileNotFoundError:  # already removed by the failed save
            path = os.path.dirname(path)
        except OSError:
            return None
        else:
            return stats.f_bavail * stats.f_frsize
