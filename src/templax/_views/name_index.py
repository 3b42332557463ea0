"""Finds, among many names, those that a pattern may match, without trying each of them. Pure.

A mapping may have a rule for each of many leaves: then each rule should look only at its own
leaves. All names that a pattern matches share its beginning, its end and the whole elements between
them, and are found by these.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections import defaultdict
from collections.abc import Sequence

from .._core.names import matches_pattern
from .names import NamePattern, parse_name

_FEW = 32
"""Up to this many names are tried one by one instead of narrowing the choice."""

_MAX_TRIES = 4
"""Names are indexed by elements once this many times their number have been tried."""


class NameIndex:
    """Names in the order of a checkpoint, indexed by their beginning, end and elements.

    Args:
        names: The names, each once.
    """

    def __init__(self, names: Sequence[str]):
        self._names = names
        self._order = {name: i for i, name in enumerate(names)}
        self._by_start = sorted(names)
        self._tries = 0

    def list_candidates(self, pattern: NamePattern) -> Sequence[str]:
        """All names that a pattern matches, and perhaps others, in order."""
        first, *others = pattern.segments or ("",)
        last = others[-1] if others else first
        if not others and isinstance(first, str):
            return [first] if first in self._order else []
        start, end = (text if isinstance(text, str) else "" for text in (first, last))
        return self._list_between(start, end, _list_elements(pattern))

    def match_glob(self, pattern: str) -> list[str]:
        """The names that a pattern of `drop=` matches: one with placeholders, or with `*`."""
        if "{" in pattern:
            parsed = parse_name(pattern)
            candidates = self.list_candidates(parsed)
            return [name for name in candidates if parsed.match(name, {}, {}) is not None]
        start, *_ = re.split(r"[*?\[]", pattern, maxsplit=1)
        end = re.split(r"[*?\[\]]", pattern)[-1]
        candidates = self._list_between(start, end, ())
        return [name for name in candidates if matches_pattern(name, pattern)]

    def _list_between(self, start: str, end: str, elements: Sequence[str]) -> Sequence[str]:
        low, high = _find_range(self._by_start, start)
        first, last = 0, len(self._names)
        if high - low > _FEW and end:
            first, last = _find_range(self._by_end, end[::-1])
        n = min(high - low, last - first)
        self._tries += n
        if n > _FEW and elements and self._tries > _MAX_TRIES * len(self._names):
            those = min((self._by_element.get(each, []) for each in elements), key=len)
            if len(those) < n:
                return those
        if n == len(self._names):
            return self._names
        found = self._by_start[low:high]
        if last - first < high - low:
            found = [name[::-1] for name in self._by_end[first:last]]
        return sorted(found, key=self._order.__getitem__)

    @functools.cached_property
    def _by_end(self) -> list[str]:
        """The reversed names, sorted."""
        return sorted(name[::-1] for name in self._names)

    @functools.cached_property
    def _by_element(self) -> dict[str, list[str]]:
        """Element of a name → the names that contain it."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._names:
            for element in {*name.split(".")}:
                found[element].append(name)
        return found


def _find_range(names: Sequence[str], start: str) -> tuple[int, int]:
    """The range of sorted names that begin with a text."""
    if not start:
        return 0, len(names)
    first = bisect.bisect_left(names, start)
    last = bisect.bisect_right(names, start, lo=first, key=lambda name: name[: len(start)])
    return first, last


def _list_elements(pattern: NamePattern) -> list[str]:
    """The elements that occur in every name that a pattern matches."""
    # A placeholder becomes "\0", which no name contains.
    text = "".join(s if isinstance(s, str) else "\0" for s in pattern.segments)
    return [element for element in text.split(".") if "\0" not in element]
