"""What `templax ls` shows: a catalog as rows of a tree, as JSON, and as code that restores it."""

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
from .._core.text import format_size, quote_text
from .._runs.steps import Run, StepDirectory
from .json import select_fields

ALIKE = 3
"""This many numbered siblings with identical subtrees are shown as one."""


@dataclass(slots=True)
class Node:
    """A subtree or a leaf of the listing."""

    label: str
    depth: int = 0
    nbytes: int = 0
    leaves: int = 0
    entry: LeafEntry | None = None
    empty: str | None = None
    children: dict[str | int, Node] = field(default_factory=dict)
    shape_id: int = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tree.

    Attributes:
        depth: Of the line, 0 at the top.
        label: The key, or the range of keys that are alike: `0 … 11`.
        dtype: Of a leaf.
        shape: Of a leaf; of a subtree, its number of leaves.
        nbytes: Of all that the line stands for; None for an empty value.
        note: Saved sharding, the value of a string, how many are alike.
        kind: What the line stands for.
    """

    depth: int
    label: str
    dtype: str
    shape: str
    nbytes: int | None
    note: str
    kind: str


def select(catalog: Catalog, globs: Sequence[str]) -> list[LeafEntry]:
    """The leaves whose name matches one of the globs; all, if there are none."""
    if not globs:
        return list(catalog.entries)
    return [e for e in catalog.entries if any(fnmatch.fnmatchcase(e.name, g) for g in globs)]


def rows(
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
        empties: Empty values to show.
        depth: Levels to show; what is below is summed up. None: all.
        collapse: Numbered siblings with identical subtrees become one row.
        shardings: Whether a leaf's note is its saved sharding.
    """
    root = _tree(entries, empties or {})
    if root.entry is not None:  # a checkpoint that is one bare leaf
        return [_row(root, 1, shardings)]
    result: list[Row] = []
    pending = [(group, 1) for group in reversed(_groups(root, collapse))]
    while pending:
        nodes, level = pending.pop()
        first = nodes[0]
        result.append(_row(first, len(nodes), shardings, nodes[-1].label))
        if depth is None or level < depth:
            pending += [(group, level + 1) for group in reversed(_groups(first, collapse))]
    return result


def flat_row(entry: LeafEntry, shardings: bool = True) -> Row:
    """A leaf by its whole name, without the tree."""
    return _row(Node(entry.name, entry=entry, nbytes=entry.nbytes), 1, shardings)


def _tree(entries: Sequence[LeafEntry], empties: Mapping[Path, str]) -> Node:
    root = Node("(root)")
    nodes = [root]
    seen: dict[tuple[Any, ...], int] = {}

    def at(path: Path) -> Node:
        node = root
        for element in path:
            child = node.children.get(element)
            if child is None:
                child = Node(_label(element), node.depth + 1)
                node.children[element] = child
                nodes.append(child)
            node = child
        return node

    for entry in entries:
        at(entry.path).entry = entry
    for path, empty in empties.items():
        if path:
            at(path).empty = empty
    # A node is listed after its parent: backwards, children are done before it. No recursion, since
    # the depth is the file's choice.
    for node in reversed(nodes):
        facts: tuple[Any, ...] = (node.empty,)
        if node.entry is not None:
            e = node.entry
            node.nbytes, node.leaves = e.nbytes, 1
            facts = (e.dtype_name, e.user_shape, e.value, e.saved_sharding)
        children = node.children.values()
        node.nbytes += sum(child.nbytes for child in children)
        node.leaves += sum(child.leaves for child in children)
        below = sorted((child.label, child.shape_id) for child in children)
        node.shape_id = seen.setdefault((*facts, *below), len(seen))
    return root


def _label(element: str | int) -> str:
    """A key as it is, or quoted where it could be taken for something else."""
    text = str(element)
    return text if text and not re.search(r"[\s.'\"]", text) and text.isprintable() else repr(text)


_NUMBER = re.compile(r"(\d+)")


def _natural(node: Node) -> list[tuple[int, int, str]]:
    """Sorts `layer_2` before `layer_10`."""
    parts = _NUMBER.split(node.label)
    # A file may spell a number of thousands of digits, which int() refuses.
    return [(0, int(p), p) if i % 2 and len(p) < 19 else (1, 0, p) for i, p in enumerate(parts)]


_NUMBERED = re.compile(r"(.*?)(\d{1,18})")


def _groups(node: Node, collapse: bool) -> list[list[Node]]:
    """The children, each in a list; a run of numbered ones that are alike is one list."""
    result: list[list[Node]] = []
    run: list[Node] = []
    last: tuple[str, int, int] | None = None
    for child in sorted(node.children.values(), key=_natural):
        found = _NUMBERED.fullmatch(child.label) if collapse else None
        now = (found[1], int(found[2]), child.shape_id) if found else None
        if last and now and now == (last[0], last[1] + 1, last[2]):
            run.append(child)
        else:
            result += _closed(run)
            run = [child]
        last = now
    return result + _closed(run)


def _closed(run: list[Node]) -> list[list[Node]]:
    return [run] if len(run) >= ALIKE else [[node] for node in run]


def _row(node: Node, alike: int, shardings: bool, last: str = "") -> Row:
    label = f"{node.label} … {last}" if alike > 1 else node.label
    notes = [f"{alike} alike, {format_size(node.nbytes)} each"] if alike > 1 else []
    depth = max(node.depth - 1, 0)
    if node.entry is None and not node.children:
        return Row(depth, label, node.empty or "", "", None, "", "empty")
    nbytes = node.nbytes * alike
    if node.entry is None:
        leaves = node.leaves * alike
        text = f"{leaves:,} leaf" if leaves == 1 else f"{leaves:,} leaves"
        return Row(depth, label, "", text, nbytes, ", ".join(notes), "subtree")
    entry = node.entry
    if entry.value is not None:
        value = repr(entry.value)
        notes.append(value if len(value) <= 60 else f"{value[:57]}...")
    elif shardings and entry.saved_sharding is not None:
        notes.append(entry.saved_sharding)
    shape = "" if entry.kind == "string" else str(entry.user_shape)
    return Row(depth, label, entry.dtype_name, shape, nbytes, ", ".join(notes), "leaf")


def cells(listing: Sequence[Row]) -> Iterator[tuple[Row, tuple[str, str, str, str, str]]]:
    """Each row with its columns as padded text: name, dtype, shape, size, note."""
    table = [
        (
            "  " * row.depth + row.label,
            row.dtype,
            row.shape,
            "" if row.nbytes is None else format_size(row.nbytes),
        )
        for row in listing
    ]
    widths = [max((len(line[i]) for line in table), default=0) for i in range(4)]
    for row, line in zip(listing, table, strict=True):
        name, dtype, shape = (text.ljust(w) for text, w in zip(line[:3], widths, strict=False))
        yield row, (name, dtype, shape, line[3].rjust(widths[3]), row.note)


def header(catalog: Catalog, shown: Sequence[LeafEntry]) -> Iterator[tuple[str, str]]:
    """What is known of the whole checkpoint: label and text."""
    yield "format", f"{catalog.format}, recognised by {catalog.evidence}"
    known = dict(catalog.metadata)
    for detail in ("init_timestamp_nsecs", "use_ocdbt", "use_zarr3"):
        known.pop(detail, None)  # --json has them
    saved = known.pop("commit_timestamp_nsecs", None)
    for name in ("step", "item", "items", *sorted(known)):
        value = known.pop(name, None)
        if value not in (None, {}, [], ""):
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield name.replace("_", " "), text
    if isinstance(saved, int) and 0 <= saved < 2**63:
        yield "saved", f"{datetime.fromtimestamp(saved // 10**9, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if len(shown) != len(catalog.entries):
        yield "shown", f"{_count(shown)}, of {_count(catalog.entries)}"
    else:
        yield "total", _count(shown)
    if catalog.fingerprints is not None and len(shown) == len(catalog.entries):
        yield "fingerprint", str(recorded_fingerprint(catalog))
    sizes: Counter[str] = Counter()
    for entry in shown:
        sizes[entry.dtype_name] += entry.nbytes
    if len(sizes) > 1:
        yield "dtypes", ", ".join(f"{name} {format_size(n)}" for name, n in sizes.most_common())
    sharding = common_sharding(shown)
    if sharding is not None:
        yield "sharding", f"{sharding}, each array (shown, never obeyed)"


def _count(entries: Sequence[LeafEntry]) -> str:
    nbytes = sum(entry.nbytes for entry in entries)
    return f"{len(entries):,} {'leaf' if len(entries) == 1 else 'leaves'}, {format_size(nbytes)}"


def common_sharding(entries: Sequence[LeafEntry]) -> str | None:
    """The saved sharding, if all leaves that have one share it."""
    shardings = {entry.saved_sharding for entry in entries} - {None}
    return shardings.pop() if len(shardings) == 1 else None


def restore_code(catalog: Catalog) -> str:
    """Python that restores the checkpoint: first as it is, then into a model's own tree."""
    allow = ', uncommitted="allow"' if catalog.uncommitted is not None else ""
    opened = f"tx.open({quote_text(catalog.url)}{allow})"
    wrapped = sorted({join_path(e.path[: i + 1]) for e in catalog.entries for i in _params(e.path)})
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
            "# or into the tree of your model, with every leaf held to its shape and dtype:",
            "template = tx.template_of(model.init, key, x)",
            f"tree = tx.restore(catalog, {arguments})",
        ]
    )


def _params(path: Path) -> Iterator[int]:
    """Where the subtree `params` of a Flax model begins, if it does."""
    if "params" in path[:-1]:
        yield path.index("params")


def catalog_fields(catalog: Catalog, shown: Sequence[LeafEntry]) -> dict[str, Any]:
    """A checkpoint, with the leaves that `templax ls` shows."""
    prints = None if catalog.fingerprints is None else recorded_fingerprint(catalog)
    leaves = [
        {
            **select_fields(entry, "name", "path", "kind"),
            "dtype": entry.dtype_name,
            "shape": entry.user_shape,
            **select_fields(entry, "nbytes", "saved_sharding"),
            "fingerprint": None if prints is None else prints.leaves[entry.name],
        }
        for entry in shown
    ]
    return {
        **select_fields(catalog, "url", "format", "evidence", "uncommitted", "metadata"),
        "fingerprint": None if prints is None else str(prints),
        "leaf_count": len(catalog.entries),
        "nbytes": catalog.nbytes,
        "leaves": leaves,
        "restore": restore_code(catalog),
    }


def run_fields(run: Run) -> dict[str, Any]:
    """The steps of a run, as `templax steps` prints them."""
    return {
        "url": run.url,
        "format": "orbax",
        "evidence": run.evidence,
        "latest": max(run.committed, default=None),
        "steps": [_step_fields(found) for found in run.steps],
        "others": [_step_fields(found) for found in run.directories if found.step is None],
    }


def _step_fields(found: StepDirectory) -> dict[str, Any]:
    names = ("step", "url", "committed", "problem", "items", "metrics", "nbytes", "saved")
    return select_fields(found, *names)
