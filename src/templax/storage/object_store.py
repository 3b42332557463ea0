"""A source over an object store: S3, GCS, Azure, a web server."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import Corrupted, NotFound, SourceError
from .block_cache import open_cache
from .cached_reads import CachedReads
from .event_loop import begin_request, run_request
from .listing import Listings
from .requests import Requests, Traffic, Version
from .source import ObjectInfo, StoreCost, join_key
from .stores import Location, Store

SMALL_BYTES = 64 * 1024
"""Objects of at most this size are read whole and kept."""

_MAX_SMALL = 32
"""Maximum number of small objects of a checkpoint that are read together with the first one."""

_MAX_SAME = 1024
"""The same for small objects of one name: some formats have one for each array."""

_MAX_TOGETHER_BYTES = 1024 * 1024

_KEPT_BYTES = 64 * 1024 * 1024
"""Bytes of small objects that are kept."""

_BLOCKS_BYTES = 16 * 1024 * 1024
"""Bytes of blocks read ahead that are kept, besides the last one."""

_AHEAD_BYTES = 8 * 1024 * 1024
"""Longer ranges are read without anything around them."""


class _Kept:
    """What all sources over one bucket share."""

    def __init__(self, requests: Requests, store: Store, location: Location):
        self.requests, self.listings, self.fetch = requests, Listings(requests), requests.fetch
        if store.cache is not None:
            cache, bucket = open_cache(store.cache, store.cache_bytes), store.name_bucket(location)
            self.fetch = CachedReads(requests, cache, bucket, store.concurrency).fetch
        self.lock = threading.Lock()
        self.small: OrderedDict[str, bytes] = OrderedDict()
        self.small_bytes = 0
        self.loading: dict[str, asyncio.Future[bytes]] = {}  # small objects that are being read
        self.gathered: set[str] = set()  # paths below which small objects were read together
        self.blocks: OrderedDict[tuple[str, int], memoryview] = OrderedDict()


class ObjectSource:
    """Objects of a store below a path, or the single object at that path.

    Each object is read as the version that was seen first, in a listing or by a request: the store
    is asked to refuse any other. Small objects (64 MiB at most) are kept in memory, and so is what
    lies near short ranges that are read without `out`.

    Args:
        store: How to reach the store.
        url: The path to read below, such as "s3://bucket/run/100".
    """

    maps = False

    def __init__(self, store: Store, url: str):
        location = store.locate(url)
        self._init(store, location, _Kept(store.connect(location), store, location), location.path)

    @classmethod
    def over(cls, requests: Requests, store: Store, location: Location) -> ObjectSource:
        """A source that shares a connection with others, but none of their listings.

        Args:
            requests: The requests to the bucket.
            store, location: What they were made from, with the path to read below.
        """
        self = cls.__new__(cls)
        self._init(store, location, _Kept(requests, store, location), location.path)
        return self

    def _init(self, store: Store, location: Location, kept: _Kept, path: str) -> None:
        self._store, self._location, self._kept, self._path = store, location, kept, path
        self.url = f"{location.url}/{path}" if path else location.url

    def __repr__(self) -> str:
        return f"ObjectSource({self._store!r}, {self.url!r})"

    def __getstate__(self) -> dict[str, Any]:
        # The positions in a pickled catalog or plan are those of the versions that were seen.
        seen = self._kept.listings.list_seen(self._path)
        return {"store": self._store, "url": self.url, "seen": seen}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["store"], state["url"])
        self._kept.listings.pin(state["seen"])

    @property
    def cost(self) -> StoreCost:
        """What a request costs here, measured on the last ones."""
        return self._kept.requests.cost

    @property
    def traffic(self) -> Traffic:
        """The requests made so far, including those of all sources that `at` returned."""
        return self._kept.requests.traffic

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        directory = self._full_path(prefix.rstrip("/"))
        found = self._kept.listings.find_directory(directory)
        if found is None:
            found = run_request(self._kept.listings.load_directory(directory))
        infos = [self._describe(path, version) for path, version in found.objects.items()]
        infos += [ObjectInfo(f"{self._key(path)}/", 0) for path in found.directories]
        return iter(sorted(infos, key=lambda info: info.key))

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        directory = self._full_path(prefix.rstrip("/"))
        found = run_request(self._kept.listings.load_tree(directory))
        return iter([self._describe(path, version) for path, version in found])

    def stat(self, key: str) -> ObjectInfo | None:
        path = self._full_path(key.rstrip("/"))
        listings = self._kept.listings
        is_new = listings.find_directory(self._path) is None
        if key and is_new and not listings.has_listed_below(self._path):
            self.children()  # one request, which answers most later questions
        is_known, version = listings.find_object(path)
        is_directory = listings.has_directory(path)
        if not is_known or (version is None and is_directory is None):
            version, is_directory = run_request(listings.load_object(path))
        if version is not None:
            return ObjectInfo(key, version.size, version, version.modified)
        return ObjectInfo(f"{key.rstrip('/')}/", 0) if is_directory else None

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        path = self._full_path(key)
        data = self._kept.small.get(path)
        if data is None:
            version = self._find_version(path)
            stop = self._check_range(path, start, stop, version.size)
            if version.size <= SMALL_BYTES:
                data = run_request(self._load_small(path, alone=out is not None))
            if data is None:
                return self._read_large(path, start, stop, out, version)
        stop = self._check_range(path, start, stop, len(data))
        found = memoryview(data)[start:stop]
        if out is None:
            return found
        out.cast("B")[:] = found
        return out

    def begin_read(
        self, key: str, start: int, stop: int, out: memoryview
    ) -> Callable[[], memoryview]:
        """See `begin_read` in `source.py`."""
        path = self._full_path(key)
        version = self._find_version(path)
        if version.size <= SMALL_BYTES or start == stop:
            return lambda: self.read(key, start, stop, out)
        self._check_range(path, start, stop, version.size)
        finish = begin_request(self._kept.fetch(path, start, out, version))

        def wait() -> memoryview:
            finish()
            return out

        return wait

    def view(self, key: str, start: int, stop: int) -> None:
        return None

    def list_ahead(self) -> None:
        """See `list_ahead` in `source.py`."""
        run_request(self._kept.listings.load_run(self._path))

    def read_ahead(self, keys: Iterable[str]) -> None:
        """See `read_ahead` in `source.py`."""
        if self._kept.listings.find_directory(self._path) is None:
            self.children()
        wanted = dict[str, Version]()
        for path in map(self._full_path, keys):
            version = self._kept.listings.find_object(path)[1]
            if version and version.size <= SMALL_BYTES and path not in self._kept.small:
                wanted[path] = version
        if wanted:
            run_request(self._load_all(wanted.items()))

    def at(self, key: str) -> ObjectSource:
        other = object.__new__(ObjectSource)
        other._init(self._store, self._location, self._kept, join_key(self._path, key))
        return other

    def _full_path(self, key: str) -> str:
        if not key:
            return self._path
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise NotFound("Expected an object, found none", file=key)
        return f"{self._path}/{key}" if self._path else key

    def _key(self, path: str) -> str:
        return path[len(self._path) + 1 :] if self._path else path

    def _describe(self, path: str, version: Version) -> ObjectInfo:
        return ObjectInfo(self._key(path), version.size, version, version.modified)

    def _find_version(self, path: str) -> Version:
        """The version of an object to read; asks the store if it is not known."""
        listings = self._kept.listings
        is_known, version = listings.find_object(path)
        if not is_known:
            version, is_directory = run_request(listings.load_object(path))
            if version is None and is_directory:
                raise SourceError(
                    f"can't read `{self._location.url}/{path}`: expected an object, found a"
                    " directory"
                )
        if version is None:
            raise NotFound("Expected an object, found none", file=self._key(path) or self.url)
        return version

    def _check_range(self, path: str, start: int, stop: int | None, size: int) -> int:
        stop = size if stop is None else stop
        if not 0 <= start <= stop <= size:
            what = f"Expected at least {stop} bytes, the file has {size}"
            raise Corrupted(what, file=self._key(path) or self.url, start=start, stop=stop)
        return stop

    def _read_large(
        self, path: str, start: int, stop: int, out: memoryview | None, version: Version
    ) -> memoryview:
        if stop - start <= _AHEAD_BYTES:
            found = self._find_block(path, start, stop)
            if found is None and out is None and stop - start <= SMALL_BYTES:
                found = self._read_ahead(path, start, stop, version)
            if found is not None:
                if out is None:
                    return found
                out.cast("B")[:] = found
                return out
        if out is None:
            out = memoryview(np.empty(stop - start, np.uint8))
        view = out.cast("B") if out.ndim != 1 or out.format != "B" else out
        if len(view):
            run_request(self._kept.fetch(path, start, view, version))
        return out

    def _find_block(self, path: str, start: int, stop: int) -> memoryview | None:
        """The bytes of a range that was read ahead."""
        kept = self._kept
        with kept.lock:
            for (name, begin), block in reversed(kept.blocks.items()):
                if name == path and begin <= start and stop <= begin + len(block):
                    kept.blocks.move_to_end((name, begin))
                    return block[start - begin : stop - begin]
        return None

    def _read_ahead(self, path: str, start: int, stop: int, version: Version) -> memoryview:
        """Reads a short range and what is near it, as much as takes no longer than another request.

        That is what follows it or, at the end of an object, what comes before it.
        """
        kept = self._kept
        gap = min(kept.requests.cost.gap_bytes, _AHEAD_BYTES)
        begin = start if version.size - start > gap // 2 else max(0, min(start, version.size - gap))
        end = min(version.size, max(stop, begin + gap))
        block = memoryview(bytearray(end - begin))
        if len(block):
            run_request(kept.fetch(path, begin, block, version))
        with kept.lock:
            kept.blocks[path, begin] = block
            total = sum([len(each) for each in kept.blocks.values()])
            while total > _BLOCKS_BYTES and len(kept.blocks) > 1:
                total -= len(kept.blocks.popitem(last=False)[1])
        return block[start - begin : stop - begin]

    async def _load_small(self, path: str, *, alone: bool) -> bytes:
        """Reads a small object and, unless `alone`, others that will probably be read next."""
        version = self._kept.listings.find_object(path)[1]
        assert version is not None
        others = [] if alone else self._choose_others(path)
        asked = asyncio.ensure_future(self._load_all(others))
        try:
            return await self._load_one(path, version)
        finally:
            await asked

    async def _load_all(self, objects: Iterable[tuple[str, Version]]) -> None:
        """Reads small objects in parallel; errors are raised when an object is read again."""
        wanted = [self._load_one(path, version) for path, version in objects]
        await asyncio.gather(*wanted, return_exceptions=True)

    async def _load_one(self, path: str, version: Version) -> bytes:
        loading = self._kept.loading
        if path not in loading:
            loading[path] = asyncio.ensure_future(self._fetch_small(path, version))
            loading[path].add_done_callback(lambda _: loading.pop(path))
        return await asyncio.shield(loading[path])

    async def _fetch_small(self, path: str, version: Version) -> bytes:
        kept, data = self._kept, bytearray(version.size)
        if data:
            await kept.fetch(path, 0, memoryview(data), version)
        found = bytes(data)
        with kept.lock:
            kept.small_bytes += len(found) - len(kept.small.get(path, b""))
            kept.small[path] = found
            while kept.small_bytes > _KEPT_BYTES:
                kept.small_bytes -= len(kept.small.popitem(last=False)[1])
        return found

    def _choose_others(self, path: str) -> list[tuple[str, Version]]:
        """Chooses listed objects to read together with this one.

        The first time, these are objects near the root of the checkpoint that take no longer than a
        request. Later, they are small objects of the same name in other directories, such as those
        of zarr's many arrays.
        """
        kept, name = self._kept, path.rpartition("/")[2]
        is_first = self._path not in kept.gathered
        kept.gathered.add(self._path)
        limit = max(SMALL_BYTES, kept.requests.cost.gap_bytes) if is_first else SMALL_BYTES
        others = [
            item
            for item in kept.listings.walk_known(self._path)
            if item[1].size <= limit
            and item[0] != path
            and item[0] not in kept.small
            and item[0] not in kept.loading
        ]
        if is_first:
            others.sort(key=lambda item: (item[0].count("/"), item[1].size))
            most, room = _MAX_SMALL, max(_MAX_TOGETHER_BYTES, 2 * limit)
        else:
            others = [item for item in others if item[0].rpartition("/")[2] == name]
            others = sorted(item for item in others if item[0] > path)
            most, room = _MAX_SAME, _MAX_TOGETHER_BYTES
        found, total = list[tuple[str, Version]](), 0
        for item in others[:most]:
            total += item[1].size
            if total > room:
                break
            found.append(item)
        return found
