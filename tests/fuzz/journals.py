"""A target for the journal of a conversion, which a kill or a loss of power leaves behind."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from templax._catalog.written import NO_FILE, ChunkTable, Leaf
from templax._convert import journal

from .targets import Wrong, add_target

_LEAVES, _CHUNKS = [Leaf("w", ("w",), "np.ndarray", (8, 4), np.dtype("f4"))], [(1, 4)]


def _make_seeds() -> Iterable[bytes]:
    for rows in ([], [0], [3, 1], list(range(8))):
        with tempfile.TemporaryDirectory() as directory:
            written = journal.Journal(directory, {1: 5})
            written.begin(journal.Head("source", "options", ("d/data",)))
            written.record(ChunkTable(_LEAVES, _CHUNKS), rows)
            written.close()
            yield Path(directory, journal.NAME).read_bytes()


def _sign(data: bytes) -> bytes:
    """The same with the checksums that its bytes have, so that they are looked at."""
    end = 8 + int.from_bytes(data[:8], "little")
    if len(data) < end + 4:
        return data
    head, size = data[:end], journal._RECORD.itemsize
    count = (len(data) - end - 4) // size
    records = np.frombuffer(data, journal._RECORD, count, end + 4).copy()
    records["check"] = journal._sum_records(records)
    rest = data[end + 4 + count * size :]
    return head + zlib.crc32(head).to_bytes(4, "little") + records.tobytes() + rest


@add_target("conversion-journal", seeds=_make_seeds, max_bytes=4096)
def read_journal(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        for content in (data, _sign(data)):
            Path(directory, journal.NAME).write_bytes(content)
            if journal.read_head(directory) is not None:
                _resume(directory)


def _resume(directory: str) -> None:
    """Restores the rows, notes one more, and reads both again."""
    found, noted = ChunkTable(_LEAVES, _CHUNKS), ChunkTable(_LEAVES, _CHUNKS)
    resumed = journal.Journal(directory, {}, resume=True)
    resumed.restore(found)
    noted.offset[7] = 99
    resumed.record(noted, [7])
    resumed.close()
    again = ChunkTable(_LEAVES, _CHUNKS)
    resumed = journal.Journal(directory, {}, resume=True)
    resumed.restore(again)
    resumed.close()
    if again.offset[7] != 99 or not np.array_equal(again.offset[:7], found.offset[:7]):
        raise Wrong("a journal that is continued loses or alters records")
    if (again.file[:7] != found.file[:7]).any() or again.file[7] == NO_FILE:
        raise Wrong("a journal that is continued forgets which chunks are written")
