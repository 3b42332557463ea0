"""A source that reads local files, on any mounted file system."""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import Corrupted, NotFound, SourceError, UsageError
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

_NO_LINK: int = getattr(os, "O_NOFOLLOW", 0)
"""Makes opening a link fail, and costs nothing where there is none. 0 on Windows."""

_MAX_LINKS = 256
"""Maximum number of links to directories that `walk` follows: a few that lead to each other can be
followed in any number of ways."""


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


def _is_within(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or below it. Both are real paths."""
    return path == directory or path.startswith(directory.rstrip(os.sep) + os.sep)


def _list_blobs(root: str) -> Iterator[str]:
    """The directories that links in `snapshots/REVISION` of a Hugging Face cache may lead to.

    >>> list(_list_blobs("/hub/models--a/snapshots/0f1e/onnx"))
    ['/hub/models--a/blobs']
    """
    while (parent := os.path.dirname(root)) != root:
        if os.path.basename(parent) == "snapshots":
            yield os.path.join(os.path.dirname(parent), "blobs")
        root = parent


def make_absolute(path: str) -> str:
    """Makes a path absolute, as `os.path.abspath` does.

    Raises:
        UsageError: The path is relative, and the working directory was deleted.
    """
    try:
        return os.path.abspath(path)
    except OSError as error:
        reason = "which is relative to a working directory that no longer exists"
        raise UsageError(f"Expected a path, got {path!r}, {reason}") from error


class Local:
    """A source over a directory, or over a single file, whose key is then `""`.

    The path may be a symbolic link or lead through some. Below it, a link may lead to anything that
    is below it, too; in a Hugging Face cache (`snapshots/<revision>`), also to the `blobs` beside
    `snapshots`. Any other link is a `SourceError` when it is read: a checkpoint from a stranger
    must not lead to files that are not its own. `at` returns a source with a path of its own: if
    that is a link, it may lead anywhere.

    Args:
        path: Relative or absolute; `~` is expanded. It need not exist.
        follow_links: Whether links below the path may lead out of it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> root = Path(tempfile.mkdtemp())
        >>> _ = (root / "data").write_bytes(b"hello")
        >>> bytes(Local(root).read("data", 1, 4))
        b'ell'
    """

    def __init__(self, path: str | os.PathLike[str], *, follow_links: bool = False):
        self.url = os.path.expanduser(os.fspath(path))
        if os.sep == "\\":  # on Windows, which accepts both: URLs are separated by slashes
            self.url = self.url.replace(os.sep, "/")
        # Made absolute now, so that a later chdir does not change what is read.
        self._root = make_absolute(self.url)
        if os.path.basename(self.url.rstrip("/")) in ("", ".", ".."):
            # The name of the directory matters: it may be a step number, or an unfinished save.
            self.url = self._root
        self._follow_links = follow_links
        self._checked: set[str] = set()  # directories and links that do not lead out
        self._boundaries: tuple[str, ...] = ()
        self._versions: dict[str, Version] = {}
        self._lock = threading.Lock()
        self._mappable: bool | None = None
        self._maps: weakref.WeakValueDictionary[str, mmap.mmap] = weakref.WeakValueDictionary()

    def __repr__(self) -> str:
        return f"Local({self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:  # a copy holds the reader to the versions seen here, and nothing open
            kept = ("url", "_root", "_follow_links")
            state = {name: self.__dict__[name] for name in kept}
            return {**state, "_versions": dict(self._versions)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_root"])
        self.__dict__ |= state

    def _path(self, key: str) -> str:
        return os.path.join(self._root, key) if key else self._root

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        for info, _ in self._list(prefix):
            if not isinstance(info.problem, NotFound):  # a dangling link
                yield info

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        pending, links = [(prefix, frozenset[str]())], 0
        while pending:
            directory, above = pending.pop()
            try:
                listed = self._list(directory)
            except SourceError as error:
                if directory == prefix:
                    raise
                yield ObjectInfo(directory.rstrip("/"), 0, problem=error)
                continue
            for info, is_link in listed:
                key = info.key.rstrip("/")
                if not info.is_dir:
                    yield info
                elif info.problem is not None:
                    yield replace(info, key=key)
                elif not is_link:
                    if not directory or directory[:-1] in self._checked:
                        self._checked.add(key)
                    pending.append((info.key, above))
                else:
                    links += 1
                    real = os.path.realpath(self._path(key))
                    if links > _MAX_LINKS:
                        what = f"is one of more than {_MAX_LINKS} links to directories"
                    elif real in above:
                        what = "is a link to a directory around it"
                    else:
                        pending.append((info.key, above | {real}))
                        continue
                    error = SourceError(f"can't read `{self._path(key)}`: it {what}")
                    yield ObjectInfo(key, 0, problem=error)

    def _list(self, prefix: str) -> list[tuple[ObjectInfo, bool]]:
        """What is directly below `prefix`, dangling links included, and whether each is a link."""
        found: list[tuple[ObjectInfo, bool]] = []
        self._check_links(prefix.rstrip("/"))
        try:
            with os.scandir(self._path(prefix)) as listing:
                entries = sorted(listing, key=lambda e: e.name)
        except (FileNotFoundError, NotADirectoryError):
            return found
        except (OSError, ValueError) as error:
            raise self._make_error(prefix, error) from error
        for entry in entries:
            key, is_link = f"{prefix}{entry.name}", False
            try:
                is_link = entry.is_symlink()
                if is_link:
                    info = self._describe_link(key, entry)
                elif entry.is_dir(follow_symlinks=False):
                    info = ObjectInfo(f"{key}/", 0)
                else:
                    info = _info(key, entry.stat(follow_symlinks=False))
            except OSError as error:
                if error.errno == errno.ENOENT:  # removed since the listing
                    continue
                info = ObjectInfo(key, 0, problem=self._make_error(key, error))
            found.append((info, is_link))
        return found

    def _describe_link(self, key: str, entry: os.DirEntry[str]) -> ObjectInfo:
        try:
            status = entry.stat()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            target = os.readlink(self._path(key))
            what = f"Expected a file, found a link to `{target}`, where there is nothing"
            return ObjectInfo(key, 0, problem=NotFound(what, file=key))
        problem = self._find_way_out(key)
        if stat.S_ISDIR(status.st_mode):
            path = self._path(key)
            if _is_within(os.path.realpath(os.path.dirname(path)), os.path.realpath(path)):
                # Not listed as a directory, so that nobody descends into it and comes back here.
                what = f"can't read `{path}`: it is a link to a directory around it"
                return ObjectInfo(key, 0, problem=SourceError(what))
            return ObjectInfo(f"{key}/", 0, problem=problem)
        return replace(_info(key, status), problem=problem)

    def _check_links(self, key: str) -> None:
        """Raises a `SourceError` if a link on the way to `key`, or at `key`, leads out."""
        at = key.find("/")
        while at >= 0:
            self._check_link(key[:at])
            at = key.find("/", at + 1)
        if key:
            self._check_link(key)

    def _check_link(self, key: str) -> None:
        if key in self._checked or self._follow_links:
            return
        try:
            status = os.lstat(self._path(key))
        except (OSError, ValueError):  # the read that follows reports it
            return
        if stat.S_ISLNK(status.st_mode):
            problem = self._find_way_out(key)
            if problem is not None:
                raise problem
        elif not stat.S_ISDIR(status.st_mode):
            return
        self._checked.add(key)

    def _find_way_out(self, key: str) -> SourceError | None:
        """The error for a link that leads out of the root; None if it does not, or is dangling."""
        if self._follow_links:
            return None
        if not self._boundaries:
            root = os.path.realpath(self._root)
            self._boundaries = (root, *_list_blobs(root))
        real = os.path.realpath(self._path(key))
        if any(_is_within(real, directory) for directory in self._boundaries):
            return None
        if not os.path.exists(self._path(key)):
            return None
        return SourceError(
            f"can't read `{self._path(key)}`: it is a link that leads out of {self.url}, to"
            f" `{real}`; hint: if you trust it, open"
            f" templax.storage.Local({self.url!r}, follow_links=True), or give the command"
            " --follow-links"
        )

    def stat(self, key: str) -> ObjectInfo | None:
        self._check_links(key.rstrip("/"))
        try:
            status = os.stat(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise self._make_error(key, error) from error
        if stat.S_ISDIR(status.st_mode):
            return ObjectInfo(f"{key.rstrip('/')}/", 0, modified=status.st_mtime)
        return _info(key, status)

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
            fd = self._open(key)
        except SourceError:
            raise
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

    def _open(self, key: str) -> int:
        directory, _, name = key.rpartition("/")
        if directory not in self._checked:
            self._check_links(directory)
        if name and _NO_LINK and not self._follow_links and key not in self._checked:
            try:
                return os.open(self._path(key), _READ_FLAGS | _NO_LINK)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EMLINK):
                    raise
        self._check_links(key)
        return os.open(self._path(key), _READ_FLAGS)

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
        url = os.path.normpath(os.path.join(self.url, key))
        return Local(url, follow_links=self._follow_links)

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
