"""Orbax checkpoints of all generations since 0.2: what to open, or what to open instead."""

from __future__ import annotations

from typing import Any

from ..._catalog.catalog import Catalog
from ...errors import CheckpointError, UnknownFormat
from ...storage.source import Source
from ..zarr.metadata import FILES
from .directory import (
    TREE,
    Root,
    basename,
    examine_directory,
    list_items,
    step_metadata,
    step_number,
    uncommitted_reason,
)
from .item import open_item

MOST_LISTED = 6
"""Items that an error names; a directory may hold hundreds."""

_PART_DEPTH = 4
"""Levels of an item: `ocdbt.process_0/d/<file>`, or `<array>/c/0/0` of a small rank."""

_KEPT = ("commit_timestamp_nsecs", "init_timestamp_nsecs", "custom_metadata", "metrics")


class Orbax:
    """A directory written by `orbax.checkpoint`: an item, or a step with one pytree item in it."""

    name = "orbax"

    def detect(self, source: Source) -> str | None:
        """Words for why `source` is of Orbax, also if it is only a directory of checkpoints."""
        root = examine_directory(source)
        return root.evidence if root is not None else None

    def open(self, source: Source) -> Catalog:
        """The catalog of the item at `source`, or of the only pytree item in it.

        Raises:
            UnknownFormat: Steps, several items, none that is a pytree, or a part of an item. What
                it says to open instead was opened.
            Corrupted, Unsupported, Uncommitted: As `open_item`.
        """
        inside = inside_item(source)
        if inside is not None:
            raise inside
        root = examine_directory(source)
        if root is None:
            raise UnknownFormat(f"{source.url} is no Orbax checkpoint")
        if root.what == "json":
            raise UnknownFormat(f"{source.url} is a JSON item, not a pytree")
        if root.what == "steps":
            raise _steps_error(source, root)
        if root.what == "item":
            return _open(source)
        pytrees = root.pytrees
        if len(pytrees) == 1:
            return _open(source.at(pytrees[0]))
        listed = list_examples([f"`{name}` ({kind})" for name, kind in root.items.items()])
        if not pytrees:
            raise UnknownFormat(f"{source.url} holds no pytree item, only {listed}")
        raise UnknownFormat(
            f"{source.url} holds several items: {listed}", hint=open_hint(openable(source))
        )


def openable(source: Source) -> list[str]:
    """URLs at or just below `source` that open as finished checkpoints: each was opened.

    One that opens is its own only URL; of a step with several items, each item's.
    """
    root = examine_directory(source)
    if root is None or root.what not in ("item", "items"):
        return []
    if root.what == "item":
        return [source.url] if _opens(source) else []
    pytrees = [source.at(name) for name in root.pytrees]
    found = [child.url for child in pytrees if _opens(child)]
    return [source.url] if len(pytrees) == 1 and found else found


def list_examples(texts: list[str]) -> str:
    """A list that stays readable, however long."""
    more = len(texts) - MOST_LISTED
    return ", ".join(texts[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")


def open_hint(urls: list[str]) -> str | None:
    """What to write for one of `urls`; None if there is none."""
    return "open " + " or ".join(f'"{url}"' for url in urls[:MOST_LISTED]) if urls else None


def inside_item(source: Source) -> UnknownFormat | None:
    """The error for a directory or file that is a part of an item, if `source` is one."""
    name, info = basename(source), source.stat("")
    if info is None or not name.strip("."):
        return None
    if info.is_dir:
        part = name.startswith("ocdbt.process_") or name in ("d", "array_metadatas")
        alone = source.stat(TREE) is not None  # an array saved by itself, without OCDBT
        if not part and (alone or all(source.stat(m) is None for m in FILES)):
            return None
    parent = source
    for _ in range(_PART_DEPTH):
        parent = parent.at("..")
        if not basename(parent).strip("."):
            return None  # above the path as it was given, or the root
        root = examine_directory(parent)
        if root is not None and root.what == "item" and not _is_process(parent):
            what = f"{source.url} is a part of the checkpoint {parent.url}"
            return UnknownFormat(what, hint=open_hint(openable(parent)))
    return None


def _is_process(source: Source) -> bool:
    return basename(source).startswith("ocdbt.process_")


def _opens(source: Source) -> bool:
    try:
        return _open(source).uncommitted is None
    except CheckpointError:
        return False


def _open(source: Source) -> Catalog:
    parent, name = source.at(".."), basename(source)
    own, above = step_metadata(source), step_metadata(parent)
    about: dict[str, Any] = {}
    if name.isdigit():
        about["step"] = step_number(source)
    elif isinstance(above.get("item_handlers"), dict) or basename(parent).isdigit():
        about |= {"item": name, "items": list_items(parent)}
        if step_number(parent) is not None:
            about["step"] = step_number(parent)
    for known in (above if "item" in about else {}, own):
        about |= {key: known[key] for key in _KEPT if known.get(key) not in (None, {})}
    return open_item(source, metadata=about, uncommitted=uncommitted_reason(source))


def _steps_error(source: Source, root: Root) -> UnknownFormat:
    committed = [step for step in root.steps if step.committed]
    count = f"{len(root.steps)} step{'s' if len(root.steps) > 1 else ''}"
    if not committed:
        return UnknownFormat(f"{source.url} holds {count}, none of which was committed")
    latest = committed[-1]
    return UnknownFormat(
        f"{source.url} holds {count}; the latest committed step is {latest.step}",
        hint=open_hint(openable(source.at(latest.key))),
    )
