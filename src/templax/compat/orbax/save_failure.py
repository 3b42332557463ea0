"""The error of a manager's save in the background, of which every thread is told once."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from ..._save.result import PendingSave


class SaveFailure:
    """The error of the latest save, until the next one begins."""

    def __init__(self) -> None:
        self._error: BaseException | None = None
        self._told = threading.local()  # idents of threads are used again

    def learn(self, pending: PendingSave | None) -> bool:
        """Waits for the end of a save, and takes over its error; True if that is a new one."""
        error = None if pending is None else pending.find_error()
        if pending is None or error is None or error is self._error:
            return False
        self._error, self._told = error, threading.local()
        pending.forget()
        return True

    def find_untold(self) -> BaseException | None:
        """The error, if this thread has not been told of it."""
        return None if hasattr(self._told, "by_call") else self._error

    def mark_told(self) -> None:
        """Notes that a call of this thread raises the error."""
        self._told.by_call = True

    @contextmanager
    def mark_raised(self, error: BaseException | None) -> Generator[None]:
        """Calls `mark_told` if the error leaves the block."""
        try:
            yield
        except BaseException as raised:
            if raised is error:
                self.mark_told()
            raise

    def forget(self) -> None:
        """Drops the error: the next save has begun."""
        self._error = None
