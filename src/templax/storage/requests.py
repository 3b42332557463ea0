"""Requests to one object store: in parallel, repeated after failures, resumed in the middle."""

from __future__ import annotations

import asyncio
import logging
import random
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ..errors import NotFound, SourceError, TemplaxError
from .request_errors import classify_error, describe_error
from .source import StoreCost

T = TypeVar("T")

_log = logging.getLogger("templax")

PIECE_BYTES = 8 * 1024 * 1024
"""A longer range is fetched in pieces of this size, in parallel."""

CONCURRENCY = 64
"""Maximum number of requests to one store that are under way at the same time."""

TIMEOUT_S = 120.0
"""A request fails for good once this long has passed without a byte of an answer."""

STALL_S = 20.0
"""An answer that has not brought a byte for this long is given up, and asked for again."""

_BACKOFF_S, _MAX_BACKOFF_S = 0.1, 10.0

_MAX_RENEWED = 3
"""How often expired credentials are looked up again for one request."""

_CHUNK_BYTES = 1024 * 1024

_KEPT = 64
"""How many of the last requests the measured cost is taken from."""

_MIN_HEDGE_S = 0.5

_HEDGE = 5.0
"""A second request is sent if the first one takes this many times as long as is usual."""


class Version(NamedTuple):
    """What identifies the bytes of an object, as far as its store tells.

    Attributes:
        etag: The tag that changes with the bytes, or None.
        size: Bytes.
        modified: Unix seconds of the last change.
        generation: The number of the version, in stores that count them, or None.
    """

    etag: str | None
    size: int
    modified: float
    generation: str | None = None

    @classmethod
    def of(cls, meta: Any) -> Version:
        """The version that a description of obstore, an `ObjectMeta`, tells of."""
        modified = meta["last_modified"].timestamp()
        return cls(meta["e_tag"], meta["size"], modified, meta["version"])

    def is_same(self, other: Version) -> bool:
        """Whether both are of the same bytes, by what both tell of."""
        if self.size != other.size:
            return False
        if self.etag is not None and other.etag is not None:
            return self.etag == other.etag
        return self.modified == other.modified


@dataclass(slots=True)
class Traffic:
    """The requests made so far.

    Attributes:
        requests: Number of requests, listings and repetitions included.
        nbytes: Bytes received in bodies of objects.
        retried: Requests made again after a failure.
        hedged: Second requests sent because the first was slow.
        cached_blocks: Blocks of objects that came from a cache on the disk.
        cached_nbytes: Bytes that came from there.
    """

    requests: int = 0
    nbytes: int = 0
    retried: int = 0
    hedged: int = 0
    cached_blocks: int = 0
    cached_nbytes: int = 0


class ObjectChanged(SourceError):
    """An object is no longer the version that was seen first."""


class PreconditionFailed(SourceError):
    """An object was not written, as what is there is not what the writer expected."""


Condition = dict[str, str]
"""Identifies a version of an object for a later write: obstore's `UpdateVersion`."""


def make_condition(etag: str | None, generation: str | None) -> Condition:
    """The condition that an object is still the version with this tag, or of this number."""
    found = {"e_tag": etag, "version": generation}
    return {name: value for name, value in found.items() if value is not None}


class Requests:
    """Requests to one bucket or server.

    All coroutines run on the loop of `event_loop`.

    Args:
        make_store: Makes the store of obstore; again when credentials have expired.
        url: The bucket or server, for messages.
        timeout_s: See `TIMEOUT_S`.
        concurrency: See `CONCURRENCY`.
    """

    def __init__(
        self,
        make_store: Callable[[], Any],
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        concurrency: int = CONCURRENCY,
    ):
        import obstore

        self._obstore, self._make_store, self.url = obstore, make_store, url
        self.store = make_store()
        self.timeout_s, self._slots = timeout_s, asyncio.Semaphore(concurrency)
        self.traffic = Traffic()
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._rates: deque[float] = deque(maxlen=_KEPT)

    @property
    def cost(self) -> StoreCost:
        """What a request costs, by the last ones."""
        assumed = StoreCost()
        latencies, rates = list(self._latencies), list(self._rates)
        return StoreCost(
            statistics.median(latencies) if latencies else assumed.latency_s,
            statistics.median(rates) if rates else assumed.bytes_per_s,
            len(latencies),
        )

    async def describe(self, path: str) -> Version | None:
        """The version of an object; None if there is none."""
        meta = await self.describe_meta(path)
        return None if meta is None else Version.of(meta)

    async def describe_meta(self, path: str) -> Any:
        """The description of an object by obstore, an `ObjectMeta`; None if there is none."""

        async def head() -> Any:
            return await self._obstore.head_async(self.store, path)

        try:
            return await self.repeat(head, path)
        except NotFound:
            return None

    async def list_level(self, prefix: str) -> tuple[list[str], list[Any]]:
        """Lists one directory: the paths of the directories in it, and descriptions of objects."""

        async def list_once() -> Any:
            return await self._obstore.list_with_delimiter_async(self.store, prefix or None)

        found = await self._list(list_once, prefix)
        return list(found["common_prefixes"]), list(found["objects"])

    async def list_all(self, prefix: str, chunk: int = 1000) -> AsyncIterator[list[Any]]:
        """Yields descriptions of all objects below a prefix, at any depth, in order of their names.

        Args:
            prefix: A directory; "" for all objects.
            chunk: Number of descriptions in each list, but for the last one.
        """
        stream: Any = None
        last: str | None = None

        async def list_more() -> list[Any]:
            nonlocal stream
            if stream is None:  # at the beginning, or after a failure
                stream = self._obstore.list(
                    self.store, prefix or None, offset=last, chunk_size=chunk
                )
            try:
                return list(await anext(stream))
            except StopAsyncIteration:
                return []
            except BaseException:
                stream = None
                raise

        objects = [None] * chunk
        while len(objects) == chunk:
            objects = await self._list(list_more, prefix)
            if objects:
                last = objects[-1]["path"]
                yield objects

    async def _list(self, attempt: Callable[[], Awaitable[T]], prefix: str) -> T:
        try:
            return await self.repeat(attempt, prefix)
        except NotFound as error:
            raise NotFound("Expected a bucket or container, found none", file=self.url) from error

    async def fetch(self, path: str, start: int, out: memoryview, version: Version) -> None:
        """Reads `len(out)` bytes of an object, from byte `start`, in pieces side by side.

        Raises:
            NotFound: There is no such object.
            ObjectChanged: It is another version by now.
            SourceError: The store failed, for longer than the timeout.
        """
        if len(out) <= PIECE_BYTES:
            return await self._fetch_piece(path, start, out, version)
        pieces = [
            asyncio.ensure_future(
                self._fetch_piece(path, start + at, out[at : at + PIECE_BYTES], version)
            )
            for at in range(0, len(out), PIECE_BYTES)
        ]
        try:
            await asyncio.gather(*pieces)
        finally:
            for piece in pieces:
                piece.cancel()
            await asyncio.gather(*pieces, return_exceptions=True)

    async def fetch_whole(self, path: str) -> tuple[Version, bytes]:
        """Reads a small object whose version is not known, in one request."""

        async def get() -> tuple[Version, bytes]:
            found = await self._obstore.get_async(self.store, path)
            version, data = Version.of(found.meta), bytes(await found.bytes_async())
            if len(data) != version.size:
                raise ConnectionError(f"{len(data)} of {version.size} bytes came")
            self.traffic.nbytes += len(data)
            return version, data

        return await self.repeat(get, path)

    async def put(self, path: str, data: bytes, mode: Any = "overwrite") -> Condition:
        """Writes a small object in one request.

        Args:
            path: The object.
            data: All of it.
            mode: "overwrite"; "create" if there must not be one; or the `Condition` that an earlier
                `put` returned, if it must still be that version.

        Returns:
            The condition that it is still the version that was written now.

        Raises:
            PreconditionFailed: `mode` forbids it. If an earlier answer was lost, it may have been
                written all the same.
            SourceError: The store failed.
        """

        async def put_once() -> Condition:
            found = await self._obstore.put_async(
                self.store, path, data, mode=mode, use_multipart=False
            )
            return make_condition(found["e_tag"], found["version"])

        try:
            return await self.repeat(put_once, path, "write")
        except ObjectChanged as error:
            raise PreconditionFailed(f"object `{self.url}/{path}` is not as expected") from error

    async def upload(
        self, store: Any, path: str, parts: AsyncIterator[bytes], part_bytes: int, concurrency: int
    ) -> None:
        """Writes an object in parts, some of them side by side.

        Args:
            store: A store that repeats failed requests by itself, as it makes several.
            path: The object.
            parts: Its bytes.
            part_bytes: Size of all parts but the last.
            concurrency: Number of parts that are sent at the same time.
        """
        self.traffic.requests += 2

        async def count() -> AsyncIterator[bytes]:
            async for part in parts:
                self.traffic.requests += 1
                yield part

        await self._obstore.put_async(
            store,
            path,
            count(),
            use_multipart=True,
            chunk_size=part_bytes,
            max_concurrency=concurrency,
        )

    async def delete(self, paths: Sequence[str]) -> None:
        """Deletes objects. One that does not exist is no error.

        Raises:
            SourceError: The store failed.
        """

        async def delete_one(path: str) -> None:
            async def delete_once() -> None:
                await self._obstore.delete_async(self.store, path)

            with suppress(NotFound):
                await self.repeat(delete_once, path, "delete")

        await asyncio.gather(*map(delete_one, paths))

    async def repeat(
        self, attempt: Callable[[], Awaitable[T]], path: str, action: str = "read"
    ) -> T:
        """Makes a request until it succeeds, or fails for good.

        Args:
            attempt: Makes the request once.
            path: The object or directory concerned.
            action: What the request does to it, as errors say it.

        Raises:
            NotFound, ObjectChanged, SourceError: See `fetch`.
        """
        retries = _Retries(self, path, action)
        while True:
            try:
                async with self._slots:
                    self.traffic.requests += 1
                    return await attempt()
            except self.failures as error:
                await retries.wait(error)

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """The exceptions by which requests fail."""
        return (self._obstore.exceptions.BaseError, OSError, ValueError)

    def renew(self) -> None:
        """Makes the store of obstore anew, from the credentials that are there now."""
        self.store = self._make_store()

    async def _fetch_piece(self, path: str, start: int, out: memoryview, version: Version) -> None:
        """Reads one piece; after a failure, only what is still missing."""
        retries, done = _Retries(self, path), 0
        while done < len(out):
            try:
                async with self._slots:
                    found = await self._open(path, start + done, start + len(out), version)
                    begin, first = time.perf_counter(), done
                    async for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                        room = len(out) - done
                        out[done : done + len(chunk)] = memoryview(chunk)[:room]
                        done += min(len(chunk), room)
                        retries.note_progress()
                self.traffic.nbytes += done - first
                if done - first >= _CHUNK_BYTES:
                    took = max(time.perf_counter() - begin, 1e-6)
                    self._rates.append((done - first) / took)
                if done < len(out):
                    raise ConnectionError(f"the answer ended after {done} of {len(out)} bytes")
            except self.failures as error:
                await retries.wait(error)

    async def _open(self, path: str, start: int, stop: int, version: Version) -> Any:
        """Asks for a range of an object; returns the answer, of which no body has been read."""
        options: dict[str, Any] = {"range": (start, stop)}
        if version.etag is not None and not version.etag.startswith("W/"):  # those never match
            options["if_match"] = version.etag

        def ask() -> asyncio.Future[Any]:
            self.traffic.requests += 1
            request = self._obstore.get_async(self.store, path, options=options)
            return asyncio.ensure_future(request)

        begin = time.perf_counter()
        found = await self._hedge(ask)
        self._latencies.append(time.perf_counter() - begin)
        if not version.is_same(Version.of(found.meta)):
            raise ObjectChanged(self.describe_change(path))
        if found.range[0] != start:
            raise ConnectionError(f"asked for bytes from {start}, got those from {found.range[0]}")
        return found

    async def _hedge(self, ask: Callable[[], asyncio.Future[Any]]) -> Any:
        """Makes a request, and a second one if the first has no answer after a long time."""
        usual = self.cost
        patience = max(_HEDGE * usual.latency_s, _MIN_HEDGE_S)
        requests = [ask()]
        try:
            if usual.measured:
                await asyncio.wait(requests, timeout=patience)
                if not requests[0].done():
                    self.traffic.hedged += 1
                    requests.append(ask())
                    done, _ = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
                    answered = next((r for r in done if r.exception() is None), None)
                    if answered is not None:
                        return answered.result()
                    (rest,) = [r for r in requests if r not in done] or [requests[0]]
                    return await rest
            return await requests[0]
        finally:
            for request in requests:
                if not request.done():
                    request.cancel()

    def describe_change(self, path: str) -> str:
        """The message for an object that is not the version seen first."""
        return (
            f"object `{self.url}/{path}` changed since the checkpoint was opened; hint: open it"
            " again"
        )


class _Retries:
    """How often one request has failed, and whether and when it is made again.

    Args:
        requests: The store.
        path: The object or directory concerned.
        action: What the request does to it.
    """

    def __init__(self, requests: Requests, path: str, action: str = "read"):
        self._requests, self._path, self._action = requests, path, action
        self._failed = self._renewed = 0
        self._progress = time.monotonic()
        self._pause = _BACKOFF_S

    def note_progress(self) -> None:
        """Begins to wait anew: bytes have come."""
        self._progress, self._pause = time.monotonic(), _BACKOFF_S

    async def wait(self, error: Exception) -> None:
        """Waits until the request may be made again; raises the error that ends it otherwise."""
        if isinstance(error, TemplaxError):
            raise error
        requests, path = self._requests, self._path
        where, kind, reason = f"{requests.url}/{path}", classify_error(error), describe_error(error)
        if kind == "missing":
            raise NotFound("Expected an object, found none", file=where) from error
        if kind in ("changed", "exists"):
            raise ObjectChanged(requests.describe_change(path)) from error
        if kind == "ranges":
            raise SourceError(
                f"can't read `{where}`: the server sends whole files only, not ranges of bytes; "
                "hint: download it, or serve it from a server that knows range requests"
            ) from error
        self._failed += 1
        waited = time.monotonic() - self._progress
        if kind == "expired" and self._renewed < _MAX_RENEWED:
            self._renewed += 1
            requests.renew()
        elif kind != "transient" or waited + self._pause > requests.timeout_s:
            times = f"; tried {self._failed} times in {waited:.0f} s" if self._failed > 1 else ""
            raise SourceError(f"can't {self._action} `{where}`: {reason}{times}") from error
        requests.traffic.retried += 1
        _log.info("trying `%s` again after %s", where, reason)
        await asyncio.sleep(self._pause * random.uniform(0.5, 1))
        self._pause = min(2 * self._pause, _MAX_BACKOFF_S)
