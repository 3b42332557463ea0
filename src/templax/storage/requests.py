"""Requests to one object store: parallel, retried after failures, resumed where they stopped."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ..errors import NotFound
from .request_errors import ObjectChanged, PreconditionFailed
from .request_group import current_group
from .retries import Retries
from .source import StoreCost

T = TypeVar("T")

PIECE_BYTES = 8 * 1024 * 1024
"""A longer range is fetched in pieces of this size, in parallel."""

CONCURRENCY = 64
"""Maximum number of requests to one store at the same time."""

TIMEOUT_S = 120.0
"""A request fails for good after this long without a byte of an answer."""

STALL_S = 20.0
"""A request is given up and retried after its answer has brought no byte for this long."""

_CHUNK_BYTES, _MIN_CHUNK_BYTES = 1024 * 1024, 64 * 1024
"""The body of an answer comes in pieces of the first size; in smaller ones if memory is short."""

_KEPT = 64
"""Number of recent requests from which the cost is measured."""

_MIN_HEDGE_S = 0.5

_HEDGE = 5.0
"""A second request is sent if the first one takes this many times as long as usual."""

_HEDGED_SHARE = 0.05
"""Maximum share of requests that are sent twice, so as not to burden a store that is slow."""


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
        """The version in obstore's description of an object, an `ObjectMeta`."""
        modified = meta["last_modified"].timestamp()
        return cls(meta["e_tag"], meta["size"], modified, meta["version"])

    def is_same(self, other: Version) -> bool:
        """Whether both have the same bytes, by what is known of both."""
        if self.size != other.size:
            return False
        if self.etag is not None and other.etag is not None:
            return self.etag.strip('"') == other.etag.strip('"')  # Azure's listings have no quotes
        return self.modified == other.modified


@dataclass(slots=True)
class Traffic:
    """The requests made so far.

    Attributes:
        requests: Number of requests, including listings and retries.
        nbytes: Bytes received in bodies of objects.
        retried: Number of retries after a failure.
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


Condition = dict[str, str]
"""Identifies a version of an object for a later write: obstore's `UpdateVersion`."""


def make_condition(etag: str | None, generation: str | None) -> Condition:
    """The condition that an object still is the version with this tag or number."""
    found = {"e_tag": etag, "version": generation}
    return {name: value for name, value in found.items() if value is not None}


async def gather(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs coroutines side by side. None of them goes on after this has returned or raised."""
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _choose_chunk() -> int:
    """Bytes of a body that a request holds before it copies them to their place."""
    group = current_group()
    if group is None or group.answer_bytes is None:
        return _CHUNK_BYTES
    return max(_MIN_CHUNK_BYTES, min(_CHUNK_BYTES, group.answer_bytes // CONCURRENCY))


class Requests:
    """Requests to one bucket or server.

    All coroutines run on the loop of `event_loop`.

    Args:
        make_store: Makes the obstore store; called again when credentials have expired.
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
        """What a request costs, measured on the last ones."""
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
        """The `ObjectMeta` by which obstore describes an object; None if there is no object."""

        async def head() -> Any:
            return await self._obstore.head_async(self.store, path)

        try:
            return await self.repeat(head, path)
        except NotFound:
            return None

    async def list_level(self, prefix: str) -> tuple[list[str], list[Any]]:
        """Lists one directory: paths of the directories in it, and descriptions of its objects."""

        async def list_once() -> Any:
            return await self._obstore.list_with_delimiter_async(self.store, prefix or None)

        found = await self._list(list_once, prefix)
        return list(found["common_prefixes"]), list(found["objects"])

    async def list_all(self, prefix: str, chunk: int = 1000) -> AsyncIterator[list[Any]]:
        """Yields descriptions of all objects below a prefix, at any depth, in order of their names.

        Args:
            prefix: A directory; "" for all objects.
            chunk: Number of descriptions in each list but the last.
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
        """Reads `len(out)` bytes of an object, from byte `start`, in parallel pieces.

        Raises:
            NotFound: There is no such object.
            ObjectChanged: It is no longer this version.
            SourceError: The store refused, or failed for longer than the timeout.
        """
        await gather(
            self._fetch_piece(path, start + at, out[at : at + PIECE_BYTES], version)
            for at in range(0, len(out), PIECE_BYTES)
        )

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
            mode: "overwrite"; "create" if the object must not exist; or the `Condition` that an
                earlier `put` returned, if it must still be that version.

        Returns:
            The condition that the object still is the version just written.

        Raises:
            PreconditionFailed: `mode` forbids it. The object may have been written all the same, if
                the answer to an earlier attempt was lost.
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
        self,
        store: Any,
        path: str,
        parts: AsyncIterator[Any],
        part_bytes: int,
        concurrency: int,
    ) -> None:
        """Writes an object in parts, several at a time.

        Args:
            store: A store that retries failed requests itself, because one upload makes several.
            path: The object.
            parts: Its bytes, as buffers. They are not copied.
            part_bytes: Size of all parts but the last.
            concurrency: Number of parts that are sent at the same time.
        """
        self.traffic.requests += 2

        async def count() -> AsyncIterator[Any]:
            async for part in parts:
                self.traffic.requests += 1
                yield part
                del part

        await self._obstore.put_async(
            store,
            path,
            count(),
            use_multipart=True,
            chunk_size=part_bytes,
            max_concurrency=concurrency,
        )

    async def delete(self, paths: Sequence[str]) -> None:
        """Deletes objects. It is not an error if one does not exist.

        Raises:
            SourceError: The store failed.
        """

        async def delete_one(path: str) -> None:
            async def delete_once() -> None:
                await self._obstore.delete_async(self.store, path)

            with suppress(NotFound):
                await self.repeat(delete_once, path, "delete")

        await gather(map(delete_one, paths))

    async def repeat(
        self, attempt: Callable[[], Awaitable[T]], path: str, action: str = "read"
    ) -> T:
        """Makes a request until it succeeds, or fails for good.

        Args:
            attempt: Makes the request once.
            path: The object or directory concerned.
            action: What the request does to it: a verb for error messages.

        Raises:
            NotFound, ObjectChanged, SourceError: See `fetch`.
        """
        retries = Retries(self, path, action)
        while True:
            try:
                async with self._slots:
                    retries.note_start()
                    self.traffic.requests += 1
                    return await attempt()
            except self.failures as error:
                await retries.wait(error)

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """The exceptions that a failed request may raise."""
        return (self._obstore.exceptions.BaseError, OSError, ValueError)

    def note_retry(self) -> None:
        """Counts a request that is made again."""
        self.traffic.retried += 1

    def renew(self) -> None:
        """Makes a new obstore store, with the current credentials."""
        self.store = self._make_store()

    async def _fetch_piece(self, path: str, start: int, out: memoryview, version: Version) -> None:
        """Reads one piece; after a failure, requests only what is still missing."""
        retries, done = Retries(self, path), 0
        while done < len(out):
            try:
                async with self._slots:
                    retries.note_start()
                    found = await self._open(path, start + done, start + len(out), version)
                    begin, first = time.perf_counter(), done
                    async for chunk in found.stream(min_chunk_size=_choose_chunk()):
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
        """Requests a range of an object; returns the answer before its body is read."""
        options: dict[str, Any] = {"range": (start, stop)}
        if version.etag is not None and not version.etag.startswith("W/"):  # those never match
            # Without quotes in Azure's listings, and in obstore's memory (0.11), which compares so.
            exact = version.etag.startswith('"') or self.url.startswith("memory:")
            options["if_match"] = version.etag if exact else f'"{version.etag}"'

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
        """Makes a request, and a second one if the first takes too long to be answered."""
        usual = self.cost
        patience = max(_HEDGE * usual.latency_s, _MIN_HEDGE_S)
        requests = [ask()]
        allowed = 1 + _HEDGED_SHARE * self.traffic.requests
        try:
            if usual.measured and self.traffic.hedged < allowed:
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
        """The message for an object that changed since it was first seen."""
        return (
            f"object `{self.url}/{path}` changed since the checkpoint was opened; hint: open it"
            " again"
        )
