"""Finds subtrees of a checkpoint that a template has under another name or at another place.

An optimizer that was wrapped since it was saved, a renamed layer, layers that are numbered anew.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from .._catalog.entry import LeafSpec
from .._core.dtypes import class_of
from .._core.names import Path, join_path
from .meaning import is_abbreviation, is_average, list_moments

MAX_LEAVES = 20_000
"""Subtrees are compared in trees of up to so many leaves, which takes less than a second."""

_Content = frozenset[tuple[Path, tuple[int, ...], str]]
"""What a subtree holds: for each leaf its path in the subtree, its shape and its kind of number."""


def find_moved_subtrees(
    stored: Sequence[tuple[Path, LeafSpec]],
    wanted: Sequence[tuple[Path, LeafSpec]],
    unmatched: Iterable[str],
) -> dict[Path, Path]:
    """Pairs subtrees that hold the same leaves by relative name, shape and kind of number.

    Two subtrees are paired in three cases: they are siblings, and one name abbreviates the other
    (`mid`, `middle`); several siblings were renumbered together (`Dense_0` and `Dense_1`, now
    `Dense_1` and `Dense_2`); or one lies some levels deeper (`opt_state.0`, `opt_state.1.0`). Equal
    content alone is not enough: an encoder may look like a decoder, and a second moment like a
    first. If several subtrees fit, none is paired, since the layers of a transformer look the same.

    Args:
        stored: The leaves of the checkpoint, with their paths.
        wanted: The leaves of the template, with their paths.
        unmatched: Names of leaves of both sides that do not match. Only subtrees with such leaves
            are paired.

    Returns:
        The paths of the subtrees in the checkpoint, each with that in the template.
    """
    if not stored or not wanted or len(stored) + len(wanted) > MAX_LEAVES:
        return {}
    old, new = _Subtrees(stored, unmatched), _Subtrees(wanted, unmatched)
    moved: dict[Path, Path] = {}
    covered: set[Path] = set()
    for path in sorted(new.unmatched, key=len):  # outermost first, else as in the template
        if any(path[:i] in covered for i in range(1, len(path))):
            continue
        content = new.contents[path]
        if old.contents.get(path) == content or not _tells_apart(content):
            continue
        source = _choose_source(path, old.by_content[content], new.by_content[content], old)
        if source is not None:
            covered.add(path)
            if len(source) != len(path):
                source, path = _skip_single_children(source, path, content)
            if source in moved:
                return {}  # two subtrees want the same one
            moved[source] = path
    return _drop_lone_shifts(moved, old)


class _Subtrees:
    """The subtrees of one side, other than the whole tree and single leaves.

    Attributes:
        contents: The content of each, by path.
        by_content: The paths of each content.
        unmatched: Paths of those with a leaf that does not match.
    """

    def __init__(self, leaves: Sequence[tuple[Path, LeafSpec]], unmatched: Iterable[str]):
        names = set(unmatched)
        self.unmatched: dict[Path, None] = {}  # in order, unlike a set
        contents: defaultdict[Path, list[tuple[Path, tuple[int, ...], str]]] = defaultdict(list)
        for path, leaf in leaves:
            path = tuple(map(str, path))
            kind = leaf.key_impl or class_of(leaf.dtype)
            for i in range(1, len(path)):
                contents[path[:i]].append((path[i:], leaf.user_shape, kind))
            if join_path(path) in names:
                self.unmatched |= dict.fromkeys(path[:i] for i in range(1, len(path)))
        self.contents = {path: frozenset(content) for path, content in contents.items()}
        self.by_content: defaultdict[_Content, list[Path]] = defaultdict(list)
        for path, content in self.contents.items():
            self.by_content[content].append(path)


def _tells_apart(content: _Content) -> bool:
    """Whether a subtree holds more than one vector or number, which would fit by chance."""
    return len(content) > 1 or any(len(shape) > 1 for _, shape, _ in content)


def _skip_single_children(old: Path, new: Path, content: _Content) -> tuple[Path, Path]:
    """Two equal subtrees at different depths, named by the level where they begin to branch.

    For example `opt_state.0` and `opt_state.1.0`, if `0` is the only child of `opt_state` in the
    checkpoint and of `opt_state.1` in the template.
    """
    rests = [rest for rest, _, _ in content]
    i = 0
    while all(len(rest) > i + 1 and rest[: i + 1] == rests[0][: i + 1] for rest in rests):
        i += 1
    return old + rests[0][:i], new + rests[0][:i]


def _choose_source(
    target: Path, old: Sequence[Path], new: Sequence[Path], subtrees: _Subtrees
) -> Path | None:
    """The one subtree of the checkpoint that `target` may have been.

    Args:
        target: A subtree of the template.
        old: The subtrees of the checkpoint with the same content.
        new: The subtrees of the template with the same content, `target` among them.
        subtrees: All subtrees of the checkpoint.
    """
    siblings = [path for path in old if path[:-1] == target[:-1]]
    if len(siblings) == 1 and sum(path[:-1] == target[:-1] for path in new) == 1:
        choice = siblings[0]
    else:
        related = [path for path in old if _is_deeper(path, target)]
        if len(related) == 1 and sum(_is_deeper(related[0], path) for path in new) == 1:
            choice = related[0]
        elif len(old) == 1 and len(new) == 1:
            choice = old[0]
        else:
            return None
    return choice if choice in subtrees.unmatched and _mean_the_same(choice, target) else None


def _is_deeper(a: Path, b: Path) -> bool:
    """Whether one of two paths is the other with levels inserted, no moment or average."""
    short, long = sorted((a, b), key=len)
    elements = iter(long)
    inserted = len(short) < len(long) and all(element in elements for element in short)
    return inserted and list_moments(a) == list_moments(b) and is_average(a) == is_average(b)


def _mean_the_same(a: Path, b: Path) -> bool:
    """Whether the paths of two equal subtrees may be of the same one, apart from its number."""
    if len(a) != len(b):
        return _is_deeper(a, b)
    return _find_shift(a, b) is not None or all(map(is_abbreviation, map(str, a), map(str, b)))


_NUMBERED = re.compile(r"(.*?)(\d{1,9})")

_Shift = tuple[Path, str, int]
"""The path around numbered siblings, their common name, and the difference of the numbers."""


def _find_shift(a: Path, b: Path) -> _Shift | None:
    """What two siblings have in common of which only the number differs; None for others."""
    old, new = _NUMBERED.fullmatch(str(a[-1])), _NUMBERED.fullmatch(str(b[-1]))
    if a[:-1] != b[:-1] or old is None or new is None or old[1] != new[1]:
        return None
    return a[:-1], old[1], int(new[2]) - int(old[2])


def _drop_lone_shifts(moved: dict[Path, Path], old: _Subtrees) -> dict[Path, Path]:
    """Leaves out pairs whose number alone differs, unless several shift by as much.

    `layers_0` may well be another layer than `layers_1`. Only the states of a chain of optax may
    shift alone, since their moments have names.
    """
    shifts = {a: _find_shift(a, b) for a, b in moved.items() if len(a) == len(b)}
    counts = Counter(shifts.values())

    def keeps(path: Path) -> bool:
        shift = shifts.get(path)
        if shift is None or counts[shift] > 1:
            return True
        return not shift[1] and any(list_moments(rest[:-1]) for rest, _, _ in old.contents[path])

    return {a: b for a, b in moved.items() if keeps(a)}
