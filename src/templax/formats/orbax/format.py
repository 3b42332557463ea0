"""The Orbax format, all generations since 0.2: finds the item to open, or suggests some."""

from __future__ import annotations

from typing import Any

from ..._catalog.catalog import Catalog
from ..._core.text import list_examples, list_names, quote_text
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
    step_prefix,
    uncommitted_reason,
)
from .item import open_item

MAX_LISTED = 6
"""Most items that an error names; a directory may contain hundreds."""

_PART_DEPTH = 4
"""Most levels of an item: `ocdbt.process_0/d/<file>`, or `<array>/c/0/0` for small ranks."""

_REPORTED_METADATA = (
    "commit_timestamp_nsecs",
    "init_timestamp_nsecs",
    "custom_metadata",
    "metrics",
)


class Orbax:
    """A directory written by `orbax.checkpoint`: an item, or a step with one pytree item in it."""

    name = "orbax"

    def detect(self, source: Source) -> str | None:
        """Evidence, in words, of an Orbax checkpoint or of a directory of several; or None."""
        root = examine_directory(source)
        return root.evidence if root is not None else None

    def open(self, source: Source) -> Catalog:
        """The catalog of the item at `source`, or of the only pytree item in it.

        Raises:
            UnknownFormat: A directory of steps, several items, no pytree item, or a part of an
                item. Whatever the error suggests to open has been opened successfully.
            Corrupted, Unsupported, Uncommitted: See `open_item`.
        """
        inside = part_of_item_error(source)
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
            return _open_item_at(source)
        pytrees = root.pytrees
        if len(pytrees) == 1:
            return _open_item_at(source.at(pytrees[0]))
        items = list(root.items.items())
        examples = [f"`{name}` ({kind})" for name, kind in items[:MAX_LISTED]]
        listed = list_examples(examples, len(items))
        if not pytrees:
            raise UnknownFormat(f"{source.url} holds no pytree item, only {listed}")
        raise UnknownFormat(
            f"{source.url} holds several items: {listed}", hint=open_hint(list_openable(source))
        )


def list_openable(source: Source) -> list[str]:
    """URLs at or directly below `source` that were opened successfully as finished checkpoints.

    The URL of `source` itself if it opens; for a step with several items, the URLs of the items.
    """
    root = examine_directory(source)
    if root is None or root.what not in ("item", "items"):
        return []
    if root.what == "item":
        return [source.url] if _can_open(source) else []
    pytrees = [source.at(name) for name in root.pytrees]
    found = [child.url for child in pytrees if _can_open(child)]
    return [source.url] if len(pytrees) == 1 and found else found


def open_hint(urls: list[str]) -> str | None:
    """A hint to open one of `urls`; None if there are none."""
    return "open " + " or ".join(map(quote_text, urls[:MAX_LISTED])) if urls else None


def part_of_item_error(source: Source) -> UnknownFormat | None:
    """The error for a source that is a part of an item; None if it isn't one."""
    name, info = basename(source), source.stat("")
    if info is None or not name.strip("."):
        return None
    if info.is_dir:
        part = name.startswith("ocdbt.process_") or name in ("d", "array_metadatas")
        is_array_item = source.stat(TREE) is not None  # an array saved by itself, without OCDBT
        if not part and (is_array_item or all(source.stat(m) is None for m in FILES)):
            return None
    parent = source
    for _ in range(_PART_DEPTH):
        parent = parent.at("..")
        if not basename(parent).strip("."):
            return None  # above the path as it was given, or the root
        root = examine_directory(parent)
        if root is not None and root.what == "item" and not _is_process_directory(parent):
            what = f"{source.url} is a part of the checkpoint {parent.url}"
            return UnknownFormat(what, hint=open_hint(list_openable(parent)))
    return None


def _is_process_directory(source: Source) -> bool:
    return basename(source).startswith("ocdbt.process_")


def _can_open(source: Source) -> bool:
    try:
        return _open_item_at(source).uncommitted is None
    except CheckpointError:
        return False


def _open_item_at(source: Source) -> Catalog:
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
        about |= {key: known[key] for key in _REPORTED_METADATA if known.get(key) not in (None, {})}
    return open_item(source, metadata=about, uncommitted=uncommitted_reason(source))


def _steps_error(source: Source, root: Root) -> UnknownFormat:
    committed = [step for step in root.steps if step.committed]
    count = f"{len(root.steps)} step{'s' if len(root.steps) > 1 else ''}"
    if not committed:
        return UnknownFormat(f"{source.url} holds {count}, none of which was committed")
    latest = committed[-1]
    last = {step_prefix(step.key): step for step in committed}
    if len(last) > 1:
        keys = [step.key for step in root.steps]
        keys += [k for k, kind in list_items(source).items() if kind == "pytree" and k not in keys]
        listed = list_names(keys, MAX_LISTED)
        latest = [source.at(step.key) for step in reversed(last.values())]
        hint = open_hint([url for child in latest for url in list_openable(child)])
        return UnknownFormat(f"{source.url} holds several checkpoints: {listed}", hint=hint)
    return UnknownFormat(
        f"{source.url} holds {count}; the latest committed step is {latest.step}",
        hint=open_hint(list_openable(source.at(latest.key))),
    )
