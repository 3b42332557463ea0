"""Decodes large chunks piece by piece, side by side, for blocks that are asked for in order."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from .._catalog.checksums import BlockVerifier
from .._catalog.entry import Chunk, LeafEntry
from .._codecs.decode import decode
from .._codecs.zstd import Inflater
from .._core.boxes import Box, box_slices, intersect, relative_box, shape_of, size_of, span_of
from .._core.memory import Scratch
from .._restore.fill import missing_file
from ..errors import CheckpointError, NotFound, SourceError
from ..storage.source import Source

_DROP_BYTES = 1024 * 1024
"""What no block needs is decoded and dropped in pieces of this size."""


class ChunkStreams:
    """The chunks of a leaf that are being decoded: zstd in C order, or the fill value.

    Args:
        entry: The leaf.
        source: Where it is read from.
    """

    def __init__(self, entry: LeafEntry, source: Source):
        self._entry, self._source = entry, source
        self._scratch = Scratch(minimum=_DROP_BYTES)
        self._streams: dict[Box, _Stream] = {}

    def fill(self, values: np.ndarray, box: Box, chunks: Iterable[Chunk]) -> None:
        """Fills a block. Each block comes after those before it in the order of all its chunks.

        Args:
            values: Memory for the block, contiguous.
            box: The elements.
            chunks: The chunks that overlap them.

        Raises:
            Corrupted: Bytes are missing or altered. Names the leaf, the file and the byte range.
            SourceError: The storage failed, or the checkpoint changed meanwhile.
        """
        for chunk in chunks:
            inside = intersect(chunk.box, box)
            assert inside is not None
            wanted = values[box_slices(relative_box(inside, box))]
            if chunk.codecs == ("fill",):
                assert chunk.extent.inline is not None
                element = decode(("fill",), memoryview(chunk.extent.inline), values.itemsize)
                wanted[...] = np.frombuffer(element, values.dtype)[0]
                continue
            with _Located(self._entry, chunk, self._source):
                stream = self._streams.get(chunk.box)
                if stream is None:
                    stream = self._streams[chunk.box] = _Stream(chunk, self._entry, self._source)
                stream.fill(wanted, relative_box(inside, chunk.box), self._scratch)

    def finish(self) -> None:
        """Decodes what is left of each chunk, so that all its checksums are compared.

        Raises:
            Corrupted, SourceError: See `fill`.
        """
        for stream in self._streams.values():
            with _Located(self._entry, stream.chunk, self._source):
                stream.finish(self._scratch)


class _Stream:
    """One chunk as it is decoded."""

    def __init__(self, chunk: Chunk, entry: LeafEntry, source: Source):
        self.chunk, self._dtype = chunk, entry.dtype
        self._shape = shape_of(chunk.box)
        self._nbytes = size_of(chunk.box) * entry.dtype.itemsize
        self._at = 0
        self._inflater = Inflater(_StoredBytes(chunk, source), alone=False)

    def fill(self, wanted: np.ndarray, box: Box, scratch: Scratch) -> None:
        """Fills an array with a box of the chunk."""
        start, stop = span_of(box, self._shape, self._dtype.itemsize)
        self._drop(start - self._at, scratch)
        self._at = stop
        if wanted.flags.c_contiguous and wanted.nbytes == stop - start:
            self._inflater.fill(memoryview(wanted.reshape(-1).view(np.uint8)))  # pyright: ignore[reportArgumentType]
            return
        decoded = scratch.bytes("decoded", stop - start)
        self._inflater.fill(decoded)
        strides = [
            math.prod(self._shape[axis + 1 :]) * self._dtype.itemsize
            for axis in range(len(self._shape))
        ]
        wanted[...] = np.ndarray(wanted.shape, self._dtype, decoded, strides=strides)

    def finish(self, scratch: Scratch) -> None:
        """Decodes and drops the rest."""
        self._drop(self._nbytes - self._at, scratch)
        self._at = self._nbytes
        self._inflater.finish()

    def _drop(self, nbytes: int, scratch: Scratch) -> None:
        while nbytes:
            piece = scratch.bytes("dropped", min(nbytes, _DROP_BYTES))
            self._inflater.fill(piece)
            nbytes -= len(piece)


class _StoredBytes:
    """The stored bytes of a chunk, compared with their checksums as they are read."""

    def __init__(self, chunk: Chunk, source: Source):
        extent = chunk.extent
        self._key, self._at, self._stop = extent.key, extent.start, extent.stop
        self._source = source
        self._memory = memoryview(bytearray(_DROP_BYTES))
        self._blocks = BlockVerifier(chunk, extent.start, extent.stop) if chunk.sums else None

    def read(self, n: int, /) -> memoryview:
        start, stop = self._at, min(self._at + min(n, len(self._memory)), self._stop)
        self._at = stop
        data = self._source.read(self._key, start, stop, self._memory[: stop - start])
        if self._blocks is not None:
            self._blocks.feed(data)
        return data


class _Located:
    """Says in errors which leaf and bytes they are about."""

    def __init__(self, entry: LeafEntry, chunk: Chunk, source: Source):
        self._name, self._extent, self._source = entry.name, chunk.extent, source

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        extent = self._extent
        file = extent.key or self._source.url
        if isinstance(error, NotFound):
            raise missing_file(self._name, extent.key, self._source) from error
        if isinstance(error, CheckpointError):
            raise error.locate(
                leaf=self._name, file=file, start=extent.start, stop=extent.stop
            ) from error
        if isinstance(error, SourceError):
            error.add_note(f"while leaf `{self._name}` was read")
