"""One file of a save that is written beside its place."""

from __future__ import annotations

import errno
import os
import threading

from ..errors import UsageError
from .attempt import SaveAttempt
from .disk import Descriptor, Disk

PIECE = 1 << 30
"""Bytes of one write. Linux takes 2 GiB less a page, macOS 2 GiB less a byte."""


class StagedFile:
    """A file of a `Staging`. Made by `Staging.create`.

    Attributes:
        path: Where it is until the commit.
    """

    def __init__(self, attempt: SaveAttempt, disk: Disk, path: str, fd: int):
        self.path = path
        self._attempt, self._disk = attempt, disk
        self._opened: Descriptor | None = Descriptor(disk, fd)
        self._syncing = threading.Lock()
        self._dirty = True
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes from the first to the last one written; holes between them are zeros."""
        opened = self._opened
        return self._size if opened is None else os.fstat(opened.fd).st_size

    def write(self, data: bytes | bytearray | memoryview, offset: int | None = None) -> None:
        """Writes all of `data`, as it is in memory.

        Threads may write at once to places that don't overlap, if they give `offset`.

        Args:
            data: Anything with a C-contiguous buffer. Not copied, not kept.
            offset: Where its first byte goes. None: behind the last byte written so far.

        Raises:
            SaveError: The disk refuses, or the save was given up before.
        """
        opened = self._in_use()
        try:
            view = memoryview(data)
            if view.ndim != 1 or view.format != "B":
                view = view.cast("B") if view.nbytes else memoryview(b"")
            at = os.fstat(opened.fd).st_size if offset is None else offset
            while view:
                n = self._disk.write(opened.fd, view[:PIECE], at)
                if n == 0:  # it would be for ever
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                view, at = view[n:], at + n
            self._dirty = True  # last: a sync that came before must not count
        except OSError:
            del opened  # or else the traceback would keep it open
            with self._attempt.translate_errors("write", self.path):
                raise

    def sync(self) -> None:
        """What was written survives a loss of power. `close` and `commit` see to it, too.

        Raises:
            SaveError: The disk refuses; the save is given up, since the bytes may be lost.
        """
        with self._attempt.translate_errors("sync", self.path), self._syncing:
            opened = self._in_use()
            try:
                self._attempt.check()
                if self._dirty:
                    self._dirty = False
                    self._disk.fsync(opened.fd)
            except OSError as error:
                # At once: who waits here must neither sync again nor commit.
                self._attempt.cause = error
                raise
            finally:
                del opened

    def close(self) -> None:
        """Syncs what was not, and closes. No thread may be writing. Idempotent.

        Raises:
            SaveError: See `sync`.
        """
        if self._opened is None:
            return
        self.sync()
        with self._attempt.translate_errors("close", self.path):
            opened = self._in_use()
            self._size, self._opened = self.size, None
            opened.close()

    def abandon(self) -> None:
        """Refuses further writes. The file is closed as soon as no thread writes to it any more."""
        self._opened = None

    def _in_use(self) -> Descriptor:
        opened = self._opened
        if opened is None:
            self._attempt.check()
            raise UsageError(f"Expected an open file, got one that was closed: `{self.path}`")
        return opened
