"""Tables of outcomes, for a terminal and for documents."""

from __future__ import annotations

import math
from collections.abc import Callable

from .outcomes import Outcome, Row, Summary, summarize

MIB = 1 << 20


def format_table(outcome: Outcome) -> str:
    """A table with aligned columns."""
    columns = _make_columns(outcome)
    rows = {
        row.library: [cell(row) for cell in columns.values()]
        for row in outcome.rows
        if not row.trouble
    }
    widths = [max(map(len, column)) for column in zip(columns, *rows.values(), strict=True)]
    names = max(len(row.library) for row in outcome.rows)
    widths[0] = max(widths[0], names)
    lines = [_format_summary(outcome), _align([*columns], widths)]
    for row in outcome.rows:
        if row.trouble:
            lines.append(f"{row.library:{widths[0]}}  {row.kind:{widths[1]}}  {row.trouble}")
        else:
            lines.append(_align(rows[row.library], widths))
    return "\n".join([*lines, *outcome.notes])


def format_markdown(outcome: Outcome) -> str:
    """A heading, a sentence and a Markdown table."""
    columns = _make_columns(outcome)
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
    return "\n".join([f"### {title}\n", f"{_format_summary(outcome)}.\n", *lines, *notes])


def format_size(nbytes: float) -> str:
    """Bytes in a unit that keeps the number short."""
    power = min(3, int(math.log2(nbytes) // 10)) if nbytes >= 1 else 0
    return f"{nbytes / (1 << 10 * power):.4g} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def _format_summary(outcome: Outcome) -> str:
    rounds = max(len(row.timed) for row in outcome.rows)
    wrong = any(row.trouble.startswith("wrong") for row in outcome.rows)
    return (
        f"{outcome.workload}: {outcome.about}; {outcome.leaves:,}"
        f" {'leaf' if outcome.leaves == 1 else 'leaves'}, {format_size(outcome.nbytes)};"
        f" {rounds} round{'' if rounds == 1 else 's'};"
        f" {'RESULTS DIFFER' if wrong else 'results equal'}"
    )


def _make_columns(outcome: Outcome) -> dict[str, Callable[[Row], str]]:
    """Title → the cell of a row."""
    return {
        "library": lambda row: row.library,
        "file": lambda row: row.kind + (" (own)" if row.own_file else ""),
        "seconds: median [quartiles] min": lambda row: _format_spread(row.seconds, 3),
        f"÷ {outcome.rows[0].library}: median [quartiles] min": lambda row: _format_spread(
            outcome.ratio(row), 2
        ),
        **_choose_columns(outcome)(outcome),
    }


def _choose_columns(outcome: Outcome) -> Callable[[Outcome], dict[str, Callable[[Row], str]]]:
    if any(row.requests is not None for row in outcome.rows):
        return _make_remote_columns
    return _make_save_columns if outcome.saved else _make_restore_columns


def _make_restore_columns(outcome: Outcome) -> dict[str, Callable[[Row], str]]:
    def share(nbytes: float | None, row: Row) -> str:
        return format_size(nbytes or 0) if outcome.fresh else _format_share(nbytes or 0, row)

    def format_first(row: Row) -> str:
        ratio = outcome.first_ratio(row)
        if ratio is None:
            return "–"
        return f"{summarize(row.first_s).median:.3g} s, {ratio.median:.2f}"

    return {
        f"first: median, ÷ {outcome.rows[0].library}": format_first,
        "cpu s": lambda row: f"{row.cpu_s.median:.3f}",
        "peak RSS": lambda row: share(row.peak_rss_bytes, row),
        "peak anon": lambda row: share(row.peak_anon_bytes, row),
        "read": lambda row: share(row.read_bytes, row),
    }


def _make_save_columns(outcome: Outcome) -> dict[str, Callable[[Row], str]]:
    def share(nbytes: float, row: Row) -> str:
        return format_size(nbytes) if row.nbytes < MIB else _format_share(nbytes, row)

    first = outcome.first_to_stall
    stalls: dict[str, Callable[[Row], str]] = {
        "stall: median [quartiles] min": lambda row: _format_spread(row.stall_s, 3),
        f"÷ {'–' if first is None else first.library}": lambda row: _format_spread(
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


def _make_remote_columns(outcome: Outcome) -> dict[str, Callable[[Row], str]]:
    def format_beyond(row: Row) -> str:
        returned = 0 if outcome.saved or row.kind == "requests" else row.nbytes
        return f"{(row.peak_rss_bytes - returned) / MIB:.0f} MiB"

    return {
        "cpu s": lambda row: f"{row.cpu_s.median:.3f}",
        "peak beyond the tree": format_beyond,
        "requests": lambda row: f"{row.requests:,}",
        "moved": lambda row: _format_share(row.moved_bytes or 0, row),
    }


def _format_share(nbytes: float, row: Row) -> str:
    """As a multiple of the bytes of the tree."""
    return f"{nbytes / max(1, row.nbytes):.2f}x"


def _format_spread(numbers: Summary | None, digits: int) -> str:
    if numbers is None:
        return "–"
    median, q1, q3, minimum = (
        f"{number:.{_count_decimals(numbers, digits)}f}" for number in numbers
    )
    return f"{median} [{q1}–{q3}] {minimum}"


def _count_decimals(numbers: Summary, digits: int) -> int:
    """At least three significant digits."""
    if numbers.median <= 0:
        return digits
    return max(digits, 2 - math.floor(math.log10(numbers.median)))


def _align(cells: list[str], widths: list[int]) -> str:
    left = [f"{cell:{width}}" for cell, width in zip(cells[:2], widths[:2], strict=True)]
    right = [f"{cell:>{width}}" for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join(left + right).rstrip()
