"""Unions of ranges of bytes, as columns. Pure."""

from __future__ import annotations

import numpy as np

_MAX_ADDRESS = 1 << 62

Ranges = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A number of a file, start and stop of each range."""


def merge_ranges(file: np.ndarray, start: np.ndarray, stop: np.ndarray) -> Ranges:
    """The same bytes as ranges that are apart, in order.

    Args:
        file, start, stop: Each range, half open, in any order. They may overlap.
    """
    if not len(file):
        return file, start, stop
    span = int(stop.max()) + 1
    if (int(file.max()) + 1) * span < _MAX_ADDRESS:
        begin, end = _merge(file * span + start, file * span + stop)
        files = begin // span
        return files, begin - files * span, end - files * span
    merged: list[Ranges] = []
    for number in np.unique(file):
        mine = file == number
        begin, end = _merge(start[mine], stop[mine])
        merged.append((np.full(len(begin), number), begin, end))
    files, begins, ends = zip(*merged, strict=True)
    return np.concatenate(files), np.concatenate(begins), np.concatenate(ends)


def count_bytes(file: np.ndarray, start: np.ndarray, stop: np.ndarray) -> int:
    """The number of bytes in any of these ranges; see `merge_ranges`."""
    _, begin, end = merge_ranges(file, start, stop)
    return int((end - begin).sum())


def _merge(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(begin, kind="stable")
    begin = begin[order]
    reach = np.maximum.accumulate(end[order])
    first = np.flatnonzero(np.append(True, begin[1:] > reach[:-1]))
    return begin[first], reach[np.append(first[1:], len(begin)) - 1]
