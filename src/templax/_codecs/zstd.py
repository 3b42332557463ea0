"""Decodes zstd frames: one at once, piece by piece, or many small ones in a single call."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import zstandard

from ..errors import Corrupted, Unsupported
from .blosc import has_numcodecs, load_codec
from .crc32c import Bytes
from .zstd_frames import FrameWalk, ends_with_its_block

_MAX_WINDOW = 1 << 27
"""Maximum window of a zstd frame, in bytes: what `zstd -22` needs, and the default of libzstd."""

_PIECE_BYTES = 1 << 20
"""How much to read or decode at a time."""

_ONE_SHOT_BYTES = 1 << 16
"""Up to this decoded size, a one-shot call plus a copy is faster than a streaming reader."""

FAST_BYTES = 1 << 20
"""From this decoded size on, numcodecs decodes a chunk, where it was imported: in 0.85 of the time,
since zstandard is built without the assembly of libzstd."""

_PAYING_BYTES = 1 << 28
"""For so many bytes to decode, the import of numcodecs pays: after JAX it takes 0.03 s."""

Buffers = Any
"""A sequence of objects that export a buffer each."""

_state = threading.local()

_decompress: Callable[[memoryview, memoryview], object] | None = None
"""Decodes frames in one call, and faster than zstandard; None unless it was prepared."""


def prepare_inflating(nbytes: int) -> None:
    """Imports numcodecs if that makes decoding faster. It only does if it is installed.

    Args:
        nbytes: How many bytes are to be decoded, of chunks of at least `FAST_BYTES`.
    """
    global _decompress
    if nbytes and ("numcodecs.zstd" in sys.modules or nbytes >= _PAYING_BYTES):
        _decompress = _find_decompress()


@functools.cache
def _find_decompress() -> Callable[[memoryview, memoryview], object] | None:
    if not has_numcodecs():
        return None
    try:
        return load_codec("zstd").decompress
    except (Unsupported, RuntimeError, AttributeError, ValueError):
        return None  # it can't be imported, for example with this numpy; zstandard decodes as well


def inflate(data: Bytes, limit: int) -> bytes:
    """Decodes zstd frames whose decoded size is not known in advance.

    Args:
        data: The frames.
        limit: Maximum decoded size in bytes. Memory grows as bytes are decoded, up to this limit.

    Raises:
        Corrupted: The bytes are not valid zstd frames, or decode to more than `limit` bytes.
    """
    pieces: list[bytes] = []
    total = 0
    try:
        reader = _get_decompressor().stream_reader(data, read_across_frames=True)
        while piece := reader.read(min(_PIECE_BYTES, limit + 1 - total)):
            pieces.append(piece)
            total += len(piece)
            if total > limit:
                raise Corrupted(f"Expected at most {limit} decoded bytes, got more")
    except zstandard.ZstdError as error:
        raise _describe_error(error) from error
    return b"".join(pieces)


def flat_view(data: Bytes) -> memoryview:
    """A one-dimensional view of the bytes, with format "B"."""
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def inflate_into(view: memoryview, out: memoryview) -> memoryview:
    """Decodes zstd frames that must fill `out` exactly; returns `out`.

    Raises:
        Corrupted: They decode to more or fewer bytes, or are not valid.
    """
    try:
        declared = zstandard.frame_content_size(view)
        if declared > len(out):
            raise Corrupted(
                f"Expected {len(out)} decoded bytes, the zstd frame declares {declared}"
            )
        if 0 < declared == len(out) <= _ONE_SHOT_BYTES:
            # Fails if further frames follow this one; then the streaming reader below takes over,
            # and the other frames must decode to nothing. It would not fail for a size of 0.
            with contextlib.suppress(zstandard.ZstdError):
                out[:] = _get_decompressor().decompress(view, allow_extra_data=False)
                return out
    except zstandard.ZstdError as error:
        raise _describe_error(error) from error
    if _decompress is not None and FAST_BYTES <= declared == len(out):
        with contextlib.suppress(RuntimeError, ValueError):  # what is wrong, the reader says
            _decompress(view, out)
            return out
    # The streaming reader handles chunks of several frames, and decodes directly into `out`.
    inflater = Inflater(view)
    inflater.fill(out)
    inflater.finish()
    return out


def inflate_many(frames: Sequence[Bytes], sizes: Sequence[int]) -> Buffers | None:
    """Decodes many small chunks with codecs `("zstd",)` in one call that releases the GIL.

    Args:
        frames: The stored bytes of each chunk.
        sizes: Decoded size of each chunk. No more than their sum is allocated.

    Returns:
        The decoded bytes of each chunk, of exactly those sizes. None if the installed zstandard
        can't do this, or if any chunk is empty, is damaged, or is not a single frame of a single
        block; then `decode` each chunk, which finds out what is wrong.
    """
    # For a size of 0, the library would use the size that the frame declares.
    if "multi_decompress_to_buffer" not in zstandard.backend_features or 0 in sizes:
        return None
    lengths = np.array([len(frame) for frame in frames], np.uint64)
    segments = np.empty((len(frames), 2), np.uint64)
    segments[:, 0] = np.cumsum(lengths) - lengths
    segments[:, 1] = lengths
    joined = b"".join(frames)
    if not ends_with_its_block(joined, segments[:, 0].astype(np.int64), lengths.astype(np.int64)):
        return None
    try:
        return _get_decompressor().multi_decompress_to_buffer(
            zstandard.BufferWithSegments(joined, segments.tobytes()),
            decompressed_sizes=np.array(sizes, np.uint64).tobytes(),
            threads=1,
        )
    except (zstandard.ZstdError, ValueError, TypeError):
        return None


class Pieces(Protocol):
    """Encoded bytes that arrive piece by piece."""

    def read(self, n: int, /) -> memoryview:
        """Returns the next `n` bytes, or fewer at the end. They are valid until the next call."""
        ...


class Inflater:
    """Decodes zstd frames into one piece of memory after another.

    Args:
        stored: The frames, either all their bytes or `Pieces`. Pieces are read 1 MiB at a time.
            That is as fast as reading everything at once, but does not hold all the encoded bytes
            in memory next to the decoded ones. With 256 KiB it is 2 % slower.
        alone: Whether no other frames are decoded by this thread before it is finished. If not, it
            has a decompressor of its own.
    """

    def __init__(self, stored: Bytes | Pieces, *, alone: bool = True):
        self._frames = FrameWalk()
        self._done = 0
        source: Any = stored
        if isinstance(stored, (bytes, bytearray, memoryview)):
            self._frames.feed(memoryview(stored))
        else:
            source = _TrackedPieces(stored, self._frames)
        decompressor = _get_decompressor() if alone else _make_decompressor()
        self._reader = decompressor.stream_reader(
            source, read_size=_PIECE_BYTES, read_across_frames=True
        )

    def fill(self, out: memoryview) -> None:
        """Decodes the next bytes until `out` is full.

        Errors of `stored.read` are passed on.

        Args:
            out: Writable and contiguous, with format "B".

        Raises:
            Corrupted: The frames end before that, or are not valid.
        """
        done = 0
        try:
            while done < len(out):
                n = self._reader.readinto(out[done:])
                if not n:
                    raise Corrupted(f"Expected {len(out)} decoded bytes, got {done}")
                done += n
            self._done += done
        except zstandard.ZstdError as error:
            raise _describe_error(error) from error

    def finish(self) -> None:
        """Reads up to the end of the last frame, which may be a checksum of its content.

        Raises:
            Corrupted: There is more content, the frames are not valid, or the last one is cut.
        """
        try:
            if self._reader.readinto(bytearray(1)):
                raise Corrupted(f"Expected {self._done} decoded bytes, got more")
        except zstandard.ZstdError as error:
            raise _describe_error(error) from error
        if not self._frames.complete:
            raise Corrupted("Expected a whole zstd frame, got one that is cut")


class _TrackedPieces:
    """Passes pieces on to the decoder, and to a `FrameWalk` that checks where the frames end."""

    def __init__(self, pieces: Pieces, frames: FrameWalk):
        self._pieces, self._frames = pieces, frames

    def read(self, n: int, /) -> memoryview:
        data = self._pieces.read(n)
        self._frames.feed(data)
        return data


def _describe_error(error: zstandard.ZstdError) -> Corrupted:
    return Corrupted(f"Expected a zstd frame, got bytes that do not decode ({error})")


def _get_decompressor() -> zstandard.ZstdDecompressor:
    # One per thread: decompressors are not thread-safe, and creating one takes longer than decoding
    # a small chunk.
    try:
        return _state.decompressor
    except AttributeError:
        _state.decompressor = _make_decompressor()
        return _state.decompressor


def _make_decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
