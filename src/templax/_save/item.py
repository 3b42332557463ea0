"""JAX. What is saved under one name: a tree, or a JSON value."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from .._catalog.written import NO_FILE, ChunkTable, Leaf
from .._core.arguments import PyTree
from .._core.boxes import Shape, full_box
from .._core.chunk_grid import chunk_shape
from .._core.memory import ALIGN
from ..errors import SaveError
from ..formats.ocdbt import read
from ..formats.ocdbt.write import DataFile
from ..formats.orbax import checksum_index
from ..formats.orbax.write import Files, build_database, encode_index_file, encode_tree_files
from ..storage.sink import Sink, SinkFile
from .snapshot import collect_leaves
from .writer import Writer


@dataclass(frozen=True, slots=True)
class Json:
    """An item that is a JSON value.

    Attributes:
        value: What `json.dumps` takes.
        file: The name of its only file.
    """

    value: Any
    file: str = "metadata"

    def encoded(self, name: str) -> bytes:
        """Its file.

        Args:
            name: Of the item, for the message.

        Raises:
            SaveError: It is none; nothing was written.
        """
        try:
            return json.dumps(self.value).encode()
        except (TypeError, ValueError, RecursionError) as error:
            where = f" as item `{name}`" if name else ""
            raise SaveError(f"Expected JSON values to save{where}: {error}") from error


class Share(msgspec.Struct):
    """What one process wrote of a tree: path and bytes of its data file, and rows of `ChunkTable`."""

    file: tuple[str, int]
    rows: bytes
    columns: list[bytes]


class Item:
    """A tree that is saved: made of the caller's values, written by `writer`, then described.

    Args:
        name: Its directory; "" if the checkpoint is the item itself.
        tree: As of `save`.

    Attributes:
        leaves: Those that have values.

    Raises:
        SaveError, UsageError: As of `collect_leaves`.
    """

    writer: Writer

    def __init__(self, name: str, tree: PyTree):
        self.name = name
        self._prefix = f"{name}/" if name else ""
        self.leaves, self._empties = collect_leaves(tree)
        self._chunks = [_chunk_shape(leaf) for leaf in self.leaves]

    @property
    def facts(self) -> Any:
        """What all processes must agree on."""
        return self.name, [
            (leaf.name, leaf.value_type, leaf.dtype_name, leaf.shape, chunk)
            for leaf, chunk in zip(self.leaves, self._chunks, strict=True)
        ]

    @property
    def alone(self) -> list[tuple[int, int]]:
        """Arrays that one process has whole: number of the leaf, and the process."""
        return [(i, x.owners[0][1]) for i, x in enumerate(self.leaves) if len(x.owners) == 1]

    def disown(self, alone: Sequence[tuple[int, int]]) -> None:
        """Takes over what process 0 knows to be on one process alone: an array that is here alone
        looks like one that every process has a copy of.
        """
        for i, owner in alone:
            leaf = self.leaves[i]
            leaf.tile, leaf.owners = leaf.shape, ((full_box(leaf.shape), owner),)

    def open(
        self,
        sink: Sink,
        *,
        process: int,
        alone: bool,
        level: int | None,
        threads: int,
        memory: int,
        forget: bool,
    ) -> None:
        """Makes the data file, and the writer, which is yet to be started.

        Args:
            alone: There is one process only.
            Others: As of `Writer`.
        """
        name = f"d/{secrets.token_hex(16)}"
        self._data = name if alone else f"ocdbt.process_{process}/{name}"
        self._file: SinkFile = sink.create(self._prefix + self._data)
        self._level = level
        self._places = ChunkTable(self.leaves, self._chunks)
        self.writer = Writer(
            self.leaves,
            self._chunks,
            self._places,
            self._file,
            process=process,
            level=level,
            threads=threads,
            memory=memory,
            forget=forget,
        )

    def stop(self) -> None:
        """Ends the threads that write, if there are any."""
        if hasattr(self, "writer"):
            self.writer.stop()

    def share(self) -> Share:
        """What this process has written. Nothing more will be."""
        if self._file.size < self.writer.end:  # the last chunk is padded
            self._file.write(b"\0", self.writer.end - 1)
        self._file.close()
        rows = np.flatnonzero(self._places.file != NO_FILE)
        columns = [column[rows].tobytes() for column in self._places.columns]
        return Share((self._data, self.writer.end), rows.astype("<u8").tobytes(), columns)

    def join(self, sink: Sink, shares: Sequence[Share]) -> list[tuple[str, int]]:
        """Puts together what all processes have written, on process 0.

        Returns:
            Path and bytes of the data files; the first, a new one, has the nodes of the database.

        Raises:
            SaveError: A part of a leaf is on no process.
        """
        places = self._places
        name = f"d/{secrets.token_hex(16)}"
        self._file = sink.create(self._prefix + name)
        files = [(name, 0)]
        for share in shares:
            rows = np.frombuffer(share.rows, "<u8").astype(np.int64)
            for column, part in zip(places.columns, share.columns, strict=True):
                column[rows] = np.frombuffer(part, column.dtype)
            places.file[rows] = len(files)
            files.append(share.file)
        lost = np.flatnonzero(places.file == NO_FILE)
        if len(lost):
            i = int(np.searchsorted(places.first_chunk, lost[0], side="right")) - 1
            raise SaveError("No process has the values", leaf=self.leaves[i].name)
        return files

    @property
    def files(self) -> list[tuple[str, int]]:
        """Path and bytes of the data file of a process that saves alone."""
        return [(self._data, self.writer.end)]

    def describe(
        self, files: Sequence[tuple[str, int]], others: Files
    ) -> tuple[Files, int, list[int]]:
        """Ends the first data file with the nodes of the database, and closes it.

        Args:
            files: Path and bytes of the data files.
            others: Files of the item that the index is to know.

        Returns:
            All other files, by their path in the checkpoint; the bytes of the data files; and the
            crc32c of each leaf.
        """
        leaves, chunks, places, level = self.leaves, self._chunks, self._places, self._level
        (name, end), *rest = files
        nodes_at = -(-end // ALIGN) * ALIGN
        data_files = [DataFile(path, path.find("/d/") + 1) for path, _ in files]
        nodes, manifest = build_database(leaves, chunks, places, data_files, nodes_at, level)
        self._file.write(nodes, nodes_at)
        self._file.close()
        files = [(name, nodes_at + len(nodes)), *rest]
        small = (
            encode_tree_files(leaves, chunks, self._empties) | {read.MANIFEST: manifest} | others
        )
        crcs = places.fingerprints(leaves, chunks)
        small[checksum_index.INDEX_FILE] = encode_index_file(
            leaves, chunks, places, files, small, self._empties, level is not None, crcs
        )
        below = {self._prefix + name: data for name, data in small.items()}
        return below, sum(size for _, size in files), crcs.tolist()


def _chunk_shape(leaf: Leaf) -> Shape:
    if leaf.value_type == "string":
        return ()
    tile = leaf.shape if leaf.tile is None else leaf.tile
    return chunk_shape(tile, leaf.dtype.itemsize, padded=tile == leaf.shape)
