"""One file of a save, written next to the final location of the checkpoint."""

from __future__ import annotations

import errno
import os
import threading

from ..errors import UsageError
from .disk import Descriptor, Disk
from .save_attempt import SaveAttempt

MAX_WRITE_BYTES = 1 << 30
"""Bytes per write call. Linux accepts at most 2 GiB minus a page, macOS 2 GiB minus one byte."""


class StagedFile:
    """A file of a `Staging`. Created by `Staging.create`.

    Attributes:
        path: Location of the file until the commit.
    """

    def __init__(self, attempt: SaveAttempt, disk: Disk, path: str, fd: int):
        self.path = path
        self._attempt, self._disk = attempt, disk
        self._descriptor: Descriptor | None = Descriptor(disk, fd)
        self._sync_lock = threading.Lock()
        self._dirty = True
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes up to the end of the last one written. Gaps that were never written are zeros."""
        descriptor = self._descriptor
        return self._size if descriptor is None else os.fstat(descriptor.fd).st_size

    def write(self, data: bytes | bytearray | memoryview, offset: int | None = None) -> None:
        """Writes all of `data`, byte for byte as it is in memory.

        Several threads may write at the same time if each passes an `offset` and their ranges do
        not overlap.

        Args:
            data: Any object with a C-contiguous buffer. Neither copied nor kept.
            offset: Position of the first byte. None appends to the end of the file.

        Raises:
            SaveError: The disk refused, or the save has already ended.
        """
        descriptor = self._require_open()
        try:
            view = memoryview(data)
            if view.ndim != 1 or view.format != "B":
                view = view.cast("B") if view.nbytes else memoryview(b"")
            at = os.fstat(descriptor.fd).st_size if offset is None else offset
            while view:
                n = self._disk.write(descriptor.fd, view[:MAX_WRITE_BYTES], at)
                if n == 0:  # otherwise this would loop forever
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                view, at = view[n:], at + n
            # Set last, so that a sync that ran during the write does not count.
            self._dirty = True
        except OSError:
            del descriptor  # the traceback would keep it open
            with self._attempt.translate_errors("write", self.path):
                raise

    def sync(self) -> None:
        """Makes what was written survive a power loss. `close` and `commit` do this, too.

        Raises:
            SaveError: The disk refused; the save is abandoned, since the bytes may be lost.
        """
        with self._attempt.translate_errors("sync", self.path), self._sync_lock:
            descriptor = self._require_open()
            try:
                self._attempt.check()
                if self._dirty:
                    self._dirty = False
                    self._disk.fsync(descriptor.fd)
            except OSError as error:
                # Recorded under the lock: a thread waiting for it must neither sync again, which
                # could succeed although bytes were lost, nor commit.
                self._attempt.cause = error
                raise
            finally:
                del descriptor

    def close(self) -> None:
        """Syncs what was not synced yet and closes the file. No thread may be writing. Idempotent.

        Raises:
            SaveError: See `sync`.
        """
        if self._descriptor is None:
            return
        self.sync()
        with self._attempt.translate_errors("close", self.path):
            descriptor = self._require_open()
            self._size, self._descriptor = self.size, None
            descriptor.close()

    def abandon(self) -> None:
        """Refuses further writes. The file is closed once no thread is writing to it any more."""
        self._descriptor = None

    def _require_open(self) -> Descriptor:
        descriptor = self._descriptor
        if descriptor is None:
            self._attempt.check()
            raise UsageError(f"Expected an open file, got one that was closed: `{self.path}`")
        return descriptor
