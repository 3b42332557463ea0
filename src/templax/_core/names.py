"""Leaf names: key paths joined by `.`, which are only split and renamed between elements.

Orbax joins keys by `.` on disk, and so do the names in safetensors files. Therefore a dict, a list,
a dataclass and a NamedTuple match if their keys are spelled alike.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from ..errors import UsageError

Path = tuple[str | int, ...]
"""The elements of a key path. An int is an index into a list or tuple."""

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


def split_name(name: str) -> Path:
    """The elements of a name, of which none contains a `.`; none of the empty name."""
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
    for i in range(len(path), -1, -1):
        new = rename.get(join_path(path[:i]))
        if new is not None:
            return split_name(new) + path[i:]
    return path


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
    """
    return [join_path(path[:i]) for i in range(1, len(path) + 1)]


_NUMBERS = re.compile(r"\d+")


def find_nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most similar to `name`; None if there is none, or no single best one.

    Numbers must be the same, since they tell leaves apart: `layers_3` is not similar to `layers_4`.
    """
    normalized, numbers = normalize(name), _NUMBERS.findall(name)
    pool = [c for c in candidates if _NUMBERS.findall(c) == numbers]
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
