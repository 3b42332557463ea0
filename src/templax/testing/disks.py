"""A disk that records operations and fails at a chosen one, and a check that a save is durable."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from ..storage.disk import DISK, Disk

T = TypeVar("T")

_MOVES = ("rename", "exchange", "link")


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a method of `Disk`.

    Attributes:
        name: Name of the method.
        path: The file or directory. For a method that takes a descriptor, the path it was opened
            with.
        to: The second path of `rename`, `link` and `exchange`.
        done: Whether the call succeeded.
    """

    name: str
    path: str
    to: str = ""
    done: bool = False


@dataclass
class FaultyDisk(Disk):
    """A disk that records its operations and fails at one of them.

    Thread-safe; but if several threads use it, the order of operations is not deterministic.

    Attributes:
        at: Index of the operation that fails. With None no operation fails, which tells how many
            there are.
        fault: "kill" ends the process with SIGKILL before the operation; "half" does so after
            writing half of the data, if the operation is a write. A number is the `errno` of the
            `OSError` to raise. Then the operation has no effect, except that a full disk accepts
            half of a write, and that `close` does close the file.
        lasting: Whether all later operations fail, too.
        disk: Carries out the operations.
        trace: All operations so far.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from templax.storage import Staging
        >>> from templax.testing import FaultyDisk, assert_durable
        >>> root = Path(tempfile.mkdtemp())
        >>> disk = FaultyDisk()
        >>> with Staging(root / "new", overwrite=False, disk=disk) as staging:
        ...     staging.put("a", b"hello")
        ...     staging.commit()
        >>> [operation.name for operation in disk.trace][:6]
        ['mkdir', 'open_directory', 'lock', 'create', 'write', 'fsync']
        >>> assert_durable(disk.trace, root / "new")
    """

    at: int | None = None
    fault: Literal["kill", "half"] | int = "kill"
    lasting: bool = False
    disk: Disk = DISK
    trace: list[Operation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._guard = threading.Lock()
        self._paths: dict[int, str] = {}

    def mkdir(self, path: str) -> None:
        self._record("mkdir", path, lambda: self.disk.mkdir(path))

    def create(self, path: str) -> int:
        return self._open("create", path, self.disk.create)

    def open_directory(self, path: str) -> int:
        return self._open("open_directory", path, self.disk.open_directory)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        def half() -> None:
            self.disk.write(fd, data[: len(data) // 2], offset)

        path = self._paths.get(fd, "")
        return self._record("write", path, lambda: self.disk.write(fd, data, offset), half=half)

    def fsync(self, fd: int) -> None:
        self._record("fsync", self._paths.get(fd, ""), lambda: self.disk.fsync(fd))

    def lock(self, fd: int, shared: bool = False, wait: bool = False) -> None:
        self._record("lock", self._paths.get(fd, ""), lambda: self.disk.lock(fd, shared, wait))

    def unlock(self, fd: int) -> None:
        self._record("unlock", self._paths.get(fd, ""), lambda: self.disk.unlock(fd))

    def close(self, fd: int) -> None:
        path = self._paths.pop(fd, "")  # before closing: then the number can be reused
        self._record("close", path, lambda: self.disk.close(fd), half=lambda: self.disk.close(fd))

    def rename(self, old: str, new: str) -> None:
        self._record("rename", old, lambda: self.disk.rename(old, new), new)

    def link(self, old: str, new: str) -> None:
        self._record("link", old, lambda: self.disk.link(old, new), new)

    def exchange(self, one: str, other: str) -> None:
        self._record("exchange", one, lambda: self.disk.exchange(one, other), other)

    def unlink(self, path: str) -> None:
        self._record("unlink", path, lambda: self.disk.unlink(path))

    def rmdir(self, path: str) -> None:
        self._record("rmdir", path, lambda: self.disk.rmdir(path))

    def _open(self, name: str, path: str, call: Callable[[str], int]) -> int:
        fd = self._record(name, path, lambda: call(path))
        self._paths[fd] = path
        return fd

    def _record(
        self,
        name: str,
        path: str,
        call: Callable[[], T],
        to: str = "",
        half: Callable[[], None] = lambda: None,
    ) -> T:
        with self._guard:
            index = len(self.trace)
            self.trace.append(Operation(name, path, to))
        if self.at is not None and (index == self.at or (self.lasting and index > self.at)):
            self._fail(name, half)
        result = call()
        self.trace[index] = replace(self.trace[index], done=True)
        return result

    def _fail(self, name: str, half: Callable[[], None]) -> None:
        if isinstance(self.fault, int):
            if name == "close" or self.fault in (errno.ENOSPC, errno.EDQUOT):
                half()
            raise OSError(self.fault, os.strerror(self.fault))
        if self.fault == "half":
            half()
        os.kill(os.getpid(), signal.SIGKILL)


def assert_durable(trace: Sequence[Operation], path: str | os.PathLike[str]) -> None:
    """Asserts that after a power loss at any point, a recorded save is complete or invisible.

    A file system may apply changes that were not synced in any order, or lose them. Therefore:

    - Before the checkpoint is moved to `path`, each file must be synced after its last write unless
      it was removed again, and each directory after the last name was added to it.
    - After the move, the parent of `path` must be synced. Only then may anything be removed.

    Args:
        trace: The operations of one successful save, from `FaultyDisk.trace`.
        path: Final location of the checkpoint, absolute.

    Raises:
        AssertionError: The message names the file or directory and what is missing.
    """
    final = os.fspath(path)
    moves = [
        index
        for index, operation in enumerate(trace)
        if operation.done and operation.name in _MOVES and operation.to == final
    ]
    assert len(moves) == 1, f"Expected one move to {final}, found {len(moves)}"
    move = moves[0]
    staging = trace[move].path

    def find_last(names: Sequence[str], of: Callable[[str], str]) -> dict[str, int]:
        """Maps `of(path)` to the index of the last such operation on it before the move."""
        return {of(o.path): i for i, o in enumerate(trace[:move]) if o.done and o.name in names}

    synced, removed = find_last(["fsync"], str), find_last(["unlink"], str)
    for file, index in find_last(["create", "write"], str).items():
        durable = max(synced.get(file, -1), removed.get(file, -1)) > index
        assert durable, f"{file} was not synced after its last write"
    for directory, index in find_last(["mkdir", "create"], os.path.dirname).items():
        if directory != os.path.dirname(final):  # synced after the move
            assert synced.get(directory, -1) > index, f"{directory} was not synced after a new name"
    after = [o for o in trace[move + 1 :] if o.done]
    synced_at = next(
        (i for i, o in enumerate(after) if (o.name, o.path) == ("fsync", os.path.dirname(final))),
        None,
    )
    assert synced_at is not None, (
        f"{os.path.dirname(final)} was not synced after {staging} was moved"
    )
    early = [o for o in after[:synced_at] if o.name in ("unlink", "rmdir", *_MOVES)]
    assert not early, f"{early[0].path} was changed before the move was synced"
