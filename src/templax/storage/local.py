"""Files of the local machine (or of anything mounted)."""

from __future__ import annotations

import errno
import mmap
import os
import re
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np

from ..errors import Corrupted, NotFound, SourceError
from .source import ObjectInfo

Version = tuple[int, int, int, int]

_LOCAL = frozenset(
    ("btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "overlay", "squashfs", "tmpfs", "xfs", "zfs")
)


def _file_system(path: str) -> str | None:
    """Type of the file system that holds `path`, as Linux names it, or None if unknown."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    types: dict[str, str] = {}
    for fields in lines:  # proc_pid_mountinfo(5); of two mounts at one place the last counts
        types[re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), fields[4])] = fields[
            fields.index("-") + 1
        ]
    holding = [at for at in types if path == at or path.startswith(at.rstrip("/") + "/")]
    return types[max(holding, key=len)] if holding else None


def on_this_machine(path: str) -> bool:
    """Whether no other machine shares the file system that holds `path`, as far as is known."""
    return _file_system(os.path.realpath(path)) in _LOCAL


def _version(stat: os.stat_result) -> Version:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _info(key: str, stat: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, stat.st_size, _version(stat), stat.st_mtime)


class Local:
    """A directory, or a single file whose key is `""`.

    Args:
        path: Relative or absolute; `~` is expanded. Need not exist.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.url = os.path.expanduser(os.fspath(path))
        # Absolute now: a later chdir must not change what is read.
        self._root = os.path.abspath(self.url)
        if os.path.basename(self.url.rstrip("/")) in ("", ".", ".."):
            self.url = self._root  # its name tells: a step's number, a save that never finished
        self._versions: dict[str, Version] = {}
        self._lock = threading.Lock()
        self._mappable: bool | None = None
        self._maps: weakref.WeakValueDictionary[str, mmap.mmap] = weakref.WeakValueDictionary()

    def __repr__(self) -> str:
        return f"Local({self.url!r})"

    def _path(self, key: str) -> str:
        return os.path.join(self._root, key) if key else self._root

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        try:
            with os.scandir(self._path(prefix)) as listing:
                found = sorted(listing, key=lambda e: e.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._failed(prefix, error) from error
        for entry in found:
            if entry.is_dir():
                yield ObjectInfo(f"{prefix}{entry.name}/", 0)
                continue
            try:
                stat = entry.stat()
            except FileNotFoundError:  # a dangling link, or removed since the listing
                continue
            yield _info(f"{prefix}{entry.name}", stat)

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
                if identity not in above:  # a link to a directory above would never end
                    pending.append((info.key, above | {identity}))

    def stat(self, key: str) -> ObjectInfo | None:
        try:
            stat = os.stat(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise self._failed(key, error) from error
        if os.path.isdir(self._path(key)):
            return ObjectInfo(f"{key.rstrip('/')}/", 0, modified=stat.st_mtime)
        return _info(key, stat)

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        with self._opened(key) as fd:
            version, stop = self._checked(fd, key, start, stop)
            if out is None:
                out = memoryview(np.empty(stop - start, np.uint8))
            view = out.cast("B") if out.ndim != 1 or out.format != "B" else out
            done = 0
            while done < len(view):
                n = os.preadv(fd, [view[done:]], start + done)
                if n == 0:
                    raise SourceError(f"{self._named(key)} was cut while it was read")
                done += n
            if _version(os.fstat(fd)) != version:
                raise SourceError(f"{self._named(key)} changed while it was read")
            return out

    @contextmanager
    def _opened(self, key: str) -> Generator[int, None, None]:
        """A file's descriptor; what the system says of it becomes an error that names the file."""
        try:
            # Never wait for a file that is not regular, such as a pipe.
            fd = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound("Expected a file, found none", file=key or self.url) from error
        except (OSError, ValueError) as error:
            raise self._failed(key, error) from error
        try:
            yield fd
        except SourceError:
            raise
        except OSError as error:
            raise self._failed(key, error) from error
        finally:
            os.close(fd)

    def _checked(self, fd: int, key: str, start: int, stop: int | None) -> tuple[Version, int]:
        """The version of an open file, if it is the one seen first and has the bytes."""
        version = _version(os.fstat(fd))
        with self._lock:
            known = self._versions.setdefault(key, version)
        if known != version:
            raise SourceError(
                f"{self._named(key)} changed since the checkpoint was opened; hint: open it again"
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
            # Over a network each fault is a request for 4 KiB.
            self._mappable = on_this_machine(self._root)
        return self._mappable

    def view(self, key: str, start: int, stop: int) -> memoryview | None:
        if not self.maps:
            return None
        with self._opened(key) as fd:
            self._checked(fd, key, start, stop)
            with self._lock:
                mapped = self._maps.get(key)
                if mapped is None:
                    # Writable, so that a program that writes to the memory (a donated array)
                    # changes its own pages, not the file; nothing is set aside for that.
                    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
                    mapped = mmap.mmap(fd, 0, flags, mmap.PROT_READ | mmap.PROT_WRITE)
                    self._maps[key] = mapped
            if stop > len(mapped):
                raise SourceError(f"{self._named(key)} was cut while it was read")
            return memoryview(mapped)[start:stop]

    def at(self, key: str) -> Local:
        return Local(os.path.normpath(os.path.join(self.url, key)))

    def _named(self, key: str) -> str:
        return f"file `{key}` of {self.url}" if key else f"file {self.url}"

    def _failed(self, key: str, error: OSError | ValueError) -> SourceError:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        if isinstance(error, OSError) and error.errno == errno.EISDIR:
            reason = "is a directory, expected a file"
        return SourceError(f"can't read `{self._path(key)}`: {reason}")
