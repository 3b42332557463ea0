"""Reads what lies between the arrays of a Flax msgpack file, and tells by it that it is one."""

from __future__ import annotations

import mmap
import re
from contextlib import suppress

from ...storage.source import Source
from .specs import ARRAY_PLACEHOLDER
from .values import CONTAINERS, EXTENSIONS, FIXED, STRINGS, measure_value

_ARRAY = re.compile(
    rb"[\x01\x03]\x93[\x90-\x9f\xdc][\x00-\xff]{0,290}?[\xa2-\xbf][\w\[\]]{2,31}[\xc4-\xc6]"
)
"""The beginning of an array or number of numpy: a type, then a list of a shape, the name of a dtype
and bytes."""

_COMPLEX = re.compile(rb"\x02\x92[\xca\xcb]")

_OUTSIDE = ARRAY_PLACEHOLDER.encode()

_HEAD = 400
"""Bytes of a value that tell what it is: room for a shape of 32 sizes of 9 bytes, and a name."""

_WINDOW, _MAX_WINDOW = 1 << 16, 1 << 23
"""Fewest and most bytes that are read at once."""

_MAX_WINDOWS = 64

_MAX_VALUES = 1 << 18
"""Most values that are looked at before the first array, such as those of a vocabulary."""

_NEVER = 0xC1
"""The one byte that no msgpack value begins with."""


def holds_flax_arrays(source: Source, key: str, size: int) -> bool:
    """Whether a file is msgpack with an array or number of numpy as Flax writes it.

    Any program may write msgpack with numbers and strings; these extensions are Flax's, and so is
    the text that stands for an array in a directory beside the file. Looks at the values in front
    of the first of either, and skips what is in them. Whether the rest of the file is sound is not
    looked at.

    Args:
        source: Where the file is.
        key: The file; "" if it is the root of the source.
        size: Its size in bytes.
    """
    window, base, reads = b"", 0, 0
    at, left = 0, 1
    for _ in range(_MAX_VALUES):
        if left <= 0 or at >= size:
            return False
        if at + _HEAD > base + len(window) < size:
            reads += 1
            if reads > _MAX_WINDOWS:
                return False
            window, base = bytes(source.read(key, at, min(size, at + _WINDOW))), at
        first = window[at - base]
        if first == _NEVER or (at == 0 and first not in CONTAINERS | EXTENSIONS | STRINGS):
            return False
        length = FIXED.get(first)
        if length is None:
            start, stop, count = measure_value(window, at - base)
        else:  # the common case, without a call
            start, count = at - base + 1, 0
            stop = start + length
        if first in STRINGS and window.startswith(_OUTSIDE, start):
            return True
        if first in EXTENSIONS:
            return any(pattern.match(window, start) is not None for pattern in (_ARRAY, _COMPLEX))
        at, left = base + stop, left - 1 + count
    return False


def read_between_arrays(source: Source, size: int) -> memoryview:
    """Reads a file without the bytes of its large arrays, from a store that does not map files.

    Args:
        source: The file.
        size: Its size in bytes.

    Returns:
        As many bytes, with zeros in place of those that were not read. They take no memory where
        the system allots it page by page.
    """
    out = _allocate(size)
    if out is None:
        return source.read("", 0, size)
    at, left, stop, window = 0, 1, 0, _WINDOW // 2  # the bytes before `stop` are read, or skipped
    while left > 0 and at < size:
        if at + _HEAD > stop and stop < size:
            window = min(2 * window, _MAX_WINDOW) if at <= stop + window else _WINDOW
            start, stop = max(at, stop), min(size, max(at, stop) + window)
            source.read("", start, stop, out[start:stop])
        _, end, count = measure_value(out, at)
        if out[at] not in EXTENSIONS and stop < end <= size:  # text or raw bytes
            source.read("", stop, end, out[stop:end])
            stop = end
        at, left = end, left - 1 + count
    return out


def _allocate(size: int) -> memoryview | None:
    flags = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
    with suppress(OSError, ValueError):
        if not flags:
            return memoryview(mmap.mmap(-1, size))
        return memoryview(mmap.mmap(-1, size, flags | getattr(mmap, "MAP_NORESERVE", 0)))
    return None
