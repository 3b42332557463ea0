"""Every change that templax makes to a file system, and what its refusals mean to a user."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from ..errors import SaveError

_FULL_FSYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)

_UNSERVED = frozenset((errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY))
"""What a file system answers that doesn't know an operation."""


class Disk:
    """One method for each operation; each makes one system call and raises `OSError` only.

    A subclass may watch, delay or refuse them: `templax.testing.FaultyDisk`. Reading and listing
    change nothing, so they are not here. Thread-safe.
    """

    def mkdir(self, path: str) -> None:
        os.mkdir(path)

    def create(self, path: str) -> int:
        """A descriptor of a new, empty file. An existing file is never opened."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def open_directory(self, path: str) -> int:
        """A descriptor to sync or lock a directory by."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """How many bytes of `data` were written, from the first: maybe not all."""
        return os.pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        """What was written to a file, or the names in a directory, survives a loss of power.

        Once it has failed, nothing is known of the bytes, and a second call may well say that all
        is well: it must not be tried again.
        """
        if _FULL_FSYNC is not None:  # macOS, where fsync leaves the bytes in the drive's cache
            try:
                fcntl.fcntl(fd, _FULL_FSYNC)
                return
            except OSError as error:
                if error.errno not in _UNSERVED:
                    raise
        os.fsync(fd)

    def lock(self, fd: int, shared: bool = False) -> None:
        """Locks what is open, or raises `BlockingIOError`; given up when the process ends."""
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    def unlock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, old: str, new: str) -> None:
        """Moves a directory; replaces an empty one, never one that holds something."""
        os.rename(old, new)

    def exchange(self, one: str, other: str) -> None:
        """Swaps what two paths name, in one step: at no instant does either name nothing."""
        swap = _swap()
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
"""The real one."""


class Descriptor:
    """A descriptor that is closed once nothing uses it any more.

    A save may be given up while threads write: were the descriptor closed under them, its number
    could be that of another file of the program by the time they write.
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


@functools.cache
def _swap() -> Callable[[bytes, bytes], int] | None:
    """What swaps two paths: renameat2(2) of Linux, renamex_np(2) of macOS; None of an old libc."""
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
    here = -100  # AT_FDCWD
    return lambda one, other: renameat2(here, one, here, other, 2)  # RENAME_EXCHANGE


def cannot_swap(error: OSError) -> bool:
    """Whether a failed `exchange` says that the file system has no such operation."""
    return error.errno in _UNSERVED


def try_lock(fd: int, disk: Disk, *, shared: bool = False) -> bool | None:
    """Locks what is open. True: it is ours now. False: somebody holds it. None: no locks here."""
    try:
        disk.lock(fd, shared)
    except BlockingIOError:
        return False
    except OSError as error:  # NFS wants a file that is open for writing: no directory ever is
        if error.errno in _UNSERVED or error.errno in (errno.EBADF, errno.ENOLCK):
            return None
        raise
    return True


def sync_directory(fd: int, disk: Disk) -> None:
    """Syncs the names in a directory, where the file system has an operation for that."""
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


def save_error(doing: str, path: str, error: OSError, rest: str = "") -> SaveError:
    """What the disk refused, as a user can use it.

    Args:
        doing: Verb, such as "write".
        path: File or directory concerned, if `error` names none.
        error: As the disk raised it.
        rest: What became of the save, said behind the reason.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    hint = _HINTS.get(error.errno or 0)
    if error.errno == errno.ENOSPC:
        free = _free(path)
        now = "" if free is None else f" ({free} bytes are free now)"
        hint = f"make room{now}, or save elsewhere"
    named = error.filename2 or error.filename  # of a move, where it went to
    file = named if isinstance(named, str) else path
    return SaveError(f"can't {doing}: {reason}{rest}", file=file, hint=hint)


def _free(path: str) -> int | None:
    """Bytes that may still be written to the file system of `path`, or None if unknown."""
    while True:
        try:
            found = os.statvfs(path)
        except FileNotFoundError:  # what was written there has been removed
            path = os.path.dirname(path)
        except OSError:
            return None
        else:
            return found.f_bavail * found.f_frsize
