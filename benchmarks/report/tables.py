"""Tables of outcomes, for a terminal and for the documentation."""

from __future__ import annotations

import math
from collections.abc import Callable

from .outcomes import Outcome, Row, Summary

MIB = 1 << 20


def table(outcome: Outcome) -> str:
    """Aligned columns."""
    columns = _columns(outcome)
    rows = {
        row.library: [cell(row) for cell in columns.values()]
        for row in outcome.rows
        if not row.trouble
    }
    widths = [max(map(len, column)) for column in zip(columns, *rows.values(), strict=True)]
    names = max(len(row.library) for row in outcome.rows)
    widths[0] = max(widths[0], names)
    lines = [_head(outcome), _aligned([*columns], widths)]
    for row in outcome.rows:
        if row.trouble:
            lines.append(f"{row.library:{widths[0]}}  {row.kind:{widths[1]}}  {row.trouble}")
        else:
            lines.append(_aligned(rows[row.library], widths))
    return "\n".join([*lines, *outcome.notes])


def markdown(outcome: Outcome) -> str:
    """A heading, a sentence and a table."""
    columns = _columns(outcome)
    rows = [[*columns], ["---"] * 2 + ["---:"] * (len(columns) - 2)]
    for row in outcome.rows:
        cells = [row.library, row.kind, row.trouble]
        if not row.trouble:
            cells = [cell(row) for cell in columns.values()]
        cells += [""] * (len(columns) - len(cells))
        rows.append([f"`{cells[0]}`", *(cell.replace("|", "\\|") for cell in cells[1:])])
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    notes = [f"\n{note}." for note in outcome.notes]
    title = f"{'Saving ' if outcome.saved else ''}`{outcome.workload}`"
    return "\n".join([f"### {title}\n", f"{_head(outcome)}.\n", *lines, *notes])


def size(nbytes: float) -> str:
    """Bytes in the unit that suits them."""
    power = min(3, int(math.log2(nbytes) // 10)) if nbytes >= 1 else 0
    return f"{nbytes / (1 << 10 * power):.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _head(outcome: Outcome) -> str:
    rounds = max(len(row.timed) for row in outcome.rows)
    wrong = any(row.trouble.startswith("wrong") for row in outcome.rows)
    return (
        f"{outcome.workload}: {outcome.about}; {outcome.leaves:,}"
        f" {'leaf' if outcome.leaves == 1 else 'leaves'}, {size(outcome.nbytes)}; {rounds} rounds;"
        f" {'RESULTS DIFFER' if wrong else 'results equal'}"
    )


def _columns(outcome: Outcome) -> dict[str, Callable[[Row], str]]:
    """Title → what a row has to say."""
    return {
        "library": lambda row: row.library,
        "file": lambda row: row.kind + (" (own)" if row.own_file else ""),
        "seconds: median [quartiles] min": lambda row: _spread(row.seconds, 3),
        f"÷ {outcome.rows[0].library}: median [quartiles] min": lambda row: _spread(
            outcome.ratio(row), 2
        ),
        **(_of_saves if outcome.saved else _of_restores)(outcome),
    }


def _of_restores(outcome: Outcome) -> dict[str, Callable[[Row], str]]:
    def share(nbytes: float | None, row: Row) -> str:
        return size(nbytes or 0) if outcome.fresh else _share(nbytes or 0, row)

    return {
        "cpu s": lambda row: f"{row.cpu_s.median:.3f}",
        "peak RSS": lambda row: share(row.peak_rss_bytes, row),
        "peak anon": lambda row: share(row.peak_anon_bytes, row),
        "read": lambda row: share(row.read_bytes, row),
    }


def _of_saves(outcome: Outcome) -> dict[str, Callable[[Row], str]]:
    def share(nbytes: float, row: Row) -> str:
        return size(nbytes) if row.nbytes < MIB else _share(nbytes, row)

    first = outcome.first_to_stall
    stalls: dict[str, Callable[[Row], str]] = {
        "stall: median [quartiles] min": lambda row: _spread(row.stall_s, 3),
        f"÷ {'–' if first is None else first.library}": lambda row: _spread(
            outcome.stall_ratio(row), 2
        ),
    }
    return (stalls if first is not None else {}) | {
        "cpu s": lambda row: f"{row.cpu_s.median:.3f}",
        "peak RSS": lambda row: share(row.peak_rss_bytes, row),
        "written": lambda row: share(row.file_bytes, row),
        "files": lambda row: str(row.files),
        "rounds": lambda row: str(len(row.timed)),
    }


def _share(nbytes: float, row: Row) -> str:
    """Of the bytes of the tree."""
    return f"{nbytes / max(1, row.nbytes):.2f}x"


def _spread(numbers: Summary | None, digits: int) -> str:
    if numbers is None:
        return "–"
    median, q1, q3, least = (f"{number:.{_places(numbers, digits)}f}" for number in numbers)
    return f"{median} [{q1}–{q3}] {least}"


def _places(numbers: Summary, digits: int) -> int:
    """More digits for what is small: three that count."""
    if numbers.median <= 0:
        return digits
    return max(digits, 2 - math.floor(math.log10(numbers.median)))


def _aligned(cells: list[str], widths: list[int]) -> str:
    left = [f"{cell:{width}}" for cell, width in zip(cells[:2], widths[:2], strict=True)]
    right = [f"{cell:>{width}}" for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join(left + right).rstrip()
