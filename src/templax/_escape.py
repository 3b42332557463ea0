"""Escapes text from files before it goes into a message or onto a terminal."""

from __future__ import annotations

from collections.abc import Iterable


def escape_text(text: str) -> str:
    r"""Returns the text as one line, with every unprintable character escaped.

    Names and metadata come from files, and a file could otherwise forge whole lines of a report or
    control the terminal, with line breaks of any kind, escape sequences, or characters that change
    the direction of the text after them. Escaping a second time changes nothing.

    >>> print(escape_text("w\nerror: none\x1b[2J\u2028\u202e"))
    w\nerror: none\x1b[2J\u2028\u202e
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def join_lines(lines: Iterable[str]) -> str:
    """Joins lines into one text, and escapes each of them."""
    return "\n".join(map(escape_text, lines))
