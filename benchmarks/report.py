"""Tables of outcomes, for a terminal and for the documentation."""

from __future__ import annotations

import math

from .outcomes import Outcome, Row, Summary

MIB = 1 << 20


def table(outcome: Outcome) -> str:
    """Aligned columns."""
    cells = [_columns(outcome), *(_cells(outcome, row) for row in outcome.rows if not row.trouble)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    names = max(len(row.library) for row in outcome.rows)
    widths[0] = max(widths[0], names)
    lines = [_head(outcome), _aligned(cells[0], widths)]
    for row in outcome.rows:
        if row.trouble:
            lines.append(f"{row.library:{widths[0]}}  {row.kind:{widths[1]}}  {row.trouble}")
        else:
            lines.append(_aligned(_cells(outcome, row), widths))
    return "\n".join([*lines, *outcome.notes])


def markdown(outcome: Outcome) -> str:
    """A heading, a sentence and a table."""
    columns = _columns(outcome)
    rows = [columns, ["---"] * 2 + ["---:"] * (len(columns) - 2)]
    for row in outcome.rows:
        cells = _cells(outcome, row) if not row.trouble else [row.library, row.kind, row.trouble]
        cells += [""] * (len(columns) - len(cells))
        rows.append([f"`{cells[0]}`", *(cell.replace("|", "\\|") for cell in cells[1:])])
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    notes = [f"\n{note}." for note in outcome.notes]
    return "\n".join([f"### `{outcome.workload}`\n", f"{_head(outcome)}.\n", *lines, *notes])


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


def _columns(outcome: Outcome) -> list[str]:
    return [
        *("library", "file", "seconds: median [quartiles] min"),
        f"÷ {outcome.rows[0].library}: median [quartiles] min",
        *("cpu s", "peak RSS", "peak anon", "read"),
    ]


def _cells(outcome: Outcome, row: Row) -> list[str]:
    ratio = outcome.ratio(row)

    def share(nbytes: float) -> str:
        return size(nbytes) if outcome.fresh else f"{nbytes / max(1, row.nbytes):.2f}x"

    return [
        row.library,
        row.kind + (" (own)" if row.own_file else ""),
        _spread(row.seconds, 3),
        "–" if ratio is None else _spread(ratio, 2),
        f"{row.cpu_s.median:.3f}",
        share(row.peak_rss_bytes),
        share(row.peak_anon_bytes),
        share(row.read_bytes),
    ]


def _spread(numbers: Summary, digits: int) -> str:
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
