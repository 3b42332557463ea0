"""A source that reads local files, on any mounted file system."""

from __future__ import annotations

import errno
import mmap
import os
import re
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import Corrupted, NotFound, SourceError
from .source import ObjectInfo

Version = tuple[int, int, int, int]

_LOCAL = frozenset(
    ("btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "overlay", "squashfs", "tmpfs", "xfs", "zfs")
)


def _file_system(path: str) -> str | None:
    """The type of the file system of `path`, by its Linux name such as "ext4"; None if unknown."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    types: dict[str, str] = {}
    for fields in lines:  # see proc_pid_mountinfo(5); the last of several mounts at one path wins
        types[re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), fields[4])] = fields[
            fields.index("-") + 1
        ]
    mounts = [at for at in types if path == at or path.startswith(at.rstrip("/") + "/")]
    return types[max(mounts, key=len)] if mounts else None


def on_this_machine(path: str) -> bool:
    """Whether `path` is on a file system known not to be shared with other machines."""
    return _file_system(os.path.realpath(path)) in _LOCAL


# O_NONBLOCK, so as not to wait for a special file such as a pipe. O_BINARY, or Windows would change
# line ends. Each system has only one of them.
_READ_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def _read_at(fd: int, view: memoryview, start: int) -> int:
    """Reads into `view` from byte `start` of a file; returns how many bytes, 0 at the end."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], start)
    with open(fd, "rb", buffering=0, closefd=False) as file:  # Windows, and macOS before 11
        file.seek(start)
        return file.readinto(view) or 0


def _version(stat: os.stat_result) -> Version:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _info(key: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, stat.st_size, _version(stat), stat.st_mtime)


class Local:
    """A source over a directory, or over a single file, whose key is then `""`.

    Args:
        path: Relative or absolute; `~` is expanded. It need not exist.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> root = Path(tempfile.mkdtemp())
        >>> _ = (root / "data").write_bytes(b"hello")
        >>> bytes(Local(root).read("data", 1, 4))
        b'ell'
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.url = os.path.expanduser(os.fspath(path))
        if os.sep == "\\":  # on Windows, which accepts both: URLs are separated by slashes
            self.url = self.url.replace(os.sep, "/")
        # Made absolute now, so that a later chdir does not change what is read.
        self._root = os.path.abspath(self.url)
        if os.path.basename(self.url.rstrip("/")) in ("", ".", ".."):
            # The name of the directory matters: it may be a step number, or an unfinished save.
            self.url = self._root
        self._versions: dict[str, Version] = {}
        self._lock = threading.Lock()
        self._mappable: bool | None = None
        self._maps: weakref.WeakValueDictionary[str, mmap.mmap] = weakref.WeakValueDictionary()

    def __repr__(self) -> str:
        return f"Local({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:  # a copy holds the reader to the versions seen here, and nothing open
            return {"url": self.url, "_root": self._root, "_versions": dict(self._versions)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_root"])
        self.__dict__ |= state

    def _path(self, key: str) -> str:
        return os.path.join(self._root, key) if key else self._root

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        try:
            with os.scandir(self._path(prefix)) as listing:
                entries = sorted(listing, key=lambda e: e.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._make_error(prefix, error) from error
        for entry in entries:
            key = f"{prefix}{entry.name}"
            try:
                info = ObjectInfo(f"{key}/", 0) if entry.is_dir() else _info(key, entry.stat())
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP):
                    continue  # a link to nothing or to itself, or removed since the listing
                raise self._make_error(key, error) from error
            yield info

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        pending = [(prefix, frozenset[tuple[int, int]]())]
        while pending:
            directory, above = pending.pop()
            for info in self.children(directory):
                if not info.is_dir:
                    yield info
                    continue
                try:
                    stat = os.stat(self._path(info.key))
                except FileNotFoundError:  # removed since the listing
                    continue
                identity = stat.st_dev, stat.st_ino
                if identity not in above:  # a link to a parent directory would loop forever
                    pending.append((info.key, above | {identity}))

    def stat(self, key: str) -> ObjectInfo | None:
        try:
            stat = os.stat(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise self._make_error(key, error) from error
        if os.path.isdir(self._path(key)):
            return ObjectInfo(f"{key.rstrip('/')}/", 0, modified=stat.st_mtime)
        return _info(key, stat)

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        with self._open_file(key) as fd:
            version, stop = self._check_range(fd, key, start, stop)
            if out is None:
                out = memoryview(np.empty(stop - start, np.uint8))
            view = out.cast("B") if out.ndim != 1 or out.format != "B" else out
            done = 0
            while done < len(view):
                n = _read_at(fd, view[done:], start + done)
                if n == 0:
                    raise SourceError(f"{self._describe(key)} was cut while it was read")
                done += n
            if _version(os.fstat(fd)) != version:
                raise SourceError(f"{self._describe(key)} changed while it was read")
            return out

    @contextmanager
    def _open_file(self, key: str) -> Generator[int, None, None]:
        """Opens a file; translates OS errors, those of the block included, to ones that name it."""
        try:
            fd = os.open(self._path(key), _READ_FLAGS)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound("Expected a file, found none", file=key or self.url) from error
        except (OSError, ValueError) as error:
            raise self._make_error(key, error) from error
        try:
            yield fd
        except SourceError:
            raise
        except OSError as error:
            raise self._make_error(key, error) from error
        finally:
            os.close(fd)

    def _check_range(self, fd: int, key: str, start: int, stop: int | None) -> tuple[Version, int]:
        """Checks that a file is unchanged and long enough; returns its version and `stop`."""
        version = _version(os.fstat(fd))
        with self._lock:
            known = self._versions.setdefault(key, version)
        if known != version:
            raise SourceError(
                f"{self._describe(key)} changed since the checkpoint was opened; hint: open it "
                "again"
            )
        size = version[2]
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            what = f"Expected at least {stop} bytes, the file has {size}"
            raise Corrupted(what, file=key or self.url, start=start, stop=stop)
        return version, stop

    @property
    def maps(self) -> bool:
        if self._mappable is None:
            # On a network file system, each page fault would be a request for 4 KiB. On Windows, a
            # file that is mapped can't be deleted or replaced.
            self._mappable = hasattr(mmap, "MAP_PRIVATE") and on_this_machine(self._root)
        return self._mappable

    def view(self, key: str, start: int, stop: int) -> memoryview | None:
        if not self.maps:
            return None
        with self._open_file(key) as fd:
            self._check_range(fd, key, start, stop)
            with self._lock:
                mapped = self._maps.get(key)
                if mapped is None:
                    # Private and writable: a program that writes to the memory, such as XLA to a
                    # donated array, changes its own copy of the pages, not the file. NORESERVE,
                    # because the kernel need not reserve memory for such copies in advance.
                    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
                    mapped = mmap.mmap(fd, 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)
                    self._maps[key] = mapped
            if stop > len(mapped):
                raise SourceError(f"{self._describe(key)} was cut while it was read")
            return memoryview(mapped)[start:stop]

    def at(self, key: str) -> Local:
        return Local(os.path.normpath(os.path.join(self.url, key)))

    def _describe(self, key: str) -> str:
        return f"file `{key}` of {self.url}" if key else f"file {self.url}"

    def _make_error(self, key: str, error: OSError | ValueError) -> SourceError:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        if isinstance(error, OSError) and error.errno == errno.EISDIR:
            reason = "is a directory, expected a file"
        failed = SourceError(f"can't read `{self._path(key)}`: {reason}")
        if isinstance(error, OSError):
            failed.errno, failed.filename = error.errno, self._path(key)
        return failed
