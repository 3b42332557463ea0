"""zstd frames, decoded whole, in pieces or many at once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import zstandard

from ..errors import Corrupted
from .crc32c import Bytes
from .zstd_frames import FrameWalk, ends_with_its_block

_MAX_WINDOW = 1 << 27
"""Bytes of history one zstd frame may ask for: what `zstd -22` needs, and libzstd's own default."""

_PIECE = 1 << 20

_SMALL = 1 << 16

Buffers = Any
"""A sequence of whatever exports its bytes."""

_state = threading.local()


def inflate(data: Bytes, limit: int) -> bytes:
    """Decodes zstd frames whose decoded size is not known beforehand.

    Args:
        limit: Bytes that may come out. Memory grows with what really does, never past this.

    Raises:
        Corrupted: No zstd frame, or more than `limit` bytes.
    """
    pieces: list[bytes] = []
    total = 0
    try:
        reader = _decompressor().stream_reader(data, read_across_frames=True)
        while piece := reader.read(min(_PIECE, limit + 1 - total)):
            pieces.append(piece)
            total += len(piece)
            if total > limit:
                raise Corrupted(f"Expected at most {limit} decoded bytes, got more")
    except zstandard.ZstdError as error:
        raise _describe_error(error) from error
    return b"".join(pieces)


def flat_view(data: Bytes) -> memoryview:
    view = memoryview(data)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def inflate_into(view: memoryview, out: memoryview) -> memoryview:
    try:
        declared = zstandard.frame_content_size(view)
        if declared > len(out):
            raise Corrupted(
                f"Expected {len(out)} decoded bytes, the zstd frame declares {declared}"
            )
        if declared == len(out) <= _SMALL:
            # A reader costs more than a copy of so little. It may be one frame of several: if so
            # the others decode to nothing.
            with contextlib.suppress(zstandard.ZstdError):
                out[:] = _decompressor().decompress(view, allow_extra_data=False)
                return out
    except zstandard.ZstdError as error:
        raise _describe_error(error) from error
    # Across frames: a chunk may be several of them. Single-pass when the size is declared.
    inflater = Inflater(view)
    inflater.fill(out)
    inflater.finish()
    return out


def inflate_many(frames: Sequence[Bytes], sizes: Sequence[int]) -> Buffers | None:
    """Small chunks of codecs `("zstd",)`, decoded in one call that holds no lock of Python.

    Args:
        frames: The stored bytes of each.
        sizes: Decoded bytes of each; nothing is allocated beyond their sum.

    Returns:
        The decoded bytes of each, of those sizes; None if this zstandard can't, or if one of them
        is damaged or more than a frame of one block: `decode` tells.
    """
    if "multi_decompress_to_buffer" not in zstandard.backend_features:
        return None
    lengths = np.array([len(frame) for frame in frames], np.uint64)
    segments = np.empty((len(frames), 2), np.uint64)
    segments[:, 0] = np.cumsum(lengths) - lengths
    segments[:, 1] = lengths
    joined = b"".join(frames)
    if not ends_with_its_block(joined, segments[:, 0].astype(np.int64), lengths.astype(np.int64)):
        return None
    try:
        return _decompressor().multi_decompress_to_buffer(
            zstandard.BufferWithSegments(joined, segments.tobytes()),
            decompressed_sizes=np.array(sizes, np.uint64).tobytes(),
            threads=1,
        )
    except (zstandard.ZstdError, ValueError, TypeError):
        return None


class Pieces(Protocol):
    """Encoded bytes that come piece by piece."""

    def read(self, n: int, /) -> memoryview:
        """The next `n` bytes, fewer at the end. Valid until the next call."""
        ...


class Inflater:
    """Zstd frames, decoded into consecutive memory as far as it goes.

    Args:
        stored: The frames; of pieces 1 MiB is asked for at a time: as fast as all at once, which
            would hold them beside what they decode to (256 KiB are 2 % slower).
    """

    def __init__(self, stored: Bytes | Pieces):
        self._frames = FrameWalk()
        self._done = 0
        source: Any = stored
        if isinstance(stored, (bytes, bytearray, memoryview)):
            self._frames.feed(memoryview(stored))
        else:
            source = _Walked(stored, self._frames)
        self._reader = _decompressor().stream_reader(
            source, read_size=_PIECE, read_across_frames=True
        )

    def fill(self, out: memoryview) -> None:
        """Decodes as many bytes as `out` (writable, contiguous, format "B") has.

        Raises:
            Corrupted: There are fewer, or the bytes do not decode; also what `stored.read` raises.
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
        """Lets the last frame end, where its checksum is.

        Raises:
            Corrupted: There is more, the bytes do not decode, or the last frame is cut.
        """
        try:
            if self._reader.readinto(bytearray(1)):
                raise Corrupted(f"Expected {self._done} decoded bytes, got more")
        except zstandard.ZstdError as error:
            raise _describe_error(error) from error
        if not self._frames.complete:
            raise Corrupted("Expected a whole zstd frame, got one that is cut")


class _Walked:
    """Pieces on their way to the decoder."""

    def __init__(self, pieces: Pieces, frames: FrameWalk):
        self._pieces, self._frames = pieces, frames

    def read(self, n: int, /) -> memoryview:
        data = self._pieces.read(n)
        self._frames.feed(data)
        return data


def _describe_error(error: zstandard.ZstdError) -> Corrupted:
    return Corrupted(f"Expected a zstd frame, got bytes that do not decode ({error})")


def _decompressor() -> zstandard.ZstdDecompressor:
    # One per thread: it is not thread-safe, and making one costs more than a small chunk.
    try:
        return _state.decompressor
    except AttributeError:
        _state.decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        return _state.decompressor
