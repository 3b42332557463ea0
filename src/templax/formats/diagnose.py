"""Describes a path that no format opens.

The errors state only what is certain, and every hint to open something has been tried.
"""

from __future__ import annotations

import re

from .._core.names import find_nearest
from .._core.text import list_examples, list_names
from ..errors import CheckpointError, NotFound, UnknownFormat
from ..storage.leftovers import TEMPORARY
from ..storage.signatures import is_lfs_pointer, make_lfs_error, read_head, recognise
from ..storage.source import ObjectInfo, Source
from .flax.msgpack import Value, read_msgpack
from .orbax.directory import COMMITTED, STEP_METADATA, basename, examine_directory
from .orbax.format import MAX_LISTED, list_openable, open_hint, part_of_item_error
from .orbax.item import missing_dot_file_error

_CHUNK = re.compile(r"[0-9]+(\.[0-9]+)*")

_ORBAX_REMAINS = (STEP_METADATA, COMMITTED, "_sharding", "_strings.json", "array_metadatas/")

_MAX_PROBES = 64

_MAX_MSGPACK = 1 << 26

_MAX_SHOWN = 4


def diagnose_source(source: Source) -> CheckpointError:
    """The error for a source that no format recognises, which says what was found instead.

    Reads a listing and the first bytes of a few files, and opens what it suggests to open.
    """
    info = source.stat("")
    if info is None:
        return _not_found_error(source)
    inside = part_of_item_error(source)
    if inside is not None:
        return inside
    if not info.is_dir:
        return _file_error(source, info)
    children = list(source.children())
    if not children:
        return _unknown_format("an empty directory", source)
    return (
        _lfs_error(source, children)
        or _dot_files_error(source, children)
        or _remains_error(source, children)
        or _checkpoints_below_error(source, children)
        or _contents_error(source, children)
    )


def _unknown_format(what: str, source: Source, hint: str | None = None) -> UnknownFormat:
    return UnknownFormat(
        f"Expected a checkpoint that templax reads at {source.url}, got {what}", hint=hint
    )


def _file_error(source: Source, info: ObjectInfo) -> UnknownFormat:
    head = read_head(source, info.key, info.size)
    if not head:
        return _unknown_format("an empty file", source)
    if is_lfs_pointer(head):
        return make_lfs_error(source.url)
    known = recognise(head, info.size)
    if known is not None:
        return _unknown_format(known[0], source, known[1])
    if _is_flax_msgpack(source, info, head):
        return _unknown_format("a Flax msgpack file", source)
    return _unknown_format("a file of another kind", source)


def _is_flax_msgpack(source: Source, info: ObjectInfo, head: bytes) -> bool:
    is_map = 0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)
    if not is_map or info.size > _MAX_MSGPACK:
        return False
    try:
        leaves = read_msgpack(source.read(info.key))
    except CheckpointError:
        return False
    # Any program may write msgpack with numbers and strings; arrays of extension 1 are Flax's.
    values = (leaf for leaf in leaves.values() if isinstance(leaf, Value))
    return any(value.kind == "array" for value in values)


def _lfs_error(source: Source, children: list[ObjectInfo]) -> UnknownFormat | None:
    for info in children[:_MAX_PROBES]:
        if not info.is_dir and is_lfs_pointer(read_head(source, info.key, info.size)):
            return make_lfs_error(info.key)
    return None


def _dot_files_error(source: Source, children: list[ObjectInfo]) -> CheckpointError | None:
    for info in children[:_MAX_PROBES]:
        if info.is_dir:
            files = [c.key for c in source.children(info.key)]
            # Require that all files are chunks: a file named `0` among others proves nothing.
            if files and all(_CHUNK.fullmatch(f[len(info.key) :]) for f in files):
                return missing_dot_file_error(info.key.rstrip("/"), files[0])
    return None


def _remains_error(source: Source, children: list[ObjectInfo]) -> UnknownFormat | None:
    remains = [info.key for info in children if info.key in _ORBAX_REMAINS]
    if not remains:
        return None
    return _unknown_format(
        f"`{remains[0]}` of an Orbax checkpoint without its `_METADATA` or arrays", source
    )


def _checkpoints_below_error(source: Source, children: list[ObjectInfo]) -> UnknownFormat | None:
    """The error for a directory of checkpoints that are not steps, if `source` is one."""
    found: list[str] = []
    for info in children[:_MAX_PROBES]:
        if info.is_dir and TEMPORARY not in info.key:
            child = source.at(info.key.rstrip("/"))
            root = examine_directory(child)
            if root is not None and root.what == "steps":
                committed = [step.key for step in root.steps if step.committed]
                child = child.at(committed[-1]) if committed else child
            found += list_openable(child)
        if len(found) >= _MAX_SHOWN:
            break
    if not found:
        return None
    return _unknown_format(
        "a directory that holds checkpoints", source, open_hint(found[:_MAX_SHOWN])
    )


def _contents_error(source: Source, children: list[ObjectInfo]) -> UnknownFormat:
    named: list[str] = []
    for info in children[:_MAX_SHOWN]:
        known = None
        if not info.is_dir:
            known = recognise(read_head(source, info.key, info.size), info.size)
        named.append(f"`{info.key}`" + (f" ({known[0]})" if known else ""))
    return _unknown_format(f"a directory of {list_examples(named, len(children))}", source)


def _not_found_error(source: Source) -> NotFound:
    """The error for a missing path, with hints from its closest existing parent directory."""
    missing, parent = source, source.at("..")
    while parent.stat("") is None and parent.url != missing.url:
        missing, parent = parent, parent.at("..")
    name = basename(missing)
    what = f"There is nothing at {source.url}"
    names = [info.key.rstrip("/") for info in parent.children()]
    unfinished = [n for n in names if n.startswith(name + TEMPORARY)]
    if unfinished:
        return NotFound(f"{what}; a save of it never committed: `{unfinished[0]}` is beside it")
    root = examine_directory(parent)
    if root is not None and root.what == "steps":
        committed = [step for step in root.steps if step.committed]
        if committed:
            listed = ", ".join(str(step.step) for step in committed[-8:])
            latest = list_openable(parent.at(committed[-1].key))
            return NotFound(
                f"{what}; committed steps of {parent.url}: {listed}", hint=open_hint(latest)
            )
    if root is not None and root.what == "items":
        what = f"{what}; {parent.url} holds {list_names(list(root.items), MAX_LISTED)}"
    near = find_nearest(name, names)
    hint = open_hint(list_openable(parent.at(near))) if near is not None else None
    return NotFound(what, hint=hint or open_hint(list_openable(parent)))
