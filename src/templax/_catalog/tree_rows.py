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
    """What subtrees or leaves have in common that look alike.

    Attributes:
        number: Equal for those that look alike: the same names, dtypes, shapes, saved shardings,
            string values, quantisations and empty containers.
        nbytes, leaves, parameters: The bytes, the number and the `parameter_count` of all leaves.
    """

    number: int
    nbytes: int = 0
    leaves: int = 0
    parameters: int = 0


_NO_LOOK = _Look(-1)


class Node(msgspec.Struct, gc=False, eq=False):
    """A subtree of the listing, or a leaf that is shown.

    Attributes:
        label: The key, as it is shown.
        depth: Number of keys in its path.
        entry: The leaf, if it is one.
        empty: The kind of an empty container, if it is one.
        children: The subtrees directly below, and the leaves as positions in a list, by key.
        look: What is in it. Of a node that has a leaf, that of the leaf until all are added.
    """

    label: str
    depth: int = 0
    entry: LeafEntry | None = None
    empty: str | None = None
    children: dict[str | int, Node | int] = msgspec.field(default_factory=dict)
    look: _Look = _NO_LOOK


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
    tree = _Tree(entries)
    if not tree.build(empties or {}):
        rows = [make_flat_row(entry, shardings) for entry in entries]
        names = ((join_path(path), empty) for path, empty in (empties or {}).items())
        return rows + [Row(0, name, empty, "", None, "", "empty") for name, empty in names]
    root = tree.root
    if root.entry is not None:  # a checkpoint that is one bare leaf
        return [_make_row(root, 1, shardings)]
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
    return _make_row(Node(entry.name, entry=entry, look=_Look(-1, entry.nbytes)), 1, shardings)


class _Tree:
    """The subtrees of a listing. Leaves are only made nodes once they are shown.

    Args:
        entries: The leaves.

    Attributes:
        root: The subtree that has all others.
    """

    def __init__(self, entries: Sequence[LeafEntry]):
        self.root = Node("(root)")
        self._entries = entries
        self._nodes = [self.root]
        self._labels: dict[str | int, str] = {}
        self._looks: dict[tuple[Any, ...], _Look] = {}
        self._leaf_looks = self._find_leaf_looks()

    def build(self, empties: Mapping[Path, str]) -> bool:
        """Adds the leaves and empty containers. Returns False if they take too many nodes."""
        maximum = _MAX_NODES + _LEAF_NODES * (len(self._entries) + len(empties))
        known: dict[Path, Node] = {(): self.root}
        leaves, above, parent = 0, (), self.root
        for at, entry in enumerate(self._entries):
            path = entry.path
            if not path:
                self.root.entry, self.root.look = entry, self._leaf_looks[at]
                continue
            if path[:-1] != above:
                if leaves + len(self._nodes) > maximum:
                    return False
                above = path[:-1]
                parent = self._find_or_add(above, known)
            child = parent.children.get(path[-1])
            if isinstance(child, Node):
                child.entry, child.look = entry, self._leaf_looks[at]
            else:
                leaves += child is None
                parent.children[path[-1]] = at
        for path, empty in empties.items():
            if leaves + len(self._nodes) > maximum:
                return False
            if path:
                self._find_or_add(path, known).empty = empty
        # Parents come before their children. Not recursive, since a file may contain paths of any
        # depth.
        for node in reversed(self._nodes):
            node.look = self._find_look(node)
        return True

    def _find_or_add(self, path: Path, known: dict[Path, Node]) -> Node:
        """The node at a path; `known` has those of some paths."""
        found = known.get(path)
        if found is not None:
            return found
        node = known.get(path[:-1], self.root)
        for element in path if node is self.root else path[-1:]:
            child = node.children.get(element)
            if not isinstance(child, Node):
                child = node.children[element] = self._make_node(element, node.depth + 1, child)
                self._nodes.append(child)
            node = child
        known[path] = node
        return node

    def _quote_key(self, element: str | int) -> str:
        label = self._labels.get(element)
        if label is None:
            label = self._labels[element] = _quote_key(element)
        return label

    def list_children(self, node: Node) -> list[Node]:
        """The subtrees and leaves directly below a node, in the order in which they were added."""
        return [
            child if isinstance(child, Node) else self._make_node(element, node.depth + 1, child)
            for element, child in node.children.items()
        ]

    def _make_node(self, element: str | int, depth: int, at: int | None) -> Node:
        """A node for a key; that of a leaf, if its position is given."""
        label = self._quote_key(element)
        if at is None:
            return Node(label, depth)
        return Node(label, depth, self._entries[at], look=self._leaf_looks[at])

    def _find_look(self, node: Node) -> _Look:
        leaf_looks = self._leaf_looks
        looks = [
            child.look if isinstance(child, Node) else leaf_looks[child]
            for child in node.children.values()
        ]
        own = node.empty
        if node.entry is not None:
            looks.append(node.look)
            own = node.look.number
        numbers = [look.number for look in looks]
        key = (own, *node.children, *numbers)
        found = self._looks.get(key)
        if found is None:  # else they are alike, and in the same order
            labels = map(self._quote_key, node.children)
            facts = (own, *sorted(zip(labels, numbers, strict=False)))
            found = self._looks.get(facts)
            if found is None:
                found = self._looks[facts] = _Look(
                    len(self._looks),
                    sum(look.nbytes for look in looks),
                    sum(look.leaves for look in looks),
                    sum(look.parameters for look in looks),
                )
            self._looks[key] = found
        return found

    def _find_leaf_looks(self) -> list[_Look]:
        known: dict[tuple[Any, ...], _Look] = {}
        looks: list[_Look] = []
        for entry in self._entries:
            text = (entry.value, entry.saved_sharding, entry.quantisation)
            key = (entry.shape, entry.dtype, entry.kind, entry.key_impl, text)
            found = known.get(key)
            if found is None:
                shown = (entry.nbytes, entry.dtype_name, entry.user_shape, text)
                found = self._looks.get(shown)
                if found is None:
                    parameters = 0 if entry.value is not None else entry.parameter_count
                    found = _Look(len(self._looks), entry.nbytes, 1, parameters)
                    self._looks[shown] = found
                known[key] = found
            looks.append(found)
        return looks


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
        now = (found[1], int(found[2]), child.look.number) if found else None
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
    depth = max(node.depth - 1, 0)
    if node.entry is None and not node.children:
        return Row(depth, label, node.empty or "", "", None, "", "empty")
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
