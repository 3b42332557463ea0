"""Finds repeated keys in msgpack maps: decoders keep the last value and drop the others."""

from __future__ import annotations

import msgspec

from ...errors import Unsupported

# How many bytes follow the first byte of a value, by that byte (msgpack specification, "Formats"):
# a fixed number, or a length of 1, 2 or 4 bytes and that many more. An extension has one more byte,
# its type.
_FIXED = {
    **dict.fromkeys((*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xE0, 0x100)), 0),
    **{0xA0 + n: n for n in range(32)},
    **dict(zip(range(0xCA, 0xD4), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8), strict=True)),
    **dict(zip(range(0xD4, 0xD9), (2, 3, 5, 9, 17), strict=True)),
}

_VARIABLE = {
    0xC4: (1, 0),
    0xC5: (2, 0),
    0xC6: (4, 0),
    0xC7: (1, 1),
    0xC8: (2, 1),
    0xC9: (4, 1),
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),
}

_EXTENSIONS = range(0xD4, 0xD9)

_ARRAYS, _MAPS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}

_STRINGS = frozenset((*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB))

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
        start, count, inner = at, 0, None
        if first in _FIXED:
            start, at = at + 1, at + 1 + _FIXED[first]
        elif first in _VARIABLE:
            width, more = _VARIABLE[first]
            start = at + 1 + width
            at = start + int.from_bytes(data[at + 1 : start], "big") + more
        elif 0x80 <= first < 0x90 or first in _MAPS:
            width = _MAPS.get(first, 0)
            n = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else first & 0x0F
            count, inner, at = 2 * n, set[object](), at + 1 + width
        else:
            width = _ARRAYS.get(first, 0)
            count = int.from_bytes(data[at + 1 : at + 1 + width], "big") if width else first & 0x0F
            at += 1 + width
        if keys is not None and left % 2 == 0 and not count:
            key = _read_key(data, first, start, at)
            if key in keys:
                return str(key)
            keys.add(key)
        if left > 1:
            open_.append((left - 1, keys))
        if count:
            open_.append((count, inner))
    return None


def _read_key(data: memoryview, first: int, start: int, stop: int) -> object:
    if first in _STRINGS:  # equal strings may differ in how their length is stored
        return bytes(data[start:stop]).decode()
    # Others are rare; those that are not numbers are refused later.
    is_number = first in _FIXED and first not in _EXTENSIONS
    return msgspec.msgpack.decode(data[start - 1 : stop]) if is_number else start
