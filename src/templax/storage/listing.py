"""Listings of a bucket, kept so that nothing is asked for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from .requests import Requests, Version

PAGE = 1000
"""Objects in one page of a listing, in every store."""

MAX_KEPT = 1_000_000
"""Larger listings are not kept."""

_MIN_PAGES = 8
"""A run is listed at full depth for at least this many pages."""


class Directory:
    """What lies directly in a directory.

    Attributes:
        objects: Path → version.
        directories: Paths, without a slash at the end.
    """

    __slots__ = ("directories", "objects")

    def __init__(self) -> None:
        self.objects: dict[str, Version] = {}
        self.directories: set[str] = set()


class Listings:
    """The directories of a bucket that have been listed.

    One request lists up to 1,000 objects at any depth. So the first look at a directory lists
    everything below it: one request is enough for a checkpoint of fewer files.

    Args:
        requests: The store.
    """

    def __init__(self, requests: Requests):
        self._requests = requests
        self._known: dict[str, Directory] = {}
        self._whole: set[str] = set()  # directories below which everything is known
        self._single: dict[str, Version | None] = {}  # objects asked for one by one
        self._runs: set[str] = set()  # directories that `load_run` has listed

    def find_directory(self, path: str) -> Directory | None:
        """What is directly in a directory, if that has been listed."""
        known = self._known.get(path)
        if known is None and self._is_whole(path):
            known = Directory()
        return known

    def find_object(self, path: str) -> tuple[bool, Version | None]:
        """Whether what is at a path is known; and the version of the object there, or None."""
        if path in self._single:
            return True, self._single[path]
        parent = path.rpartition("/")[0]
        known = self.find_directory(parent) if path else None
        if known is None:
            return False, None
        return True, None if path in known.directories else known.objects.get(path)

    def list_seen(self, path: str) -> dict[str, Version]:
        """The versions of all known objects at a path and below it."""
        start = f"{path}/" if path else ""
        seen = {each: version for each, version in self._single.items() if version is not None}
        seen = {each: seen[each] for each in seen if each == path or each.startswith(start)}
        here = self.find_object(path)[1] if path else None
        return seen | dict(self.walk_known(path)) | ({} if here is None else {path: here})

    def pin(self, seen: Mapping[str, Version]) -> None:
        """Reads objects as these versions, which another process has seen."""
        self._single.update(seen)

    def has_directory(self, path: str) -> bool | None:
        """Whether there is anything below a path; None if that is not known."""
        here = self.find_directory(path)
        if here is not None:
            return bool(here.objects or here.directories)
        around = self.find_directory(path.rpartition("/")[0]) if path else None
        return None if around is None else path in around.directories

    def has_listed_below(self, path: str) -> bool:
        """Whether a directory below this one has been listed."""
        start = f"{path}/" if path else ""
        known = list(self._known)  # other threads add to it
        return any(each != path and each.startswith(start) for each in known)

    async def load_directory(self, path: str) -> Directory:
        """Lists a directory, with everything below it if that fits in one page."""
        known = self.find_directory(path)
        if known is not None:
            return known
        first = await anext(self._requests.list_all(path, PAGE), [])
        if len(first) < PAGE:
            self._keep(path, first)
            return self._known[path]
        return await self._load_level(path)

    async def load_run(self, path: str) -> None:
        """Lists a directory of many checkpoints, to find out which of them are complete.

        This takes one request per 1,000 objects. If most checkpoints turn out to have more objects
        than that, it takes one for the directory and one for each checkpoint, in parallel.
        """
        if path in self._runs or self._is_whole(path):
            return
        self._runs.add(path)
        found: list[Any] = []
        below: set[str] = set()
        pages, start = 0, len(path) + 1 if path else 0
        async for objects in self._requests.list_all(path, PAGE):
            found += objects
            below.update(meta["path"][start:].partition("/")[0] for meta in objects)
            pages += 1
            if pages >= _MIN_PAGES and len(below) < pages:
                break
        else:
            if len(found) <= MAX_KEPT:
                self._keep(path, found)
                return
        here = await self._load_level(path)
        await asyncio.gather(*map(self._load_level, here.directories))

    async def _load_level(self, path: str) -> Directory:
        """Lists what is directly in a directory."""
        directories, objects = await self._requests.list_level(path)
        here = Directory()
        here.directories.update(directories)
        for meta in objects:
            if meta["path"] not in here.directories and meta["path"] != path:
                here.objects[meta["path"]] = self._version(meta)
        self._known[path] = here  # not earlier, as other threads look there
        return here

    async def load_tree(self, path: str) -> list[tuple[str, Version]]:
        """Lists all objects below a directory, at any depth, sorted by path."""
        if self._is_whole(path):
            return sorted(self.walk_known(path))
        found: list[Any] = []
        async for objects in self._requests.list_all(path, PAGE):
            found += objects
        if len(found) <= MAX_KEPT:
            self._keep(path, found)
            return sorted(self.walk_known(path))
        return sorted((meta["path"], self._version(meta)) for meta in found)

    async def load_object(self, path: str) -> tuple[Version | None, bool]:
        """Finds what is at a path: the version of an object, and whether there is a directory."""
        is_known, version = (
            self.find_object(path) if path else (True, None)
        )  # the bucket itself is not an object
        directory = self.find_directory(path)
        asked: list[Any] = []
        if not is_known:
            asked.append(self._requests.describe(path))
        if directory is None:
            asked.append(self.load_directory(path))
        answers = await asyncio.gather(*asked)
        if directory is None:
            directory = answers.pop()
        is_directory = bool(directory.objects or directory.directories)
        if not is_known:
            (version,) = answers
            if is_directory and version and not version.size:
                version = None  # some stores describe a directory like an empty object
            self._single[path] = version
        return version, is_directory

    def _is_whole(self, path: str) -> bool:
        while True:
            if path in self._whole:
                return True
            if not path:
                return False
            path = path.rpartition("/")[0]

    def walk_known(self, path: str) -> Iterator[tuple[str, Version]]:
        """Yields the objects below a directory, at any depth, that have been listed."""
        pending = [path]
        while pending:
            here = self._known.get(pending.pop())
            if here is not None:
                yield from here.objects.items()
                pending += here.directories

    def _keep(self, root: str, objects: list[Any]) -> None:
        """Remembers a complete listing of what is below a directory."""
        known: dict[str, Directory] = {root: Directory()}
        for meta in objects:
            path = meta["path"]
            if path == root:
                continue
            at = path
            while True:
                parent = at.rpartition("/")[0]
                is_new = parent not in known
                here = known.setdefault(parent, Directory())
                if at == path:
                    here.objects[path] = self._version(meta)
                else:
                    here.directories.add(at)
                if parent == root or not is_new:
                    break
                at = parent
        for here in known.values():  # "a/" is listed like an object `a` by some stores
            for path in here.directories & here.objects.keys():
                del here.objects[path]
        self._known |= known
        self._whole.add(root)

    def _version(self, meta: Any) -> Version:
        """The version of an object that was seen first, or else the one in a listing."""
        path = meta["path"]
        seen, around = self._single.get(path), self._known.get(path.rpartition("/")[0])
        if seen is None and around is not None:
            seen = around.objects.get(path)
        return Version.of(meta) if seen is None else seen
