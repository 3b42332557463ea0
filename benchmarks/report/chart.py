"""A chart of ratios as SVG, readable on light and dark pages alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

from .outcomes import Outcome, Row, Summary
from .tables import format_size

_WIDTH, _LEFT, _RIGHT = 860, 150, 90
_ROW, _GAP, _TOP = 20, 40, 100
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)

# It brings its own background, because not every viewer supports `prefers-color-scheme`.
_STYLE = """
.page { fill: #ffffff }
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-size: 15px; font-weight: 600 }
.name { font-weight: 600 }
.faint { fill: #6e7781; font-size: 11px }
.grid { stroke: #8c959f; stroke-opacity: 0.3 }
.one { stroke: #24292f; stroke-width: 1.5 }
.peer { fill: #2f81f7 }
.limit { fill: #8c959f }
.whisker { stroke: #24292f; stroke-width: 1.2 }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117 }
  text { fill: #e6edf3 }
  .faint { fill: #9198a1 }
  .one, .whisker { stroke: #e6edf3 }
}
"""


def draw_chart(outcomes: Sequence[Outcome], about: dict[str, str]) -> str:
    """Bars of the ratios to the first library, per workload, with quartiles, logarithmic.

    A bar starts at 1, the first library itself; slower libraries extend to the right.

    Args:
        outcomes: One per workload.
        about: Date and conditions of the run.
    """
    ratios = [_compute_ratios(outcome) for outcome in outcomes]
    span = [number for rows in ratios for _, ratio in rows if ratio for number in ratio[:3]]
    low = max((tick for tick in _TICKS if tick <= min([*span, 0.5])), default=_TICKS[0])
    high = min((tick for tick in _TICKS if tick >= max([*span, 2])), default=_TICKS[-1])

    def x(ratio: float) -> float:
        share = math.log(min(max(ratio, low), high) / low) / math.log(high / low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    height = _TOP + sum(_GAP + _ROW * len(rows) for rows in ratios) + 12
    own = "" if outcomes[0].saved else " * its own file"
    verb = "save" if outcomes[0].saved else "restore"
    firsts = ", ".join(dict.fromkeys(outcome.rows[0].library for outcome in outcomes))
    body = [
        _draw_text(16, 26, f"Seconds to {verb}, divided by those of {firsts}", "title"),
        _draw_text(16, 44, f"Median and quartiles, logarithmic. Right of 1: slower.{own}", "faint"),
        _draw_text(16, 60, f"{about['conditions']}; {about['date']}", "faint"),
        *_draw_axis(x, [tick for tick in _TICKS if low <= tick <= high], height),
    ]
    y = float(_TOP)
    for outcome, rows in zip(outcomes, ratios, strict=True):
        body += _draw_heading(outcome, y + 24)
        for i, (row, ratio) in enumerate(rows):
            body += _draw_bar(x, y + 34 + _ROW * i, row, ratio)
        y += _GAP + _ROW * len(rows)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
            f' width="{_WIDTH}" height="{height}" role="img" aria-label="Time to {verb}, ratios">',
            f"<style>{_STYLE}</style>",
            '<rect class="page" width="100%" height="100%" rx="6"/>',
            *body,
            "</svg>\n",
        ]
    )


def _compute_ratios(outcome: Outcome) -> list[tuple[Row, Summary | None]]:
    """All rows but the first, which is the line at 1; none if the first failed."""
    if outcome.rows[0].trouble:
        return []
    return [(row, outcome.ratio(row)) for row in outcome.rows[1:]]


def _draw_axis(x: Callable[[float], float], ticks: Iterable[float], height: int) -> Iterator[str]:
    for tick in ticks:
        at, kind = f"{x(tick):.1f}", "one" if tick == 1 else "grid"
        yield f'<line class="{kind}" x1="{at}" x2="{at}" y1="{_TOP - 8}" y2="{height - 8}"/>'
        yield _draw_text(x(tick), _TOP - 14, f"{tick:g}×", "faint", "middle")


def _draw_heading(outcome: Outcome, y: float) -> Iterator[str]:
    first = outcome.rows[0]
    took = _shorten(first.trouble, 60) if first.trouble else f"{first.seconds.median:.3g} s"
    yield _draw_text(16, y, outcome.workload, "name")
    yield _draw_text(
        _LEFT, y, f"{outcome.about}; {format_size(outcome.nbytes)}; {first.library} {took}", "faint"
    )


def _draw_bar(
    x: Callable[[float], float], y: float, row: Row, ratio: Summary | None
) -> Iterator[str]:
    yield _draw_text(_LEFT - 10, y + 11, row.library, "", "end")
    if ratio is None:
        yield _draw_text(_LEFT + 6, y + 11, _shorten(row.trouble, 90), "faint")
        return
    kind = "limit" if row.library.startswith(("limit", "floor")) else "peer"
    start, end = sorted((x(1), x(ratio.median)))
    middle, q1, q3 = y + 7, x(ratio.q1), x(ratio.q3)
    yield (
        f'<rect class="{kind}" x="{start:.1f}" y="{y + 1:.1f}"'
        f' width="{max(end - start, 0.5):.1f}" height="12"/>'
    )
    for x1, x2, y1, y2 in (
        (q1, q3, middle, middle),
        (q1, q1, middle - 4, middle + 4),
        (q3, q3, middle - 4, middle + 4),
    ):
        yield (f'<line class="whisker" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')
    label = f"{ratio.median:.2f}×" if ratio.median < 10 else f"{ratio.median:.1f}×"
    yield _draw_text(max(end, q3, x(1)) + 6, y + 11, label + (" *" if row.own_file else ""))


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _draw_text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
