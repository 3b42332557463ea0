"""Decodes the stored bytes of a chunk. Never allocates a size taken from untrusted input."""

from __future__ import annotations

import numpy as np

from ..errors import Corrupted, Unsupported
from .crc32c import Bytes, compare_crc32c, crc32c
from .zstd import flat_view, inflate_into


def decode(
    codecs: tuple[str, ...],
    data: Bytes,
    nbytes: int,
    out: memoryview | None = None,
    *,
    verify: bool = True,
) -> memoryview:
    """Decodes the stored bytes of a chunk.

    Args:
        codecs: Names of the decoders, in the order in which to apply them:

            - `"zstd"`, at most once: decodes one or more frames.
            - `"crc32c"`: compares and strips a trailing little-endian 32-bit checksum.
            - `"fill"`, only on its own: `data` is one element, which fills the whole chunk.

            If empty, `data` is the chunk itself.
        data: The stored bytes, contiguous.
        nbytes: Size of the decoded chunk. Memory is only ever allocated for this size.
        out: Memory to decode into: writable, contiguous and of exactly `nbytes` bytes.
        verify: Whether to compare a crc32c, or only strip it.

    Returns:
        The `nbytes` decoded bytes, with format "B". This is `out` if given; otherwise `data` itself
        if there was nothing to decode, or new memory.

    Raises:
        Corrupted: There are too many or too few bytes, a checksum differs, or the bytes are not
            valid zstd frames. Also if a frame needs a window of more than 128 MiB.
        Unsupported: There is no decoder for a codec.

    >>> bytes(decode(("fill",), b"ab", 6))
    b'ababab'
    """
    view = flat_view(data)
    target = None if out is None else flat_view(out)
    if target is not None and len(target) != nbytes:
        raise ValueError(f"out has {len(target)} bytes, expected {nbytes}")
    for i, codec in enumerate(codecs):
        # The size that this decoder must produce: the ones after it can only strip checksums.
        rest = codecs[i + 1 :]
        size = nbytes + 4 * rest.count("crc32c")
        if codec == "crc32c":
            view = _strip_crc32c(view, verify)
        elif codec == "zstd":
            into = (
                target if target is not None and not rest else memoryview(np.empty(size, np.uint8))
            )
            view = inflate_into(view, into)
        elif codec == "fill":
            view = _fill(
                view, target if target is not None else memoryview(np.empty(size, np.uint8))
            )
        else:
            raise Unsupported(f"templax has no decoder for codec `{codec}`")
    if len(view) != nbytes:
        raise Corrupted(f"Expected {nbytes} decoded bytes, got {len(view)}")
    if out is None or target is None:
        return view
    if view is not target:
        target[:] = view
    return out


def _strip_crc32c(view: memoryview, verify: bool) -> memoryview:
    if len(view) < 4:
        raise Corrupted(f"Expected bytes followed by a crc32c, got {len(view)} bytes in all")
    if verify:
        compare_crc32c(int.from_bytes(view[-4:], "little"), crc32c(view[:-4]))
    return view[:-4]


def _fill(element: memoryview, out: memoryview) -> memoryview:
    if len(out):
        if not element or len(out) % len(element):
            raise Corrupted(
                f"Expected an element that fills {len(out)} bytes, got {len(element)} bytes"
            )
        np.frombuffer(out, np.uint8).reshape(-1, len(element))[:] = np.frombuffer(element, np.uint8)
    return out
