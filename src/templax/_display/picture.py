"""Pictures of how an array is divided, as text and as SVG."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._core.boxes import Box, Shape
from .._escape import escape_text, join_lines
from .picture_svg import SVG_LIMITS, draw_svg
from .picture_tables import Area, Range, Table, draw_text_table, shorten_text

_MAX_ROWS, _MAX_COLUMNS, _MAX_TABLES = 16, 8, 4
"""What the text shows at most. Of more, the first and the last ones are shown."""

_MAX_WIDTH = 100
"""Characters of a line of a table, unless two columns take more."""

_MAX_LINE = 1000
"""Characters of other lines, which have names and paths from files."""


@dataclass(frozen=True, repr=False)
class Picture:
    """How an array is divided. `print(picture)` shows it as text, and a notebook as SVG.

    Attributes:
        title: What is drawn, in words.
        shape: Of the array, in elements.
        areas: The boxes into which it is divided. Each has `box`, its index range along each
            dimension, and `holders`, the numbers of the devices that hold it or of the files that
            store it; also its `label` and `note` in the picture, and `group`: areas of the same
            number have the same colour.
        lines: What the picture says below the title.
        chunks: Boxes of stored chunks, which the SVG draws over the areas as dashed lines.

    Example:
        >>> import templax as tx
        >>> topology = tx.Topology(hosts=1, devices_per_host=4, mesh={"data": 2, "model": 2})
        >>> picture = tx.draw_sharding((8, 6), topology=topology, spec=(None, "model"))
        >>> [(area.box, area.holders) for area in picture.areas]
        [(((0, 8), (0, 3)), (0, 2)), (((0, 8), (3, 6)), (1, 3))]
        >>> picture.to_svg()[:5]
        '<svg '
    """

    title: str
    shape: Shape
    areas: tuple[Area, ...]
    lines: tuple[str, ...] = ()
    chunks: tuple[Box, ...] = ()

    def __repr__(self) -> str:
        return f"Picture({escape_text(self.title)!r})"

    def __str__(self) -> str:
        """A table for each slice of the array, with a cell for each area; bounded in size."""
        drawn: list[str] = []
        for columns in (_MAX_COLUMNS, 4, 2):
            tables = self.make_tables(_MAX_ROWS, columns, _MAX_TABLES)
            drawn = [line for table in tables for line in draw_text_table(table, self.axes)]
            if max(map(len, drawn), default=0) <= _MAX_WIDTH:
                break
        return join_lines([*self.describe(), *drawn])

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def to_svg(self) -> str:
        """The picture as an SVG document, which loads nothing from elsewhere."""
        return draw_svg(self.describe(), self.make_tables(*SVG_LIMITS), self.axes, self.chunks)

    @functools.cached_property
    def axes(self) -> tuple[int | None, int | None]:
        """The dimensions that are drawn downwards and to the right; None if there is none.

        They are the last two that are divided. If fewer are, those that chunks divide come next,
        then the last ones.
        """
        rank = len(self.shape)
        by_chunk = {i for i in range(rank) if any(b[i] != (0, self.shape[i]) for b in self.chunks)}
        order = sorted(range(rank), key=lambda i: (self._is_divided(i), i in by_chunk, i))
        shown = sorted(order[-2:])
        return (shown[0] if shown else None, shown[1] if len(shown) > 1 else None)

    def describe(self) -> list[str]:
        """The title, the lines, and which dimensions are drawn how."""
        down, right = self.axes
        if down is None or right is None:
            return [shorten_text(line, _MAX_LINE) for line in (self.title, *self.lines)]
        rest = [i for i in range(len(self.shape)) if i not in (down, right)]
        words = [f"down: dimension {down}", f"to the right: {right}"]
        sliced = [str(i) for i in rest if self._is_divided(i)]
        if sliced:
            words.append(f"a table for each part of {', '.join(sliced)}")
        whole = [f"{i} of size {self.shape[i]:,}" for i in rest if not self._is_divided(i)]
        if whole:
            words.append(f"not divided: {', '.join(whole)}")
        lines = [self.title, *self.lines, f"  {'; '.join(words)}"]
        return [shorten_text(line, _MAX_LINE) for line in lines]

    def make_tables(self, rows: int, columns: int, tables: int) -> list[Table | None]:
        """The parts of the picture, with at most this many rows, columns and tables.

        None stands for tables that are left out.
        """
        down, right = self.axes
        other = [i for i in range(len(self.shape)) if i not in (down, right)]
        cuts = [self._cuts[i] for i in other]
        across = _choose_some([(0, 1)] if right is None else self._cuts[right], columns)
        along = _choose_some([(0, 1)] if down is None else self._cuts[down], rows)
        found: list[Table | None] = []
        for number in _choose_some(range(math.prod(map(len, cuts))), tables):
            if number is None:
                found.append(None)
                continue
            at = dict(zip(other, _pick(cuts, number), strict=True))
            cells = [
                [
                    None if x is None or y is None else self._find_area({**at, down: y, right: x})
                    for x in across
                ]
                for y in along
            ]
            fixed = {i: at[i] for i in other if self._is_divided(i)}
            found.append(Table(fixed, along, across, cells))
        return found

    def _is_divided(self, axis: int) -> bool:
        return len(self._cuts[axis]) > 1

    @functools.cached_property
    def _bounds(self) -> np.ndarray:
        boxes = np.array([area.box for area in self.areas], np.int64)
        return boxes.reshape(len(self.areas), len(self.shape), 2)

    @functools.cached_property
    def _cuts(self) -> list[Sequence[Range]]:
        """The ranges into which the areas divide each dimension."""
        found: list[Sequence[Range]] = []
        for axis, size in enumerate(self.shape):
            edges: list[int] = np.unique(self._bounds[:, axis]).tolist()
            found.append(list(itertools.pairwise(edges)) or [(0, size)])
        return found

    def _find_area(self, at: dict[Any, Range]) -> Area:
        """The area that covers a range of each dimension."""
        covers = np.ones(len(self.areas), bool)
        for axis in range(len(self.shape)):
            start, stop = at[axis]
            covers &= (self._bounds[:, axis, 0] <= start) & (stop <= self._bounds[:, axis, 1])
        found = np.flatnonzero(covers)
        if not len(found):
            return Area((), (), "-")
        area = self.areas[found[0]]
        more = f", {len(found) - 1:,} more" if len(found) > 1 else ""
        return area._replace(label=area.label + more)


def _choose_some(items: Sequence[Any], maximum: int) -> list[Any]:
    """All items, or the first and the last ones with None in the place of those between."""
    if len(items) <= maximum:
        return list(items)
    return [*items[: -(-maximum // 2)], None, *items[len(items) - maximum // 2 :]]


def _pick(cuts: Sequence[Sequence[Range]], number: int) -> list[Range]:
    """The item of this number in the product of `cuts`, in C order."""
    picked: list[Range] = []
    for cut in reversed(cuts):
        number, at = divmod(number, len(cut))
        picked.append(cut[at])
    return picked[::-1]
