"""Finds what a killed conversion left behind, and tells whether it can go on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from .._catalog.catalog import Catalog
from ..errors import CheckpointError, SaveError, SourceError
from ..storage.leftovers import Leftover, find_abandoned, find_unfinished, remove_directory
from ..storage.local import Local
from ..storage.source import ObjectInfo, Source
from .journal import NAME, Head, read_head


def identify_source(catalog: Catalog) -> str | None:
    """A digest of which files a checkpoint consists of, of their sizes and versions, and of the
    mapping of a view.

    Returns:
        None if the store does not tell when an object has changed.
    """
    source = catalog.source
    try:
        info = source.stat("")
        if info is None:
            return None
        found: Sequence[ObjectInfo] = list(source.walk()) if info.is_dir else [info]
        if any(each.version is None and each.problem is None for each in found):
            return None
        files = [(each.key, each.size, each.version, _find_change(source, each)) for each in found]
    except (CheckpointError, SourceError, OSError):
        return None
    return digest((source.url, catalog.url, catalog.evidence, files))


def _find_change(source: Source, info: ObjectInfo) -> int | None:
    """When the inode of a local file last changed, which no program can set.

    Of another file, the size, the time of the last write, and the inode may be the same, such as
    one out of an archive that has no times.
    """
    if not isinstance(source, Local) or info.problem is not None:
        return None
    path = os.path.join(source.url, info.key) if info.key else source.url
    return os.stat(path).st_ctime_ns


def digest(value: Any) -> str:
    """A digest of plain values."""
    return hashlib.sha256(repr(value).encode(errors="backslashreplace")).hexdigest()


def find_leftover(path: str, source: str, options: str) -> tuple[Leftover | None, str | None]:
    """What an earlier call left behind that read and wrote the same; removes that of others.

    Args:
        path: Where the checkpoint goes.
        source, options: See `Head`.

    Returns:
        The leftover to resume from, or None; and why an earlier attempt that was found can't be
        resumed, or None.

    Raises:
        SaveError: Another process is converting to this path, or the disk refused.
    """
    heads: dict[str, Head] = {}
    for directory in find_unfinished(path):
        head = read_head(directory)
        if head is not None:
            heads[directory] = head
    abandoned = set(find_abandoned(path)) if heads else set[str]()
    for directory in heads:
        if directory not in abandoned:
            raise SaveError(
                "Another process is converting to this path",
                file=path,
                hint="wait for it, or end it",
            )
    same = [d for d, h in heads.items() if (h.source, h.options) == (source, options)]
    chosen = next((d for d in same if _has_files(d, heads[d])), None)
    reason = None
    for directory, head in heads.items():
        if directory == chosen:
            continue
        remove_directory(directory)
        if (head.source, head.options) == (source, options):
            reason = "what an earlier conversion to this path had written is not whole"
        elif head.source != source:
            reason = "an earlier conversion to this path read another source, or one that changed"
        else:
            reason = "an earlier conversion to this path had other options"
    if chosen is None:
        return None, reason
    return Leftover(chosen, heads[chosen].files, NAME), None


def _has_files(directory: str, head: Head) -> bool:
    """Whether the files of which the journal tells are there: a new one would be empty."""
    return all(os.path.isfile(os.path.join(directory, name)) for name in head.files)
