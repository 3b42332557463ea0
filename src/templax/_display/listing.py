"""The text of `templax ls` around the tree: facts on a checkpoint, and the code that restores it.

`_catalog/tree_rows.py` has the tree, `json_listing.py` the JSON.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from .._catalog.catalog import Catalog
from .._catalog.entry import LeafEntry
from .._catalog.fingerprint import recorded_fingerprint
from .._catalog.tree_rows import format_total, measure_leaves
from .._core.names import join_path
from .._core.text import format_size, list_names, quote_text

_MAX_FACT = 400
"""Most characters of metadata that are shown. The `_metadata` of a state dict names all modules."""

_MAX_NOT_READ = 8
"""Most things that are shown of what templax does not read."""

_FACTS = ("step", "item", "items", "custom_metadata", "metrics")
"""Metadata whose meaning is known. What else a file says of itself is shown as its own words."""


_FEW = 100
"""Elements of narrow integers are told of if there is more than one for so many parameters."""


def select_leaves(catalog: Catalog, globs: Sequence[str]) -> list[LeafEntry]:
    """Returns the leaves whose names match any of the globs; without globs, all leaves."""
    if not globs:
        return list(catalog.entries)
    return [e for e in catalog.entries if any(fnmatch.fnmatchcase(e.name, g) for g in globs)]


def _cut(text: str) -> str:
    if len(text) <= _MAX_FACT:
        return text
    return f"{text[:_MAX_FACT]}... ({len(text):,} characters; --json has them all)"


def describe_checkpoint(catalog: Catalog, shown: Sequence[LeafEntry]) -> Iterator[tuple[str, str]]:
    """Facts about the whole checkpoint, each with its label."""
    yield "format", f"{catalog.format}, recognised by {catalog.evidence}"
    known = dict(catalog.metadata)
    for detail in ("init_timestamp_nsecs", "use_ocdbt", "use_zarr3"):
        known.pop(detail, None)  # only --json shows them
    saved = known.pop("commit_timestamp_nsecs", None)
    others = known.pop("not read") if isinstance(known.get("not read"), Mapping) else {}
    undecodable: dict[str, list[str]] = {}
    for entry in catalog.entries:
        if entry.undecodable is not None:
            undecodable.setdefault(entry.undecodable, []).append(entry.name)
    not_read = {**catalog.unread, **others}
    for name in dict.fromkeys((*_FACTS, *sorted(known))):
        value = known.pop(name, None)
        if value not in (None, {}, [], ""):
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield name.replace("_", " ") if name in _FACTS else f"metadata `{name}`", _cut(text)
    for why, names in itertools.islice(undecodable.items(), _MAX_NOT_READ):
        yield "not decoded", _cut(f"{list_names(names)}: {why}")
    if len(undecodable) > _MAX_NOT_READ:
        more = len(undecodable) - _MAX_NOT_READ
        yield "not decoded", f"leaves for {more:,} more reasons; --json has them all"
    for name, why in itertools.islice(not_read.items(), _MAX_NOT_READ):
        yield "not read", _cut(f"`{name}`: {why}")
    if len(not_read) > _MAX_NOT_READ:
        yield "not read", f"{len(not_read) - _MAX_NOT_READ:,} more; --json has them all"
    if isinstance(saved, int) and 0 <= saved < 2**63:
        yield "saved", f"{datetime.fromtimestamp(saved // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"
    totals = measure_leaves(shown)
    if len(shown) != len(catalog.entries):
        whole = format_total(measure_leaves(catalog.entries))
        yield "shown", f"{format_total(totals)}, of {whole}"
    else:
        yield "total", format_total(totals)
    if catalog.fingerprints is not None and len(shown) == len(catalog.entries):
        yield "fingerprint", str(recorded_fingerprint(catalog))
    if len(totals.sizes) > 1:
        sizes = totals.sizes.most_common()
        yield "dtypes", ", ".join(f"{name} {format_size(n)}" for name, n in sizes)
    if totals.narrow.total() * _FEW > totals.parameters:
        counts = ", ".join(f"{n:,} of {name}" for name, n in totals.narrow.most_common())
        yield "not counted", f"elements of arrays that may be quantised weights: {counts}"
    sharding = find_common_sharding(shown)
    if sharding is not None:
        yield "sharding", f"{sharding} for every array that has one (not used for placement)"


def find_common_sharding(entries: Sequence[LeafEntry]) -> str | None:
    """The saved sharding, if all leaves that have one share it."""
    shardings = {entry.saved_sharding for entry in entries} - {None}
    return shardings.pop() if len(shardings) == 1 else None


def make_restore_code(
    catalog: Catalog, *, follow_links: bool = False, map_file: str | None = None
) -> str:
    """Python code that restores the checkpoint, both as it is and into the tree of a model.

    Args:
        catalog: The checkpoint.
        follow_links: Whether it was opened with links that lead out of it.
        map_file: The file of its mapping, if it is a view.
    """
    allow = ', uncommitted="allow"' if catalog.uncommitted is not None else ""
    shown = quote_text(catalog.url)
    if follow_links:
        shown = f"tx.storage.Local({shown}, follow_links=True)"
    if catalog.base is not None:
        file = "FILE.json" if map_file in (None, "-") else map_file
        shown = f"tx.view({shown}, tx.Mapping.load({quote_text(file)}))"
    opened = f"tx.open({shown}{allow})"
    # The key `params` of a Flax model.
    all_paths = [e.path for e in catalog.entries]
    paths = {path[: path.index("params") + 1] for path in all_paths if "params" in path[:-1]}
    wrapped = sorted({join_path(path) for path in paths})
    problems = any(entry.undecodable is not None for entry in catalog.entries)
    options = "decodable_only=True" if problems else ""
    arguments = "template"
    if len(wrapped) == 1:
        arguments = f'template["params"], at={quote_text(wrapped[0])}'
    return "\n".join(
        [
            "import templax as tx",
            "",
            f"catalog = {opened}",
            f"tree = tx.restore(catalog, catalog.template({options}))",
            "",
            "# or into the tree of your model, checking the shape and dtype of every leaf:",
            "template = tx.template_of(model.init, key, x)",
            f"tree = tx.restore(catalog, {arguments})",
        ]
    )
