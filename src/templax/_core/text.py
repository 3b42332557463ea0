"""Formats counts, sizes, ages and lists of names for people to read."""

from __future__ import annotations

from collections.abc import Sequence

from .._escape import escape_text


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


def format_count(n: int) -> str:
    """A number in a few characters, with three significant digits.

    >>> format_count(768), format_count(8586), format_count(124_439_808), format_count(10**15)
    ('768', '8.59 K', '124 M', '1000 T')
    """
    if n < 1000:
        return str(n)
    power = 1
    while float(f"{n / 1000**power:.3g}") >= 1000 and power < 4:
        power += 1
    value = float(f"{n / 1000**power:.3g}")
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {'KMBT'[power - 1]}"


def parameter_noun(n: int) -> str:
    """The noun "parameter" or "parameters", depending on the number."""
    return "parameter" if n == 1 else "parameters"


def list_names(names: Sequence[str], maximum: int = 3) -> str:
    """The first few names, and how many more there are.

    >>> list_names(["a", "b", "c", "d"])
    '`a`, `b`, `c`, and 1 more'
    """
    return list_examples([f"`{name}`" for name in names[:maximum]], len(names))


def list_examples(examples: Sequence[str], total: int) -> str:
    """Joins `examples`, and says how many more of `total` there are.

    >>> list_examples(["`a` (json)", "`b` (pytree)"], 5)
    '`a` (json), `b` (pytree), and 3 more'
    """
    shown, more = escape_text(", ".join(examples)), total - len(examples)
    return f"{shown}, and {more} more" if more > 0 else shown


def quote_text(text: str) -> str:
    r"""A Python literal of `text` in double quotes.

    >>> print(quote_text("run/ckpt"), quote_text('a "b"'), quote_text("back\\slash"))
    "run/ckpt" "a \"b\"" "back\\slash"
    >>> print(quote_text("two\nlines"))
    "two\nlines"
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escape_text(escaped)}"'


def format_value(value: object) -> str:
    """The literal of an argument that is not what it should be, in at most 80 characters.

    >>> format_value("a" * 100)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…"
    >>> format_value(10**5000)
    'a value of type int'
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of many digits, or many levels
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"


def is_unicode(text: str) -> bool:
    r"""Whether UTF-8 can encode a text. It can't encode lone surrogates.

    >>> is_unicode("é"), is_unicode("\udc80")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def leaf_noun(n: int) -> str:
    """The noun "leaf" or "leaves", depending on the number."""
    return "leaf" if n == 1 else "leaves"


def list_filled(names: Sequence[str]) -> list[str]:
    """A line that names the leaves with absent chunks; no line if there are none.

    >>> list_filled(["w"])
    ['  chunks of 1 leaf are absent, which means the fill value: `w`']
    """
    n = len(names)
    what = f"chunks of {n:,} {leaf_noun(n)} are absent, which means the fill value"
    return [f"  {what}: {list_names(names)}"] if n else []


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
