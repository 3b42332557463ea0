"""The Orbax format, all generations since 0.2: finds the item to open, or suggests some."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from ..._catalog.catalog import Catalog
from ..._core.text import quote_text
from ...errors import CheckpointError, SourceError, Uncommitted, UnknownFormat
from ...storage.signatures import SAFETENSORS, read_head, recognise
from ...storage.source import Source
from ..file_names import FILES, INDEX_FILE, MANIFEST
from .directory import (
    DATABASE_DIRECTORIES,
    MARKS,
    MAX_PROBES,
    TREE,
    Root,
    are_bare,
    examine_directory,
    has_orbax_files,
    list_items,
    list_names,
    uncommitted_reason,
)
from .json_item import read_json_item
from .step_metadata import metadata_around, step_metadata
from .step_names import basename, is_temporary, step_number, step_prefix

MAX_LISTED = 6
"""Most items that an error names; a directory may contain hundreds."""

_SEARCH_DEPTH = 3
"""Most levels that are searched for checkpoints."""

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
            raise UnknownFormat(f"{source.url} is not an Orbax checkpoint")
        if root.what == "json":
            raise UnknownFormat(
                f"{source.url} is a JSON item, not a pytree", hint=_json_hint([source])
            )
        if root.what == "steps":
            raise _steps_error(source, root)
        if root.what == "item":
            return _open_item_at(source)
        pytrees = root.pytrees
        if len(pytrees) == 1:
            others = _find_others(source, root)
            if others:
                urls = list_openable(source.at(pytrees[0]))
                raise UnknownFormat(
                    f"{source.url} holds several checkpoints, in "
                    + list_ends([f"`{name}`" for name in (*pytrees, *others)]),
                    hint=open_hint(sum(others.values(), urls)),
                )
            return _open_item_at(enter_item(source, pytrees[0]))
        listed = list_ends([f"`{name}` ({kind})" for name, kind in root.items.items()])
        if not pytrees:
            for name, kind in root.items.items():
                if kind == "other":  # raise if it can't be read: it may be the tree
                    next(iter(source.at(name).children()), None)
            jsons = [source.at(name) for name, kind in root.items.items() if kind == "json"]
            raise UnknownFormat(
                f"{source.url} holds no pytree item, only {listed}", hint=_json_hint(jsons)
            )
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
    alone = len(pytrees) == 1 and found and not _find_others(source, root)
    return [source.url] if alone and _can_enter(source, root.pytrees[0]) else found


def list_latest(source: Source, root: Root) -> list[str]:
    """What `list_openable` finds in the latest committed step of each name, latest first."""
    latest = {step_prefix(step.key): step for step in root.steps if step.committed}
    found: list[str] = []
    for step in sorted(latest.values(), key=lambda step: -step.step)[:MAX_LISTED]:
        found += list_openable(source.at(step.key))
    return found


def find_below(source: Source, names: Iterable[str]) -> dict[str, list[str]]:
    """Checkpoints in some directories of `source`, at most `_SEARCH_DEPTH` levels deep.

    Returns:
        The name of each directory with what looks like a checkpoint → the URLs that were opened.
    """
    found: dict[str, list[str]] = {}
    pending = deque((name, source.at(name), 1) for name in names if not is_temporary(name))
    for _ in range(MAX_PROBES):
        if not pending or sum(map(len, found.values())) > MAX_LISTED:
            break
        name, child, depth = pending.popleft()
        try:
            root = examine_directory(child)
        except SourceError:  # of no use to whoever looks for a checkpoint
            continue
        if root is not None and root.what == "steps":
            found.setdefault(name, []).extend(list_latest(child, root))
        elif root is not None and (root.what == "item" or root.pytrees):
            found.setdefault(name, []).extend(list_openable(child))
        elif depth < _SEARCH_DEPTH:
            below = (info.key.rstrip("/") for info in child.children() if info.is_dir)
            pending.extend((name, child.at(key), depth + 1) for key in below if key.strip("."))
    return found


def _find_others(source: Source, root: Root) -> dict[str, list[str]]:
    """Other checkpoints in a directory with one tree, if nothing says that a save made it whole.

    Returns:
        Their names → the URLs that were opened in them.
    """
    names = list_names(source)
    if root.handled or names & MARKS:
        return {}
    files = [info for info in source.children() if not info.is_dir][:MAX_PROBES]
    tensors = [
        info.key
        for info in files
        if recognise(read_head(source, info.key, info.size), info.size) == SAFETENSORS
    ]
    others = [name for name, kind in root.items.items() if kind == "other"]
    return find_below(source, others) | {key: [] for key in tensors}


def list_ends(texts: Sequence[str]) -> str:
    """Some of `texts`, the first and last among them, and the number of the others."""
    if len(texts) <= MAX_LISTED:
        return ", ".join(texts)
    first, last = texts[: MAX_LISTED - 2], texts[-2:]
    return ", ".join([*first, f"{len(texts) - MAX_LISTED} more", *last])


def open_hint(urls: Sequence[str]) -> str | None:
    """A hint to open one of `urls`, the last among them; None if there are none."""
    shown = urls if len(urls) <= MAX_LISTED else [*urls[: MAX_LISTED - 2], *urls[-2:]]
    return "open " + " or ".join(map(quote_text, shown)) if urls else None


def _json_hint(items: Sequence[Source]) -> str | None:
    """A hint to read one of these JSON items; None if none can be read."""
    for item in items:
        with suppress(CheckpointError, SourceError):
            read_json_item(item)
            return f"templax.read_json({quote_text(item.url)}) reads it"
    return None


def part_of_item_error(source: Source) -> UnknownFormat | None:
    """The error for a source that is a part of an item; None if it isn't one."""
    name, info = basename(source), source.stat("")
    if info is None or not name.strip("."):
        return None
    part = not info.is_dir
    if info.is_dir:
        parts = ("d", "array_metadatas", *DATABASE_DIRECTORIES)
        part = name.startswith("ocdbt.process_") or name in parts
        is_array_item = source.stat(TREE) is not None  # an array saved by itself, without OCDBT
        if not part and (is_array_item or all(source.stat(m) is None for m in FILES)):
            return None
    parent = source
    for _ in range(_PART_DEPTH):
        parent = parent.at("..")
        if not basename(parent).strip("."):
            return None  # above the path as it was given, or the root
        root = None
        with suppress(SourceError):  # a directory that may not be read, beside or above
            root = examine_directory(parent)
        if root is None or root.what != "item" or _is_process_directory(parent):
            continue
        # What is beside arrays may be anybody's, and an array is a tree of its own.
        names = list_names(parent)
        if has_orbax_files(parent, names) or (part and MANIFEST in names):
            what = f"{source.url} is a part of the checkpoint {parent.url}"
            return UnknownFormat(what, hint=open_hint(list_openable(parent)))
    return None


def _is_process_directory(source: Source) -> bool:
    return basename(source).startswith("ocdbt.process_")


def _can_open(source: Source) -> bool:
    try:
        return _open_item_at(source).uncommitted is None
    except (CheckpointError, SourceError):
        return False


def enter_item(source: Source, name: str) -> Source:
    """The directory of an item that the caller did not name by its path: it must be in its step.

    Raises:
        SourceError: It is a link that leads out.
    """
    source.stat(name)
    return source.at(name)


def _can_enter(source: Source, name: str) -> bool:
    try:
        enter_item(source, name)
    except SourceError:
        return False
    return True


def _open_item_at(source: Source) -> Catalog:
    parent, name = source.at(".."), basename(source)
    own, above = step_metadata(source), {} if name.isdigit() else metadata_around(source)
    about: dict[str, Any] = {}
    if name.isdigit():
        about["step"] = step_number(source)
    elif isinstance(above.get("item_handlers"), dict) or basename(parent).isdigit():
        about["item"] = name
        with suppress(SourceError):  # a directory that may not be listed
            about["items"] = list_items(parent)
        if step_number(parent) is not None:
            about["step"] = step_number(parent)
    for known in (above if "item" in about else {}, own):
        about |= {key: known[key] for key in _REPORTED_METADATA if known.get(key) not in (None, {})}
    reason = uncommitted_reason(source)
    try:
        return _open_item(source, about, reason)
    except CheckpointError as error:
        if reason is None or isinstance(error, Uncommitted):
            raise
        what = f"{source.url} is not a committed checkpoint: {reason}; what is there is incomplete"
        raise Uncommitted(f"{what}: {error}") from error


def _open_item(source: Source, about: dict[str, Any], uncommitted: str | None) -> Catalog:
    """The catalog of an item directory; see `open_item` and `open_indexed_item`.

    An item with an index of templax opens without importing the code that reads Orbax's own files.
    """
    present = {info.key for info in source.children()}
    if INDEX_FILE in present:
        from .indexed_item import open_indexed_item

        return open_indexed_item(source, about, uncommitted)
    if are_bare(source, present):
        from .bare_arrays import open_bare_arrays

        return open_bare_arrays(source, about, uncommitted)
    from .item import open_item

    return open_item(source, present, about, uncommitted)


def _steps_error(source: Source, root: Root) -> UnknownFormat:
    committed = [step for step in root.steps if step.committed]
    count = f"{len(root.steps)} step{'s' if len(root.steps) > 1 else ''}"
    if not committed:
        return UnknownFormat(f"{source.url} holds {count}, none of which was committed")
    hint = open_hint(list_latest(source, root))
    if len(root.prefixes) > 1:
        keys = [step.key for step in root.steps]
        keys += [k for k, kind in list_items(source).items() if kind == "pytree" and k not in keys]
        listed = list_ends([f"`{key}`" for key in keys])
        return UnknownFormat(f"{source.url} holds several checkpoints: {listed}", hint=hint)
    latest = committed[-1]
    return UnknownFormat(
        f"{source.url} holds {count}; the latest committed step is {latest.step}", hint=hint
    )
