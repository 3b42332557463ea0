"""Blocks of objects on a local disk, shared by all processes that name the same directory."""

from __future__ import annotations

import itertools
import logging
import os
import struct
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from ..errors import UsageError

fcntl: Any = None  # None on Windows, where two processes may fetch the same block
with suppress(ImportError):
    import fcntl

_log = logging.getLogger("templax")

CACHE_BYTES = 64 * 1024**3
"""Default for `cache_bytes=`."""

_TRAILER = struct.Struct("<8sQI")
"""Follows the bytes of a block: a mark, their number, and a crc32c of its name and bytes."""

_MARK = b"txblock1"

_THREADS = 8

_LOCKS = ".locks"
"""The file whose ranges are locked. Its first 8 bytes count the bytes of all blocks."""

_COUNTER, _SWEEP, _FIRST_BLOCK = 0, 1, 16
"""Offsets of the ranges, one byte each: of the counter, of eviction, and of blocks from here on."""

_KEPT_SHARE = 0.9
"""Eviction reduces the cache to this share of the bound, so as not to be needed again at once."""

_MAX_SWEEP_S = 10.0
"""How long to wait while somebody else makes room; after that, the block is not stored."""

_PART = ".part"

_ABANDONED_S = 3600.0
"""A temporary file of this age is removed: whoever wrote it was killed."""


class BlockCache:
    """Files that hold one block each, named by a hash of what identifies its bytes.

    A block is written under a temporary name and renamed, so that no process sees half of it. Each
    read compares its checksum. The least recently read blocks are evicted. If the disk
    fails, that is logged once, and reads bypass the cache: it never makes a restore fail.

    Locks are `fcntl` locks on ranges of one file, which the system releases when a process ends.
    They only save requests: without them, blocks are fetched twice, never wrong. They belong to the
    process and end when any descriptor of the file is closed. So `open_cache` makes one object per
    directory, which never closes that file.

    Args:
        directory: Created if it does not exist.
        max_bytes: The bound.

    Attributes:
        pool: Threads that read and write blocks.
    """

    def __init__(self, directory: str, max_bytes: int):
        self.directory, self.max_bytes = directory, max_bytes
        self.pool = ThreadPoolExecutor(_THREADS, "templax-cache")
        self._crc32c = import_module("crc32c").crc32c
        self._mutex = threading.Lock()
        self._sweeping = threading.Lock()
        self._held: set[int] = set()
        self._numbers = itertools.count()
        self._has_failed = self._reads_badly = False
        self._fd: int | None = None
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            self._fd = os.open(os.path.join(directory, _LOCKS), flags, 0o600)
        except OSError as error:
            self._stop_storing(error)

    @property
    def stores(self) -> bool:
        """Whether blocks are stored; False once a write has failed."""
        return self._fd is not None and not self._has_failed

    def has(self, name: str) -> bool:
        """Whether there is a file for a block."""
        return os.path.exists(self._path(name))

    def read(self, name: str, size: int, start: int, out: memoryview) -> bool:
        """Reads a part of a block.

        Args:
            name: The block.
            size: Its number of bytes.
            start: First byte of the part.
            out: Receives the part; may be overwritten even if there is no such block.

        Returns:
            Whether the block was there, whole and undamaged.
        """
        path = self._path(name)
        data = out if len(out) == size else memoryview(np.empty(size, np.uint8))
        trailer = bytearray(_TRAILER.size + 1)  # one more, to notice a longer file
        try:
            with open(path, "rb", buffering=0) as file:
                nbytes = _read_full(file, data) + _read_full(file, memoryview(trailer))
                is_whole = nbytes == size + _TRAILER.size and self._matches(name, data, trailer)
                if is_whole:
                    with suppress(OSError):  # a read-only disk can't record the read
                        os.utime(file.fileno() if os.utime in os.supports_fd else path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if not self._reads_badly:
                self._reads_badly = True
                _log.warning(
                    "can't read cache file `%s` (%s); bytes are fetched instead",
                    path,
                    error.strerror or error,
                )
            return False
        if not is_whole:
            _log.warning("cache file `%s` is damaged; it is removed, its bytes are fetched", path)
            with suppress(OSError):
                os.unlink(path)
        elif data is not out:
            out[:] = data[start : start + len(out)]
        return is_whole

    def store(self, name: str, data: memoryview) -> None:
        """Stores a block, unless the disk is full or read-only."""
        length = len(data) + _TRAILER.size
        if not self.stores or length > self.max_bytes:
            return
        path = self._path(name)
        temporary = f"{path}.{os.getpid()}-{next(self._numbers)}{_PART}"
        crc = self._crc32c(data, self._crc32c(name.encode()))
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(temporary, "xb") as file:
                file.truncate(length)  # so that a sweep counts this file, too
                is_room = self._change_used(length) <= self.max_bytes or self._make_room()
                if is_room:
                    file.write(data)
                    file.write(_TRAILER.pack(_MARK, len(data), crc))
            with self._hold_sweeps():  # one would miss a file that changes its name meanwhile
                if is_room:
                    os.replace(temporary, path)
                else:
                    os.unlink(temporary)
                    self._change_used(-length)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            self._stop_storing(error)

    def try_lock(self, name: str) -> bool:
        """Takes the right to fetch a block, unless it is taken, by this process or another one."""
        offset = _FIRST_BLOCK + int(name[:15], 16)
        with self._mutex:
            if offset in self._held or not self._lock_range(offset, wait=False):
                return False
            self._held.add(offset)
        return True

    def unlock(self, name: str) -> None:
        """Gives back the right that `try_lock` took."""
        offset = _FIRST_BLOCK + int(name[:15], 16)
        with self._mutex:
            self._held.discard(offset)
            self._unlock_range(offset)

    def _path(self, name: str) -> str:
        return os.path.join(self.directory, name[:2], name)

    def _matches(self, name: str, data: memoryview, trailer: bytearray) -> bool:
        mark, size, crc = _TRAILER.unpack_from(trailer)
        if mark != _MARK or size != len(data):
            return False
        return crc == self._crc32c(data, self._crc32c(name.encode()))

    def _stop_storing(self, error: OSError) -> None:
        with self._mutex:
            is_first, self._has_failed = not self._has_failed, True
        if is_first:
            _log.warning(
                "can't write to the cache `%s` (%s); what it does not hold is fetched without it",
                self.directory,
                error.strerror or error,
            )

    def _lock_range(self, offset: int, *, wait: bool) -> bool:
        """Locks one byte; always succeeds on a file system without locks."""
        if fcntl is None or self._fd is None:
            return True
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, offset)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: locked by another process
            return False
        except OSError:
            return True
        return True

    def _unlock_range(self, offset: int) -> None:
        if fcntl is not None and self._fd is not None:
            with suppress(OSError):
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, offset)

    def _change_used(self, nbytes: int) -> int:
        """Adds to the counter of the bytes of all blocks; returns its new value."""
        assert self._fd is not None
        with self._mutex:
            self._lock_range(_COUNTER, wait=True)
            try:
                os.lseek(self._fd, 0, os.SEEK_SET)
                used = max(0, int.from_bytes(os.read(self._fd, 8), "little") + nbytes)
                os.lseek(self._fd, 0, os.SEEK_SET)
                os.write(self._fd, used.to_bytes(8, "little"))
            finally:
                self._unlock_range(_COUNTER)
        return used

    def _make_room(self) -> bool:
        """Removes the blocks that were read longest ago; returns whether the bound holds now.

        A process that has one open can go on reading: the bytes stay until the file is closed.
        """
        with self._hold_sweeps() as is_held:
            if not is_held:
                return False
            before = self._change_used(0)
            return before <= self.max_bytes or self._sweep(before) <= self.max_bytes

    @contextmanager
    def _hold_sweeps(self) -> Generator[bool]:
        """Keeps other threads and processes from removing blocks.

        Yields:
            Whether it could; if not, one of them has not ended in time.
        """
        if not self._sweeping.acquire(timeout=_MAX_SWEEP_S):
            yield False
            return
        try:
            deadline, is_locked = time.monotonic() + _MAX_SWEEP_S, True
            while is_locked and not self._lock_range(_SWEEP, wait=False):
                is_locked = time.monotonic() < deadline
                time.sleep(0.001)
            try:
                yield is_locked
            finally:
                if is_locked:
                    self._unlock_range(_SWEEP)
        finally:
            self._sweeping.release()

    def _sweep(self, counted: int) -> int:
        """Removes blocks, and corrects the counter; returns the bytes of what is left."""
        blocks, used, removed = list[_File](), 0, 0
        for file in self._list_files():
            used += file.size
            if not file.path.endswith(_PART):
                blocks.append(file)
        for file in sorted(blocks):
            if used <= _KEPT_SHARE * self.max_bytes:
                break
            with suppress(FileNotFoundError):
                os.unlink(file.path)
            used -= file.size
            removed += 1
        self._change_used(used - counted)
        _log.debug("removed %d blocks from the cache `%s`", removed, self.directory)
        return used

    def _list_files(self) -> Generator[_File]:
        """Yields all blocks, and those being written; removes what killed processes left."""
        with os.scandir(self.directory) as found:
            directories = [entry.path for entry in found if len(entry.name) == 2]
        for directory in directories:
            with suppress(FileNotFoundError, NotADirectoryError), os.scandir(directory) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        stat = entry.stat()
                        age = time.time() - stat.st_mtime
                        if entry.name.endswith(_PART) and age > _ABANDONED_S:
                            os.unlink(entry.path)
                        else:
                            yield _File(stat.st_mtime_ns, stat.st_size, entry.path)


class _File(NamedTuple):
    used_ns: int
    size: int
    path: str


def _read_full(file: Any, out: memoryview) -> int:
    """Reads until `out` is full or the file ends; returns the number of bytes."""
    done = 0
    while done < len(out) and (nbytes := file.readinto(out[done:])):
        done += nbytes
    return done


_opened: dict[tuple[str, int], BlockCache] = {}

_opened_lock = threading.Lock()


def open_cache(directory: str | os.PathLike[str], max_bytes: int) -> BlockCache:
    """The cache in a directory, one object for each process: a forked child gets its own.

    Args:
        directory: `~` is expanded.
        max_bytes: The bound. It replaces the one of a cache that is open already.

    Raises:
        UsageError: The directory is not a path, or the bound is not a positive int.
    """
    text: object = os.fspath(directory) if isinstance(directory, (str, os.PathLike)) else directory
    if not isinstance(text, str) or not text or "\0" in text:
        raise UsageError(f"Expected cache= a directory, got {directory!r}")
    if not isinstance(max_bytes, int) or isinstance(max_bytes, bool) or max_bytes < 1:
        raise UsageError(f"Expected cache_bytes= an int of at least 1, got {max_bytes!r}")
    path = os.path.realpath(os.path.expanduser(text))
    with _opened_lock:
        found = _opened.get((path, os.getpid()))
        if found is None:
            found = _opened[path, os.getpid()] = BlockCache(path, max_bytes)
        found.max_bytes = max_bytes
    return found
