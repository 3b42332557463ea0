"""Finds repeated keys in msgpack maps: decoders keep the last value and drop the others."""

from __future__ import annotations

import msgspec

from ...errors import Unsupported
from .values import FIXED, MAPS, STRINGS, measure_value

_MAX_VALUES, _VALUE_BYTES = 1 << 16, 6
"""Maximum number of values in a file: a fixed allowance, and one more per this many bytes. A name
or an array takes more bytes, so only files of tiny values reach this."""


def find_repeated_key(data: memoryview) -> str | None:
    """The first key that a map repeats, or None.

    Args:
        data: Valid msgpack: a decoder has read it without an error.

    Raises:
        Unsupported: It has more values than the leaves of any real tree need.
    """
    at = total = 0
    maximum = _MAX_VALUES + len(data) // _VALUE_BYTES
    # Open maps and arrays: how many values are still to come, and the keys so far (None for an
    # array). In a map, the next value is a key if an even number of values is still to come.
    open_: list[tuple[int, set[object] | None]] = []
    while at < len(data):
        total += 1
        if total > maximum:
            raise Unsupported(f"templax reads {maximum} values in {len(data)} bytes, got more")
        left, keys = open_.pop() if open_ else (1, None)
        first = data[at]
        start, at, count = measure_value(data, at)
        if keys is not None and left % 2 == 0 and not count:
            key = _read_key(data, first, start, at)
            if key in keys:
                return str(key)
            keys.add(key)
        if left > 1:
            open_.append((left - 1, keys))
        if count:
            open_.append((count, set[object]() if first in MAPS else None))
    return None


def _read_key(data: memoryview, first: int, start: int, stop: int) -> object:
    if first in STRINGS:  # equal strings may differ in how their length is stored
        return bytes(data[start:stop]).decode()
    # Others are rare; those that are not numbers are refused later.
    return msgspec.msgpack.decode(data[start - 1 : stop]) if first in FIXED else start
