"""Mappings for `rename=`: what two of them do one after the other, and text that can be pasted."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from .._core.names import Path, Rename, apply_rename, join_path, split_name
from .._core.text import quote_text

MAX_SHORT = 6
"""How many entries of a mapping a hint spells out even if a function does the same."""

MAX_SPELLED = 24
"""How many entries a hint spells out. The error has a longer mapping as an object."""

_MAX_CONTEXT = 24
"""Most characters before and after a difference of two names that are compared."""

_MAX_TRIED = 4
"""Most texts that are tried to replace."""


def combine_renames(given: Rename, more: Rename, paths: Sequence[Path]) -> Mapping[str, str] | None:
    """A mapping that does what `given` and then `more` do, or None if there is none.

    Args:
        given: What the caller renames.
        more: What is renamed besides, in names that `given` has made.
        paths: The leaves of the checkpoint.
    """
    names = [join_path(apply_rename(apply_rename(path, given), more)) for path in paths]
    if isinstance(given, Mapping) and isinstance(more, Mapping):
        combined = _combine_mappings(given, more, paths)
        if _rename_all(combined, paths) == names:
            return combined
    stored = [join_path(path) for path in paths]
    by_leaf = {old: new for old, new in zip(stored, names, strict=True) if old != new}
    return by_leaf if _rename_all(by_leaf, paths) == names else None


def _rename_all(rename: Rename, paths: Sequence[Path]) -> list[str]:
    return [join_path(apply_rename(path, rename)) for path in paths]


def _combine_mappings(
    given: Mapping[str, str], more: Mapping[str, str], paths: Sequence[Path]
) -> dict[str, str]:
    """The prefixes of both mappings, each as stored, with what becomes of it in the end."""
    combined: dict[str, str] = {}
    for path in paths:
        renamed, depth = path, 0  # of the prefix that `given` replaces
        for i in range(len(path), -1, -1):
            old = join_path(path[:i])
            if old in given:
                renamed, depth = apply_rename(path, given), i
                combined[old] = join_path(apply_rename(split_name(given[old]), more))
                break
        for i in range(len(renamed), -1, -1):
            prefix = join_path(renamed[:i])
            if prefix in more:
                kept = len(path) - (len(renamed) - i)
                if kept >= depth:
                    combined[join_path(path[:kept])] = more[prefix]
                break
    return combined


def format_rename(rename: Mapping[str, str], paths: Sequence[Path]) -> str:
    """A mapping as the argument `rename=`: Python that can be pasted.

    A few entries are spelled out. Of more, a function says as much in one line if they have a
    change in common. A mapping that is too long for a line is that of the error.

    Args:
        rename: The mapping.
        paths: The leaves of the checkpoint, for which the function must do the same.
    """
    if len(rename) > MAX_SHORT:
        names = _rename_all(rename, paths)
        for source, function in _list_functions(rename):
            if _rename_all(function, paths) == names:
                return f"rename=lambda name: {source}"
    if len(rename) <= MAX_SPELLED:
        items = [f"{quote_text(old)}: {quote_text(new)}" for old, new in rename.items()]
        return f"rename={{{', '.join(items)}}}"
    caught = "after `except templax.TemplateError as error:`"
    return f"rename=error.match.rename ({len(rename)} entries), {caught}"


def _list_functions(rename: Mapping[str, str]) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Functions that may do what a mapping does, each after the source of its result."""
    for old, new in _find_replacements(rename)[:_MAX_TRIED]:
        yield (
            f"name.replace({quote_text(old)}, {quote_text(new)})",
            lambda name, old=old, new=new: name.replace(old, new),
        )
    shifted = _find_shift(rename)
    if shifted is not None:
        stem, by = shifted
        pattern = rf"\b{re.escape(stem)}(\d+)"
        sign = f"+ {by}" if by > 0 else f"- {-by}"
        yield (
            f're.sub(r"{pattern}", lambda m: f"{stem}{{int(m[1]) {sign}}}", name)',
            lambda name: re.sub(pattern, lambda m: f"{stem}{_shift_number(m[1], by)}", name),
        )


def _find_replacements(rename: Mapping[str, str]) -> list[tuple[str, str]]:
    """Texts that differ in all entries alike, and what they become. Whole words come first."""
    pairs = list(rename.items())
    old, new = pairs[0]
    start = _count_common(old, new)
    end = _count_common(old[start:][::-1], new[start:][::-1])
    found: list[tuple[bool, bool, int, str, str]] = []
    for i in range(max(0, start - _MAX_CONTEXT), start + 1):
        for j in range(len(old) - end, min(len(old), len(old) - end + _MAX_CONTEXT) + 1):
            a, b = old[i:j], new[i : len(new) - (len(old) - j)]
            if a and all(one.replace(a, b) == other for one, other in pairs):
                begins, ends = i == 0 or old[i - 1] == ".", not old[j : j + 1].isalpha()
                found.append((not begins, not ends, len(a), a, b))
    return [(a, b) for *_, a, b in sorted(found)]


def _count_common(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    differing = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))


_NUMBERED = re.compile(
    r"(?P<head>(?:.*\.)?)(?P<stem>[^\W\d][^\W\d.]*)(?P<number>0|[1-9]\d{0,8})(?P<tail>(?:\..*)?)"
)


def _find_shift(rename: Mapping[str, str]) -> tuple[str, int] | None:
    """The name before a number that all entries change by as much, and by how much."""
    shifts: set[tuple[str, int]] = set()
    for old, new in rename.items():
        one, other = _NUMBERED.fullmatch(old), _NUMBERED.fullmatch(new)
        if one is None or other is None:
            return None
        if any(one[part] != other[part] for part in ("head", "stem", "tail")):
            return None
        shifts.add((one["stem"], int(other["number"]) - int(one["number"])))
    return shifts.pop() if len(shifts) == 1 else None


def _shift_number(digits: str, by: int) -> str:
    # A file may contain a number with thousands of digits, which int() refuses.
    return str(int(digits) + by) if len(digits) < 19 else digits
