"""Which leaves are converted, under which names and dtypes, and what is left behind. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from .._catalog.catalog import Catalog
from .._catalog.entry import LeafEntry
from .._catalog.written import Leaf, ValueType, refuse_leaves
from .._core.dtypes import DTYPES, PYTHON_DTYPES, class_of, parse_dtype
from .._core.json_text import encode_json
from .._core.names import (
    Path,
    Rename,
    apply_rename,
    find_nearest,
    join_path,
    matches_pattern,
    split_name,
    strip_prefix,
)
from .._core.text import quote_text
from .._match.checkpoint_view import CheckpointView, apply_at_and_rename, rename_unread
from .._match.options import MatchOptions
from .._restore.prepare import list_subtrees
from ..errors import UsageError
from ..formats.safetensors_write import SUMS

Casts = Mapping[str, np.dtype | None]
"""Name of a leaf or subtree, or a pattern of names → dtype of its floating-point leaves; None
leaves them as they are."""

_Choice = TypeVar("_Choice")

_VALUE_TYPES: dict[str, ValueType] = {
    "array": "np.ndarray",
    "scalar": "scalar",
    "string": "string",
    "key": "jax.Array",
}

_OF_ORBAX = (
    "init_timestamp_nsecs",
    "commit_timestamp_nsecs",
    "item",
    "items",
    "use_ocdbt",
    "use_zarr3",
)
"""Metadata of Orbax about how and when the source was written, which nobody wants carried over,
and which items are beside it, which are named on their own."""

_NOT_READ = "not read"
"""What a format says of arrays and files that it does not read, with their number."""

_INDEXED, _OF_AN_INDEX = ("safetensors", "torch"), "total_size"
"""Formats of several files under an index, and a number in it that is not true of what is
written."""


@dataclass(slots=True)
class Selection:
    """What is converted.

    Attributes:
        leaves: As they are written, without values.
        entries: Name of a leaf as it is written → the leaf that is read.
        empties: Nodes without a leaf, as they are written.
        metadata: The custom metadata that is written.
        lost: What the result does not have, in words → the names of what it concerns.
    """

    leaves: list[Leaf] = field(default_factory=list)
    entries: dict[str, LeafEntry] = field(default_factory=dict)
    empties: list[tuple[Path, str]] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    lost: dict[str, list[str]] = field(default_factory=dict)

    def lose(self, what: str, name: str) -> None:
        """Notes something that the result does not have."""
        self.lost.setdefault(what, []).append(name)


def parse_casts(cast: object) -> Casts:
    """Checks the argument `cast=`.

    Args:
        cast: None, a dtype, or a mapping of names or patterns to dtypes or None.

    Raises:
        UsageError: It is none of these, or a dtype is not a floating-point one.
    """
    if cast is None:
        return {}
    named: Mapping[Any, Any] = cast if isinstance(cast, Mapping) else {"*": cast}
    found: dict[str, np.dtype | None] = {}
    for name, wanted in named.items():
        if wanted is None and isinstance(name, str):
            found[name] = None  # np.dtype(None) is float64
            continue
        try:
            dtype = parse_dtype(wanted) if isinstance(wanted, str) else np.dtype(wanted)
        except TypeError as error:
            raise UsageError(f"Expected cast= a floating-point dtype, got {wanted!r}") from error
        if not isinstance(name, str) or class_of(dtype) != "float" or dtype.name not in DTYPES:
            raise UsageError(
                "Expected cast= a floating-point dtype, or a mapping of names to such, got"
                f" {name!r}: {wanted!r}"
            )
        found[name] = DTYPES[dtype.name]  # in native byte order, as all that is written
    return found


def select_leaves(
    catalog: Catalog,
    *,
    to: str,
    at: str,
    rename: Rename | None,
    skip: Sequence[str],
    casts: Casts,
    flat: bool,
) -> Selection:
    """Chooses the leaves of a checkpoint.

    Args:
        catalog: The checkpoint.
        to: The format that is written.
        at, rename: See `convert`. What they name exists.
        skip: See `convert`.
        casts: See `parse_casts`.
        flat: Whether each name is a single key.

    Raises:
        SaveError: A leaf can't be written in any format, or two have the same name. Names them all.
        UsageError: A name in `skip` is that of no leaf, or one in `casts` of no floating-point
            leaf.
    """
    found, wrong, seen = Selection(), list[str](), set[str]()
    used, floats, all_paths = set[str](), list[Path](), list[Path]()
    skipping = dict.fromkeys(skip, True)
    skipped, unnamed = set[str](), False
    view = CheckpointView(catalog.entries, catalog.empties, catalog.url)
    stored: dict[str, Path] = {}
    for path, _, entry in apply_at_and_rename(view, MatchOptions(at, rename)):
        path = path or entry.path[-1:]  # `at` is the leaf itself
        name = join_path(path)
        all_paths.append(path)
        if _choose(path, skipping, skipped):
            found.lose("a leaf that skip= names", name)
            continue
        if name in seen:
            wrong.append(f"two leaves are named `{name}`")
            continue
        seen.add(name)
        if stored.setdefault(entry.name, entry.path) != entry.path:
            wrong.append(f"`{name}` is one of two that only their key paths tell apart")
            continue
        dtype = entry.dtype
        if entry.kind != "string" and DTYPES.get(dtype.name) != dtype:
            unnamed = True
            what = "of bytes of which the file does not say what they are"
            wrong.append(f"`{name}` is an array of dtype {dtype.name}, {what}")
            continue
        if class_of(dtype) == "float" and entry.kind == "array":
            floats.append(path)
            dtype = _choose(path, casts, used) or dtype
        path = (name,) if flat else path
        value_type = _VALUE_TYPES[entry.kind]
        leaf = Leaf(name, path, value_type, entry.shape, dtype, entry.key_impl, entry.value)
        leaf.is_python = entry.kind == "scalar" and dtype in PYTHON_DTYPES.values()
        found.leaves.append(leaf)
        found.entries[name] = entry
        _note_leaf(found, leaf, entry, to)
    hint = "skip= leaves them out"
    if unnamed:
        hint += ", or restore with a template that names their dtype, and save that"
    refuse_leaves(wrong, hint)
    _check_used("cast", casts, used, floats)
    _select_empties(found, catalog, to, at, rename, flat, skipping, skipped)
    for name in rename_unread(catalog.unread, MatchOptions(at, rename)):
        path = split_name(name)
        all_paths.append(path)
        chosen = _choose(path, skipping, skipped)
        found.lose("a leaf that skip= names" if chosen else "what templax does not read", name)
    nodes = [strip_prefix(path, at) for path in catalog.empties]
    all_paths += [apply_rename(node, rename) for node in nodes if node]
    _check_used("skip", skipping, skipped, all_paths)
    _select_metadata(found, catalog, to)
    return found


def _choose(path: Path, choices: Mapping[str, _Choice], used: set[str]) -> _Choice | None:
    """The choice of the first key that names the leaf or a subtree around it, or is a pattern."""
    name = join_path(path)
    for pattern, choice in choices.items():
        if strip_prefix(path, pattern) is not None or matches_pattern(name, pattern):
            used.add(pattern)
            return choice
    return None


def _check_used(
    option: str, choices: Mapping[str, object], used: set[str], paths: list[Path]
) -> None:
    """Refuses a name that decides about no leaf: it is a typo."""
    leaves = "floating-point arrays" if option == "cast" else "leaves"
    for pattern in choices:
        if pattern in used or pattern == "*":
            continue
        near = find_nearest(pattern, list_subtrees(paths))
        raise UsageError(
            f"Expected {option}= names of {leaves}, got {quote_text(pattern)}, which is that of"
            " none, or comes after one that matches the same leaves"
            + (f"; nearest: `{near}`" if near else "")
        )


def _note_leaf(found: Selection, leaf: Leaf, entry: LeafEntry, to: str) -> None:
    """Notes what is lost of a leaf beside its values."""
    if entry.saved_sharding is not None:
        found.lose("the recorded sharding", leaf.name)
    if to == "orbax":
        return
    if entry.kind == "scalar" and to != "msgpack":
        found.lose("that it is a number, which becomes an array of shape ()", leaf.name)
    for i, element in enumerate(leaf.path):
        if isinstance(element, int):
            found.lose(
                "that it is a list or tuple, whose indices become names", join_path(leaf.path[:i])
            )


def _select_empties(
    found: Selection,
    catalog: Catalog,
    to: str,
    at: str,
    rename: Rename | None,
    flat: bool,
    skipping: Mapping[str, bool],
    skipped: set[str],
) -> None:
    for path, what in catalog.empties.items():
        rest = strip_prefix(path, at)
        if rest is None:
            continue
        path = apply_rename(rest, rename)
        if path and _choose(path, skipping, skipped):
            found.lose("a node without leaves that skip= names", join_path(path))
        elif to in ("orbax", "msgpack") and path:
            found.empties.append(((join_path(path),) if flat else path, what))
            if to == "msgpack" and what not in ("Dict", "None"):
                found.lose("that it is an empty list or tuple, and not a map", join_path(path))
        else:
            found.lose("a node without leaves", join_path(path) or "the tree itself")


def _select_metadata(found: Selection, catalog: Catalog, to: str) -> None:
    """Divides the metadata into what the format can hold, and what is lost."""
    orbax, about = catalog.format == "orbax", dict(catalog.metadata)
    is_number = not isinstance(about.get(_OF_AN_INDEX), str)  # a text is somebody's own
    if is_number and catalog.format in _INDEXED:
        about.pop(_OF_AN_INDEX, None)
    if isinstance(others := about.get(_NOT_READ), Mapping):
        del about[_NOT_READ]
        for name in others:
            found.lose("what templax does not read", str(name))
    custom: Any = about
    if orbax:
        items, item = about.get("items", {}), about.get("item")
        for name in items if isinstance(items, Mapping) else ():
            if name != item:
                found.lose("another item of the step", str(name))
        custom = about.pop("custom_metadata", {})
        about = {key: value for key, value in about.items() if key not in _OF_ORBAX}
    for key, value in custom.items() if isinstance(custom, Mapping) else ():
        fits = to == "safetensors" and isinstance(value, str) and key != SUMS
        if to != "orbax" and not fits:
            found.lose("metadata that the format has no place for", str(key))
        elif not _is_readable({key: value}):
            found.lose("metadata that readers refuse, such as text that is not Unicode", str(key))
        else:
            found.metadata[str(key)] = value
    for key in about if orbax else ():
        found.lose("metadata that the format has no place for", str(key))


def _is_readable(metadata: Mapping[str, Any]) -> bool:
    """Whether metadata can be read again as JSON. Some sources have lone surrogates in it."""
    try:
        encode_json(metadata)
    except ValueError:
        return False
    return True
