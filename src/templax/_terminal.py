"""Text for people: colour on a terminal, the same text plain in a pipe."""

from __future__ import annotations

import os
import re
import sys

Part = str | tuple[str, str]
"""Text, or text and a rich style such as "bold red"."""


def echo(*parts: Part, err: bool = False) -> None:
    """Print a line (or several) made of parts.

    Args:
        parts: What to print, back to back.
        err: To standard error instead of standard output.
    """
    parts = tuple(
        printable(part) if isinstance(part, str) else (printable(part[0]), part[1])
        for part in parts
    )
    stream = sys.stderr if err else sys.stdout
    if not (stream.isatty() or os.environ.get("FORCE_COLOR")):
        stream.write("".join(part if isinstance(part, str) else part[0] for part in parts) + "\n")
        return
    from rich.console import Console  # 40 ms that a pipe need not pay
    from rich.text import Text

    # Long lines are left to the terminal, so that a copied line is whole.
    Console(file=stream, soft_wrap=True).print(Text.assemble(*parts), highlight=False)


def echo_report(text: str, *, prefix: str = "", err: bool = False) -> None:
    """Print an error or the report of a match, its leaf names and hints marked by colour."""
    for i, line in enumerate(text.splitlines()):
        echo((prefix if i == 0 else "", "bold red"), *marked(line), err=err)


_MARKED = re.compile(r"`[^`]*`|\bhint: .*")


def marked(line: str) -> list[Part]:
    """A line of a report in parts: what is in backticks and what is a hint have a style.

    >>> marked("Expected shape (2,), got (3,) - at `w`; hint: none")
    ['Expected shape (2,), got (3,) - at ', ('`w`', 'cyan'), '; ', ('hint: none', 'green')]
    """
    parts: list[Part] = []
    end = 0
    for found in _MARKED.finditer(line):
        if found.start() > end:
            parts.append(line[end : found.start()])
        parts.append((found.group(), "green" if found.group().startswith("hint") else "cyan"))
        end = found.end()
    if end < len(line):
        parts.append(line[end:])
    return parts


def printable(text: str) -> str:
    r"""The text with control characters escaped: a file must not command the terminal.

    >>> printable("a\x1b[2Jb") == r"a\x1b[2Jb"
    True
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
