"""The result of a save, or the handle of one in progress."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from .._catalog.fingerprint import Fingerprint
from ..errors import UsageError


class Saved:
    """A save: what it wrote, or the handle of one that goes on.

    Attributes:
        path: Of the checkpoint.
        leaves: Leaves of the tree that have values.
    """

    def __init__(self, path: str, leaves: int):
        self.path, self.leaves = path, leaves
        self._nbytes = 0
        self._stages: dict[str, float] = {}
        self._fingerprint: Fingerprint | None = None
        self._error: BaseException | None = None
        self._seen = False
        self._ended = threading.Event()

    def __repr__(self) -> str:
        if not self.done():
            return f"Saved({self.path!r}, {self.leaves:,} leaves, not finished)"
        if self._error is not None:
            return f"Saved({self.path!r}, failed)"
        return f"Saved({self.path!r}, {self.leaves:,} leaves, {self._nbytes:,} bytes)"

    def done(self) -> bool:
        """Whether the save has ended, well or not."""
        return self._ended.is_set()

    def wait(self, timeout: float | None = None) -> Saved:
        """Returns itself once the checkpoint is there.

        Args:
            timeout: Seconds after which to give up waiting.

        Raises:
            SaveError: It failed; nothing is at `path` that was not there before.
            TimeoutError: It goes on.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"{self.path} is still being saved after {timeout} s")
        self._seen = True
        if self._error is not None:
            raise self._error
        return self

    def _result(self, value: Any) -> Any:
        if not self.done():
            raise UsageError("Expected a save that has ended: call wait() first")
        return self.wait() and value

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        self._result(None)
        return self._nbytes

    @property
    def stages(self) -> Mapping[str, float]:
        """Seconds of wall clock: `snapshot`, `write`, `commit`; `encode` are those of all threads
        together that were spent on all but writing: fetching, checksums, compression.
        """
        self._result(None)
        return self._stages

    @property
    def seconds(self) -> float:
        """Wall clock to the commit, without what the save before was waited for."""
        self._result(None)
        return sum(s for name, s in self._stages.items() if name != "encode")

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the tree, as `templax.fingerprint` would give it."""
        self._result(None)
        assert self._fingerprint is not None
        return self._fingerprint
