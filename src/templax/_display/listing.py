"""The text of `templax ls`: a checkpoint as rows of a tree, and the code that restores it.

`json_contents.py` has the JSON.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from .._catalog.catalog import Catalog
from .._catalog.entry import LeafEntry
from .._catalog.fingerprint import recorded_fingerprint
from .._core.names import Path, join_path
from .._core.text import format_size, leaf_noun, quote_text

MIN_ALIKE = 3
"""At least this many consecutive numbered siblings with identical subtrees share one row."""


@dataclass(slots=True)
class Node:
    """A subtree or a leaf of the listing.

    Attributes:
        label: The key, as it is shown.
        depth: Number of keys in its path.
        nbytes, leaves: The bytes and the number of all leaves in it.
        entry: The leaf, if it is one.
        empty: The kind of an empty container, if it is one.
        children: The subtrees and leaves directly below, by key.
        look_id: Equal for subtrees that look alike: the same names, dtypes, shapes, saved
            shardings, string values and empty containers.
    """

    label: str
    depth: int = 0
    nbytes: int = 0
    leaves: int = 0
    entry: LeafEntry | None = None
    empty: str | None = None
    children: dict[str | int, Node] = field(default_factory=dict)
    look_id: int = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tree: a leaf, a subtree, an empty container, or several that are alike.

    Attributes:
        depth: Levels of indentation, 0 at the top.
        label: The key, or the range of keys that are alike: `0 … 11`.
        dtype: The dtype of a leaf, or the kind of an empty container; otherwise "".
        shape: The shape of a leaf, or the number of leaves of a subtree.
        nbytes: Bytes of everything that the line stands for; None for an empty container.
        note: The saved sharding, the value of a string, or how many are alike.
        kind: "leaf", "subtree" or "empty".
    """

    depth: int
    label: str
    dtype: str
    shape: str
    nbytes: int | None
    note: str
    kind: str


def select_leaves(catalog: Catalog, globs: Sequence[str]) -> list[LeafEntry]:
    """The leaves whose name matches one of the globs, or all leaves if there are no globs."""
    if not globs:
        return list(catalog.entries)
    return [e for e in catalog.entries if any(fnmatch.fnmatchcase(e.name, g) for g in globs)]


def build_rows(
    entries: Sequence[LeafEntry],
    empties: Mapping[Path, str] | None = None,
    *,
    depth: int | None = None,
    collapse: bool = True,
    shardings: bool = True,
) -> list[Row]:
    """The tree, one row per line.

    Args:
        entries: Leaves to show.
        empties: Empty containers to show: key path → kind.
        depth: Levels to show, or None for all. The row of a subtree on the last level gives the
            number and size of its leaves.
        collapse: Whether numbered siblings with identical subtrees share one row.
        shardings: Whether to show the saved sharding of each leaf.
    """
    root = _build_tree(entries, empties or {})
    if root.entry is not None:  # a checkpoint that is one bare leaf
        return [_make_row(root, 1, shardings)]
    result: list[Row] = []
    pending = [(group, 1) for group in reversed(_group_children(root, collapse))]
    while pending:
        nodes, level = pending.pop()
        first = nodes[0]
        result.append(_make_row(first, len(nodes), shardings, nodes[-1].label))
        if depth is None or level < depth:
            pending += [(group, level + 1) for group in reversed(_group_children(first, collapse))]
    return result


def make_flat_row(entry: LeafEntry, shardings: bool = True) -> Row:
    """The row of a leaf under its whole name, without the tree."""
    return _make_row(Node(entry.name, entry=entry, nbytes=entry.nbytes), 1, shardings)


def _build_tree(entries: Sequence[LeafEntry], empties: Mapping[Path, str]) -> Node:
    root = Node("(root)")
    nodes = [root]
    seen: dict[tuple[Any, ...], int] = {}

    def find_or_add(path: Path) -> Node:
        node = root
        for element in path:
            child = node.children.get(element)
            if child is None:
                child = Node(_quote_key(element), node.depth + 1)
                node.children[element] = child
                nodes.append(child)
            node = child
        return node

    for entry in entries:
        find_or_add(entry.path).entry = entry
    for path, empty in empties.items():
        if path:
            find_or_add(path).empty = empty
    # `nodes` lists parents before children, so in reverse each node comes after its children. Not
    # recursive, since a file may contain paths of any depth.
    for node in reversed(nodes):
        facts: tuple[Any, ...] = (node.empty,)
        if node.entry is not None:
            e = node.entry
            node.nbytes, node.leaves = e.nbytes, 1
            facts = (e.dtype_name, e.user_shape, e.value, e.saved_sharding)
        children = node.children.values()
        node.nbytes += sum(child.nbytes for child in children)
        node.leaves += sum(child.leaves for child in children)
        below = sorted((child.label, child.look_id) for child in children)
        node.look_id = seen.setdefault((*facts, *below), len(seen))
    return root


def _quote_key(element: str | int) -> str:
    """A key as it is, or quoted if it could be mistaken for something else."""
    text = str(element)
    return text if text and not re.search(r"[\s.'\"]", text) and text.isprintable() else repr(text)


_NUMBER = re.compile(r"(\d+)")


def _natural_key(node: Node) -> list[tuple[int, int, str]]:
    """A sort key that puts `layer_2` before `layer_10`."""
    parts = _NUMBER.split(node.label)
    # A file may contain a number of thousands of digits, which int() refuses.
    return [(0, int(p), p) if i % 2 and len(p) < 19 else (1, 0, p) for i, p in enumerate(parts)]


_NUMBERED = re.compile(r"(.*?)(\d{1,18})")


def _group_children(node: Node, collapse: bool) -> list[list[Node]]:
    """The children in order, in groups that each share a row.

    A group is a run of consecutively numbered children that are alike, or a single child.
    """
    result: list[list[Node]] = []
    run: list[Node] = []
    last: tuple[str, int, int] | None = None
    for child in sorted(node.children.values(), key=_natural_key):
        found = _NUMBERED.fullmatch(child.label) if collapse else None
        now = (found[1], int(found[2]), child.look_id) if found else None
        if last and now and now == (last[0], last[1] + 1, last[2]):
            run.append(child)
        else:
            result += _split_run(run)
            run = [child]
        last = now
    return result + _split_run(run)


def _split_run(run: list[Node]) -> list[list[Node]]:
    return [run] if len(run) >= MIN_ALIKE else [[node] for node in run]


def _make_row(node: Node, alike: int, shardings: bool, last: str = "") -> Row:
    label = f"{node.label} … {last}" if alike > 1 else node.label
    notes = [f"{alike} alike, {format_size(node.nbytes)} each"] if alike > 1 else []
    depth = max(node.depth - 1, 0)
    if node.entry is None and not node.children:
        return Row(depth, label, node.empty or "", "", None, "", "empty")
    nbytes = node.nbytes * alike
    if node.entry is None:
        leaves = node.leaves * alike
        text = f"{leaves:,} {leaf_noun(leaves)}"
        return Row(depth, label, "", text, nbytes, ", ".join(notes), "subtree")
    entry = node.entry
    if entry.value is not None:
        value = repr(entry.value)
        notes.append(value if len(value) <= 60 else f"{value[:57]}...")
    elif shardings and entry.saved_sharding is not None:
        notes.append(entry.saved_sharding)
    shape = "" if entry.kind == "string" else str(entry.user_shape)
    return Row(depth, label, entry.dtype_name, shape, nbytes, ", ".join(notes), "leaf")


def format_cells(rows: Sequence[Row]) -> Iterator[tuple[Row, tuple[str, str, str, str, str]]]:
    """Each row with its columns as padded text: name, dtype, shape, size, note."""
    table = [
        (
            "  " * row.depth + row.label,
            row.dtype,
            row.shape,
            "" if row.nbytes is None else format_size(row.nbytes),
        )
        for row in rows
    ]
    widths = [max((len(line[i]) for line in table), default=0) for i in range(4)]
    for row, line in zip(rows, table, strict=True):
        name, dtype, shape = (text.ljust(w) for text, w in zip(line[:3], widths, strict=False))
        yield row, (name, dtype, shape, line[3].rjust(widths[3]), row.note)


def describe_checkpoint(catalog: Catalog, shown: Sequence[LeafEntry]) -> Iterator[tuple[str, str]]:
    """Facts about the whole checkpoint, each with its label."""
    yield "format", f"{catalog.format}, recognised by {catalog.evidence}"
    known = dict(catalog.metadata)
    for detail in ("init_timestamp_nsecs", "use_ocdbt", "use_zarr3"):
        known.pop(detail, None)  # only --json shows them
    saved = known.pop("commit_timestamp_nsecs", None)
    for name in ("step", "item", "items", *sorted(known)):
        value = known.pop(name, None)
        if value not in (None, {}, [], ""):
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield name.replace("_", " "), text
    if isinstance(saved, int) and 0 <= saved < 2**63:
        yield "saved", f"{datetime.fromtimestamp(saved // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if len(shown) != len(catalog.entries):
        yield "shown", f"{_format_total(shown)}, of {_format_total(catalog.entries)}"
    else:
        yield "total", _format_total(shown)
    if catalog.fingerprints is not None and len(shown) == len(catalog.entries):
        yield "fingerprint", str(recorded_fingerprint(catalog))
    sizes: Counter[str] = Counter()
    for entry in shown:
        sizes[entry.dtype_name] += entry.nbytes
    if len(sizes) > 1:
        yield "dtypes", ", ".join(f"{name} {format_size(n)}" for name, n in sizes.most_common())
    sharding = find_common_sharding(shown)
    if sharding is not None:
        yield "sharding", f"{sharding} for every array that has one (not used for placement)"


def _format_total(entries: Sequence[LeafEntry]) -> str:
    nbytes = sum(entry.nbytes for entry in entries)
    return f"{len(entries):,} {leaf_noun(len(entries))}, {format_size(nbytes)}"


def find_common_sharding(entries: Sequence[LeafEntry]) -> str | None:
    """The saved sharding, if all leaves that have one share it."""
    shardings = {entry.saved_sharding for entry in entries} - {None}
    return shardings.pop() if len(shardings) == 1 else None


def make_restore_code(catalog: Catalog) -> str:
    """Python code that restores the checkpoint, both as it is and into the tree of a model."""
    allow = ', uncommitted="allow"' if catalog.uncommitted is not None else ""
    opened = f"tx.open({quote_text(catalog.url)}{allow})"
    wrapped = sorted(
        {join_path(e.path[: i + 1]) for e in catalog.entries for i in _find_params(e.path)}
    )
    arguments = "template"
    if len(wrapped) == 1:
        arguments = f'template["params"], at={quote_text(wrapped[0])}'
    return "\n".join(
        [
            "import templax as tx",
            "",
            f"catalog = {opened}",
            "tree = tx.restore(catalog, catalog.template())",
            "",
            "# or into the tree of your model, checking the shape and dtype of every leaf:",
            "template = tx.template_of(model.init, key, x)",
            f"tree = tx.restore(catalog, {arguments})",
        ]
    )


def _find_params(path: Path) -> Iterator[int]:
    """The position of the key `params` of a Flax model in a path, if it has one."""
    if "params" in path[:-1]:
        yield path.index("params")
