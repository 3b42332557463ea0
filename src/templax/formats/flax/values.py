"""Measures msgpack values: how long each is and how many are inside, without decoding them."""

from __future__ import annotations

# How many bytes follow the first byte of a value, by that byte (msgpack specification, "Formats"):
# a fixed number, or a length of 1, 2 or 4 bytes and that many more. An extension has one more byte,
# its type.
FIXED = {
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

_ARRAYS, _MAPS = {0xDC: 2, 0xDD: 4}, {0xDE: 2, 0xDF: 4}

STRINGS = frozenset((*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB))

MAPS = frozenset((*range(0x80, 0x90), *_MAPS))

CONTAINERS = MAPS | {*range(0x90, 0xA0), *_ARRAYS}

EXTENSIONS = frozenset((*range(0xC7, 0xCA), *range(0xD4, 0xD9)))


def measure_value(data: bytes | memoryview, at: int) -> tuple[int, int, int]:
    """Measures the value whose first byte is `data[at]`, which msgpack allows.

    Returns:
        Where its content begins and ends, and how many values follow that are inside it. The
        content of an extension begins with its type; containers have none.
    """
    first = data[at]
    size = FIXED.get(first)
    if size is not None:
        return at + 1, at + 1 + size, 0
    if first in _VARIABLE:
        width, more = _VARIABLE[first]
        start = at + 1 + width
        return start, start + int.from_bytes(data[at + 1 : start], "big") + more, 0
    each = 2 if first in MAPS else 1
    width = _MAPS.get(first) or _ARRAYS.get(first, 0)
    start = at + 1 + width
    count = int.from_bytes(data[at + 1 : start], "big") if width else first & 0x0F
    return start, start, each * count
