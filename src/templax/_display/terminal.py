"""Prints text, in colour on a terminal and plain in a pipe."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

import click
from click.globals import resolve_color_default

from .._escape import escape_text

Part = str | tuple[str, str]
"""Text, or text and its style: "bold" or "dim", a colour, or both, such as "bold red"."""


def echo(*parts: Part, err: bool = False) -> None:
    """Print a line made of parts.

    Args:
        parts: What to print, back to back.
        err: Whether to print to standard error instead of standard output.
    """
    echo_lines([parts], err=err)


def echo_lines(lines: Iterable[Sequence[Part]], *, err: bool = False) -> None:
    """Print lines; see `echo`."""
    stream = sys.stderr if err else sys.stdout
    styled = _is_styled(stream)
    texts: list[str] = []
    for parts in lines:
        for part in parts:
            text, style = (part, "") if isinstance(part, str) else part
            text = escape_text(text)
            texts.append(_apply_style(text, style) if styled and text else text)
        texts.append("\n")
    stream.write("".join(texts))


def _is_styled(stream: TextIO) -> bool:
    asked = resolve_color_default()  # by the option --color
    if asked is not None:
        return asked
    if os.environ.get("NO_COLOR"):
        return False
    terminal = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return terminal or bool(os.environ.get("FORCE_COLOR"))


def _apply_style(text: str, style: str) -> str:
    words = style.split()
    bold, dim = "bold" in words or None, "dim" in words or None
    colour = next((word for word in words if word not in ("bold", "dim")), None)
    return click.style(text, colour, bold=bold, dim=dim) if words else text


def echo_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print a line per label and text, and an empty line."""
    facts = list(facts)
    width = max(len(label) for label, _ in facts)
    for label, text in facts:
        echo((f"  {label.ljust(width)}  ", "dim"), text)
    echo()


def echo_report(text: str, *, prefix: str = "", err: bool = False) -> None:
    """Print an error or the report of a match, with leaf names and hints in colour."""
    for i, line in enumerate(text.split("\n")):
        echo((prefix if i == 0 else "", "bold red"), *highlight_line(line), err=err)


_DIFFERENCE = re.compile(
    r"(\s*Expected )(?P<wanted>.+?)(, (?:got|found) )(?P<found>.+?)(?= - (?:at|file|bytes) |; |$)"
)

_MARKED = re.compile(r"(?P<hint>\bhint: .*)|(?P<name>`[^`]*`)")


def highlight_line(line: str) -> list[Part]:
    """A line of a report in parts: what was expected, what was found, names, and the hint have
    each a style of their own.

    >>> highlight_line("Expected shape (2,), got (3,)")
    ['Expected ', ('shape (2,)', 'yellow'), ', got ', ('(3,)', 'red')]
    >>> highlight_line("see `w`; hint: none")
    ['see ', ('`w`', 'cyan'), '; ', ('hint: none', 'green')]
    """
    parts: list[Part] = []
    end = 0
    difference = _DIFFERENCE.match(line)
    if difference is not None:
        lead, wanted, verb, found = difference.groups()
        parts += [lead, (wanted, "yellow"), verb, (found, "red")]
        end = difference.end()
    for marked in _MARKED.finditer(line, end):
        if marked.start() > end:
            parts.append(line[end : marked.start()])
        parts.append((marked.group(), "green" if marked.lastgroup == "hint" else "cyan"))
        end = marked.end()
    if end < len(line):
        parts.append(line[end:])
    return parts
