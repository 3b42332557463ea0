"""The directory of a run on a disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from contextlib import AbstractContextManager

from ..errors import SourceError, UsageError
from ..storage.leftovers import (
    delete_checkpoint,
    find_abandoned_in,
    is_abandoned,
    remove_directory,
)
from ..storage.local import Local
from .locks import WriterLock, hold_for_reading


class LocalRun:
    """A directory of steps on a disk. `RunStorage` describes the methods.

    Args:
        url: Its absolute path.

    Attributes:
        url: As given.
        storage: None.
    """

    def __init__(self, url: str):
        self.url, self.storage = url, None
        self._lock = WriterLock(url)

    def look(self) -> Local:
        """The directory as it is now. Refuses a file or a dangling link at its path."""
        try:
            if not stat.S_ISDIR(os.stat(self.url).st_mode):
                raise UsageError(f"Expected a directory of steps, got the file {self.url}")
        except FileNotFoundError as error:
            if os.path.islink(self.url):
                raise UsageError(
                    f"Expected a directory of steps, got the link {self.url} to"
                    f" {os.readlink(self.url)}, where there is nothing"
                ) from error
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise SourceError(f"can't read `{self.url}`: {reason}") from error
        return Local(self.url)

    def join(self, name: str) -> str:
        """The path of a name in the directory."""
        return os.path.join(self.url, name)

    def acquire(self) -> None:
        """Locks the directory; see `locks.py`."""
        self._lock.acquire()

    def release(self) -> None:
        """Unlocks the directory."""
        self._lock.release()

    def hold_for_reading(self, name: str) -> AbstractContextManager[bool]:
        """Holds a lock on a step; see `locks.py`."""
        return hold_for_reading(self.join(name))

    def find_abandoned(self, names: Collection[str], *, watch: bool = True) -> set[str]:
        """See `is_abandoned`."""
        return {name for name in names if is_abandoned(self.join(name))}

    def remove_leftovers(self, names: Collection[str]) -> None:
        """Removes the temporary directories of killed saves, whatever step they are of."""
        for path in find_abandoned_in(self.url):
            remove_directory(path)

    def delete(self, name: str) -> bool:
        """See `delete_checkpoint`."""
        return delete_checkpoint(self.join(name))

    def remove_leftover(self, name: str) -> None:
        """See `remove_directory`."""
        remove_directory(self.join(name))
