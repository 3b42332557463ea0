"""The leaves of a checkpoint as the rows of a tree, for `print(catalog)` and `templax ls`."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from .._core.boxes import Shape
from .._core.names import Path, join_path
from .._core.text import format_count, format_size, leaf_noun, parameter_noun
from .._escape import escape_text
from .entry import Kind, LeafEntry

_MAX_NODES, _LEAF_NODES = 1 << 16, 4
"""Maximum number of nodes in a tree that is shown as a tree: a fixed allowance, and this many more
per leaf or empty container. A file may declare a node with a single byte."""

_MAX_WIDTH = 200
"""Columns are aligned up to this width. Otherwise one long name would widen every line."""

MIN_ALIKE = 3
"""At least this many consecutive numbered siblings with identical subtrees share one row."""


class _Look(msgspec.Struct, frozen=True, gc=False):
    """What is in a subtree, or in a leaf.

    Those that look alike share one: the same names, dtypes, shapes, saved shardings, string values,
    quantisations and empty containers.

    Attributes:
        nbytes, leaves, parameters: The bytes, the number and the `parameter_count` of all leaves.
    """

    nbytes: int = 0
    leaves: int = 0
    parameters: int = 0


class _Subtree(msgspec.Struct, gc=False, eq=False):
    """What is below a key path that is not just that of a leaf.

    Attributes:
        looks: Key right below → the number of its look.
        subtrees: Key right below → what is below that.
        empty: The kind of an empty container, if it is one.
    """

    looks: dict[str | int, int] = msgspec.field(default_factory=dict)
    subtrees: dict[str | int, _Subtree] = msgspec.field(default_factory=dict)
    empty: str | None = None


class Node(msgspec.Struct, gc=False, eq=False):
    """A subtree or leaf that is shown.

    Attributes:
        label: The last key of its path, as it is shown.
        path: Its key path.
        look: What is in it.
        alike: Equal for nodes that look alike.
        entry: The leaf, if it is one.
        subtree: What is below it, if it is not just a leaf.
    """

    label: str
    path: Path
    look: _Look
    alike: int = -1
    entry: LeafEntry | None = None
    subtree: _Subtree | None = None


class Row(msgspec.Struct, frozen=True, gc=False):
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
    if len(entries) == 1 and not entries[0].path and not empties:
        return [make_flat_row(entries[0], shardings)]
    tree = _Tree(entries, empties or {})
    if not tree.build():
        rows = [make_flat_row(entry, shardings) for entry in entries]
        names = ((join_path(path), empty) for path, empty in (empties or {}).items())
        return rows + [Row(0, name, empty, "", None, "", "empty") for name, empty in names]
    root = tree.make_root()
    group_children = functools.partial(_group_children, tree, collapse=collapse)
    result: list[Row] = []
    pending = [(group, 1, False) for group in reversed(group_children(root))]
    while pending:
        nodes, level, stands_for_more = pending.pop()
        first, stands_for_more = nodes[0], stands_for_more or len(nodes) > 1
        row = _make_row(first, len(nodes), shardings, nodes[-1].label, stands_for_more)
        result.append(row)
        if depth is None or level < depth:
            groups = reversed(group_children(first))
            pending += [(group, level + 1, stands_for_more) for group in groups]
    return result


def make_flat_row(entry: LeafEntry, shardings: bool = True) -> Row:
    """The row of a leaf under its whole name, without the tree."""
    label = entry.name if entry.path else "(root)"
    return _make_row(Node(label, (), _Look(entry.nbytes), entry=entry), 1, shardings)


class _Tree:
    """The subtrees of a listing, compared with each other. Only what is shown is made a node.

    Args:
        entries: The leaves.
        empties: The empty containers.
    """

    def __init__(self, entries: Sequence[LeafEntry], empties: Mapping[Path, str]):
        self._entries, self._empties = entries, empties
        self._root = _Subtree()
        self._below: list[tuple[_Subtree, str | int, _Subtree]] = []
        """Every subtree but the root, with that in which it is and its key there."""
        self._looks: list[_Look] = []
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._labels: dict[str | int, str] = {}

    def build(self) -> bool:
        """Compares all subtrees. Returns False if they are too many, or not a tree."""
        maximum = _MAX_NODES + _LEAF_NODES * (len(self._entries) + len(self._empties))
        maximum -= len(self._entries)
        above, subtree = (), self._root
        for entry, number in zip(self._entries, self._find_leaf_looks(), strict=True):
            path = entry.path
            if path[:-1] != above:
                above = path[:-1]
                subtree = self._find_or_add(above)
                if len(self._below) > maximum:
                    return False
            if not path:  # a leaf that is the root, beside others
                return False
            subtree.looks[path[-1]] = number
        for path, empty in self._empties.items():
            self._find_or_add(path).empty = empty
            if len(self._below) > maximum:
                return False
        # Children come after their parents. Not recursive, since a file may contain paths of any
        # depth.
        for parent, key, subtree in reversed(self._below):
            parent.looks[key] = self._find_look(subtree, parent.looks.get(key))
        return True

    def _find_or_add(self, path: Path) -> _Subtree:
        subtree = self._root
        for key in path:
            below = subtree.subtrees.get(key)
            if below is None:
                below = subtree.subtrees[key] = _Subtree()
                self._below.append((subtree, key, below))
            subtree = below
        return subtree

    def _find_look(self, subtree: _Subtree, leaf: int | None) -> int:
        """The number of the look of a subtree, and of a leaf at the same path, if there is one."""
        found = subtree.looks
        key = (leaf, subtree.empty, *found, *found.values())
        number = self._numbers.get(key)
        if number is None:  # else they are alike, and in the same order
            facts = [(self._quote_key(key), look) for key, look in found.items()]
            sorted_key = (leaf, subtree.empty, *sorted(facts))
            number = self._numbers.get(sorted_key)
            if number is None:
                looks = [self._looks[look] for look in found.values()]
                if leaf is not None:
                    looks.append(self._looks[leaf])
                number = self._numbers[sorted_key] = self._add_look(
                    sum(look.nbytes for look in looks),
                    sum(look.leaves for look in looks),
                    sum(look.parameters for look in looks),
                )
            self._numbers[key] = number
        return number

    def _find_leaf_looks(self) -> list[int]:
        """The number of the look of each leaf."""
        known: dict[tuple[Any, ...], int] = {}
        numbers: list[int] = []
        for entry in self._entries:
            text = (entry.value, entry.saved_sharding, entry.quantisation, entry.undecodable)
            key = (entry.shape, entry.dtype, entry.kind, entry.key_impl, text)
            number = known.get(key)
            if number is None:
                shown = (entry.nbytes, entry.dtype_name, entry.user_shape, text)
                number = self._numbers.get(shown)
                if number is None:
                    parameters = 0 if entry.value is not None else entry.parameter_count
                    number = self._add_look(entry.nbytes, 1, parameters)
                    self._numbers[shown] = number
                known[key] = number
            numbers.append(number)
        return numbers

    def _add_look(self, nbytes: int, leaves: int, parameters: int) -> int:
        self._looks.append(_Look(nbytes, leaves, parameters))
        return len(self._looks) - 1

    @functools.cached_property
    def _leaves(self) -> dict[Path, LeafEntry]:
        return {entry.path: entry for entry in self._entries}

    def make_root(self) -> Node:
        return Node("(root)", (), _Look(), subtree=self._root)

    def list_children(self, node: Node) -> list[Node]:
        """The subtrees and leaves right below a node."""
        if node.subtree is None:
            return []
        subtrees, leaves = node.subtree.subtrees, self._leaves
        result: list[Node] = []
        for key, number in node.subtree.looks.items():
            label, path = self._quote_key(key), (*node.path, key)
            look, entry = self._looks[number], leaves.get(path)
            result.append(Node(label, path, look, number, entry, subtrees.get(key)))
        return result

    def _quote_key(self, key: str | int) -> str:
        label = self._labels.get(key)
        if label is None:
            label = self._labels[key] = _quote_key(key)
        return label


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


def _group_children(tree: _Tree, node: Node, *, collapse: bool) -> list[list[Node]]:
    """The children in order, in groups that each share a row.

    A group is a run of consecutively numbered children that are alike, or a single child.
    """
    result: list[list[Node]] = []
    run: list[Node] = []
    last: tuple[str, int, int] | None = None
    for child in sorted(tree.list_children(node), key=_natural_key):
        found = _NUMBERED.fullmatch(child.label) if collapse else None
        now = (found[1], int(found[2]), child.alike) if found else None
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
    notes = [f"{alike} alike, {format_size(node.look.nbytes)} each"] if alike > 1 else []
    depth = max(len(node.path) - 1, 0)
    if node.entry is None and node.subtree is not None and not node.subtree.looks:
        return Row(depth, label, node.subtree.empty or "", "", None, "", "empty")
    nbytes = node.look.nbytes * alike
    if node.entry is None:
        leaves, parameters = node.look.leaves * alike, node.look.parameters * alike
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
    if entry.undecodable is not None:
        notes.append("can't be decoded")
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
    found: Counter[tuple[Shape, Any, Kind, str | None, str | None]]
    found = Counter([(e.shape, e.dtype, e.kind, e.key_impl, e.value) for e in entries])
    sizes: Counter[str] = Counter()
    narrow: Counter[str] = Counter()
    parameters = 0
    for (shape, dtype, kind, impl, value), n in found.items():
        alike = LeafEntry("", (), shape, dtype, kind, impl, value)
        sizes[alike.dtype_name] += alike.nbytes * n
        if value is None:
            parameters += alike.parameter_count * n
            if alike.dtype_name in _NARROW and alike.user_shape:
                narrow[alike.dtype_name] += math.prod(alike.user_shape) * n
    return Totals(len(entries), sizes.total(), parameters, sizes, narrow)


def format_total(totals: Totals) -> str:
    """Number of leaves, bytes, and number of parameters if there are any."""
    leaves, nbytes, parameters = totals[:3]
    text = f"{leaves:,} {leaf_noun(leaves)}, {format_size(nbytes)}"
    return f"{text}, {parameters:,} {parameter_noun(parameters)}" if parameters else text
