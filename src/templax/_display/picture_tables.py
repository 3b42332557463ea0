"""The tables of which a picture consists, and their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .._core.boxes import Box
from .._escape import escape_text

MAX_LABEL = 40
"""Characters of a cell of the text."""

Range = tuple[int, int]


class Area(NamedTuple):
    """A box of an array, and who has it; see `Picture.areas`."""

    box: Box
    holders: tuple[int, ...]
    label: str
    note: str = ""
    group: int = 0


class Table(NamedTuple):
    """A part of a picture that is one rectangle. None stands for what is left out.

    Attributes:
        fixed: Ranges of the divided dimensions that are neither rows nor columns, by number.
        rows, columns: Ranges along the two dimensions. A dimension that the array lacks has one.
        cells: For each row and column, the area there, or the first of several.
    """

    fixed: dict[int, Range]
    rows: Sequence[Range | None]
    columns: Sequence[Range | None]
    cells: Sequence[Sequence[Area | None]]


def format_range(found: Range | None) -> str:
    """The indices that a range covers, as a slice."""
    return "" if found is None else f"{found[0]}:{found[1]}"


def shorten_text(text: str, maximum: int = MAX_LABEL) -> str:
    """One line of at most `maximum` characters, escaped."""
    text = escape_text(text)
    return text if len(text) <= maximum else f"{text[: maximum - 1]}…"


def describe_slice(table: Table) -> str:
    """Which part of an array a table shows; empty if it shows all of it."""
    return ", ".join(f"dimension {i}: {format_range(at)}" for i, at in table.fixed.items())


def draw_text_table(table: Table | None, axes: tuple[int | None, int | None]) -> list[str]:
    if table is None:
        return ["", "  ⋮"]
    down, right = axes
    head = [["" if right is None else format_range(x) for x in table.columns]]
    texts = [
        ["⋮" if area is None else shorten_text(f"{area.label} {area.note}".strip()) for area in row]
        for row in table.cells
    ]
    widths = [max(map(len, column)) for column in zip(*head, *texts, strict=True)]
    names = ["⋮" if y is None else "" if down is None else format_range(y) for y in table.rows]
    margin = max(map(len, names)) + 2

    def rule(left: str, middle: str, end: str) -> str:
        return " " * margin + f" {left}{middle.join('─' * (w + 2) for w in widths)}{end}"

    lines = [""]
    if table.fixed:
        lines.append(f"  {describe_slice(table)}")
    if right is not None:
        cells = "".join(f"  {text.ljust(w)} " for text, w in zip(head[0], widths, strict=True))
        lines.append(f"{' ' * margin} {cells}".rstrip())
    lines.append(rule("┌", "┬", "┐"))
    for i, (name, row) in enumerate(zip(names, texts, strict=True)):
        if i:
            lines.append(rule("├", "┼", "┤"))
        cells = " │ ".join(text.ljust(w) for text, w in zip(row, widths, strict=True))
        lines.append(f"{name.rjust(margin)} │ {cells} │")
    return [*lines, rule("└", "┴", "┘")]
