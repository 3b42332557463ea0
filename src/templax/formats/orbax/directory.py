"""What a directory of Orbax is: an item, a step, a directory of steps; finished or not.

Only names are listed and small JSON files read here; items are opened in `item`.
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

_STEP = re.compile(r"(?:(?P<prefix>.+)_)?(?P<number>[0-9]{1,18})")

_MAX_PROBES = 64
"""Subdirectories in which a listing looks for a bare array before it gives up."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step below a directory of steps.

    Attributes:
        step: Its number.
        key: Name of its directory, such as `10` or `ckpt_00000010`.
        problem: Why it is not a finished save; None if nothing says so.
    """

    step: int
    key: str
    problem: str | None = None

    @property
    def committed(self) -> bool:
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Root:
    """What a directory is.

    Attributes:
        what: "item": one saved pytree. "items": a step, or another set of items. "steps": a
            directory of steps. "json": a JSON item.
        evidence: Why, in words.
        items: Of "items": name → kind.
        steps: Of "steps": sorted by number.
        handled: Of "items": the names that the step's metadata knows, if it has a list.
    """

    what: Literal["item", "items", "steps", "json"]
    evidence: str
    items: Mapping[str, ItemKind] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    handled: frozenset[str] = frozenset()

    @property
    def pytrees(self) -> list[str]:
        """Names of the items that are pytrees. Of those, a directory that came later (a note, a
        half copy) is none if the metadata lists others.
        """
        found = [name for name, kind in self.items.items() if kind == "pytree"]
        return [name for name in found if name in self.handled] or found


def examine_directory(source: Source) -> Root | None:
    """What the directory at `source` is; None if it is nothing of Orbax (or no directory)."""
    names = _names(source)
    evidence = _item_evidence(source, names)
    if evidence is not None:
        return Root("item", evidence)
    handlers = step_metadata(source).get("item_handlers")
    whole = "orbax.checkpoint" in names or isinstance(handlers, dict)
    found = () if whole else list_steps(source)
    if found:
        return Root("steps", f"the step directory `{found[-1].key}`", steps=found)
    held = list_items(source)
    if "pytree" in held.values() or "json" in held.values():
        first = next(name for name, kind in held.items() if kind != "other")
        handled = frozenset(handlers) if isinstance(handlers, dict) else frozenset[str]()
        return Root("items", f"the item directory `{first}`", items=held, handled=handled)
    if "metadata" in names:
        return Root("json", "the JSON file `metadata`")
    return None


_NOTED = ("_sharding", "_strings.json", "metadata", "metrics", "orbax.checkpoint", "templax.index")

_OWN_FILES = frozenset((TREE, STEP_METADATA, COMMITTED, MANIFEST, LEGACY, *_NOTED))

_OWN_DIRECTORIES = ("d", "array_metadatas", "descriptor")

_INSIDE = 4
"""Levels of an item."""


def more_than_a_save(source: Source) -> str | None:
    """Words for what makes a directory more than what one save wrote; None if it is just that."""
    root, names = examine_directory(source), _names(source)
    if root is None or (root.what == "json" and not is_committed(source)):
        return "other files"
    if root.what == "steps":
        return f"{len(root.steps)} step{'s' if len(root.steps) > 1 else ''}"
    if root.what == "items" and not names & {STEP_METADATA, "orbax.checkpoint"}:
        return "a directory with " + ", ".join(f"`{name}`" for name in sorted(root.items)[:6])
    for name in sorted(names):
        if not (name in _OWN_FILES if not name.endswith("/") else _is_own(source, root, name[:-1])):
            return f"`{name.rstrip('/')}` in it"
    return None


def _is_own(source: Source, root: Root, name: str) -> bool:
    """Whether a directory is of the save that wrote what is around it."""
    if root.what == "items":
        return name in root.handled or (not root.handled and root.items.get(name) != "other")
    if name in _OWN_DIRECTORIES or name.startswith("ocdbt."):
        return True
    # Without a database each array is a directory, or several for names with a slash.
    files = itertools.islice(source.at(name).walk(), _MAX_PROBES)
    here = (info.key.rpartition("/")[2] for info in files)
    return source.stat(MANIFEST) is None and any(file in FILES for file in here)


def holding_item(source: Source) -> str | None:
    """URL of the item that a place is in, if any."""
    for _ in range(_INSIDE):
        source = source.at("..")
        if not basename(source).strip("."):
            return None
        if any(source.stat(mark) is not None for mark in (TREE, MANIFEST)):
            return source.url
    return None


def list_items(source: Source) -> dict[str, ItemKind]:
    """Name → kind of every item in a step (or composite) directory, by name."""
    found: dict[str, ItemKind] = {}
    for info in source.children():
        name = info.key.rstrip("/")
        if info.is_dir and TEMPORARY not in name:
            child = source.at(name)
            names = _names(child)
            if _item_evidence(child, names) is not None:
                found[name] = "pytree"
            else:
                found[name] = "json" if names & {"metadata", "metrics"} else "other"
    return found


def list_steps(source: Source) -> tuple[Step, ...]:
    """The steps below a directory, sorted by number; those that never committed too.

    A step is a directory named by a number, or by a prefix, `_` and a number, that holds an item.
    Nothing is ever deleted.
    """
    found: list[Step] = []
    for info in source.children():
        key = info.key.rstrip("/")
        match = _STEP.fullmatch(key.partition(TEMPORARY)[0])
        if not info.is_dir or match is None:
            continue
        child = source.at(key)
        names = _names(child)
        temporary = [name for name in (key, *sorted(names)) if TEMPORARY in name]
        if temporary or _holds_items(child, names):
            problem = _never_finished(temporary[0]) if temporary else _commit_problem(child)
            found.append(Step(int(match["number"]), key, problem))
    return tuple(sorted(found, key=lambda s: (s.step, s.key)))


def step_name(step: int, found: Sequence[Step]) -> str:
    """The name for a new step beside those found: with the prefix and padding of most of them.

    >>> step_name(30, [Step(7, "ckpt_007"), Step(20, "ckpt_020")]), step_name(30, [Step(20, "20")])
    ('ckpt_030', '30')
    """
    named = [s.key for s in found if TEMPORARY not in s.key]
    if not named:
        return str(step)
    counts = Counter(map(step_prefix, named))
    prefix = max(map(step_prefix, reversed(named)), key=lambda p: counts[p])
    # A number that no zero precedes tells no width: 100 may be of two digits or of three.
    numbers = [key[len(prefix) :] for key in named if step_prefix(key) == prefix]
    width = max((len(n) for n in numbers if n.startswith("0") and len(n) > 1), default=0)
    return f"{prefix}{step:0{width}d}"


def step_prefix(key: str) -> str:
    """What is before the number in the name of a step, the `_` included.

    >>> step_prefix("ckpt_00000010"), step_prefix("10")
    ('ckpt_', '')
    """
    return key[: key.rfind("_") + 1]


def step_number(source: Source) -> int | None:
    """The number in the name of a directory, if that is the name of a step."""
    match = _STEP.fullmatch(basename(source))
    return int(match["number"]) if match else None


def basename(source: Source) -> str:
    """Last component of a source's URL."""
    return source.url.rstrip("/").rpartition("/")[2]


def step_metadata(source: Source) -> dict[str, Any]:
    """`_CHECKPOINT_METADATA` of a directory; empty if missing or unreadable: nothing needs it.

    Python's own reader takes the `NaN` that a metric may be.
    """
    return _json(source, STEP_METADATA)


def step_metrics(source: Source) -> dict[str, Any]:
    """The metrics that a step was saved with, as its JSON spells them; empty if there are none."""
    found = _json(source, METRICS)
    if not found:
        known = step_metadata(source).get("metrics")
        found = known if isinstance(known, dict) else {}
    return found


def _json(source: Source, key: str) -> dict[str, Any]:
    if source.stat(key) is None:
        return {}
    try:
        found = json.loads(bytes(read_metadata(source, key)))
    except (CheckpointError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def uncommitted_reason(source: Source) -> str | None:
    """Why an item or step is not a finished save; None if nothing says so.

    The absence of `commit_success.txt` alone proves nothing: Orbax before 0.12 writes it on object
    stores only.
    """
    for part in source.url.split("/"):
        if TEMPORARY in part:
            return _never_finished(part)
    problem = _commit_problem(source)
    if problem is None and STEP_METADATA not in _names(source):
        # An item of a step: the commit is recorded for the step as a whole.
        problem = _commit_problem(source.at(".."))
    return problem


def is_committed(source: Source) -> bool:
    """Whether a file says that the save of an item, or of the step that it is in, finished."""
    if any(TEMPORARY in part for part in source.url.split("/")):
        return False
    places = [source] if STEP_METADATA in _names(source) else [source, source.at("..")]
    return any(
        place.stat(COMMITTED) is not None
        or isinstance(step_metadata(place).get("commit_timestamp_nsecs"), int)
        for place in places
    )


def _never_finished(name: str) -> str:
    return f"`{name.rstrip('/')}` is the temporary directory of a save that never finished"


def _commit_problem(source: Source) -> str | None:
    metadata = step_metadata(source)
    timestamp = metadata.get("commit_timestamp_nsecs", 0)
    if timestamp is None and source.stat(COMMITTED) is None:
        return f"`{STEP_METADATA}` has no commit time and there is no `{COMMITTED}`"
    return None


def _names(source: Source) -> frozenset[str]:
    """Names directly below; of a directory with a `/`."""
    return frozenset(info.key for info in source.children())


def _holds_items(source: Source, names: frozenset[str]) -> bool:
    if STEP_METADATA in names or _item_evidence(source, names) is not None:
        return True
    return any(kind != "other" for kind in list_items(source).values())


def _item_evidence(source: Source, names: frozenset[str]) -> str | None:
    """What marks a directory as one saved pytree."""
    marks = [mark for mark in (TREE, MANIFEST) if mark in names]
    if LEGACY in names and _is_legacy(source):
        marks.append(LEGACY)
    if not marks:
        directories = sorted(name for name in names if name.endswith("/"))
        marks = [n.rstrip("/") for n in directories if n.startswith("ocdbt.process_")][:1]
        if not marks:
            marks = _bare_array(source, directories)
    return " and ".join(f"`{mark}`" for mark in marks) or None


def _is_legacy(source: Source) -> bool:
    # TensorFlow has a text file of that name: only a msgpack map is Orbax's.
    info = source.stat(LEGACY)
    head = read_head(source, LEGACY, info.size, 64) if info is not None else b""
    if not head or is_lfs_pointer(head):
        return bool(head)
    return 0x80 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)


def _bare_array(source: Source, directories: list[str]) -> list[str]:
    for directory in directories[:_MAX_PROBES]:
        for metadata in FILES:
            if source.stat(directory + metadata) is not None:
                return [directory + metadata]
    return []
