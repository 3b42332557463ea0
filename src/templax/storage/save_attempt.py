"""One attempt to save: whether it may continue, and what a disk error does to it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager

from ..errors import SaveError
from .disk import save_error


class SaveEnded(SaveError):
    """A thread went on writing after an error in another one had ended the save."""


class SaveAttempt:
    """The state that a `Staging` shares with its files: has the save ended, and why?

    Args:
        path: Final location of the checkpoint.
        discard: Removes what was written and returns the paths that could not be removed. It
            receives the `OSError` that ended the save, or None if a `SaveError` ended it.

    Attributes:
        path: As given.
        finished: Whether the save was committed or discarded.
        cause: The first error that the disk raised, or None.
    """

    def __init__(self, path: str, discard: Callable[[OSError | None], tuple[str, ...]]):
        self.path = path
        self.finished = False
        self.cause: OSError | None = None
        self._discard = discard

    def check(self) -> None:
        """Raises a `SaveError` if the save has ended, or is about to."""
        if self.cause:
            code = self.cause.errno
            reason = f": {os.strerror(code)}" if code else ""
            raise SaveEnded(f"The save was abandoned after an error{reason}", file=self.path)
        if self.finished:
            raise SaveError("The save was already committed or discarded", file=self.path)

    @contextmanager
    def translate_errors(self, action: str, path: str) -> Generator[None, None, None]:
        """Discards the save if the block fails, and turns an `OSError` into a `SaveError`.

        Args:
            action: What the block does to `path`, as a verb such as "write".
            path: The file or directory concerned.
        """
        try:
            yield
        except SaveError:
            self._discard(None)
            raise
        except OSError as error:
            self.cause = self.cause or error
            not_removed = self._discard(error)
            rest = "; nothing was saved and nothing is left behind"
            if not_removed:
                rest = f"; nothing was saved, but `{not_removed[0]}` could not be removed"
            raise save_error(action, path, error, rest) from error
