"""What a decoder of msgpack does not tell: repeated keys, and where extensions are in the file."""

from __future__ import annotations

import msgspec

from ..._core.names import MAX_DEPTH
from ...errors import CheckpointError, Corrupted, Unsupported
from .values import EXTENSIONS, FIXED, MAPS, STRINGS, measure_value

_MAX_VALUES, _VALUE_BYTES = 1 << 16, 6
"""Maximum number of values in a file: a fixed allowance, and one more per this many bytes. A name
or an array takes more bytes, so only files of tiny values reach this."""


def scan_values(data: memoryview) -> tuple[CheckpointError | None, list[tuple[int, int]]]:
    """Walks through the values of a file without decoding them.

    Args:
        data: The file, which must be valid msgpack for the result to be right.

    Returns:
        `Corrupted` if a map repeats a key or the tree is far too deep, `Unsupported` if there are
        more values than the leaves of any real tree need, else None; and where the payload of each
        extension begins and ends, in order, as far as the first problem.
    """
    extensions: list[tuple[int, int]] = []
    # Of the innermost map or array that is open: how many values are still to come, the keys so far
    # (None for an array), and its depth. In a map, the next value is a key if an even number of
    # values is still to come.
    left, keys, depth = 1, None, 0
    outer: list[tuple[int, set[object] | None, int]] = []
    at, size, maximum = 0, len(data), max_values(len(data))
    for _ in range(maximum):
        if at >= size:
            return None, extensions
        first = data[at]
        length = FIXED.get(first)
        if length is None:
            start, at, count = measure_value(data, at)
        else:  # the common case, without a call
            start, count = at + 1, 0
            at = start + length
        if first in EXTENSIONS:
            extensions.append((start + 1, at))
        if keys is not None and left % 2 == 0 and not count:
            try:
                key = _read_key(data, first, start, at)
            except (msgspec.DecodeError, ValueError):  # the decoder will tell
                return None, extensions
            if key in keys:
                shown = key.decode(errors="replace") if isinstance(key, bytes) else str(key)
                what = f"Expected each key of a map once, got {shown[:80]!r} again"
                return Corrupted(what), extensions
            keys.add(key)
        left -= 1
        if count:
            outer.append((left, keys, depth))
            left, keys, depth = count, set[object]() if first in MAPS else None, depth + 1
            if depth > 2 * MAX_DEPTH:  # chunked arrays have maps of their own: the tree has fewer
                what = f"Expected a tree at most {MAX_DEPTH} deep, got a deeper one"
                return Corrupted(what), extensions
        while not left:
            left, keys, depth = outer.pop() if outer else (1, None, 0)
    if at >= size:
        return None, extensions
    return Unsupported(f"templax reads {maximum} values in {size} bytes, got more"), extensions


def max_values(size: int) -> int:
    """Most values that templax reads in a file of `size` bytes."""
    return _MAX_VALUES + size // _VALUE_BYTES


def _read_key(data: memoryview, first: int, start: int, stop: int) -> object:
    if first in STRINGS:  # equal strings may differ in how their length is stored
        return bytes(data[start:stop])
    # Others are rare; those that are not numbers are refused later.
    is_number = first in FIXED and first not in EXTENSIONS
    return msgspec.msgpack.decode(data[start - 1 : stop]) if is_number else start
