"""A disk that counts, and fails or kills where it is told to; and what must be synced when."""

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


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a method of a `Disk`.

    Attributes:
        name: The method's.
        path: The file or directory; of an open one, what it was opened as.
        to: Of `rename` and `exchange`, the other path.
        done: Whether it succeeded.
    """

    name: str
    path: str
    to: str = ""
    done: bool = False


@dataclass
class FaultyDisk(Disk):
    """A disk that remembers what was done, and fails at one operation.

    Threads may use it; then the order of operations is theirs.

    Attributes:
        at: Index of the operation that fails. None: none does, to learn how many there are.
        fault: "kill" ends the process (SIGKILL) before the operation; "half" writes half of what
            a write was to write, then does so. A number is the `errno` that it raises: nothing was
            done then, except that a full disk takes half of a write, and `close` closes.
        lasting: Whether all operations behind that one raise, too.
        disk: What does the rest.
        trace: All operations so far.

    Example:
        >>> import os
        >>> from templax.storage import Staging
        >>> root = getfixture("tmp_path")
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
        self._do("mkdir", path, lambda: self.disk.mkdir(path))

    def create(self, path: str) -> int:
        return self._open("create", path, self.disk.create)

    def open_directory(self, path: str) -> int:
        return self._open("open_directory", path, self.disk.open_directory)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        def half() -> None:
            self.disk.write(fd, data[: len(data) // 2], offset)

        path = self._paths.get(fd, "")
        return self._do("write", path, lambda: self.disk.write(fd, data, offset), half=half)

    def fsync(self, fd: int) -> None:
        self._do("fsync", self._paths.get(fd, ""), lambda: self.disk.fsync(fd))

    def lock(self, fd: int, shared: bool = False) -> None:
        self._do("lock", self._paths.get(fd, ""), lambda: self.disk.lock(fd, shared))

    def unlock(self, fd: int) -> None:
        self._do("unlock", self._paths.get(fd, ""), lambda: self.disk.unlock(fd))

    def close(self, fd: int) -> None:
        path = self._paths.pop(fd, "")  # first: its number may be another's when it is closed
        self._do("close", path, lambda: self.disk.close(fd), half=lambda: self.disk.close(fd))

    def rename(self, old: str, new: str) -> None:
        self._do("rename", old, lambda: self.disk.rename(old, new), new)

    def exchange(self, one: str, other: str) -> None:
        self._do("exchange", one, lambda: self.disk.exchange(one, other), other)

    def unlink(self, path: str) -> None:
        self._do("unlink", path, lambda: self.disk.unlink(path))

    def rmdir(self, path: str) -> None:
        self._do("rmdir", path, lambda: self.disk.rmdir(path))

    def _open(self, name: str, path: str, call: Callable[[str], int]) -> int:
        fd = self._do(name, path, lambda: call(path))
        self._paths[fd] = path
        return fd

    def _do(
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
    """Asserts that a save, as a trace has it, is there whole or not at all if the power fails.

    A file system may carry out what was not synced in any order, or not at all. So each file must
    be synced after its last write, and each directory after its last new name, before the
    checkpoint moves to `path`; the directory of `path` after that, and only then may anything be
    removed.

    Args:
        trace: Of one save that succeeded.
        path: Where the checkpoint went, absolute.

    Raises:
        AssertionError: Names the file or directory, and what is missing.
    """
    final = os.fspath(path)
    moves = [
        index
        for index, operation in enumerate(trace)
        if operation.done and operation.name in ("rename", "exchange") and operation.to == final
    ]
    assert len(moves) == 1, f"Expected one move to {final}, found {len(moves)}"
    move = moves[0]
    staging = trace[move].path

    def last(names: Sequence[str], of: Callable[[str], str]) -> dict[str, int]:
        """Index of the last such operation before the move, by what `of` makes of its path."""
        return {of(o.path): i for i, o in enumerate(trace[:move]) if o.done and o.name in names}

    synced = last(["fsync"], str)
    for file, index in last(["create", "write"], str).items():
        assert synced.get(file, -1) > index, f"{file} was not synced after its last write"
    for directory, index in last(["mkdir", "create"], os.path.dirname).items():
        if directory != os.path.dirname(final):  # it is synced when all is there
            assert synced.get(directory, -1) > index, f"{directory} was not synced after a new name"
    behind = [o for o in trace[move + 1 :] if o.done]
    kept = next(
        (i for i, o in enumerate(behind) if (o.name, o.path) == ("fsync", os.path.dirname(final))),
        None,
    )
    assert kept is not None, f"{os.path.dirname(final)} was not synced after {staging} was moved"
    early = [o for o in behind[:kept] if o.name in ("unlink", "rmdir", "rename", "exchange")]
    assert not early, f"{early[0].path} was changed before the move was synced"
