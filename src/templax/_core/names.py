"""Leaf names: a key path joined by `.`, cut and renamed at element borders only.

Joining by `.` is how Orbax keys an array on disk and how safetensors files are written, so a dict,
a list, a dataclass and a NamedTuple with the same spelling meet.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

from ..errors import UsageError

Path = tuple[str | int, ...]
"""Elements of a key path; an int is an index of a list or tuple."""

Rename = Mapping[str, str] | Callable[[str], str]
"""`{checkpoint prefix: template prefix}`, or a function from name to name."""


def join_path(path: Path) -> str:
    """The name of a leaf.

    >>> join_path(("layers", 0, "kernel"))
    'layers.0.kernel'
    >>> join_path(())
    ''
    """
    try:
        return ".".join(path)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except TypeError:  # an index is among them
        return ".".join(map(str, path))


def strip_prefix(path: Path, prefix: str) -> Path | None:
    """The rest of `path` below `prefix`, or None if it is not below it.

    `prefix` ends at an element border. Keys may themselves hold a `.`, so borders are those of
    `path`, not the dots of `prefix`. The empty prefix is the root.

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
    """`path` under its new name. The longest matching prefix of a mapping wins, once."""
    if rename is None:
        return path
    if not isinstance(rename, Mapping):
        old = join_path(path)
        new = rename(old)
        if not isinstance(new, str):
            raise UsageError(f"Expected a name (str) from rename({old!r}), got {new!r}")
        return path if new == old else _split(new)
    for i in range(len(path), -1, -1):
        new = rename.get(join_path(path[:i]))
        if new is not None:
            return _split(new) + path[i:]
    return path


def _split(name: str) -> Path:
    return tuple(name.split(".")) if name else ()


def prefixes(path: Path) -> list[str]:
    """The names of all subtrees that hold `path`, outermost first, without the root."""
    return [join_path(path[:i]) for i in range(1, len(path) + 1)]


_NUMBERS = re.compile(r"\d+")


def find_nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that looks most like `name`, or None if none does, or several do equally.

    A number is part of what a leaf is: `layers_3` is not near `layers_4`.
    """
    folded, numbers = normalize(name), _NUMBERS.findall(name)
    pool = [c for c in candidates if _NUMBERS.findall(c) == numbers]
    same = [c for c in pool if normalize(c) == folded]
    if same:
        return same[0] if len(same) == 1 else None
    close = difflib.get_close_matches(name, pool, n=2, cutoff=0.75)
    if len(close) == 2:
        first, second = (difflib.SequenceMatcher(None, name, c).ratio() for c in close)
        if first == second:
            return None
    return close[0] if close else None


def normalize(name: str) -> str:
    """A spelling that ignores case, `_` and `-`."""
    return name.casefold().replace("_", "").replace("-", "")
