"""Decodes gzip, which JAX before 0.4.9 wrote, with the standard library."""

from __future__ import annotations

import zlib

from ..errors import Corrupted

_PIECE = 1 << 20
"""Bytes that are decoded at a time, besides the memory that they are decoded into."""

_GZIP = 16 + zlib.MAX_WBITS


def gunzip_into(view: memoryview, out: memoryview) -> memoryview:
    """Decodes gzip members that must fill `out` exactly; returns `out`.

    No more than `out` and one byte is ever decoded, with a MiB of memory besides.

    Raises:
        Corrupted: They decode to more or fewer bytes, are not valid, or have another checksum.
    """
    done, rest = 0, view
    while rest:
        decoder = zlib.decompressobj(_GZIP)
        start, pending = 0, b""
        while not decoder.eof:
            if not pending and start < len(rest):
                pending = bytes(rest[start : start + _PIECE])
                start += len(pending)
            room = min(_PIECE, len(out) - done)
            try:
                # One byte more than there is room for tells whether there is more.
                data = decoder.decompress(pending, room or 1)
            except zlib.error as error:
                what = f"Expected gzip, got bytes that do not decode ({error})"
                raise Corrupted(what) from error
            if len(data) > len(out) - done:
                raise Corrupted(f"Expected {len(out)} decoded bytes, got more")
            out[done : done + len(data)] = data
            done += len(data)
            pending = decoder.unconsumed_tail
            if not decoder.eof and not data and not pending and start == len(rest):
                raise Corrupted("Expected gzip, got bytes that do not decode (they end too early)")
        rest = rest[start - len(decoder.unused_data) :]
    if done < len(out):
        raise Corrupted(f"Expected {len(out)} decoded bytes, got {done}")
    return out
