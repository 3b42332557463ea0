"""The items of a checkpoint: each is a tree or a JSON value, saved under a name."""

from __future__ import annotations

import itertools
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from .._catalog.written import NO_FILE, ChunkTable, Leaf, refuse_leaves
from .._core import chunk_grid
from .._core.boxes import Shape, full_box
from .._core.chunk_grid import chunk_shape
from .._core.json_text import encode_json
from .._core.memory import ALIGN
from ..errors import SaveError, UsageError
from ..formats.ocdbt import read
from ..formats.ocdbt.write import DataFile
from ..formats.orbax import checksum_index
from ..formats.orbax.limits import find_item_problem, find_unreadable_leaves
from ..formats.orbax.write import (
    Empty,
    Files,
    build_database,
    encode_index_file,
    encode_tree_files,
)
from ..storage.signatures import MAX_METADATA
from ..storage.sink import Sink, SinkFile
from .jobs import WriteOptions
from .writer import Writer


@dataclass(frozen=True, slots=True)
class Json:
    """An item that is a JSON value.

    Attributes:
        value: Anything that `json.dumps` takes.
        file: The name of the item's only file.
    """

    value: Any
    file: str = "metadata"

    def encode(self, name: str) -> bytes:
        """The content of the item's file.

        Args:
            name: Name of the item, for the error message.

        Raises:
            SaveError: `value` is not JSON, or has two keys that are one in JSON.
        """
        try:
            return encode_json(self.value).encode()
        except (TypeError, ValueError, RecursionError) as error:
            where = f" as item `{name}`" if name else ""
            raise SaveError(f"Expected JSON values to save{where}: {error}") from error


class Share(msgspec.Struct):
    """What one process wrote of a tree: path and size of its data file, and rows of `ChunkTable`.

    Attributes:
        rows: Row numbers as little-endian uint64.
        columns: The bytes of these rows in each column of the table.
        values: The digest of the larger values of which this process holds a copy; see
            `local_values`.
    """

    file: tuple[str, int]
    rows: bytes
    columns: list[bytes]
    values: bytes = b""


class Item:
    """A tree that is being saved.

    The calls come in this order: `open`, `writer.start` and `writer.wait`, then `describe`. If
    several processes save, each calls `finish_share` after writing, and process 0 calls
    `merge_shares` before `describe`.

    Args:
        name: The item's directory, or "" if the item is the checkpoint itself.
        leaves: The leaves that have values.
        empties: The containers without leaves.
        chunk_bytes: Most bytes of a chunk, where the shape can be divided that finely.

    Attributes:
        leaves: As given.
        metadata: JSON that is stored with the item, or None.
        empty_tuples: See `Tree`.
        writer: Writes the data file; exists after `open`.

    Raises:
        SaveError: A leaf could not be read again by templax or Orbax.
    """

    writer: Writer
    metadata: Any = None
    empty_tuples: bool = False

    def __init__(
        self,
        name: str,
        leaves: list[Leaf],
        empties: Sequence[Empty],
        chunk_bytes: int | None = None,
    ):
        self.rename(name)
        self.leaves, self._empties = leaves, empties
        self._chunks = [choose_chunk(leaf, chunk_bytes) for leaf in self.leaves]
        refuse_leaves(find_unreadable_leaves(self.leaves, self._chunks, self._empties))

    def rename(self, name: str) -> None:
        """Gives the item another name, before `open`."""
        self.name = name
        self._prefix = f"{name}/" if name else ""

    @property
    def facts(self) -> list[Any]:
        """Everything about each leaf, but its values, that all processes must agree on."""
        return [
            (self.name, leaf.name, leaf.value_type, leaf.dtype_name, leaf.shape, chunk)
            for leaf, chunk in zip(self.leaves, self._chunks, strict=True)
        ]

    @property
    def single_owners(self) -> list[tuple[int, int]]:
        """The arrays that one process holds alone: index of the leaf, index of the process."""
        return [(i, x.owners[0][1]) for i, x in enumerate(self.leaves) if len(x.owners) == 1]

    @property
    def first_rows(self) -> dict[int, str]:
        """Row of a first chunk in the `ChunkTable` → name of the leaf. Valid after `open`."""
        return self._map_rows(self.leaves)

    def _map_rows(self, leaves: Sequence[Leaf]) -> dict[int, str]:
        rows = itertools.pairwise(self._places.first_chunk)
        named = zip(rows, leaves, strict=True)
        return {start: leaf.name for (start, stop), leaf in named if stop > start}

    def set_owners(self, single_owners: Sequence[tuple[int, int]]) -> None:
        """Sets the owners of arrays that process 0 knows to be on one process alone.

        On its owner such an array cannot be told from one of which every process has a copy.
        """
        for i, owner in single_owners:
            leaf = self.leaves[i]
            leaf.tile, leaf.owners = leaf.shape, ((full_box(leaf.shape), owner),)

    def open(self, sink: Sink, options: WriteOptions, *, only_process: bool) -> None:
        """Makes the data file and the writer, without starting it.

        Args:
            sink: Where the checkpoint is written.
            options: How to write.
            only_process: Whether no other process takes part in the save.
        """
        name = f"d/{options.data or secrets.token_hex(16)}"
        self._data = name if only_process else f"ocdbt.process_{options.process}/{name}"
        self._file: SinkFile = sink.create(self._prefix + self._data)
        self._level = options.level
        self._places = ChunkTable(self.leaves, self._chunks)
        self.writer = Writer(self.leaves, self._chunks, self._places, self._file, options)

    def stop(self) -> None:
        """Stops the threads of the writer, if they were started."""
        if hasattr(self, "writer"):
            self.writer.stop()

    def finish_share(self) -> Share:
        """Closes the data file of this process, and returns what was written to it."""
        if self._file.size < self.writer.end:  # the last chunk is padded
            self._file.write(b"\0", self.writer.end - 1)
        self._file.close()
        rows = np.flatnonzero(self._places.file != NO_FILE)
        columns = [column[rows].tobytes() for column in self._places.columns]
        return Share((self._data, self.writer.end), rows.astype("<u8").tobytes(), columns)

    def merge_shares(self, sink: Sink, shares: Sequence[Share]) -> list[tuple[str, int]]:
        """Combines what all processes have written; process 0 calls it.

        Returns:
            Path and size of each data file. The first is a new file, for the database's nodes.

        Raises:
            SaveError: No process wrote some part of a leaf.
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
        missing = np.flatnonzero(places.file == NO_FILE)
        if len(missing):
            i = int(np.searchsorted(places.first_chunk, missing[0], side="right")) - 1
            raise SaveError("No process has the values", leaf=self.leaves[i].name)
        return files

    @property
    def data_files(self) -> list[tuple[str, int]]:
        """Path and size of the data file, where one process saves alone."""
        return [(self._data, self.writer.end)]

    def describe(
        self, files: Sequence[tuple[str, int]], others: Files
    ) -> tuple[Files, int, list[int]]:
        """Appends the nodes of the database to the first data file and closes it; builds the rest.

        Args:
            files: Path and size of each data file.
            others: Further files of the item, which the checksum index lists too.

        Returns:
            The content of all other files by their path in the checkpoint; the total size of the
            data files; and the crc32c of each leaf.
        """
        leaves, chunks, places, level = self.leaves, self._chunks, self._places, self._level
        (name, end), *rest = files
        # A save that is resumed finds the nodes that an earlier process may have written.
        nodes_at = -(-max(end, self._file.size) // ALIGN) * ALIGN
        data_files = [DataFile(path, path.find("/d/") + 1) for path, _ in files]
        nodes, manifest = build_database(leaves, chunks, places, data_files, nodes_at, level)
        self._file.write(nodes, nodes_at)
        self._file.close()
        files = [(name, nodes_at + len(nodes)), *rest]
        small = encode_tree_files(
            leaves, chunks, self._empties, self.metadata, empty_tuples=self.empty_tuples
        )
        small |= {read.MANIFEST: manifest} | others
        crcs = places.fingerprints(leaves, chunks)
        small[checksum_index.INDEX_FILE] = encode_index_file(
            leaves, chunks, places, files, small, self._empties, level is not None, crcs
        )
        by_path = {self._prefix + name: data for name, data in small.items()}
        return by_path, sum(size for _, size in files), crcs.tolist()


def put_files(sink: Sink, files: Files) -> int:
    """Writes small files in this order; returns their size.

    Raises:
        SaveError: One is larger than what a restore reads, or the store refused.
    """
    for name, data in files.items():
        if len(data) > MAX_METADATA:
            raise SaveError(
                f"Expected at most {MAX_METADATA:,} bytes of `{name}`, which a restore would"
                f" refuse, got {len(data):,}",
                file=sink.path,
            )
        sink.put(name, data)
    return sum(map(len, files.values()))


def check_item_names(names: Iterable[str]) -> None:
    """Refuses names that the directories of items can't have.

    Raises:
        UsageError: A name is not that of a single directory, or a checkpoint uses it for other
            files; or two names are the same on a file system that ignores case and Unicode
            normalization, such as that of macOS.
    """
    folded: dict[str, str] = {}
    for name in names:
        problem = find_item_problem(name)
        if problem is None:
            same = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
            other = folded.setdefault(same, name)
            problem = None if other == name else f"is one with {other!r} where case is ignored"
        if problem is not None:
            raise UsageError(
                f"Expected names of directories for the items, got {name!r}, which {problem}"
            )
    if "" in folded and len(folded) > 1:
        raise UsageError("Expected a name for each of several items, got one without")


def choose_chunk(leaf: Leaf, most: int | None = None) -> Shape:
    """The shape of the chunks in which a leaf is written, of about `most` bytes."""
    if leaf.value_type == "string":
        return ()
    tile = leaf.shape if leaf.tile is None else leaf.tile
    if most is None and tile == leaf.shape and 0 < leaf.nbytes <= chunk_grid.CHUNK_BYTES:
        return leaf.shape  # the common case
    return chunk_shape(tile, leaf.dtype.itemsize, most, padded=tile == leaf.shape)
