"""The result of a save, or the handle of one in progress."""

from __future__ import annotations

import functools
import os
import threading
import traceback
from collections.abc import Callable, Mapping

from .._catalog.fingerprint import Fingerprint
from ..errors import UsageError


class Outcome:
    """What becomes of a save: set by the thread that saves, read through `Saved`.

    `Saved` is the half that callers see. This one also tells whether anybody has been told of an
    error, so that a failed save in the background is reported exactly once.

    Attributes:
        path: The path of the checkpoint.
        leaves: Number of leaves that have values.
        nbytes, stages: See `Saved`. Valid once the save has succeeded.
        combine: Makes the fingerprint of the tree; set if the save succeeds. Most callers never
            ask for it, and for many leaves it takes a tenth of the time of a save.
        error: Why the save failed, or None.
        error_reported: Whether a caller has seen how the save ended.
        thread: The thread that saves, if it does so in the background.
    """

    def __init__(self, path: str):
        self.path, self.leaves = path, 0
        self.nbytes = 0
        self.stages: Mapping[str, float] = {}
        self.combine: Callable[[], Fingerprint] | None = None
        self.error: BaseException | None = None
        self.error_reported = False
        self.thread: threading.Thread | None = None
        self._process = os.getpid()
        self._ended = threading.Event()

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """See `Saved`."""
        assert self.combine is not None
        return self.combine()

    def has_ended(self) -> bool:
        """Whether the save has succeeded or failed."""
        return self._ended.is_set()

    def wait_for_end(self, timeout: float | None = None) -> bool:
        """Whether the save ended within `timeout` seconds; does not report its error.

        Raises:
            UsageError: It can't end while this call waits: the caller is in a forked child, or is a
                function that the save itself calls.
        """
        if not self._ended.is_set():
            if os.getpid() != self._process:
                raise UsageError(
                    f"{self.path} is being saved by process {self._process}, which only that"
                    " process can wait for: this is a child that it forked"
                )
            if self.is_own_thread():
                raise UsageError(
                    f"{self.path} is being saved by this thread: its on_progress= can't wait for it"
                )
        return self._ended.wait(timeout)

    def is_own_thread(self) -> bool:
        """Whether the caller is a function that the save calls, such as its `on_progress`."""
        return self.thread is threading.current_thread()

    def end(self) -> None:
        """Wakes everybody who waits. `error`, or else the results, must have been set before."""
        self._ended.set()

    @property
    def unreported_error(self) -> BaseException | None:
        """The error that no caller has seen yet, or None."""
        return None if self.error_reported else self.error


class Saved:
    """A finished save and what it wrote, or the handle of a save in progress.

    `templax.save` and `templax.Manager.save` return it. With `wait=False` the save continues in the
    background: `done` polls it, `wait` waits for it, and the figures below are available once it
    has ended.

    Example:
        >>> import os, tempfile, numpy as np, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "ckpt")
        >>> saved = tx.save(path, {"w": np.ones(4, np.float32)}, wait=False)
        >>> saved.wait().done(), saved.leaves, os.path.basename(saved.path)
        (True, 1, 'ckpt')
        >>> sorted(saved.stages)
        ['commit', 'encode', 'snapshot', 'write']
    """

    def __init__(self, outcome: Outcome):
        self._outcome = outcome

    def __repr__(self) -> str:
        outcome = self._outcome
        if not outcome.has_ended():
            return f"Saved({outcome.path!r}, {outcome.leaves:,} leaves, not finished)"
        if outcome.error is not None:
            return f"Saved({outcome.path!r}, failed)"
        return f"Saved({outcome.path!r}, {outcome.leaves:,} leaves, {outcome.nbytes:,} bytes)"

    @property
    def path(self) -> str:
        """The path of the checkpoint."""
        return self._outcome.path

    @property
    def leaves(self) -> int:
        """Number of leaves of the tree that have values."""
        return self._outcome.leaves

    def done(self) -> bool:
        """Whether the save has ended, successfully or not."""
        return self._outcome.has_ended()

    def wait(self, timeout: float | None = None) -> Saved:
        """Returns itself once the checkpoint is committed.

        Args:
            timeout: Seconds after which to stop waiting; the save itself continues.

        Raises:
            SaveError: The save failed; what the path held before is unchanged.
            TimeoutError: The save is still in progress.
            UsageError: The save can't end meanwhile: its own `on_progress` calls this, or a child
                that was forked while it was in progress.
        """
        outcome = self._outcome
        if not outcome.wait_for_end(timeout):
            raise TimeoutError(f"{self.path} is still being saved after {timeout} s")
        outcome.error_reported = True
        if outcome.error is not None:
            raise outcome.error
        return self

    def _require_success(self) -> Outcome:
        if not self.done():
            raise UsageError("Expected a save that has ended: call wait() first")
        self.wait()
        return self._outcome

    @property
    def nbytes(self) -> int:
        """Bytes of all files of the checkpoint."""
        return self._require_success().nbytes

    @property
    def stages(self) -> Mapping[str, float]:
        """Seconds spent in each stage.

        `snapshot`, `write` and `commit` are wall-clock time. `encode` is the time that all threads
        together spent on fetching, checksums and compression, so it may exceed `write`.
        """
        return self._require_success().stages

    @property
    def seconds(self) -> float:
        """Wall-clock seconds until the commit, without waiting for an earlier save."""
        stages = self._require_success().stages
        return sum(seconds for name, seconds in stages.items() if name != "encode")

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the saved tree, equal to `templax.fingerprint(tree)`."""
        return self._require_success().fingerprint


class PendingSave:
    """The latest save of a manager or checkpointer, which its next call waits for.

    Once the save has ended it is forgotten, so that an error is raised by one call only.
    """

    def __init__(self, saved: Saved):
        self._saved: Saved | None = saved

    def is_in_progress(self) -> bool:
        """Whether the save has not ended yet."""
        return self._saved is not None and not self._saved.done()

    def is_own_thread(self) -> bool:
        """Whether the caller is a function that the save calls, such as its `on_progress`."""
        saved = self._saved
        return saved is not None and saved._outcome.is_own_thread()  # pyright: ignore[reportPrivateUsage]

    def has_failed(self) -> bool:
        """Whether the save has ended with an error that `wait` will raise."""
        # Not by Saved.wait(), which counts as reporting the error.
        return (
            self._saved is not None
            and self._saved.done()
            and self._saved._outcome.error is not None  # pyright: ignore[reportPrivateUsage]
        )

    def find_error(self) -> BaseException | None:
        """Waits for the end of the save; its error, which stays to be raised, or None."""
        if self._saved is None:
            return None
        outcome = self._saved._outcome  # pyright: ignore[reportPrivateUsage]
        outcome.wait_for_end()
        return outcome.error

    def forget(self) -> None:
        """Drops the save: its error was raised."""
        if self._saved is not None:
            self._saved._outcome.error_reported = True  # pyright: ignore[reportPrivateUsage]
            self._saved = None

    def wait(self) -> None:
        """Returns once the save has ended, at once if it was waited for before.

        Raises:
            SaveError: The save failed; raised by one call only.
        """
        saved = self._saved
        if saved is not None:
            try:
                saved.wait()
            finally:
                if saved.done():  # an interrupt may end the wait before the save
                    self._saved = None


def clear_tracebacks(error: BaseException) -> None:
    """Frees the locals in the frames of an error, which may be kept for a long time: open files,
    and the copy of a tree.
    """
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
