"""A file of a checkpoint that is uploaded while it is written."""

from __future__ import annotations

import asyncio
import heapq
import mmap
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any

from ..errors import SaveError, SourceError
from .event_loop import run_request, start_request
from .request_errors import describe_error
from .requests import Requests

PART_BYTES = 16 * 1024 * 1024
"""Larger files are uploaded in parts of this size; in smaller ones if memory is short, and in
larger ones if there would be too many."""

_MIN_PART_BYTES = 5 * 1024 * 1024
"""Stores accept no smaller parts, except for the last one."""

_MAX_PARTS = 9_000
"""Stores take at most 10,000 parts of an object."""

_CONCURRENCY = 8
"""Maximum number of parts of a file that are sent at the same time."""

_OTHERS = 3
"""Maximum number of other parts in memory: one is being filled, one is queued, and one is with the
upload until it may be sent. A thread that has more to write blocks."""

_ZEROS = bytes(1024 * 1024)


class ObjectFile:
    """One object of a save, which is sent in order while threads write it in any order.

    What is written beyond a gap stays in memory until the gap is filled, or until `settle` says
    that it never will be. So writers should write roughly in order, and those that must not take
    more than so much memory count what is beyond the offset that they last settled.

    Args:
        store: The obstore store, which retries failed requests.
        requests: Requests to the same store, for small objects and messages.
        path: The object.
    """

    def __init__(self, store: Any, requests: Requests, path: str):
        self._store, self._requests, self.path = store, requests, path
        self._lock = threading.RLock()
        self._waiting: list[tuple[int, int, bytes]] = []  # a heap: offset, order, bytes
        self._order = 0
        self._sent = 0  # bytes handed on so far, in order
        self._settled = 0  # nothing more will be written before this offset
        self._size = 0
        self._part: mmap.mmap | None = None  # the part that is being filled, and how far
        self._filled = 0
        self._parts = asyncio.Queue[memoryview | None](1)
        self._part_bytes, self._concurrency = PART_BYTES, _CONCURRENCY
        self._upload: Future[None] | None = None
        self._ended = self._whole = False

    @property
    def size(self) -> int:
        """See `SinkFile`."""
        return self._size

    def expect(self, nbytes: int, memory: int) -> None:
        """See `StreamedFile`."""
        fitting = max(_MIN_PART_BYTES, memory // (_CONCURRENCY + _OTHERS))
        self._part_bytes = max(min(PART_BYTES, fitting), -(-nbytes // _MAX_PARTS))
        self._concurrency = max(1, min(_CONCURRENCY, memory // self._part_bytes - _OTHERS))

    def write(self, data: bytes | bytearray | memoryview, offset: int | None = None) -> None:
        """See `SinkFile`. Bytes that were handed on can no longer be changed."""
        view = memoryview(data).cast("B")
        with self._lock:
            self._check()
            at = self._size if offset is None else offset
            if at < self._sent and len(view):
                raise SaveError(
                    f"Expected writes in order, got one at byte {at} after {self._sent} bytes were"
                    " uploaded",
                    file=self._where,
                )
            self._size = max(self._size, at + len(view))
            if len(view) and at <= self._settled:
                self._fill_gap(at)
            if at == self._sent:
                self._hand_on(view)
            elif len(view):
                self._order += 1
                heapq.heappush(self._waiting, (at, self._order, bytes(view)))
            self._hand_on_waiting()

    def settle(self, offset: int) -> None:
        """Announces that nothing more will be written before `offset`: gaps there are zeros."""
        with self._lock:
            self._check()
            self._settled = max(self._settled, offset)
            while self._waiting and self._waiting[0][0] <= self._settled:
                self._fill_gap(self._waiting[0][0])
                self._hand_on_waiting()

    def sync(self) -> None:
        """Does nothing: `close` waits until the store has everything."""

    def close(self) -> None:
        """See `SinkFile`."""
        with self._lock:
            if self._whole:
                return
            self._check()
            while self._waiting:
                self._fill_gap(self._waiting[0][0])
                self._hand_on_waiting()
            self._ended = True
            last = self._take_part()
        if self._upload is None:
            try:
                run_request(self._requests.put(self.path, bytes(last)))
            except SourceError as error:
                raise SaveError(str(error), file=self._where) from error
            self._whole = True
            return
        if len(last):
            self._enqueue(last)
        self._enqueue(None)
        self._await_upload()
        self._whole = True

    def abandon(self) -> None:
        """Ends the upload, without an object. Never raises."""
        self._ended = True
        if self._upload is not None:
            self._upload.cancel()  # before taking the lock, which a thread that waits for it holds
        with self._lock:
            if self._upload is not None:
                self._upload.cancel()
            self._waiting, self._part = [], None

    @property
    def _where(self) -> str:
        return f"{self._requests.url}/{self.path}"

    def _check(self) -> None:
        if self._ended:
            raise SaveError("The save was already committed or discarded", file=self._where)
        if self._upload is not None and self._upload.done():
            self._await_upload()

    def _hand_on_waiting(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._sent:
            at, _, data = heapq.heappop(self._waiting)
            if at < self._sent:
                raise SaveError("Expected writes that don't overlap", file=self._where)
            self._hand_on(memoryview(data))

    def _fill_gap(self, stop: int) -> None:
        while self._sent < stop:
            self._hand_on(memoryview(_ZEROS)[: stop - self._sent])

    def _hand_on(self, view: memoryview) -> None:
        """Adds bytes to the parts to send, and waits if too many are queued."""
        self._sent += len(view)
        while len(view):
            if self._part is None:
                self._part, self._filled = _allocate(self._part_bytes), 0
            taken = view[: self._part_bytes - self._filled]
            self._part[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            view = view[len(taken) :]
            if self._filled == self._part_bytes:
                if self._upload is None:
                    self._upload = start_request(self._send())
                self._enqueue(self._take_part())

    def _take_part(self) -> memoryview:
        """What is in the part that is being filled; it is forgotten here."""
        part, filled = self._part, self._filled
        self._part, self._filled = None, 0
        return memoryview(b"" if part is None else part)[:filled]

    def _enqueue(self, part: memoryview | None) -> None:
        """Hands a part to the upload; raises its error if it has failed."""
        assert self._upload is not None
        upload = self._upload

        async def put() -> None:
            ended = asyncio.wrap_future(upload)
            ended.add_done_callback(lambda done: done.cancelled() or done.exception())
            placed = asyncio.ensure_future(self._parts.put(part))
            try:
                await asyncio.wait([placed, ended], return_when=asyncio.FIRST_COMPLETED)
            finally:
                placed.cancel()

        run_request(put())
        if upload.done():
            self._await_upload()

    def _await_upload(self) -> None:
        assert self._upload is not None
        try:
            self._upload.result()
        except CancelledError:
            raise SaveError("The save was discarded", file=self._where) from None
        except self._requests.failures as error:
            # The answer to the last request may have been lost. Nobody else writes this object.
            with suppress(SourceError):
                found = run_request(self._requests.describe(self.path)) if self._ended else None
                if found is not None and found.size == self._size:
                    return
            reason = describe_error(error)
            raise SaveError(f"can't write `{self._where}`: {reason}", file=self._where) from error

    async def _send(self) -> None:
        await self._requests.upload(
            self._store, self.path, self._list_parts(), self._part_bytes, self._concurrency
        )

    async def _list_parts(self) -> AsyncIterator[memoryview]:
        while (part := await self._parts.get()) is not None:
            yield part
            del part  # or else it would stay in memory until the next one comes


def _allocate(nbytes: int) -> mmap.mmap:
    """Memory that goes back to the system as soon as it is freed; malloc might keep it."""
    if hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, nbytes)  # on Windows, where nothing else is possible
