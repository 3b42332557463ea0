"""Decodes gzip, which JAX before 0.4.9 wrote, with the standard library."""

from __future__ import annotations

import gzip
import zlib
from io import BytesIO

from ..errors import Corrupted


def gunzip_into(view: memoryview, out: memoryview) -> memoryview:
    """Decodes gzip members that must fill `out` exactly; returns `out`.

    No more than `out` and one byte is ever decoded.

    Raises:
        Corrupted: They decode to more or fewer bytes, are not valid, or have another checksum.
    """
    done = 0
    try:
        with gzip.GzipFile(fileobj=BytesIO(view)) as file:
            while done < len(out) and (n := file.readinto(out[done:])):
                done += n
            more = file.read(1)  # also compares the checksum, which comes after the last byte
    except (OSError, EOFError, zlib.error) as error:
        what = f"Expected gzip, got bytes that do not decode ({error})"
        raise Corrupted(what) from error
    if done < len(out) or more:
        raise Corrupted(f"Expected {len(out)} decoded bytes, got {'more' if more else done}")
    return out
