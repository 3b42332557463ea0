"""`account_bytes`: what every byte of the files of a checkpoint is for."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .._catalog.catalog import Catalog
from .._catalog.entry import Chunk
from .._catalog.regions import BYTE_KINDS, ByteKind
from .._codecs.decode import FILL
from .._core.gc_pause import pause_gc
from .._core.memory import ALIGN
from ..errors import Corrupted, Unsupported
from ..formats.registry import Checkpoint, open_checkpoint
from ..storage.source import Source, open_ranges
from .account_result import ByteAccount, FileBytes, Gap, LeafBytes, PartBytes, SharedBytes

_VALUES, _ALIGNED, _UNKNOWN, _FILE = (
    "values of leaves",
    f"zeros up to a multiple of {ALIGN}",
    "nothing refers to it",
    "nothing refers to the file",
)


class Span(NamedTuple):
    """A byte range of a file and what it is for; the lowest `rank` counts."""

    start: int
    stop: int
    rank: int
    order: int
    what: str
    leaf: str | None


def account_bytes(checkpoint: Checkpoint) -> ByteAccount:
    """Says what every byte of the files of a checkpoint is for.

    Reads indexes and, where nothing refers to a few bytes, those bytes; never the values of leaves.
    The files are those at and below the path that is opened as the checkpoint: for a step of one
    item, the item's. For a file that names others beside it, they are that file and those in use.

    Args:
        checkpoint: See `open`.

    Returns:
        The account. The sum of its kinds is the size of the files, to the byte.

    Raises:
        CheckpointError: The checkpoint can't be opened, or a leaf can't be located; see `open`.
            Bytes that templax can't decode are counted like others.
        SourceError: The storage failed.

    Example:
        >>> import os, tempfile
        >>> import numpy as np, templax as tx
        >>> path = os.path.join(tempfile.mkdtemp(), "model")
        >>> saved = tx.save(path, {"w": np.zeros((8, 6), np.float32)}, format="safetensors")
        >>> account = tx.account_bytes(path)
        >>> account.nbytes == os.path.getsize(os.path.join(path, "model.safetensors"))
        True
        >>> account.kinds["leaf"], account.kinds["gap"]
        (192, 0)
    """
    catalog = open_checkpoint(checkpoint)
    while catalog.base is not None:
        catalog = catalog.base
    return _make_account(catalog, _locate(catalog))


def _locate(catalog: Catalog) -> Mapping[str, Sequence[Chunk]]:
    """Where the bytes of all leaves are, also of those that templax can't decode."""
    leaves = [entry for entry in catalog.leaves.values() if entry.kind != "string"]
    try:
        return catalog.locate(leaves)
    except Unsupported:
        damages: list[Corrupted] = []
        located = catalog.locate(leaves, damages)
        if damages:
            raise damages[0] from None
        return located


@pause_gc()
def _make_account(catalog: Catalog, located: Mapping[str, Sequence[Chunk]]) -> ByteAccount:
    spans: defaultdict[str, list[Span]] = defaultdict(list)
    inline: Counter[str] = Counter()
    number = 0
    for name, chunks in located.items():
        for chunk in chunks:
            extent = chunk.extent
            if extent.inline is not None and chunk.codecs != FILL:
                inline[name] += len(extent.inline)
            elif extent.inline is None:
                number += 1
                spans[extent.key].append(Span(extent.start, extent.stop, 0, number, _VALUES, name))
    shared = [group for key in spans for group in find_shared(spans[key])]
    regions = list(catalog.regions()) if catalog.regions is not None else []
    # A file that was opened alone, or with those it names, may have other checkpoints beside it.
    beside = _is_file_of(catalog.source, catalog.url)
    if beside:
        used = {*spans, *(region.file for region in regions)}
        sizes, unread = _measure_some(catalog.source, used), dict[str, str]()
    else:
        sizes, unread = _measure_files(catalog.source)
    for region in regions:
        number += 1
        stop = sizes.get(region.file, 0) if region.stop is None else region.stop
        rank = BYTE_KINDS.index(region.kind)
        if rank == 0:
            inline.pop(region.what, None)  # the values are in an index, but their place is known
            span = Span(region.start, stop, 0, number, _VALUES, region.what)
        else:
            span = Span(region.start, stop, rank, number, region.what, None)
        spans[region.file].append(span)
    parts: Counter[tuple[ByteKind, str]] = Counter()
    stored: Counter[str] = Counter()
    files: list[FileBytes] = []
    gaps: list[Gap] = []
    for file, size in sizes.items():
        kinds: Counter[ByteKind] = Counter()
        for start, stop, kind, what, leaf in _attribute(catalog.source, file, size, spans):
            kinds[kind] += stop - start
            parts[kind, what] += stop - start
            if leaf is not None:
                stored[leaf] += stop - start
            if kind == "gap":
                gaps.append(Gap(file, start, stop, what))
        files.append(FileBytes(file, size, {k: kinds[k] for k in BYTE_KINDS if kinds[k]}))
    leaves = [
        LeafBytes(name, stored[name], inline[name], entry.nbytes)
        for name, entry in catalog.leaves.items()
    ]
    return ByteAccount(
        url=catalog.url if beside else catalog.source.url,
        format=catalog.format,
        nbytes=sum(sizes.values()),
        decoded=catalog.nbytes,
        kinds={kind: sum([f.kinds.get(kind, 0) for f in files]) for kind in BYTE_KINDS},
        files=tuple(sorted(files, key=lambda file: (-file.nbytes, file.file))),
        parts=tuple(PartBytes(kind, what, n) for (kind, what), n in parts.most_common()),
        leaves=tuple(sorted(leaves, key=lambda leaf: -leaf.stored - leaf.inline)),
        shared=tuple(_join_shared(shared, list(catalog.leaves))),
        gaps=tuple(gaps),
        unread=unread,
    )


def _measure_files(source: Source) -> tuple[dict[str, int], dict[str, str]]:
    """The size of each file at and below the root, and the problems with others."""
    info = source.stat("")
    if info is not None and not info.is_dir:
        return {"": info.size}, {}
    found = list(source.walk())
    sizes = {info.key: info.size for info in found if info.problem is None}
    return sizes, {info.key: str(info.problem) for info in found if info.problem is not None}


def _is_file_of(source: Source, url: str) -> bool:
    """Whether a checkpoint at `url` is a file in the directory of its source."""
    name = url.rstrip("/").rpartition("/")[2]
    if not name.strip(".") or name == source.url.rstrip("/").rpartition("/")[2]:
        return False
    info = source.stat(name)
    return info is not None and not info.is_dir


def _measure_some(source: Source, files: Iterable[str]) -> dict[str, int]:
    """The size of each of these files that exists."""
    found = [(file, source.stat(file)) for file in sorted(files)]
    return {file: info.size for file, info in found if info is not None and not info.is_dir}


def _attribute(
    source: Source, file: str, size: int, spans: Mapping[str, list[Span]]
) -> Iterator[tuple[int, int, ByteKind, str, str | None]]:
    """Splits a file into ranges of one purpose: start, stop, kind, what it is, and its leaf."""
    if file not in spans:
        if size:
            yield 0, size, "orphan", _FILE, None
        return
    read = open_ranges(source, file, size)
    for start, stop, span in cover_bytes(spans[file], size):
        if span is not None:
            yield start, stop, BYTE_KINDS[span.rank], span.what, span.leaf
        elif stop - start < ALIGN and stop % ALIGN == 0 and not any(read(start, stop)):
            yield start, stop, "padding", _ALIGNED, None
        else:
            yield start, stop, "gap", _UNKNOWN, None


def cover_bytes(spans: Iterable[Span], size: int) -> Iterator[tuple[int, int, Span | None]]:
    """Splits `size` bytes into ranges, each with the span of the lowest rank that covers it.

    Ranges next to each other with the same span are one. Takes time in proportion to the number of
    spans and its logarithm, however they overlap.
    """
    ordered = sorted(span for span in spans if span.start < min(span.stop, size))
    active: list[tuple[int, int, Span]] = []
    at = first = i = 0
    last: Span | None = None
    while at < size:
        while i < len(ordered) and ordered[i].start <= at:
            heapq.heappush(active, (ordered[i].rank, ordered[i].order, ordered[i]))
            i += 1
        while active and active[0][2].stop <= at:
            heapq.heappop(active)
        now = active[0][2] if active else None
        if now is not last:
            if at > first:
                yield first, at, last
            first, last = at, now
        at = min(size, ordered[i].start if i < len(ordered) else size, now.stop if now else size)
    if size > first:
        yield first, size, last


def find_shared(spans: Iterable[Span]) -> Iterator[tuple[str, str, int]]:
    """Pairs of leaves with ranges that overlap, and the bytes that were not in a pair before."""
    reach, owner, counted = 0, "", 0
    for span in sorted(spans):
        stop = min(span.stop, reach)
        if span.leaf is not None and span.start < stop and span.leaf != owner:
            yield owner, span.leaf, max(0, stop - max(span.start, counted))
            counted = max(counted, stop)
        if span.stop > reach:
            reach, owner = span.stop, span.leaf or ""


def _join_shared(
    pairs: Iterable[tuple[str, str, int]], names: Sequence[str]
) -> Iterator[SharedBytes]:
    """The groups that pairs of leaves form."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        while (above := parent.setdefault(name, name)) != name:
            parent[name] = parent[above]
            name = above
        return name

    nbytes: Counter[str] = Counter()
    pairs = list(pairs)
    for a, b, _ in pairs:
        parent[find(b)] = find(a)
    for a, _, n in pairs:
        nbytes[find(a)] += n
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        if name in parent:
            groups[find(name)].append(name)
    for root, members in groups.items():
        yield SharedBytes(tuple(members), nbytes[root])
