"""Decodes blosc and lz4 with numcodecs, which the extra `templax[codecs]` installs.

numcodecs takes 0.2 to 0.5 s to import, so that it is imported when the first such chunk is decoded.
(For zstd, `prepare_inflating` in `zstd.py` decides.)
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
import warnings
from typing import Any

from ..errors import Corrupted, Unsupported

NUMCODECS = frozenset(("blosc", "lz4"))
"""Names of the codecs that need numcodecs."""

_HEADER = 16
"""Bytes of blosc's header: 4 of versions and flags, then the decoded size, the size of a block and
the stored size, 4 bytes each (c-blosc, README_CHUNK_FORMAT)."""

_SNAPPY = 2
"""The compressor, in the upper three bits of the flags, that numcodecs is built without."""


@functools.cache
def has_numcodecs() -> bool:
    """Whether numcodecs is installed. Does not import it."""
    return importlib.util.find_spec("numcodecs") is not None


def make_missing_error(codec: str) -> Unsupported:
    """The error for chunks that only numcodecs decodes, where it is not installed."""
    return Unsupported(
        f"templax reads codec `{codec}` with numcodecs, which is not installed",
        hint='pip install "templax[codecs]"',
    )


def unblosc_into(view: memoryview, out: memoryview) -> memoryview:
    """Decodes a blosc chunk that must fill `out` exactly; returns `out`.

    Raises:
        Corrupted: Its header declares other sizes, or its bytes do not decode.
        Unsupported: It is compressed by snappy, or numcodecs is not installed.
    """
    if len(view) < _HEADER:
        raise Corrupted(f"Expected a blosc chunk, got {len(view)} bytes")
    nbytes, stored = _read_size(view, 4), _read_size(view, 12)
    if stored != len(view):
        raise Corrupted(f"Expected a blosc chunk of {stored} bytes, got {len(view)}")
    if nbytes != len(out):
        raise Corrupted(f"Expected {len(out)} decoded bytes, the blosc chunk declares {nbytes}")
    if view[2] >> 5 == _SNAPPY:
        raise Unsupported("templax does not read codec `blosc` with snappy")
    return _decode(load_codec("blosc"), "blosc", view, out) if nbytes else out


def unlz4_into(view: memoryview, out: memoryview) -> memoryview:
    """Decodes an lz4 block after its decoded size, as numcodecs stores it, into `out`; returns it.

    Raises:
        Corrupted: It declares another size, or its bytes do not decode.
        Unsupported: numcodecs is not installed.
    """
    if len(view) < 5:
        raise Corrupted(f"Expected a size and an lz4 block, got {len(view)} bytes")
    nbytes = _read_size(view, 0)
    if nbytes != len(out):
        raise Corrupted(f"Expected {len(out)} decoded bytes, the lz4 chunk declares {nbytes}")
    return _decode(load_codec("lz4"), "lz4", view, out) if nbytes else out


def _read_size(view: memoryview, at: int) -> int:
    return int.from_bytes(view[at : at + 4], "little")


_modules: dict[str, Any] = {}

_importing = threading.Lock()
"""Two threads that import different modules of numcodecs at once would make one of them fail."""


def load_codec(codec: str) -> Any:
    """The module of numcodecs for a codec."""
    module = _modules.get(codec)
    if module is not None:
        return module
    with _importing:
        try:
            # It warns about the library for a checksum that templax does not ask it for.
            with warnings.catch_warnings(record=True):
                module = importlib.import_module(f"numcodecs.{codec}")
        except ImportError as error:
            raise make_missing_error(codec) from error
    _modules[codec] = module
    return module


def _decode(module: Any, codec: str, view: memoryview, out: memoryview) -> memoryview:
    try:
        module.decompress(view, out)
    except (RuntimeError, ValueError) as error:
        what = f"Expected {codec}, got bytes that do not decode ({error})"
        raise Corrupted(what) from error
    return out
