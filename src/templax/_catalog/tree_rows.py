"""The leaves of a checkpoint as the rows of a tree, for `print(catalog)` and `templax ls`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from .._core.boxes import Shape
from .._core.names import Path, join_path
from .._core.text import format_count, format_size, leaf_noun, parameter_noun
from .._escape import escape_text
from .entry import LeafEntry

_MAX_NODES, _LEAF_NODES = 1 << 16, 4
"""Maximum number of nodes in a tree that is shown as a tree: a fixed allowance, and this many more
per leaf or empty container. A file may declare a node with a single byte."""

_MAX_WIDTH = 200
"""Columns are aligned up to this width. Otherwise one long name would widen every line."""

MIN_ALIKE = 3
"""At least this many consecutive numbered siblings with identical subtrees share one row."""


class Node(msgspec.Struct, gc=False, eq=False):
    """A subtree or a leaf of the listing.

    Attributes:
        label: The key, as it is shown.
        depth: Number of keys in its path.
        nbytes, leaves, parameters: The bytes, the number and the `parameter_count` of all leaves in
            it.
        entry: The leaf, if it is one.
        empty: The kind of an empty container, if it is one.
        children: The subtrees and leaves directly below, by key.
        look_id: Equal for subtrees that look alike: the same names, dtypes, shapes, saved
            shardings, string values, quantisations and empty containers.
    """

    label: str
    depth: int = 0
    nbytes: int = 0
    leaves: int = 0
    parameters: int = 0
    entry: LeafEntry | None = None
    empty: str | None = None
    children: dict[str | int, Node] = msgspec.field(default_factory=dict)
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
        note: The saved sharding, the value of a string, how many are alike, or the number of
            parameters of a subtree.
        kind: "leaf", "subtree" or "empty".
    """

    depth: int
    label: str
    dtype: str
    shape: str
    nbytes: int | None
    note: str
    kind: str


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
            number and size of its leaves. In a tree of far more nodes than leaves, each leaf has a
            row of its own instead, with its whole name.
        collapse: Whether numbered siblings with identical subtrees share one row.
        shardings: Whether to show the saved sharding of each leaf.
    """
    root = _build_tree(entries, empties or {})
    if root is None:
        rows = [make_flat_row(entry, shardings) for entry in entries]
        names = ((join_path(path), empty) for path, empty in (empties or {}).items())
        return rows + [Row(0, name, empty, "", None, "", "empty") for name, empty in names]
    if root.entry is not None:  # a checkpoint that is one bare leaf
        return [_make_row(root, 1, shardings)]
    result: list[Row] = []
    pending = [(group, 1, False) for group in reversed(_group_children(root, collapse))]
    while pending:
        nodes, level, stands_for_more = pending.pop()
        first, stands_for_more = nodes[0], stands_for_more or len(nodes) > 1
        row = _make_row(first, len(nodes), shardings, nodes[-1].label, stands_for_more)
        result.append(row)
        if depth is None or level < depth:
            groups = reversed(_group_children(first, collapse))
            pending += [(group, level + 1, stands_for_more) for group in groups]
    return result


def make_flat_row(entry: LeafEntry, shardings: bool = True) -> Row:
    """The row of a leaf under its whole name, without the tree."""
    return _make_row(Node(entry.name, entry=entry, nbytes=entry.nbytes), 1, shardings)


def _build_tree(entries: Sequence[LeafEntry], empties: Mapping[Path, str]) -> Node | None:
    """The root of the tree; None if it has too many nodes to be shown as one."""
    maximum = _MAX_NODES + _LEAF_NODES * (len(entries) + len(empties))
    root = Node("(root)")
    nodes = [root]
    parents: dict[Path, Node] = {}
    labels: dict[str | int, str] = {}
    seen: dict[tuple[Any, ...], int] = {}

    def find_or_add(path: Path) -> Node | None:
        if len(nodes) > maximum:
            return None
        parent = node = parents.get(path[:-1], root)
        for element in path if node is root else path[-1:]:
            child = node.children.get(element)
            if child is None:
                label = labels.get(element)
                if label is None:
                    label = labels[element] = _quote_key(element)
                child = Node(label, node.depth + 1)
                node.children[element] = child
                nodes.append(child)
            parent, node = node, child
        parents[path[:-1]] = parent
        return node

    for entry in entries:
        if (node := find_or_add(entry.path)) is None:
            return None
        node.entry = entry
    for path, empty in empties.items():
        if path:
            if (node := find_or_add(path)) is None:
                return None
            node.empty = empty
    known: dict[tuple[Any, ...], _Measure] = {}
    # `nodes` lists parents before children, so in reverse each node comes after its children. Not
    # recursive, since a file may contain paths of any depth.
    for node in reversed(nodes):
        facts: tuple[Any, ...] = (node.empty,)
        if node.entry is not None:
            e = node.entry
            measured = _measure_leaf(e, known)
            node.nbytes, node.parameters, node.leaves = *measured[:2], 1
            facts = (measured, e.value, e.saved_sharding, e.quantisation)
        if node.children:
            looks: list[tuple[str, int]] = []
            for child in node.children.values():
                node.nbytes += child.nbytes
                node.leaves += child.leaves
                node.parameters += child.parameters
                looks.append((child.label, child.look_id))
            facts = (*facts, *sorted(looks))
        node.look_id = seen.setdefault(facts, len(seen))
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


def _make_row(
    node: Node, alike: int, shardings: bool, last: str = "", stands_for_more: bool = False
) -> Row:
    """The row of a node, or of several that are alike.

    Args:
        node: The first of them.
        alike: Their number.
        shardings: See `build_rows`.
        last: The label of the last.
        stands_for_more: Whether there are more than the node: alike, or in subtrees that are.
    """
    label = f"{node.label} … {last}" if alike > 1 else node.label
    notes = [f"{alike} alike, {format_size(node.nbytes)} each"] if alike > 1 else []
    depth = max(node.depth - 1, 0)
    if node.entry is None and not node.children:
        return Row(depth, label, node.empty or "", "", None, "", "empty")
    nbytes = node.nbytes * alike
    if node.entry is None:
        leaves, parameters = node.leaves * alike, node.parameters * alike
        text = f"{leaves:,} {leaf_noun(leaves)}"
        if parameters:
            notes.insert(0, f"{format_count(parameters)} {parameter_noun(parameters)}")
        return Row(depth, label, "", text, nbytes, ", ".join(notes), "subtree")
    entry = node.entry
    if entry.value is not None:
        value = repr(entry.value)
        notes.append(value if len(value) <= 60 else f"{value[:57]}...")
    elif shardings and entry.saved_sharding is not None:
        notes.append(entry.saved_sharding)
    if entry.quantisation is not None:
        notes.append(f"from {entry.quantisation}")
    if entry.made_from is not None:
        notes.append(f"from {entry.made_from}" + (" and alike" if stands_for_more else ""))
    shape = "" if entry.kind == "string" else str(entry.user_shape)
    return Row(depth, label, entry.dtype_name, shape, nbytes, ", ".join(notes), "leaf")


def format_cells(rows: Sequence[Row]) -> Iterator[tuple[Row, tuple[str, str, str, str, str]]]:
    """Each row with its columns as padded text: name, dtype, shape, size, note."""
    table = [
        (
            "  " * row.depth + escape_text(row.label),
            escape_text(row.dtype),
            row.shape,
            "" if row.nbytes is None else format_size(row.nbytes),
        )
        for row in rows
    ]
    widths = [min(max((len(line[i]) for line in table), default=0), _MAX_WIDTH) for i in range(4)]
    for row, line in zip(rows, table, strict=True):
        name, dtype, shape = (text.ljust(w) for text, w in zip(line[:3], widths, strict=False))
        yield row, (name, dtype, shape, line[3].rjust(widths[3]), escape_text(row.note))


def find_depth(rows: Sequence[Row], maximum: int) -> int:
    """The number of levels, at least 1, that take at most `maximum` of these rows."""
    depth, taken = 1, Counter(row.depth for row in rows)
    total = taken[0]
    while depth in taken and total + taken[depth] <= maximum:
        total += taken[depth]
        depth += 1
    return depth


def format_tree(
    entries: Sequence[LeafEntry], empties: Mapping[Path, str], maximum: int
) -> list[str]:
    """The tree in at most `maximum` rows and a line that says what is left out."""
    rows = build_rows(entries, empties, shardings=False)
    levels, more = max((row.depth for row in rows), default=0) + 1, ""
    depth = find_depth(rows, maximum)
    if depth < levels:
        rows = [row for row in rows if row.depth < depth]
        more = f"({depth} of {levels} levels; `catalog.leaves` has every leaf)"
    if len(rows) > maximum:
        more = f"(and {len(rows) - maximum:,} more; `catalog.leaves` has every leaf)"
        rows = rows[:maximum]
    lines = ["  ".join(filter(None, cells)).rstrip() for _, cells in format_cells(rows)]
    return [*lines, more] if more else lines


class Totals(NamedTuple):
    """Leaves as a whole.

    Attributes:
        leaves, nbytes, parameters: Number, decoded bytes and parameters of all of them.
        sizes: Name of a dtype → decoded bytes of the leaves that have it.
        narrow: Name of an integer dtype of at most 8 bits → elements of the arrays that have it.
            These may be quantised weights, which are not among the parameters.
    """

    leaves: int
    nbytes: int
    parameters: int
    sizes: Counter[str]
    narrow: Counter[str]


_NARROW = ("int8", "uint8", "int4", "uint4", "int2", "uint2")


def measure_leaves(entries: Sequence[LeafEntry]) -> Totals:
    """Adds up leaves."""
    known: dict[tuple[Any, ...], _Measure] = {}
    found = Counter([_measure_leaf(entry, known) for entry in entries])
    sizes: Counter[str] = Counter()
    narrow: Counter[str] = Counter()
    parameters = 0
    for (nbytes, count, dtype, shape), n in found.items():
        sizes[dtype] += nbytes * n
        parameters += count * n
        if dtype in _NARROW and shape:
            narrow[dtype] += math.prod(shape) * n
    return Totals(len(entries), sizes.total(), parameters, sizes, narrow)


_Measure = tuple[int, int, str, Shape]
"""Bytes, number of parameters, name of the dtype, and shape of a leaf."""


def _measure_leaf(entry: LeafEntry, known: dict[tuple[Any, ...], _Measure]) -> _Measure:
    """Measures a leaf, unless one of the same shape and dtype is `known`."""
    if entry.value is not None:
        return entry.nbytes, 0, "str", ()
    key = (entry.shape, entry.dtype, entry.kind, entry.key_impl)
    found = known.get(key)
    if found is None:
        measured = (entry.nbytes, entry.parameter_count, entry.dtype_name, entry.user_shape)
        found = known[key] = measured
    return found


def format_total(totals: Totals) -> str:
    """Number of leaves, bytes, and number of parameters if there are any."""
    leaves, nbytes, parameters = totals[:3]
    text = f"{leaves:,} {leaf_noun(leaves)}, {format_size(nbytes)}"
    return f"{text}, {parameters:,} {parameter_noun(parameters)}" if parameters else text
