"""Encoded bytes of a chunk → its elements. Nothing is sized by a number that the bytes declare."""

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
    """The decoded bytes of a chunk.

    Args:
        codecs: Decoders in the order in which they are applied. `"zstd"` (at most once): one or
            more frames; `"crc32c"`: verifies and strips a trailing u32le; `"fill"` (alone):
            repeats `data`, one element, over the chunk. Empty: `data` is the chunk.
        data: The stored bytes, contiguous.
        nbytes: Bytes of the decoded chunk: the only size that memory is allocated for.
        out: Writable, contiguous, of exactly `nbytes`; filled and returned.
        verify: Whether a crc32c is compared, or only stripped.

    Returns:
        `nbytes` bytes, format "B": `out`; without it `data` itself if there was nothing to decode,
        else new memory.

    Raises:
        Corrupted: Too many or too few bytes, a checksum that differs, or no zstd frame.
        Unsupported: A codec without a decoder, or a window of more than 128 MiB.
    """
    view = flat_view(data)
    target = None if out is None else flat_view(out)
    if target is not None and len(target) != nbytes:
        raise ValueError(f"out has {len(target)} bytes, expected {nbytes}")
    for i, codec in enumerate(codecs):
        # What must be left for the decoders after this one: they can only strip checksums.
        rest = codecs[i + 1 :]
        size = nbytes + 4 * rest.count("crc32c")
        if codec == "crc32c":
            view = _check(view, verify)
        elif codec == "zstd":
            into = (
                target if target is not None and not rest else memoryview(np.empty(size, np.uint8))
            )
            view = inflate_into(view, into)
        elif codec == "fill":
            view = _repeat(
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


def _check(view: memoryview, verify: bool) -> memoryview:
    if len(view) < 4:
        raise Corrupted(f"Expected bytes followed by a crc32c, got {len(view)} bytes in all")
    if verify:
        compare_crc32c(int.from_bytes(view[-4:], "little"), crc32c(view[:-4]))
    return view[:-4]


def _repeat(element: memoryview, out: memoryview) -> memoryview:
    if len(out):
        if not element or len(out) % len(element):
            raise Corrupted(
                f"Expected an element that fills {len(out)} bytes, got {len(element)} bytes"
            )
        np.frombuffer(out, np.uint8).reshape(-1, len(element))[:] = np.frombuffer(element, np.uint8)
    return out
