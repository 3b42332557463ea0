"""Several sources as one, whose keys begin with where each of them is."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ..errors import CheckpointError, Corrupted, NotFound
from ..storage.source import ObjectInfo, Source


def name_keys(sources: Sequence[Source]) -> tuple[str, ...]:
    """What the keys of each source begin with: its URL, so that errors name the right file."""
    urls = [source.url.rstrip("/") for source in sources]
    return tuple(
        f"{url}#{i}" if url.startswith("memory:") and urls.count(url) > 1 else url
        for i, url in enumerate(urls)
    )


def join_key(root: str, key: str) -> str:
    """The key of an object in a merged source."""
    return f"{root}/{key}" if key else root


def move_error(error: CheckpointError, root: str) -> CheckpointError:
    """The error, with a file of a merged source."""
    return type(error)(
        error.what,
        leaf=error.leaf,
        file=join_key(root, error.file or ""),
        start=error.start,
        stop=error.stop,
        hint=error.hint,
        box=error.box,
        stored_as=error.stored_as,
    )


class MergedSource:
    """Several sources as one.

    Args:
        sources: The sources.
    """

    def __init__(self, sources: Sequence[Source]):
        self.parts = tuple(sources)
        self.roots = name_keys(sources)
        self.url = " + ".join(self.roots)

    @property
    def maps(self) -> bool:
        return all(source.maps for source in self.parts)

    def children(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if not prefix:
            yield from (ObjectInfo(f"{root}/", 0) for root in sorted(set(self.roots)))
            return
        source, root, key = self._find(prefix)
        for info in source.children(key):
            yield replace(info, key=join_key(root, info.key))

    def walk(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix:
            source, root, key = self._find(prefix)
            for info in source.walk(key):
                yield replace(info, key=join_key(root, info.key))
            return
        for root, source in dict(zip(self.roots, self.parts, strict=True)).items():
            own = source.stat("")
            for info in source.walk() if own is None or own.is_dir else (own,):
                yield replace(info, key=join_key(root, info.key))

    def stat(self, key: str) -> ObjectInfo | None:
        if not key:
            return ObjectInfo("/", 0)
        source, root, own = self._find(key)
        info = source.stat(own)
        return None if info is None else replace(info, key=join_key(root, info.key))

    def read(
        self, key: str, start: int = 0, stop: int | None = None, out: memoryview | None = None
    ) -> memoryview:
        source, root, own = self._find(key)
        with _translate(root):
            return source.read(own, start, stop, out)

    def view(self, key: str, start: int, stop: int) -> memoryview | None:
        source, root, own = self._find(key)
        with _translate(root):
            return source.view(own, start, stop)

    def at(self, key: str) -> Source:
        if not key:
            return self
        source, _, own = self._find(key)
        return source.at(own) if own else source

    def _find(self, key: str) -> tuple[Source, str, str]:
        """The source of an object, its root, and the key there."""
        for root, source in zip(self.roots, self.parts, strict=True):
            if key == root or key.startswith(f"{root}/"):
                return source, root, key[len(root) + 1 :]
        raise NotFound("Expected an object of one of the merged checkpoints, found none", file=key)


@contextmanager
def _translate(root: str) -> Generator[None]:
    try:
        yield
    except (Corrupted, NotFound) as error:
        raise move_error(error, root) from error
