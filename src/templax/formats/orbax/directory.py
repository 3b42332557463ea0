"""Classifies a directory of Orbax: an item, a step or a directory of steps; finished or not.

This module only lists names and reads small JSON files; `item` opens items.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import CheckpointError
from ...storage.leftovers import TEMPORARY
from ...storage.signatures import is_lfs_pointer, read_head, read_metadata
from ...storage.source import Source
from ..ocdbt.read import MANIFEST
from ..zarr.metadata import FILES

TREE = "_METADATA"

LEGACY = "checkpoint"

STEP_METADATA = "_CHECKPOINT_METADATA"

COMMITTED = "commit_success.txt"

METRICS = "metrics/metrics"

ItemKind = Literal["pytree", "json", "other"]

_STEP = re.compile(
    r"(?P<prefix>(?:.+[_-]|epoch|step|ckpt|checkpoint|iter)?)(?P<number>[0-9]{1,18})"
)

_MAX_PROBES = 64
"""Most subdirectories that are searched for a bare array."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step in a directory of steps.

    Attributes:
        step: Number of the step.
        key: Name of its directory, such as `10` or `ckpt_00000010`.
        problem: Why it is not a finished save; None if there is no sign of that.
    """

    step: int
    key: str
    problem: str | None = None

    @property
    def committed(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Root:
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
    items: Mapping[str, ItemKind] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    handled: frozenset[str] = frozenset()

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
    names = _list_names(source)
    evidence = _item_evidence(source, names)
    if evidence is not None:
        return Root("item", evidence)
    handlers = step_metadata(source).get("item_handlers")
    whole = "orbax.checkpoint" in names or isinstance(handlers, dict)
    found = () if whole else list_steps(source)
    if found:
        named = next((step for step in reversed(found) if TEMPORARY not in step.key), found[-1])
        return Root("steps", f"the step directory `{named.key}`", steps=found)
    held = list_items(source)
    if "pytree" in held.values() or "json" in held.values():
        first = next(name for name, kind in held.items() if kind != "other")
        handled = frozenset(handlers) if isinstance(handlers, dict) else frozenset[str]()
        return Root("items", f"the item directory `{first}`", items=held, handled=handled)
    if "metadata" in names:
        return Root("json", "the JSON file `metadata`")
    return None


_SIDE_FILES = (
    "_sharding",
    "_strings.json",
    "metadata",
    "metrics",
    "orbax.checkpoint",
    "templax.index",
)

_OWN_FILES = frozenset((TREE, STEP_METADATA, COMMITTED, MANIFEST, LEGACY, *_SIDE_FILES))

_OWN_DIRECTORIES = ("d", "array_metadatas", "descriptor")

_MAX_DEPTH = 4
"""Most levels of directories in an item."""


def describe_extra_content(source: Source) -> str | None:
    """What a directory contains beyond the result of one save, in words; None if nothing."""
    root, names = examine_directory(source), _list_names(source)
    if root is None or (root.what == "json" and not is_committed(source)):
        return "other files"
    if root.what == "steps":
        return f"{len(root.steps)} step{'s' if len(root.steps) > 1 else ''}"
    if root.what == "items" and not names & {STEP_METADATA, "orbax.checkpoint"}:
        return "a directory with " + ", ".join(f"`{name}`" for name in sorted(root.items)[:6])
    for name in sorted(names):
        if not (
            name in _OWN_FILES
            if not name.endswith("/")
            else _belongs_to_save(source, root, name[:-1])
        ):
            return f"`{name.rstrip('/')}` in it"
    return None


def _belongs_to_save(source: Source, root: Root, name: str) -> bool:
    """Whether a subdirectory was written by the save that wrote its parent."""
    if root.what == "items":
        return name in root.handled or (not root.handled and root.items.get(name) != "other")
    if name in _OWN_DIRECTORIES or name.startswith("ocdbt."):
        return True
    # Without a database, each array is a directory, or nested ones if its name has slashes.
    files = itertools.islice(source.at(name).walk(), _MAX_PROBES)
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


def list_items(source: Source) -> dict[str, ItemKind]:
    """Name → kind of every item in a directory of a step, or of another set of items."""
    found: dict[str, ItemKind] = {}
    for info in source.children():
        name = info.key.rstrip("/")
        if info.is_dir and TEMPORARY not in name:
            child = source.at(name)
            names = _list_names(child)
            if _item_evidence(child, names) is not None:
                found[name] = "pytree"
            else:
                found[name] = "json" if names & {"metadata", "metrics"} else "other"
    return found


def list_steps(source: Source) -> tuple[Step, ...]:
    """The steps in a directory, sorted by number, including those that never committed.

    A step is a directory that contains an item and is named by a number, which may follow a prefix
    that ends in `_` or `-`, or is a word such as `epoch`. Nothing is deleted.
    """
    found: list[Step] = []
    for info in source.children():
        key = info.key.rstrip("/")
        match = _STEP.fullmatch(key.partition(TEMPORARY)[0])
        if not info.is_dir or match is None:
            continue
        child = source.at(key)
        names = _list_names(child)
        temporary = [name for name in (key, *sorted(names)) if TEMPORARY in name]
        if temporary or _has_items(child, names):
            problem = (
                _unfinished_reason(temporary[0]) if temporary else _missing_commit_reason(child)
            )
            found.append(Step(int(match["number"]), key, problem))
    return tuple(sorted(found, key=lambda s: (s.step, s.key)))


def step_name(step: int, found: Sequence[Step]) -> str:
    """The name for a new step, with the prefix and padding that most of `found` have.

    >>> step_name(30, [Step(7, "ckpt_007"), Step(20, "ckpt_020")]), step_name(30, [Step(20, "20")])
    ('ckpt_030', '30')
    """
    named = [s.key for s in found if TEMPORARY not in s.key]
    if not named:
        return str(step)
    counts = Counter(map(step_prefix, named))
    prefix = max(map(step_prefix, reversed(named)), key=lambda p: counts[p])
    # Only a leading zero tells the width: 100 may come from padding to two digits or to three.
    numbers = [key[len(prefix) :] for key in named if step_prefix(key) == prefix]
    width = max((len(n) for n in numbers if n.startswith("0") and len(n) > 1), default=0)
    return f"{prefix}{step:0{width}d}"


def step_prefix(key: str) -> str:
    """The part of a step's name before the number, including the `_` or `-`.

    >>> step_prefix("ckpt_00000010"), step_prefix("epoch-12"), step_prefix("10")
    ('ckpt_', 'epoch-', '')
    """
    match = _STEP.fullmatch(key.partition(TEMPORARY)[0])
    return match["prefix"] if match is not None else ""


def step_number(source: Source) -> int | None:
    """The step number in the name of a directory; None if it isn't the name of a step."""
    match = _STEP.fullmatch(basename(source))
    return int(match["number"]) if match else None


def basename(source: Source) -> str:
    """The last component of a source's URL."""
    return source.url.rstrip("/").rpartition("/")[2]


def step_metadata(source: Source) -> dict[str, Any]:
    """`_CHECKPOINT_METADATA` of a directory; empty if missing or unreadable: it isn't essential.

    It is read with Python's `json`, which accepts `NaN`: a metric may be one.
    """
    return _read_json_object(source, STEP_METADATA)


def step_metrics(source: Source) -> dict[str, Any]:
    """The metrics that a step was saved with, as its JSON has them; empty if there are none."""
    found = _read_json_object(source, METRICS)
    if not found:
        known = step_metadata(source).get("metrics")
        found = known if isinstance(known, dict) else {}
    return found


def _read_json_object(source: Source, key: str) -> dict[str, Any]:
    if source.stat(key) is None:
        return {}
    try:
        found = json.loads(bytes(read_metadata(source, key)))
    except (CheckpointError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def uncommitted_reason(source: Source) -> str | None:
    """Why an item or step is not a finished save; None if there is no sign of that.

    The absence of `commit_success.txt` alone proves nothing: Orbax before 0.12 writes it on object
    stores only.
    """
    for part in source.url.split("/"):
        if TEMPORARY in part:
            return _unfinished_reason(part)
    problem = _missing_commit_reason(source)
    if problem is None and STEP_METADATA not in _list_names(source):
        # An item of a step: the commit is recorded for the step as a whole.
        problem = _missing_commit_reason(source.at(".."))
    return problem


def is_committed(source: Source) -> bool:
    """Whether a file proves that the save of an item, or of the step around it, finished."""
    if any(TEMPORARY in part for part in source.url.split("/")):
        return False
    places = [source] if STEP_METADATA in _list_names(source) else [source, source.at("..")]
    return any(
        place.stat(COMMITTED) is not None
        or isinstance(step_metadata(place).get("commit_timestamp_nsecs"), int)
        for place in places
    )


def _unfinished_reason(name: str) -> str:
    return f"`{name.rstrip('/')}` is the temporary directory of a save that never finished"


def _missing_commit_reason(source: Source) -> str | None:
    metadata = step_metadata(source)
    timestamp = metadata.get("commit_timestamp_nsecs", 0)
    if timestamp is None and source.stat(COMMITTED) is None:
        return f"`{STEP_METADATA}` has no commit time and there is no `{COMMITTED}`"
    return None


def _list_names(source: Source) -> frozenset[str]:
    """Names directly below `source`; those of directories end in `/`."""
    return frozenset(info.key for info in source.children())


def _has_items(source: Source, names: frozenset[str]) -> bool:
    if STEP_METADATA in names or _item_evidence(source, names) is not None:
        return True
    return any(kind != "other" for kind in list_items(source).values())


def _item_evidence(source: Source, names: frozenset[str]) -> str | None:
    """The files that mark a directory as one saved pytree, in words; None if it isn't one."""
    marks = [mark for mark in (TREE, MANIFEST) if mark in names]
    if LEGACY in names and _is_legacy(source):
        marks.append(LEGACY)
    if not marks:
        directories = sorted(name for name in names if name.endswith("/"))
        marks = [n.rstrip("/") for n in directories if n.startswith("ocdbt.process_")][:1]
        if not marks:
            marks = _find_bare_array(source, directories)
    return " and ".join(f"`{mark}`" for mark in marks) or None


def _is_legacy(source: Source) -> bool:
    # TensorFlow writes a text file with the same name; Orbax's is a msgpack map.
    info = source.stat(LEGACY)
    head = read_head(source, LEGACY, info.size, 64) if info is not None else b""
    if not head or is_lfs_pointer(head):
        return bool(head)
    return 0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)


def _find_bare_array(source: Source, directories: list[str]) -> list[str]:
    for directory in directories[:_MAX_PROBES]:
        for metadata in FILES:
            if source.stat(directory + metadata) is not None:
                return [directory + metadata]
    return []
