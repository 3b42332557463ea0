"""Describes a path that no format opens.

The errors state only what is certain, and every hint to open something has been tried.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

from .._core.names import find_nearest
from .._core.text import list_examples
from ..errors import CheckpointError, Corrupted, NotFound, SourceError, UnknownFormat, Unsupported
from ..storage.head import KeptHead
from ..storage.signatures import is_lfs_pointer, make_lfs_error, read_head
from ..storage.source import ObjectInfo, Source
from .file_formats import iter_file_formats, iter_set_formats
from .file_set import FileSet
from .flax.arrays import FlaxArrays
from .foreign import UNPACK, describe_file
from .orbax.bare_arrays import describe_others
from .orbax.directory import MAX_PROBES, Root, examine_directory
from .orbax.format import (
    find_below,
    list_ends,
    list_openable,
    open_hint,
    part_of_item_error,
)
from .orbax.step_metadata import COMMITTED, STEP_METADATA
from .orbax.step_names import basename, is_temporary, natural_order, step_prefix
from .protocol import Format
from .safetensors import SHARD_NAME, Safetensors
from .zarr.container import list_files, missing_dot_file_error
from .zarr_tree import ZarrTree

_CHUNK = re.compile(r"[0-9]+(\.[0-9]+)*")

_ORBAX_REMAINS = (STEP_METADATA, COMMITTED, "_sharding", "_strings.json", "array_metadatas/")

_MAX_SHOWN = 4

_NUMBERED = re.compile(
    r"(?P<before>.*?)(?P<number>(?:(?<=_)-)?\d{1,18}(?:\.\d{1,18})?(?:e[+-]?\d{1,3})?)(?P<after>(?:\.[a-z]\w*)*)"
)
"""The name of a file that a run may have saved at a step, such as `checkpoint_10`."""


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
        or _unpacked_error(source, children)
        or _dot_files_error(source, children)
        or _remains_error(source, children)
        or _index_error(source, children)
        or _shards_error(source, children)
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
    what, hint = describe_file(source, info.key, info.size) or ("a file of another kind", None)
    return _unknown_format(what, source, hint)


def _lfs_error(source: Source, children: list[ObjectInfo]) -> UnknownFormat | None:
    for info in children[:MAX_PROBES]:
        with suppress(SourceError):
            if not info.is_dir and is_lfs_pointer(read_head(source, info.key, info.size)):
                return make_lfs_error(info.key)
    return None


def _unpacked_error(source: Source, children: list[ObjectInfo]) -> UnknownFormat | None:
    if not {"data.pkl", "version"} <= {info.key for info in children}:
        return None
    hint = "pack the directory again, with `zip -0 -r` in the directory around it"
    return _unknown_format("the files of an unpacked PyTorch file", source, hint)


def _dot_files_error(source: Source, children: list[ObjectInfo]) -> CheckpointError | None:
    for info in children[:MAX_PROBES]:
        files: list[str] = []
        if info.is_dir:
            with suppress(SourceError):
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


def _index_error(source: Source, children: list[ObjectInfo]) -> Corrupted | None:
    """The error for a set of files whose index can't be used, if `source` is one."""
    sets = (format for format in iter_set_formats() if isinstance(format, FileSet))
    problem = next(filter(None, (format.find_index_problem(source) for format in sets)), None)
    if problem is None:
        return None
    hint = open_hint(list_openable_files(source, children))
    return Corrupted(problem.what, leaf=problem.leaf, file=problem.file, hint=hint)


def _shards_error(source: Source, children: list[ObjectInfo]) -> Unsupported | None:
    shards = (info.key for info in children if SHARD_NAME.fullmatch(info.key))
    for key in itertools.islice(shards, MAX_PROBES):
        try:
            Safetensors().open(source.at(key))
        except Unsupported as error:
            return error
        except (CheckpointError, SourceError):
            continue
    return None


def _checkpoints_below_error(source: Source, children: list[ObjectInfo]) -> UnknownFormat | None:
    """The error for a directory of checkpoints that are not steps, if `source` is one."""
    files = list_openable_files(source, children)
    # The arrays of a file of Flax, beside it, are a part of what the file is.
    names = [info.key.rstrip("/") for info in children if info.is_dir]
    names = [name for name in names if FlaxArrays().detect(source.at(name)) is None]
    found = find_below(source, names)
    below = [url for name in found for url in found[name]]
    others = [source.at(name) for name in names if name not in found]
    below += filter(None, (_open_with([ZarrTree()], child) for child in others[:MAX_PROBES]))
    if not below and not files:
        # A directory of directories with a file in each, or the files of one checkpoint.
        directories = [source.at(info.key.rstrip("/")) for info in children if info.is_dir]
        for child in directories[:MAX_PROBES]:
            with suppress(SourceError):
                whole = _open_with(iter_set_formats(), child)
                below += [whole] if whole else list_openable_files(child, list(child.children()))
    if not below and not files:
        return None
    if not below and len(files) == 1:
        named = name_contents(source, children)
        return _unknown_format(f"a directory of {named}", source, open_hint(files))
    names = [url.rpartition("/")[2] for url in files]
    if not below and len({_split_number(name)[0] for name in names}) == 1:
        listed = list_ends([f"`{name}`" for name in names])
        what = f"a directory of checkpoints, the highest number first: {listed}"
        return _unknown_format(what, source, open_hint(files[:1]))
    root = examine_directory(source)
    is_item = root is not None and root.what == "item"
    others = describe_others(source, list_files(source)) if is_item else None
    what = f"a directory that holds {others or 'checkpoints'}"
    return _unknown_format(what, source, open_hint(files + below))


def list_openable_files(source: Source, children: list[ObjectInfo]) -> list[str]:
    """URLs of the files among the children that were opened successfully as finished checkpoints.

    Of files whose names differ by a number only, the highest comes first.
    """
    files = [info for info in children if not info.is_dir and info.problem is None]
    alike: dict[tuple[str, ...], list[ObjectInfo]] = {}
    for info in files:
        alike.setdefault(_split_number(info.key)[0], []).append(info)
    ordered = [
        info
        for group in alike.values()
        for info in sorted(group, key=lambda info: _split_number(info.key)[1], reverse=True)
    ]
    found = list[str]()
    for info in ordered[:MAX_PROBES]:
        formats = itertools.chain(iter_file_formats(), iter_set_formats())  # it may be an index
        url = _open_with(formats, source.at(info.key))
        found += [url] if url else []
    return found


def _open_with(formats: Iterable[Format], source: Source) -> str | None:
    """The URL of a source that one of these formats opened as a finished checkpoint."""
    with suppress(CheckpointError, SourceError):
        looked_at = KeptHead(source)
        format = next((f for f in formats if f.detect(looked_at) is not None), None)
        catalog = None if format is None else format.open(source)
        if catalog is not None and catalog.uncommitted is None:
            return catalog.url
    return None


def _split_number(name: str) -> tuple[tuple[str, ...], float]:
    """What is around the number that a file's name ends in, apart from extensions; and the number.

    >>> _split_number("checkpoint_10"), _split_number("b.npz")
    ((('checkpoint_', ''), 10.0), (('b.npz',), 0.0))
    """
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return (name,), 0.0
    return (match["before"], match["after"]), float(match["number"])


def _contents_error(source: Source, children: list[ObjectInfo]) -> UnknownFormat:
    kinds = _describe_files(source, children[:MAX_PROBES])
    hints = {key: hint for key, (_, hint) in kinds.items() if hint not in (None, UNPACK)}
    # Of files whose names differ by a number only, such as those of the steps of a run, the last.
    alike = len({re.sub(r"[0-9]+", "0", key) for key in hints}) == 1
    hint = hints[max(hints, key=natural_order)] if alike else None
    return _unknown_format(f"a directory of {name_contents(source, children, kinds)}", source, hint)


def _describe_files(
    source: Source, children: list[ObjectInfo]
) -> dict[str, tuple[str, str | None]]:
    """What `describe_file` says of each file that it recognises."""
    kinds: dict[str, tuple[str, str | None]] = {}
    for child in children:
        with suppress(SourceError):
            kind = None if child.is_dir else describe_file(source, child.key, child.size)
            if kind is not None:
                kinds[child.key] = kind
    return kinds


def name_contents(
    source: Source,
    children: list[ObjectInfo],
    kinds: Mapping[str, tuple[str, str | None]] | None = None,
) -> str:
    """The first names in a directory, each with the kind of the file if it is recognised.

    Args:
        source: The directory.
        children: What is in it.
        kinds: What `describe_file` says of the files, if that is known already.
    """
    if kinds is None:
        kinds = _describe_files(source, children[:_MAX_SHOWN])
    named = [
        f"`{c.key}` ({kinds[c.key][0]})" if c.key in kinds else f"`{c.key}`"
        for c in children[:_MAX_SHOWN]
    ]
    return list_examples(named, len(children))


def _not_found_error(source: Source) -> NotFound:
    """The error for a missing path, with hints from its closest existing parent directory.

    Only what is related to the missing name is hinted at: a step of the same run, an item of the
    same step, a similar name, or the checkpoint that the path leads into.
    """
    missing, parent, rest = source, source.at(".."), list[str]()
    while parent.stat("") is None and parent.url != missing.url:
        rest.insert(0, basename(missing))
        missing, parent = parent, parent.at("..")
    name = basename(missing)
    what = f"There is nothing at {source.url}"
    try:
        names = [info.key.rstrip("/") for info in parent.children()]
    except SourceError:  # a directory that may be entered, but not listed
        return NotFound(what)
    unfinished = [n for n in names if is_temporary(n) and n.startswith(f"{name}.")]
    if unfinished:
        return NotFound(f"{what}; a save of it never committed: `{unfinished[0]}` is beside it")
    root = examine_directory(parent)
    if root is not None and root.what == "steps" and _is_step_like(name, root):
        committed = [step for step in root.steps if step.committed]
        if committed:
            listed = ", ".join(str(step.step) for step in committed[-8:])
            latest = list_openable(parent.at(committed[-1].key))
            return NotFound(
                f"{what}; committed steps of {parent.url}: {listed}", hint=open_hint(latest)
            )
    if root is not None and root.what == "items":
        what = f"{what}; {parent.url} holds {list_ends([f'`{name}`' for name in root.items])}"
    near = find_nearest(name, names)
    if near is not None:
        return _similar_error(what, parent.at(near), rest)
    inside = root is not None and (root.what == "item" or root.handled)
    return NotFound(what, hint=open_hint(list_openable(parent)) if inside else None)


def _is_step_like(name: str, root: Root) -> bool:
    """Whether a missing name is that of a step of this run, or could be meant as one."""
    return name.isdigit() or (step_prefix(name) or None) in root.prefixes


def _similar_error(what: str, near: Source, rest: list[str]) -> NotFound:
    """The error for a missing path beside which there is one with a similar name.

    Args:
        what: The error without hints.
        near: What has a similar name.
        rest: The elements of the path after the missing one.
    """
    inside = near.at("/".join(rest)) if rest else near
    for place in (inside, near):
        info = place.stat("")
        if info is None:
            continue
        parent, name = place.at(".."), basename(place)
        if info.is_dir:
            found = find_below(parent, [name]).get(name, [])
        else:
            found = list_openable_files(parent, [replace(info, key=name)])
        if found:
            return NotFound(what, hint=open_hint(found))
    return NotFound(what)
