"""The journal of a conversion: which chunks are on the disk, for a later process to go on.

It lies in the directory where the checkpoint is written until the commit, and is removed before
that. A chunk is noted only after its bytes have been synced. Each record has a checksum, so that
what a kill or a loss of power leaves behind is read up to the last whole record.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np

from .._catalog.written import ChunkTable
from ..errors import SaveError
from ..storage.disk import save_error

NAME = "templax.conversion"

_MAX_HEAD = 1 << 26

_RECORD = np.dtype(
    [
        ("row", "<u8"),
        ("offset", "<u8"),
        ("nbytes", "<u8"),
        ("crc", "<u4"),
        ("element_crc", "<u4"),
        ("overflows", "<u8"),
        ("check", "<u4"),
    ]
)


class Head(msgspec.Struct, frozen=True):
    """What a conversion reads and how it writes: only one that is the same can go on.

    Attributes:
        source: A digest of the files that are read.
        options: A digest of everything else that decides about the bytes that are written.
        files: The files that chunks are written to.
    """

    source: str
    options: str
    files: tuple[str, ...]


class Journal:
    """The journal in a directory; a `Journal` of a save.

    Args:
        directory: Where the checkpoint is written until the commit.
        overflows: As `LeafReader.overflows`; what an earlier process counted is added.
        resume: Whether to continue the journal that is there.

    Raises:
        SaveError: The disk refused, or the journal is damaged.
    """

    def __init__(self, directory: str, overflows: dict[int, int], *, resume: bool = False):
        self._path, self._overflows = os.path.join(directory, NAME), overflows
        self._found, self._fd = np.empty(0, _RECORD), -1
        if resume:
            with self._name_errors():
                length, self._found = _read_records(self._path)
                self._fd = os.open(self._path, os.O_WRONLY)
                os.ftruncate(self._fd, length)
                os.lseek(self._fd, length, os.SEEK_SET)

    def begin(self, head: Head) -> None:
        """Creates the file, unless an earlier one is continued."""
        if self._fd >= 0:
            return
        data = msgspec.json.encode(head)
        data = len(data).to_bytes(8, "little") + data
        with self._name_errors():
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            self._write(data + zlib.crc32(data).to_bytes(4, "little"))

    def restore(self, table: ChunkTable) -> None:
        """See `_save.jobs.Journal`."""
        found = self._found[self._found["row"] < len(table.file)]
        rows = found["row"]
        table.file[rows] = 0
        for name in ("offset", "nbytes", "crc", "element_crc"):
            getattr(table, name)[rows] = found[name]
        for row, count in zip(rows.tolist(), found["overflows"].tolist(), strict=True):
            if count:
                self._overflows[row] = count

    def record(self, table: ChunkTable, rows: Sequence[int]) -> None:
        """See `_save.jobs.Journal`."""
        if not rows:
            return
        records = np.zeros(len(rows), _RECORD)
        records["row"] = rows
        for name in ("offset", "nbytes", "crc", "element_crc"):
            records[name] = getattr(table, name)[rows]
        records["overflows"] = [self._overflows.get(row, 0) for row in rows]
        records["check"] = _sum_records(records)
        with self._name_errors():
            self._write(records.tobytes())

    def remove(self) -> None:
        """Removes the journal, before the commit.

        Raises:
            SaveError: The disk refused.
        """
        with self._name_errors():
            self.close()
            os.unlink(self._path)

    def close(self) -> None:
        """Closes the file. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    @contextmanager
    def _name_errors(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise save_error("write", self._path, error) from error

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


def read_head(directory: str) -> Head | None:
    """The head of the journal in a directory; None if there is none that is whole."""
    try:
        with open(os.path.join(directory, NAME), "rb") as file:
            found = _decode_head(file.read(_MAX_HEAD))
    except OSError:
        return None
    return None if found is None else found[0]


def _decode_head(data: bytes) -> tuple[Head, int] | None:
    """The head, and where the records begin."""
    end = 8 + int.from_bytes(data[:8], "little")
    if len(data) < end + 4 or zlib.crc32(data[:end]) != int.from_bytes(
        data[end : end + 4], "little"
    ):
        return None
    try:
        return msgspec.json.decode(data[8:end], type=Head), end + 4
    except (msgspec.DecodeError, UnicodeDecodeError):  # a key or a string of other bytes
        return None


def _read_records(path: str) -> tuple[int, np.ndarray]:
    """The bytes up to the end of the last whole record, and the records."""
    with open(path, "rb") as file:
        data = file.read()
    head = _decode_head(data)
    if head is None:
        raise SaveError("Expected the journal of a conversion, found it damaged", file=path)
    begin = head[1]
    count = (len(data) - begin) // _RECORD.itemsize
    records = np.frombuffer(data, _RECORD, count, begin)
    wrong = np.flatnonzero(records["check"] != _sum_records(records))
    records = records[: wrong[0]] if len(wrong) else records
    return begin + len(records) * _RECORD.itemsize, records


def _sum_records(records: np.ndarray) -> list[int]:
    """The checksum of each record, without its last field."""
    data, size = records.tobytes(), _RECORD.itemsize
    return [zlib.crc32(data[i : i + size - 4]) for i in range(0, len(data), size)]
