"""Decodes the stored bytes of a chunk. Never allocates a size taken from untrusted input.

To add a codec, write its decoder and add it to `COMPRESSIONS` or `CHECKSUMS`, under the name that
the metadata of a checkpoint gives it: `formats.zarr.metadata` accepts the names in these tables.
What is left to change elsewhere:

- `_parse_zarr2` in `formats.zarr.metadata` and `parse_codecs` in `formats.zarr.codecs`, if a
  configuration of the codec changes how bytes are decoded: read it, or refuse it by name;
- `check_length` in `formats.zarr.chunks`, which says how many stored bytes a chunk may have;
- `_decode_chunk` in `_audit.verify`, if the codec can be decoded piece by piece.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np

from ..errors import Corrupted, Unsupported
from .blosc import NUMCODECS, has_numcodecs, unblosc_into, unlz4_into
from .crc32c import Bytes, compare_crc32c, crc32c
from .ggml import PREFIX, QUANTISATIONS, dequantise_into
from .gzip import gunzip_into
from .npy_members import METHODS, decode_npy_into
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
            - `"gzip"` and `"zlib"`, at most once: decode one or more members, and compare their
              checksums.
            - `"blosc"` and `"lz4"`, at most once: decode one chunk of numcodecs.
            - `"crc32c"`: compares and strips a trailing little-endian 32-bit checksum.
            - `"big-endian-2"`, `-4` and `-8`, last: reverse the bytes of each number of that size.
            - `"npy-deflate"`, `"npy-bzip2"` and `"npy-lzma"`, alone or before the one that reverses
              bytes: decode a compressed array in numpy's format, and drop its header.
            - `"ggml-Q4_0"` and the like, only on its own: computes float32 numbers of the blocks of
              that quantisation.
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
            valid for their codec. Also if a zstd frame needs a window of more than 128 MiB.
        Unsupported: A codec has no decoder here, or needs numcodecs, which is not installed.

    >>> bytes(decode(("fill",), b"ab", 6))
    b'ababab'
    """
    view = flat_view(data)
    target = None if out is None else flat_view(out)
    if target is not None and len(target) != nbytes:
        raise ValueError(f"out has {len(target)} bytes, expected {nbytes}")
    for i, codec in enumerate(codecs):
        if codec not in _DECODERS:
            raise Unsupported(f"templax has no decoder for codec `{codec}`")
        # The size that this decoder must produce: the ones after it can only strip checksums.
        rest = codecs[i + 1 :]
        size = nbytes + 4 * sum(name in CHECKSUMS for name in rest)
        in_place = SWAPS.keys() >= set(rest)
        view = _DECODERS[codec](view, size, target if in_place else None, verify)
    if len(view) != nbytes:
        raise Corrupted(f"Expected {nbytes} decoded bytes, got {len(view)}")
    if out is None or target is None:
        return view
    if view is not target:
        target[:] = view
    return out


def _decode_zstd(data: memoryview, size: int, out: memoryview | None, verify: bool) -> memoryview:
    return inflate_into(data, _allocate(size) if out is None else out)


def _decode_gzip(data: memoryview, size: int, out: memoryview | None, verify: bool) -> memoryview:
    return gunzip_into(data, _allocate(size) if out is None else out)


def _decode_zlib(data: memoryview, size: int, out: memoryview | None, verify: bool) -> memoryview:
    return gunzip_into(data, _allocate(size) if out is None else out, "zlib")


def _decode_blosc(data: memoryview, size: int, out: memoryview | None, verify: bool) -> memoryview:
    return unblosc_into(data, _allocate(size) if out is None else out)


def _decode_lz4(data: memoryview, size: int, out: memoryview | None, verify: bool) -> memoryview:
    return unlz4_into(data, _allocate(size) if out is None else out)


def _decode_npy(
    method: str, data: memoryview, size: int, out: memoryview | None, verify: bool
) -> memoryview:
    return decode_npy_into(data, _allocate(size) if out is None else out, method)


def _dequantise(
    name: str, data: memoryview, size: int, out: memoryview | None, verify: bool
) -> memoryview:
    return dequantise_into(name, data, _allocate(size) if out is None else out)


def _strip_crc32c(data: memoryview, size: int, out: memoryview | None, verify: bool) -> memoryview:
    if len(data) < 4:
        raise Corrupted(f"Expected bytes followed by a crc32c, got {len(data)} bytes in all")
    if verify:
        compare_crc32c(int.from_bytes(data[-4:], "little"), crc32c(data[:-4]))
    return data[:-4]


def _swap(
    width: int, data: memoryview, size: int, out: memoryview | None, verify: bool
) -> memoryview:
    if len(data) != size or size % width:
        raise Corrupted(f"Expected {size} decoded bytes, got {len(data)}")
    if out is not None and out is data:
        np.frombuffer(out, f"<u{width}").byteswap(inplace=True)
        return out
    if out is None:
        out = _allocate(size)
    np.frombuffer(out, f"<u{width}")[:] = np.frombuffer(data, f">u{width}")
    return out


def _fill(element: memoryview, size: int, out: memoryview | None, verify: bool) -> memoryview:
    if out is None:
        out = _allocate(size)
    if len(out):
        if not element or len(out) % len(element):
            raise Corrupted(
                f"Expected an element that fills {len(out)} bytes, got {len(element)} bytes"
            )
        np.frombuffer(out, np.uint8).reshape(-1, len(element))[:] = np.frombuffer(element, np.uint8)
    return out


def _allocate(nbytes: int) -> memoryview:
    return memoryview(np.empty(nbytes, np.uint8))


Decoder = Callable[[memoryview, int, memoryview | None, bool], memoryview]
"""Called with the stored bytes, the size that decoding must give, memory of that size to decode
into or None, and whether to compare checksums. Returns the decoded bytes, in that memory or not.
"""

COMPRESSIONS: dict[str, Decoder] = {
    "gzip": _decode_gzip,
    "zlib": _decode_zlib,
    "zstd": _decode_zstd,
    "blosc": _decode_blosc,
    "lz4": _decode_lz4,
}
"""Decoders of compressed bytes by name. A chunk has at most one: if there were two, the size of
what lies between them would only be known from the file."""

CHECKSUMS: dict[str, Decoder] = {"crc32c": _strip_crc32c}
"""Decoders of codecs that append a checksum of 4 bytes, by name. A chunk may have several."""

CODECS = frozenset((*COMPRESSIONS, *CHECKSUMS))
"""Names of all codecs that a file may name, and that `decode` reverses."""

SWAPS: dict[str, Decoder] = {
    f"big-endian-{width}": functools.partial(_swap, width) for width in (2, 4, 8)
}
"""Decoders of big-endian numbers, by name. What is in a file under such a name is not one."""


def find_swap(dtype: np.dtype) -> tuple[str, ...]:
    """The names of the decoders of big-endian elements: none for those of one byte."""
    width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    return tuple(name for name in SWAPS if name.endswith(f"-{width}"))


FILL = ("fill",)
"""Codecs of a chunk that is absent: one element stands for all."""

DECODABLE = CODECS | SWAPS.keys()
"""Codecs of a chunk in a container. Other formats have codecs of their own."""


def find_missing(codecs: Iterable[str]) -> str | None:
    """The first of these codecs that needs a library which is not installed; None if none does."""
    needed = (codec for codec in codecs if codec in NUMCODECS)
    return next((codec for codec in needed if not has_numcodecs()), None)


_DECODERS = {
    **COMPRESSIONS,
    **CHECKSUMS,
    **SWAPS,
    "fill": _fill,
    **{f"npy-{method}": functools.partial(_decode_npy, method) for method in METHODS},
    **{PREFIX + name: functools.partial(_dequantise, name) for name in QUANTISATIONS},
}
