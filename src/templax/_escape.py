"""The one function through which text from files goes into messages and onto a terminal."""

from __future__ import annotations

from collections.abc import Iterable


def escape_text(text: str) -> str:
    r"""The text on one line, with everything escaped that is not printable.

    Names and metadata come from files, and a file could otherwise forge whole lines of a report or
    control the terminal: by line breaks of any kind, escape sequences, or characters that change
    the direction of what follows. Escaping a second time changes nothing.

    >>> print(escape_text("w\nerror: none\x1b[2J\u2028\u202e"))
    w\nerror: none\x1b[2J\u2028\u202e
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def join_lines(lines: Iterable[str]) -> str:
    """A text of several lines, each of them escaped."""
    return "\n".join(map(escape_text, lines))
