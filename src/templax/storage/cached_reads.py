"""Reads of objects through a cache on a local disk."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from .block_cache import BlockCache
from .requests import Requests, Version, gather

T = TypeVar("T")

_log = logging.getLogger("templax")

BLOCK_BYTES = 4 * 1024 * 1024
"""Objects are fetched and kept in blocks that begin at multiples of this size."""

_PAUSE_S, _MAX_PAUSE_S = 0.005, 0.05
"""Pauses between looks for a block that another process fetches, at first and at most."""


class CachedReads:
    """Reads of the objects of one bucket, from a cache where it holds them.

    The name of a block depends on the tag of the object's version, or without one on its
    generation, so that bytes of another version are never found. An object that has neither is not
    kept. A missing block is fetched whole, by one of the processes that want it.

    Args:
        requests: How to fetch what is missing.
        cache: Where blocks are kept.
        bucket: Identifies the bucket among all others, at any endpoint.
        concurrency: Maximum number of blocks that are fetched, or waited for, at the same time.
    """

    def __init__(self, requests: Requests, cache: BlockCache, bucket: str, concurrency: int):
        self._requests, self._cache, self._bucket = requests, cache, bucket
        self._filling = asyncio.Semaphore(concurrency)

    async def fetch(self, path: str, start: int, out: memoryview, version: Version) -> None:
        """Reads a range of an object; see `Requests.fetch`."""
        if version.etag is None and version.generation is None:
            # Only the size and a time tell it from another version, and programs set times.
            return await self._requests.fetch(path, start, out, version)
        blocks = _cut_blocks(start, out, version.size, name_object(self._bucket, path, version))
        found = await self._read(blocks)
        names = {block.name for block in found}
        missing = [block for block in blocks if block.name not in names]
        waited = await gather(self._fill(path, block, version) for block in missing)
        cached = sum(len(block.out) for block in found) + sum(waited)
        _log.debug(
            "read %d bytes of `%s/%s`, %d from the cache",
            len(out),
            self._requests.url,
            path,
            cached,
        )
        return None

    async def _fill(self, path: str, block: _Block, version: Version) -> int:
        """Reads a block that was not in the cache; waits if another process is fetching it.

        Returns:
            Bytes that came from the cache after all, because another process stored the block.
        """
        cache, pause = self._cache, _PAUSE_S
        async with self._filling:
            begin, is_locked = time.monotonic(), False
            while cache.stores and time.monotonic() - begin < self._requests.timeout_s:
                is_locked = cache.try_lock(block.name)
                if is_locked:
                    break
                await asyncio.sleep(pause)
                pause = min(1.5 * pause, _MAX_PAUSE_S)
                if cache.has(block.name) and await self._read([block]):
                    return len(block.out)
            try:
                # The process that had the lock may have stored the block meanwhile.
                if cache.has(block.name) and await self._read([block]):
                    return len(block.out)
                await self._fetch_block(path, block, version)
                return 0
            finally:
                if is_locked:
                    cache.unlock(block.name)

    async def _fetch_block(self, path: str, block: _Block, version: Version) -> None:
        is_whole = len(block.out) == block.size
        if not (is_whole or self._cache.stores):
            await self._requests.fetch(path, block.start + block.skip, block.out, version)
            return
        data = block.out if is_whole else memoryview(np.empty(block.size, np.uint8))
        await self._requests.fetch(path, block.start, data, version)
        if not is_whole:
            block.out[:] = data[block.skip : block.skip + len(block.out)]
        await self._in_thread(lambda: self._cache.store(block.name, data))

    async def _read(self, blocks: list[_Block]) -> list[_Block]:
        """Reads blocks from the cache; returns those that were there."""

        def read_all() -> list[_Block]:
            read = self._cache.read
            return [each for each in blocks if read(each.name, each.size, each.skip, each.out)]

        found = await self._in_thread(read_all)
        self._requests.traffic.cached_blocks += len(found)
        self._requests.traffic.cached_nbytes += sum(len(block.out) for block in found)
        return found

    async def _in_thread(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._cache.pool, action)


class _Block(NamedTuple):
    """A block of an object, and the part of it that is wanted.

    Attributes:
        name: Its name in the cache.
        start: Its first byte, in the object.
        size: Its number of bytes: less than usual at the end of an object.
        skip: First byte that is wanted, in the block.
        out: Receives the wanted bytes.
    """

    name: str
    start: int
    size: int
    skip: int
    out: memoryview


def name_object(bucket: str, path: str, version: Version) -> bytes:
    """Identifies the bytes of an object, as far as its store tells."""
    tag: tuple[object, ...] = ("modified", version.modified, version.etag)
    if version.etag is not None and not version.etag.startswith("W/"):
        tag = ("etag", version.etag.strip('"'))  # Azure lists them without quotes
    elif version.generation is not None:
        tag = ("generation", version.generation)
    return repr((bucket, path, version.size, *tag)).encode()


def name_block(of: bytes, number: int) -> str:
    """The name of a block in the cache.

    Args:
        of: Identifies the object; see `name_object`.
        number: How many blocks come before it.
    """
    return hashlib.blake2b(b"%d %s" % (number, of), digest_size=20).hexdigest()


def _cut_blocks(start: int, out: memoryview, size: int, name: bytes) -> list[_Block]:
    """Cuts a range of an object at the boundaries of blocks.

    Args:
        start: First byte of the range.
        out: Memory for all of it.
        size: Bytes of the object.
        name: Identifies the object.
    """

    def cut() -> Iterator[_Block]:
        stop = start + len(out)
        for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            first = number * BLOCK_BYTES
            last = min(first + BLOCK_BYTES, size)
            begin, end = max(first, start), min(last, stop)
            part = out[begin - start : end - start]
            yield _Block(name_block(name, number), first, last - first, begin - first, part)

    return list(cut())
