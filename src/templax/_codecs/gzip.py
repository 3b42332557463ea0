"""Decodes gzip, which JAX before 0.4.9 wrote, and zlib, with the standard library."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from ..errors import Corrupted

_PIECE = 1 << 20
"""Bytes that are decoded at a time, besides the memory that they are decoded into."""

_FIRST_PIECE = 1 << 12
"""The same at the start of a member. Input that a member does not use is copied again for the
next one, and a file may contain any number of tiny members."""

WRAPPERS = {"gzip": 16 + zlib.MAX_WBITS, "zlib": zlib.MAX_WBITS}
"""Names of codecs that wrap deflated bytes with a checksum → how zlib calls the wrapper."""


def gunzip_into(view: memoryview, out: memoryview, codec: str = "gzip") -> memoryview:
    """Decodes gzip members, or zlib streams, that must fill `out` exactly; returns `out`.

    Raises:
        Corrupted: See `iter_gunzipped`.
    """
    done = 0
    for piece in iter_gunzipped(view, len(out), codec):
        out[done : done + len(piece)] = piece
        done += len(piece)
    return out


def iter_gunzipped(view: memoryview, nbytes: int, codec: str = "gzip") -> Iterator[bytes]:
    """Decodes gzip members, or zlib streams, that must give exactly `nbytes`, piece by piece.

    Decodes at most 1 MiB at a time, and never more than one byte beyond `nbytes`.

    Args:
        view: The stored bytes.
        nbytes: What they must decode to.
        codec: One of `WRAPPERS`.

    Raises:
        Corrupted: They decode to more or fewer bytes, are not valid, or have another checksum.
    """
    done, rest = 0, view
    while rest:
        decoder = zlib.decompressobj(WRAPPERS[codec])
        start, pending, step = 0, b"", _FIRST_PIECE
        while not decoder.eof:
            if not pending and start < len(rest):
                pending = bytes(rest[start : start + step])
                start += len(pending)
                step = min(2 * step, _PIECE)
            room = min(_PIECE, nbytes - done)
            try:
                # One byte more than there is room for tells whether there is more.
                data = decoder.decompress(pending, room or 1)
            except zlib.error as error:
                what = f"Expected {codec}, got bytes that do not decode ({error})"
                raise Corrupted(what) from error
            if len(data) > nbytes - done:
                raise Corrupted(f"Expected {nbytes} decoded bytes, got more")
            done += len(data)
            yield data
            pending = decoder.unconsumed_tail
            if not decoder.eof and not data and not pending and start == len(rest):
                raise Corrupted(
                    f"Expected {codec}, got bytes that do not decode (they end too early)"
                )
        rest = rest[start - len(decoder.unused_data) :]
    if done < nbytes:
        raise Corrupted(f"Expected {nbytes} decoded bytes, got {done}")
