"""Finds what a killed conversion left behind, and tells whether it can go on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from .._catalog.catalog import Catalog
from ..errors import CheckpointError, SaveError, SourceError
from ..storage.leftovers import Leftover, find_abandoned, find_unfinished, remove_directory
from ..storage.source import ObjectInfo
from .journal import NAME, Head, read_head


def identify_source(catalog: Catalog) -> str | None:
    """A digest of which files a checkpoint consists of, and of their sizes and versions.

    Returns:
        None if the store does not tell when an object has changed.
    """
    source = catalog.source
    try:
        info = source.stat("")
        if info is None:
            return None
        found: Sequence[ObjectInfo] = list(source.walk()) if info.is_dir else [info]
    except (CheckpointError, SourceError):
        return None
    if any(each.version is None and each.problem is None for each in found):
        return None
    files = [(each.key, each.size, each.version) for each in found]
    return digest((source.url, catalog.url, files))


def digest(value: Any) -> str:
    """A digest of plain values."""
    return hashlib.sha256(repr(value).encode(errors="backslashreplace")).hexdigest()


def find_leftover(path: str, source: str, options: str) -> tuple[Leftover | None, str | None]:
    """What an earlier call left behind that read and wrote the same; removes that of others.

    Args:
        path: Where the checkpoint goes.
        source, options: See `Head`.

    Returns:
        The leftover, if there is one; otherwise why what is there is of no use, if anything is.

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
    chosen = next((d for d, h in heads.items() if (h.source, h.options) == (source, options)), None)
    reason = None
    for directory, head in heads.items():
        if directory == chosen:
            continue
        remove_directory(directory)
        if head.source != source:
            reason = "an earlier conversion to this path read another source, or one that changed"
        else:
            reason = "an earlier conversion to this path had other options"
    if chosen is None:
        return None, reason
    return Leftover(chosen, heads[chosen].files, NAME), None
