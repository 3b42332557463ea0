"""Leaf names: key paths joined by `.`, which are only split and renamed between elements.

Orbax joins keys by `.` on disk, and so do the names in safetensors files. Therefore a dict, a list,
a dataclass and a NamedTuple match if their keys are spelled alike.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from ..errors import Unsupported, UsageError

Path = tuple[str | int, ...]
"""The elements of a key path. An int is an index into a list or tuple."""

MAX_DEPTH = 300
"""Maximum number of elements in a key path of a file. Work on each prefix of a path takes time
quadratic in its depth, and trees are built recursively."""

_MAX_ELEMENTS = 1 << 19, 16
"""Maximum number of elements in all key paths of a file together: a fixed allowance, and this many
more per path. An element may take a byte or two in the file, but a whole tree node in memory."""

Rename = Mapping[str, str] | Callable[[str], str]
"""`{checkpoint prefix: template prefix}`, or a function from a checkpoint name to a new name."""


def join_path(path: Path) -> str:
    """The name of the leaf at a key path.

    >>> join_path(("layers", 0, "kernel"))
    'layers.0.kernel'
    >>> join_path(())
    ''
    """
    try:
        return ".".join(path)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except TypeError:  # the path contains an index
        return ".".join(map(str, path))


def join_paths(paths: Sequence[Path]) -> list[str]:
    """The names of the leaves at many key paths, in half the time that `join_path` takes for each.

    >>> join_paths([("layers", 0, "kernel"), ("step",)])
    ['layers.0.kernel', 'step']
    """
    try:
        return list(map(".".join, paths))  # pyright: ignore[reportArgumentType]
    except TypeError:  # a path contains an index
        return list(map(join_path, paths))


def split_name(name: str) -> Path:
    """Splits a name at its dots: `a.b` → `("a", "b")`, and the empty name → `()`."""
    return tuple(name.split(".")) if name else ()


def strip_prefix(path: Path, prefix: str) -> Path | None:
    """The rest of `path` after `prefix`, or None if `path` does not start with it.

    `prefix` must end where an element of `path` ends. A key may itself contain a `.`, so what
    counts are the elements of `path`, not the dots in `prefix`. The empty prefix is the root.

    >>> strip_prefix(("params", "a.b", "w"), "params.a.b")
    ('w',)
    >>> strip_prefix(("params", "dense", "w"), "params.den") is None
    True
    """
    if not prefix:
        return path
    text = ""
    for i, element in enumerate(path):
        text = f"{text}.{element}" if i else str(element)
        if text == prefix:
            return path[i + 1 :]
        if len(text) > len(prefix):
            return None
    return None


def apply_rename(path: Path, rename: Rename | None) -> Path:
    """Renames `path`. In a mapping, only the longest matching prefix is applied, and only once.

    Raises:
        UsageError: A rename function returned something other than a str.
    """
    if rename is None:
        return path
    if not isinstance(rename, Mapping):
        old = join_path(path)
        new = rename(old)
        if not isinstance(new, str):
            raise UsageError(f"Expected a name (str) from rename({old!r}), got {new!r}")
        return path if new == old else split_name(new)
    for i, prefix in zip(range(len(path), 0, -1), reversed(prefixes(path)), strict=True):
        new = rename.get(prefix)
        if new is not None:
            return split_name(new) + path[i:]
    new = rename.get("")
    return path if new is None else split_name(new) + path


_MAX_REPEATED = 64
"""Maximum number of leaves that share the name of another. Keys may contain dots, so two paths may
have the same name; such leaves are compared one by one."""


def check_depths(paths: Collection[Sequence[str | int]]) -> None:
    """Checks that key paths from a file are not too deep, and not too large together.

    Raises:
        Unsupported: One of them has more than `MAX_DEPTH` elements, or all together have too many.
    """
    deepest = max(map(len, paths), default=0)
    if deepest > MAX_DEPTH:
        start = join_path(tuple(next(path for path in paths if len(path) == deepest)[:8]))
        raise Unsupported(
            f"templax reads trees of at most {MAX_DEPTH} levels, got {deepest} below `{start[:80]}`"
        )
    least, per_path = _MAX_ELEMENTS
    maximum = least + per_path * len(paths)
    if deepest * len(paths) > maximum and sum(map(len, paths)) > maximum:
        raise Unsupported(
            f"templax reads key paths of {maximum} elements in {len(paths)} leaves, got"
            f" {sum(map(len, paths))}"
        )


def check_names(names: Sequence[str]) -> None:
    """Checks that names from a file are valid Unicode, so that they can be printed and encoded.

    Raises:
        Unsupported: A name contains half of a surrogate pair, which is how Python represents bytes
            that are not valid UTF-8; or too many leaves have the same name.
    """
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        wrong = next(name for name in names if name.encode("utf-8", "replace").decode() != name)
        raise Unsupported(f"templax reads names that are text, got {wrong[:80]!a}") from None
    repeated = len(names) - len(set(names))
    if repeated > _MAX_REPEATED:
        raise Unsupported(
            f"templax reads trees in which {_MAX_REPEATED} leaves have the name of another, got"
            f" {repeated}"
        )


_Choice = TypeVar("_Choice")


def matches_pattern(name: str, pattern: str) -> bool:
    """Whether a leaf name is `pattern`, or matches it as in `fnmatch.fnmatchcase`.

    `*` stands for any characters, dots included, `?` for one, `[ab]` for one of these.

    >>> matches_pattern("blocks.0.attn.lora_a", "*.lora_?"), matches_pattern("head", "head.*")
    (True, False)
    """
    return name == pattern or fnmatchcase(name, pattern)


def choose_by_pattern(name: str, choices: Mapping[str, _Choice]) -> _Choice | None:
    """The choice of the first pattern that `name` matches; None if it matches none.

    >>> choose_by_pattern("head.bias", {"*.bias": "keep", "head.*": "error"})
    'keep'
    """
    for pattern, choice in choices.items():
        if matches_pattern(name, pattern):
            return choice
    return None


def prefixes(path: Path) -> list[str]:
    """The names of all subtrees that contain `path`, outermost first, and of `path` itself.

    The root is not included.

    >>> prefixes(("layers", 0, "kernel"))
    ['layers', 'layers.0', 'layers.0.kernel']
    """
    name, stop, found = join_path(path), -1, list[str]()
    for element in path:
        stop += 1 + len(element if isinstance(element, str) else str(element))
        found.append(name[:stop])
    return found


_NUMBERS = re.compile(r"\d+")

_MAX_COMPARED = 1 << 10
"""Longer names are not compared for similarity, which takes time quadratic in their length."""

_MAX_POOL = 1 << 19
"""Maximum total length of the names that a name is compared with, in characters."""


def find_nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most similar to `name`; None if there is none, or no single best one.

    Also None if there is too much to compare.

    Numbers must be the same, since they tell leaves apart: `layers_3` is not similar to `layers_4`.
    """
    normalized, numbers = normalize(name), _NUMBERS.findall(name)
    pool = [c for c in candidates if len(c) <= _MAX_COMPARED and _NUMBERS.findall(c) == numbers]
    if len(name) > _MAX_COMPARED or sum(map(len, pool)) > _MAX_POOL:
        return None
    same = [c for c in pool if normalize(c) == normalized]
    if same:
        return same[0] if len(same) == 1 else None
    close = difflib.get_close_matches(name, pool, n=2, cutoff=0.75)
    if len(close) == 2:
        first, second = (difflib.SequenceMatcher(None, name, c).ratio() for c in close)
        if first == second:
            return None
    return close[0] if close else None


def normalize(name: str) -> str:
    """Removes differences in case, `_` and `-` from a name."""
    return name.casefold().replace("_", "").replace("-", "")
