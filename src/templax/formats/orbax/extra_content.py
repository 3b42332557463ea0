"""What a directory contains beyond the result of one save, which a save must not replace."""

from __future__ import annotations

import itertools

from ...storage.marks import LEASE
from ...storage.source import Source, find_cost
from ..file_names import FILES, INDEX_FILE, MANIFEST
from .directory import (
    DATABASE_DIRECTORIES,
    LEGACY,
    MARKS,
    MAX_PROBES,
    TREE,
    V1_MARK,
    Root,
    examine_directory,
    holds_only_data,
    is_committed,
    list_names,
)
from .step_metadata import STEP_METADATA
from .step_names import basename

_SIDE_FILES = (
    "_sharding",
    "_strings.json",
    "data.json",
    "metadata",
    "metrics",
    INDEX_FILE,
)

OWN_FILES = frozenset((TREE, MANIFEST, LEGACY, *MARKS, *_SIDE_FILES))
"""The files that a save writes beside arrays."""

OWN_DIRECTORIES = ("d", "array_metadatas", "descriptor", *DATABASE_DIRECTORIES)
"""The directories that a save makes beside those of arrays."""

_MAX_DEPTH = 4
"""Most levels of directories in an item."""


def describe_extra_content(source: Source) -> str | None:
    """What a directory contains beyond the result of one save, in words; None if nothing."""
    root = examine_directory(source)
    crowd = _describe_crowd(source, root)
    extra = list_extra_content(source)
    if crowd is not None or not extra:
        return crowd
    return "other files" if _is_other(source, root) else f"`{extra[0]}` in it"


def describe_unkept_content(source: Source) -> str | None:
    """What a directory contains that a save can't keep beside it, in words; None if nothing.

    A save keeps what others put into the directory of a checkpoint, and files where there is none.
    """
    root = examine_directory(source)
    crowd = _describe_crowd(source, root)
    if crowd is not None or not _is_other(source, root):
        return crowd
    below = [name for name in sorted(list_names(source)) if name.endswith("/")]
    return f"a directory `{below[0].rstrip('/')}` and no checkpoint" if below else None


def list_extra_content(source: Source) -> list[str]:
    """The names in a directory that one save did not write."""
    root, names = examine_directory(source), sorted(list_names(source))
    if _is_other(source, root):
        return [] if holds_only_data(source) else [name.rstrip("/") for name in names]
    assert root is not None
    is_crowd = _describe_crowd(source, root) is not None
    extra: list[str] = []
    for name in names:
        if not name.endswith("/"):
            is_own = name in OWN_FILES
        else:
            is_own = not is_crowd and _belongs_to_save(source, root, name[:-1])
        if not is_own:
            extra.append(name.rstrip("/"))
    return extra


def _is_other(source: Source, root: Root | None) -> bool:
    """Whether a directory is no checkpoint."""
    return root is None or (root.what == "json" and not is_committed(source))


def _describe_crowd(source: Source, root: Root | None) -> str | None:
    """What a directory of several checkpoints holds, in words; None if it is none."""
    if root is None:
        return None
    if root.what == "steps":
        return f"{len(root.steps)} step{'s' if len(root.steps) > 1 else ''}"
    marks = {STEP_METADATA, V1_MARK}
    if find_cost(source) is None:  # in a store, it may be the lease of the save that asks
        marks.add(LEASE)
    if root.what == "items" and not list_names(source) & marks:
        return "a directory with " + ", ".join(f"`{name}`" for name in sorted(root.items)[:6])
    return None


def _belongs_to_save(source: Source, root: Root, name: str) -> bool:
    """Whether a subdirectory was written by the save that wrote its parent."""
    if root.what == "items":
        if name in root.handled or (not root.handled and root.items.get(name) != "other"):
            return True
        return holds_only_data(source, name)  # of a save in an object store that was killed
    if name in OWN_DIRECTORIES or name.startswith("ocdbt."):
        return True
    # Without a database, each array is a directory, or nested ones if its name has slashes.
    files = itertools.islice(source.at(name).walk(), MAX_PROBES)
    here = (info.key.rpartition("/")[2] for info in files)
    return source.stat(MANIFEST) is None and any(file in FILES for file in here)


def find_enclosing_item(source: Source) -> str | None:
    """URL of the item that contains `source`, if any."""
    for _ in range(_MAX_DEPTH):
        source = source.at("..")
        if not basename(source).strip("."):
            return None
        if any(source.stat(mark) is not None for mark in (TREE, MANIFEST)):
            return source.url
    return None
