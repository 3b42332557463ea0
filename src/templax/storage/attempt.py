"""One attempt to save: whether it may continue, and how an error of the disk ends it."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager

from ..errors import SaveError
from .disk import save_error


class SaveAttempt:
    """What a `Staging` and its files know in common about the save that they belong to.

    Args:
        path: Final place of the checkpoint.
        discard: Removes what was written. Gets the error that ended the save, or None if a
            `SaveError` did; returns the paths that could not be removed.

    Attributes:
        path: As given.
        finished: Whether the save was committed or discarded.
        cause: The error that the disk answered with first, or None.
    """

    def __init__(self, path: str, discard: Callable[[OSError | None], tuple[str, ...]]):
        self.path = path
        self.finished = False
        self.cause: OSError | None = None
        self._discard = discard

    def check(self) -> None:
        """Raises a `SaveError` if the save has ended, or is about to."""
        cause = self.cause
        if self.finished or cause:
            reason = f" after: {os.strerror(cause.errno)}" if cause and cause.errno else ""
            raise SaveError(f"The save was given up or finished before{reason}", file=self.path)

    @contextmanager
    def translate_errors(self, action: str, path: str) -> Generator[None, None, None]:
        """Where the disk refuses: discards the save and raises a `SaveError` that says so.

        Args:
            action: What the block does to `path`, as a verb: "write".
            path: File or directory concerned.
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
