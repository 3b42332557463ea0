"""Formats counts, sizes, ages and lists of names for people to read."""

from __future__ import annotations

from collections.abc import Sequence


def format_size(nbytes: int) -> str:
    """A number of bytes in a few characters.

    >>> format_size(512), format_size(1536), format_size(5 * 2**30)
    ('512 B', '1.5 KiB', '5.0 GiB')
    """
    if nbytes < 1024:
        return f"{nbytes} B"
    power = 1
    while nbytes >= 1024 ** (power + 1) and power < 6:
        power += 1
    return f"{nbytes / 1024**power:.1f} {'KMGTPE'[power - 1]}iB"


def list_names(names: Sequence[str]) -> str:
    """The first three names, and how many more there are.

    >>> list_names(["a", "b", "c", "d"])
    '`a`, `b`, `c`, and 1 more'
    """
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return f"{shown}, and {len(names) - 3} more" if len(names) > 3 else shown


def leaf_noun(n: int) -> str:
    """The noun "leaf" or "leaves", depending on the number."""
    return "leaf" if n == 1 else "leaves"


def be_verb(names: Sequence[str]) -> str:
    """The verb "is" or "are", depending on the number of names."""
    return "is" if len(names) == 1 else "are"


def format_age(seconds: float) -> str:
    """A duration in a few characters, rounded down.

    >>> [format_age(seconds) for seconds in (-3, 59, 90, 7199, 86400 * 3.7)]
    ['0 s', '59 s', '1 min', '1 h', '3 d']
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(int(seconds), 0)} s"
