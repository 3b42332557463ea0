"""Classifies a directory of Orbax: an item, a step or a directory of steps; finished or not.

This module only lists names and reads small JSON files; `item` opens items.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Set
from contextlib import suppress
from functools import cached_property
from typing import Literal

import msgspec
from msgspec import structs

from ...errors import CheckpointError, SourceError
from ...storage.marks import DATA_FILE, DELETION, LEASE, TEMPORARY
from ...storage.signatures import is_lfs_pointer, read_head, read_metadata, recognise
from ...storage.source import Source, find_cost, list_ahead
from ..file_names import ARRAYS, FILES, GROUP, MANIFEST
from .step_metadata import COMMITTED, STEP_METADATA, step_metadata
from .step_names import (
    PARTIAL_SAVE,
    STEP_NAME,
    T5X_TEMPORARY,
    Step,
    basename,
    final_name,
    is_temporary,
    list_prefixes,
    natural_order,
    step_number,
    step_prefix,
)

TREE = "_METADATA"

LEGACY = "checkpoint"

V1_MARK = "orbax.checkpoint"
"""An empty file in each checkpoint of Orbax's v1 API."""

MARKS = frozenset((STEP_METADATA, COMMITTED, DELETION, V1_MARK, LEASE))
"""Files about a save as a whole."""

_TEMPORARY_INDEX = "ocdbt_tmp_meta"

DATABASE_DIRECTORIES = ("ocdbt_meta", "ocdbt_data", _TEMPORARY_INDEX)
"""Parts of a database whose index and values are kept apart."""

_OWN = frozenset((TREE, "_sharding", "_strings.json", "array_metadatas/", *MARKS))
"""What nobody but Orbax has in an item, besides its databases."""

_DATABASES = ("ocdbt.process_", *DATABASE_DIRECTORIES)

ItemKind = Literal["pytree", "json", "other"]

MAX_PROBES = 64
"""Most children of a directory that are looked into; it may contain any number."""


class Root(msgspec.Struct, frozen=True):
    """The classification of a directory.

    Attributes:
        what: "item" for one saved pytree, "items" for a step or another set of items, "steps" for a
            directory of steps, "json" for a JSON item.
        evidence: The reason, in words.
        items: Name → kind, for "items".
        steps: Sorted by number, for "steps".
        handled: For "items", the names that the step's metadata lists, if it has a list.
    """

    what: Literal["item", "items", "steps", "json"]
    evidence: str
    items: Mapping[str, ItemKind] = msgspec.field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    handled: frozenset[str] = frozenset()

    @property
    def prefixes(self) -> list[str]:
        """See `list_prefixes`."""
        return list_prefixes(self.steps)

    @property
    def pytrees(self) -> list[str]:
        """Names of the pytree items.

        If the metadata lists any of them, the others are left out: they are directories that were
        added later, such as notes or partial copies.
        """
        found = [name for name, kind in self.items.items() if kind == "pytree"]
        return [name for name in found if name in self.handled] or found


def examine_directory(source: Source) -> Root | None:
    """Classifies the directory at `source`; None if it isn't a directory, or isn't Orbax's."""
    names = list_names(source)
    evidence = _item_evidence(source, names)
    if evidence is not None:
        return Root("item", evidence)
    handlers = step_metadata(source).get("item_handlers")
    whole = V1_MARK in names or isinstance(handlers, dict)
    found = () if whole else list_steps(source)
    if found:
        named = next((step for step in reversed(found) if TEMPORARY not in step.key), found[-1])
        return Root("steps", f"the step directory `{named.key}`", steps=found)
    held = list_items(source)
    handled = frozenset(handlers) if isinstance(handlers, dict) else frozenset[str]()
    # An item that the metadata lists was saved, even if its files are those of other code.
    first = next((n for n, kind in held.items() if kind != "other" or n in handled), None)
    if first is not None:
        return Root("items", f"the item directory `{first}`", items=held, handled=handled)
    file = json_file(source, names)
    return Root("json", f"the JSON file `{file}`") if file is not None else None


def list_items(source: Source) -> dict[str, ItemKind]:
    """Name → kind of every item in a directory of a step, or of another set of items.

    Raises:
        SourceError: The directory can't be read, or that of an item that its metadata lists can't.
    """
    handlers = _Handlers(source)
    found: dict[str, ItemKind] = {}
    children = list(source.children())
    parts = _list_flax_arrays({info.key for info in children})
    for info in children:
        name = info.key.rstrip("/")
        if info.key in parts:
            continue
        # Keys of an object store may contain `..`, which leads out of the directory.
        if info.is_dir and name.strip(".") and not is_temporary(name):
            try:
                found[name] = _item_kind(source.at(name), name, handlers)
            except SourceError:
                if name in handlers.by_item:
                    raise
                found[name] = "other"
    return dict(sorted(found.items(), key=lambda item: natural_order(item[0])))


class _Handlers:
    """What the metadata of a step says of its items, read once somebody asks."""

    def __init__(self, step: Source):
        self._step = step

    @cached_property
    def by_item(self) -> Mapping[str, object]:
        found = step_metadata(self._step).get("item_handlers")
        return found if isinstance(found, dict) else {}


def _item_kind(source: Source, name: str, handlers: _Handlers) -> ItemKind:
    names = list_names(source)
    if _item_evidence(source, names) is not None:
        return "pytree"
    if {"metadata", "metrics"} & names:  # those need no handler
        return "json"
    handler = handlers.by_item.get(name)
    return "json" if json_file(source, names, handler) is not None else "other"


def list_saved_items(source: Source) -> dict[str, ItemKind]:
    """The items of a step, as `list_items`; empty if it has none, or is an item itself."""
    if _item_evidence(source, list_names(source)) is not None:
        return {}
    found = list_items(source)
    return found if set(found.values()) - {"other"} else {}


def json_file(source: Source, names: Set[str], handler: object = None) -> str | None:
    """The file of a JSON item; None if the directory is none.

    Args:
        source: The directory.
        names: Names of its children; directories end in `/`.
        handler: The handler that wrote it, if the metadata of its step names one.
    """
    if "metadata" in names or "metrics" in names:
        return "metadata" if "metadata" in names else "metrics"
    files = {name for name in names - MARKS if not name.endswith("/")}
    # Orbax takes any file name; alone, `data.json` may be anybody's, even by its default name.
    if isinstance(handler, str) and handler.rpartition(".")[2].startswith("Json"):
        return next(iter(files)) if len(files) == 1 else None
    if files == {"data.json"} and (names != files or V1_MARK in list_names(source.at(".."))):
        return "data.json"
    return None


def list_run_ahead(source: Source) -> None:
    """Lists a directory at once, with all that is below it, if most names in it are of steps."""
    if find_cost(source) is None:
        return
    keys = [info.key.rstrip("/") for info in source.children()]
    named = [key for key in keys if STEP_NAME.fullmatch(key) and not key.startswith(_DATABASES)]
    if len(named) > max(1, len(keys) // 2):
        list_ahead(source)


def list_steps(source: Source) -> tuple[Step, ...]:
    """The steps in a directory, sorted by number, including those that never committed.

    A step is a directory that contains an item and is named by a number, which may follow a prefix
    that ends in `_` or `-`, or is a word such as `epoch`. Nothing is deleted.
    """
    found: list[tuple[Step, frozenset[str]]] = []
    list_run_ahead(source)
    for info in source.children():
        key = info.key.rstrip("/")
        match = STEP_NAME.fullmatch(final_name(key))
        if not info.is_dir or match is None:
            continue
        child = source.at(key)
        try:
            names = list_names(child)
            if not names & MARKS and holds_only_data(child):
                found.append((Step(int(match["number"]), key, _ONLY_DATA), names))
            elif is_temporary(key) or _unfinished_items(names) or _has_items(child, names):
                parts = [key, *_unfinished_items(names)]
                said = [reason for part in parts if (reason := _unfinished_name_reason(part))]
                problem = said[0] if said else _missing_commit_reason(child, names)
                found.append((Step(int(match["number"]), key, problem), names))
        except SourceError as error:  # it may be a step, but not one that can be restored
            found.append((Step(int(match["number"]), key, str(error)), frozenset()))
    marked = {step_prefix(step.key) for step, names in found if _has_proof(source, names)}
    steps = [
        structs.replace(step, problem=NO_COMMIT_FILE)
        if step.committed and not names & MARKS and step_prefix(step.key) in marked
        else step
        for step, names in found
    ]
    return tuple(sorted(steps, key=lambda s: (s.step, s.key)))


def uncommitted_reason(source: Source) -> str | None:
    """Why an item or step is not a finished save; None if there is no sign of that.

    The absence of `commit_success.txt` alone proves nothing: Orbax before 0.12 writes it on object
    stores only. Other steps of the run that have it, from the same time, prove something.
    """
    for part in source.url.split("/"):
        if is_temporary(part):
            return _unfinished_name_reason(part)
    names = list_names(source)
    problem = _missing_commit_reason(source, names)
    if problem is None and STEP_METADATA not in names:
        # An item of a step: the commit is recorded for the step as a whole.
        parent = source.at("..")
        known = _list_around(parent)
        problem = (
            _missing_commit_reason(parent, known)
            or _missing_file_reason(source, names)
            or _missing_file_reason(parent, known)
        )
    return problem


def _list_around(source: Source) -> frozenset[str]:
    """The names in the directory around an item, or at least those in `MARKS`."""
    if step_number(source) is not None:  # another directory may hold any number of files
        with suppress(SourceError):  # it may allow entering, but not listing
            return list_names(source)
    return frozenset(mark for mark in MARKS if source.stat(mark) is not None)


def is_committed(source: Source) -> bool:
    """Whether a file proves that the save of an item, or of the step around it, finished."""
    if any(is_temporary(part) for part in source.url.split("/")):
        return False
    places = [source] if STEP_METADATA in list_names(source) else [source, source.at("..")]
    return not any(_lease_without_commit(place) for place in places) and any(
        place.stat(COMMITTED) is not None
        or isinstance(step_metadata(place).get("commit_timestamp_nsecs"), int)
        for place in places
    )


def _lease_without_commit(source: Source) -> bool:
    return source.stat(LEASE) is not None and source.stat(COMMITTED) is None


NO_COMMIT_FILE = f"there is no `{COMMITTED}`, which other steps beside it have"
"""An inference: such a step may be whole, so that nothing deletes it as the remains of a save."""


_ONLY_DATA = "it holds nothing but values, as a save leaves that never finished"


def _unfinished_name_reason(name: str) -> str | None:
    if TEMPORARY in name or T5X_TEMPORARY.fullmatch(name.rstrip("/")):
        return f"`{name.rstrip('/')}` is the temporary directory of a save that never finished"
    if name.endswith(PARTIAL_SAVE):
        return f"`{name}` holds partial saves that were never finalized"
    return None


def _unfinished_items(names: frozenset[str]) -> list[str]:
    """The names of unfinished items. Unfinished steps are something else: they are in a run."""
    keys = [name.rstrip("/") for name in sorted(names) if name.endswith("/")]
    return [key for key in keys if is_temporary(key) and not STEP_NAME.fullmatch(final_name(key))]


def _missing_commit_reason(source: Source, names: frozenset[str]) -> str | None:
    if names & {DELETION, f"{DELETION}/"}:
        return f"`{DELETION}` in it says that somebody began to delete it"
    if f"{_TEMPORARY_INDEX}/" in names and MANIFEST not in names:
        return f"the index of its arrays is still in the temporary `{_TEMPORARY_INDEX}`"
    if LEASE in names and COMMITTED not in names:
        return f"`{LEASE}` in it says that its save or deletion is not finished"
    asked = STEP_METADATA in names and COMMITTED not in names
    if asked and step_metadata(source).get("commit_timestamp_nsecs", 0) is None:
        return f"`{STEP_METADATA}` has no commit time and there is no `{COMMITTED}`"
    is_step = basename(source).isdigit() or STEP_METADATA in names
    unfinished = _unfinished_items(names) if is_step else []
    return _unfinished_name_reason(unfinished[0]) if unfinished else None


def _missing_file_reason(source: Source, names: frozenset[str]) -> str | None:
    """Why a step of an Orbax that wrote nothing but `commit_success.txt` is not committed."""
    if names & MARKS or step_number(source) is None:
        return None
    prefix, parent = step_prefix(basename(source)), source.at("..")
    with suppress(SourceError):  # a directory that can't be listed tells nothing
        for info in itertools.islice(parent.children(), MAX_PROBES):
            key = info.key.rstrip("/")
            alike = info.is_dir and STEP_NAME.fullmatch(key) and step_prefix(key) == prefix
            with suppress(SourceError):
                if alike and _has_proof(parent, list_names(parent.at(key))):
                    return NO_COMMIT_FILE
    return None


def _has_proof(run: Source, names: frozenset[str]) -> bool:
    """Whether a step beside one without any file of `MARKS` proves that it is not committed.

    To an object store, all versions of Orbax write `commit_success.txt`. To a disk, only the oldest
    do, which write no other marks, and the latest.
    """
    everywhere = find_cost(run) is not None
    return COMMITTED in names and (everywhere or STEP_METADATA not in names)


def list_names(source: Source) -> frozenset[str]:
    """Names directly below `source`; those of directories end in `/`."""
    return frozenset(info.key for info in source.children())


def holds_only_data(source: Source, prefix: str = "") -> bool:
    """Whether there are files of values or a lease, and nothing that describes them."""
    key = None
    for key in (info.key for info in source.walk(prefix)):
        if DATA_FILE.fullmatch(key) is None and key != LEASE:
            return False
    return key is not None


def _has_items(source: Source, names: frozenset[str]) -> bool:
    if names & {STEP_METADATA, LEASE} or _item_evidence(source, names) is not None:
        return True
    return any(kind != "other" for kind in list_items(source).values())


def _item_evidence(source: Source, names: frozenset[str]) -> str | None:
    """The files that mark a directory as one saved pytree, in words; None if it isn't one."""
    marks = [mark for mark in (TREE, MANIFEST) if mark in names]
    if LEGACY in names and _is_legacy(source):
        marks.append(LEGACY)
    if not marks:
        directories = sorted(name for name in names if name.endswith("/"))
        marks = [n.rstrip("/") for n in directories if n.startswith(_DATABASES)][:1]
        if not marks and names.isdisjoint((GROUP, *FILES)):  # else a tree of zarr
            marks = _find_bare_array(source, names)
    return " and ".join(f"`{mark}`" for mark in marks) or None


def has_orbax_files(source: Source, names: Set[str]) -> bool:
    """Whether a directory with arrays, or with a database, has files of Orbax's own.

    Args:
        source: The directory.
        names: Names of its children; directories end in `/`.
    """
    if names & _OWN or any(name.startswith(_DATABASES) for name in names):
        return True
    if LEGACY in names and _is_legacy(source):
        return True
    return MANIFEST in names and source.at("..").stat(STEP_METADATA) is not None


def are_bare(source: Source, names: Set[str]) -> bool:
    """Whether the arrays in a directory have no database and no files of Orbax around them.

    Args:
        source, names: See `has_orbax_files`.
    """
    return MANIFEST not in names and not has_orbax_files(source, names)


def _is_legacy(source: Source) -> bool:
    # TensorFlow writes a text file with the same name; Orbax's is a msgpack map.
    info = source.stat(LEGACY)
    head = read_head(source, LEGACY, info.size) if info is not None else b""
    if info is None or not head or is_lfs_pointer(head):
        return bool(head)
    is_map = 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF) or head == b"\x80"
    return is_map and recognise(head, info.size) is None


def _list_flax_arrays(names: Set[str]) -> set[str]:
    """The directories among these names that belong to a file of Flax beside them."""
    ending = f"{ARRAYS}/"
    return {name for name in names if name.endswith(ending) and name.removesuffix(ending) in names}


def _find_bare_array(source: Source, names: frozenset[str]) -> list[str]:
    directories = sorted(name for name in names - _list_flax_arrays(names) if name.endswith("/"))
    for directory in directories[:MAX_PROBES]:
        for metadata in FILES:
            key = directory + metadata
            try:
                found = source.stat(key)
            except SourceError as error:
                # Either somebody else's directory, or a link that leads out, which `open` reports.
                found = source.at(key).stat("") if error.errno is None else None
            if found is not None and not _is_group(source, key):
                return [key]
    return []


def _is_group(source: Source, key: str) -> bool:
    """Whether a file of zarr is that of a group: a tree of its own, and nothing of Orbax."""
    from ..zarr.nodes import NODE, parse_node  # takes some ms

    if not key.endswith(f"/{NODE}"):
        return False
    with suppress(CheckpointError, SourceError):
        return parse_node(bytes(read_metadata(source, key))).node_type == "group"
    return False
