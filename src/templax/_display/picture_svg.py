"""Draws a `Picture` as SVG. Text from files is escaped: an SVG may be opened in a browser."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

from .._core.boxes import Box
from .._escape import escape_text
from .picture_tables import Range, Table, describe_slice, format_range, shorten_text

SVG_LIMITS = (32, 16, 6)
"""How many rows, columns and tables an SVG shows at most."""

_MAX_CHUNKS = 4096
"""Of how many chunks an SVG shows the outlines at most."""

Axes = tuple[int | None, int | None]
"""See `Picture.axes`."""

_WIDTH, _HEIGHT, _LEFT, _LINE = 560, 320, 96, 16
"""Pixels of a table, unless its cells need more; of the space left of it; of a line of text."""

_MIN_WIDTH, _MIN_HEIGHT, _GAP = 64, 20, 24
"""Pixels of a cell at least, and of what stands for ranges that are left out."""

_CHARACTER = 6.2
"""Pixels of a character, about."""


def draw_svg(
    lines: Sequence[str], tables: Sequence[Table | None], axes: Axes, chunks: Sequence[Box]
) -> str:
    """An SVG document of a picture.

    Args:
        lines: What is written above the tables.
        tables, axes, chunks: See `Picture`.
    """
    parts: list[str] = []
    width, y = float(_LEFT + _WIDTH), 8.0
    for line in lines:
        y += _LINE
        parts.append(_draw_text(8, y, line))
        width = max(width, 16 + len(escape_text(line)) * _CHARACTER)
    outlined = len(chunks) <= _MAX_CHUNKS
    for table in tables:
        y += _LINE
        if table is None:
            y += _LINE
            parts.append(_draw_text(_LEFT, y, "⋮"))
            continue
        if table.fixed:
            y += _LINE
            parts.append(_draw_text(8, y, describe_slice(table)))
        xs = _place_ranges(table.columns, _WIDTH, _MIN_WIDTH)
        ys = _place_ranges(table.rows, _HEIGHT, _MIN_HEIGHT)
        y += _LINE
        parts += _draw_table(axes, table, xs, ys, y)
        if None not in table.rows and None not in table.columns and outlined:
            parts += _draw_chunks(axes, table, chunks, xs, ys, y)
        y += ys[-1]
        width = max(width, _LEFT + xs[-1])
    size = f'width="{width + 8:.0f}" height="{y + 12:.0f}"'
    view = f'viewBox="0 0 {width + 8:.0f} {y + 12:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view} font-family="monospace"'
    return "\n".join([f'{head} font-size="10">', _WHITE, *parts, "</svg>\n"])


_WHITE = '<rect width="100%" height="100%" fill="white"/>'


def _place_ranges(ranges: Sequence[Range | None], total: float, minimum: float) -> list[float]:
    """Where each range begins, and the last one ends: in proportion, if each is wide enough."""
    known = [r for r in ranges if r is not None]
    sizes = [stop - start for start, stop in known]
    scale = total / max(1, sum(sizes))
    if len(known) < len(ranges) or min(sizes) * scale < minimum:
        cell = max(minimum, total / len(ranges))
        widths = [_GAP if r is None else cell for r in ranges]
    else:
        widths = [size * scale for size in sizes]
    return [0.0, *itertools.accumulate(widths)]


def _draw_table(
    axes: Axes, table: Table, xs: Sequence[float], ys: Sequence[float], top: float
) -> list[str]:
    parts: list[str] = []
    down, right = axes
    for j, x in enumerate(table.columns):
        if right is not None:
            parts.append(_draw_text(_LEFT + xs[j] + 2, top - 4, format_range(x)))
    for i, y in enumerate(table.rows):
        middle = top + (ys[i] + ys[i + 1]) / 2 + 4
        name = "⋮" if y is None else "" if down is None else format_range(y)
        parts.append(_draw_text(_LEFT - 6, middle, name, 'text-anchor="end"'))
        for j, area in enumerate(table.cells[i]):
            left, wide, high = _LEFT + xs[j], xs[j + 1] - xs[j], ys[i + 1] - ys[i]
            if area is None:
                parts.append(_draw_text(left + 4, middle, "⋮"))
                continue
            colour = f"hsl({area.group * 137 % 360},60%,82%)"
            title = escape(escape_text(f"{area.label} {area.note}".strip()))
            parts.append(
                f'<rect x="{left:.1f}" y="{top + ys[i]:.1f}" width="{wide:.1f}"'
                f' height="{high:.1f}" fill="{colour}" stroke="#444"><title>{title}</title></rect>'
            )
            maximum = max(2, int((wide - 6) / _CHARACTER))
            if area.note and high >= 2.2 * _LINE:
                texts = [area.label, area.note]
            else:
                texts = [f"{area.label} {area.note}".strip()]
            for n, text in enumerate(texts):
                line = middle + (n - (len(texts) - 1) / 2) * 13
                parts.append(_draw_text(left + 4, line, shorten_text(text, maximum)))
    return parts


def _draw_chunks(
    axes: Axes,
    table: Table,
    chunks: Sequence[Box],
    xs: Sequence[float],
    ys: Sequence[float],
    top: float,
) -> list[str]:
    """The outlines of the chunks that overlap the part of the array that a table shows."""
    down, right = axes
    seen = {
        (
            (0, 1) if right is None else chunk[right],
            (0, 1) if down is None else chunk[down],
        )
        for chunk in chunks
        if all(
            chunk[i][0] < stop and start < chunk[i][1] for i, (start, stop) in table.fixed.items()
        )
    }
    parts: list[str] = []
    for across, along in sorted(seen):
        left, end = (_find_pixel(table.columns, xs, at) for at in across)
        upper, lower = (_find_pixel(table.rows, ys, at) for at in along)
        parts.append(
            f'<rect x="{_LEFT + left:.1f}" y="{top + upper:.1f}" width="{end - left:.1f}"'
            f' height="{lower - upper:.1f}" fill="none" stroke="#b00" stroke-dasharray="4 3"/>'
        )
    return parts


def _find_pixel(ranges: Sequence[Range | None], places: Sequence[float], at: int) -> float:
    """Where an index lies between the places of ranges, none of which is left out."""
    for found, (begin, end) in zip(ranges, itertools.pairwise(places), strict=True):
        if found is not None and at <= found[1]:
            part = (at - found[0]) / max(1, found[1] - found[0])
            return begin + part * (end - begin)
    return places[-1]


def _draw_text(x: float, y: float, text: str, more: str = "") -> str:
    more = f" {more}" if more else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(escape_text(text))}</text>'
