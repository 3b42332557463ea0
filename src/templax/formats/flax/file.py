"""Opens files that `flax.serialization.to_bytes` and `flax.training.checkpoints` wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from ..._catalog.catalog import Catalog
from ..._catalog.entry import Chunk, LeafEntry
from ..._core.gc_pause import pause_gc
from ..._core.names import Path, join_path
from ...errors import CheckpointError, Corrupted
from ...storage.signatures import read_head
from ...storage.source import Source
from .msgpack import Empty, Value, holds_flax_arrays, locate_value, read_msgpack

_MAX_DECODED = 1 << 26
"""Most bytes of a file that are decoded to tell what it is. Of a larger one, the head must tell."""

_HEAD = 1 << 16

_ARRAY = re.compile(rb"(?:\xc7.|\xc8..|\xc9....)\x01\x93|__msgpack_chunked_array__", re.DOTALL)
"""The beginning of an array of Flax: an extension of type 1 with a list of three values."""


class FlaxMsgpack:
    """A file with the state dict of a tree in msgpack, arrays as extensions of Flax's own.

    Where the source maps files, the arrays are read lazily: opening touches only what is between
    them. From other stores the whole file is read when it is opened.
    """

    name = "flax"

    def detect(self, source: Source) -> str | None:
        info = source.stat("")
        if info is None or info.is_dir:
            return None
        head = read_head(source, "", info.size)
        is_map = bool(head) and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))
        if not is_map:
            return None
        if info.size > _MAX_DECODED:
            found = _ARRAY.search(read_head(source, "", info.size, _HEAD)) is not None
        else:
            try:
                found = holds_flax_arrays(_read_all(source, info.size))
            except CheckpointError:
                found = False
        return "msgpack with arrays of Flax" if found else None

    @pause_gc()
    def open(self, source: Source) -> Catalog:
        """Opens a file. Leaves are in the order of the file; a list has the names `0`, `1`, ...

        Raises:
            Corrupted: The msgpack is unreadable, or contradicts itself.
            Unsupported: A value or dtype that templax does not read; the error names it.
        """
        info = source.stat("")
        entries: list[LeafEntry] = []
        empties: dict[Path, str] = {}
        for path, leaf in read_msgpack(_read_all(source, 0 if info is None else info.size)).items():
            name = join_path(path)
            if isinstance(leaf, Empty):
                empties[path] = leaf.name
            elif isinstance(leaf, Value):
                chunks = locate_value(leaf, "", inline=not source.maps)
                entries.append(
                    LeafEntry(name, path, leaf.shape, leaf.dtype, leaf.kind, handle=chunks)
                )
            else:
                entries.append(LeafEntry(name, path, (), np.dtype(str), "string", value=leaf))

        return Catalog(
            url=source.url,
            format=self.name,
            evidence="msgpack with arrays of Flax",
            entries=tuple(entries),
            source=source,
            locator=_locate,
            empties=empties,
        )


def _locate(
    entries: Iterable[LeafEntry], damages: list[Corrupted] | None = None
) -> dict[str, tuple[Chunk, ...]]:
    return {entry.name: entry.handle or () for entry in entries}


def _read_all(source: Source, size: int) -> memoryview:
    data = source.view("", 0, size) if source.maps else None
    return source.read("", 0, size) if data is None else data
