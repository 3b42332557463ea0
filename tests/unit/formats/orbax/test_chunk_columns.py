"""Chunks as columns are those of `Catalog.locate`, and so are the errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import templax as tx
from helpers import CORPUS
from templax._catalog.chunk_columns import ChunkColumns, locate_columns
from templax._catalog.written import ChunkTable, Leaf
from templax._core.boxes import size_of
from templax._core.chunk_grid import iter_cells
from templax.formats.file_names import INDEX_FILE, MANIFEST
from templax.formats.ocdbt.write import DataFile
from templax.formats.orbax.write import build_database, encode_index_file, encode_tree_files
from templax.storage import Memory

FILES = ("ocdbt.process_0/d/0", "ocdbt.process_1/d/1")

Shape = tuple[int, ...]


def make_item(
    leaves: dict[str, tuple[Shape, Shape]],
    lengths: Any,
    *,
    compressed: bool,
    database: bool = False,
    short: bool = False,
) -> Memory:
    """An item of two processes: its leaves, of these shapes and chunks, lie in turns in its files.

    Args:
        leaves: Name → shape, and shape of the chunks.
        lengths: Returns the stored length of a chunk, given what its box has.
        compressed: Whether the chunks are compressed.
        database: Whether it has the database of Orbax, not the index of templax.
        short: Whether the second file lacks its last byte.
    """
    made = [Leaf(n, (n,), "jax.Array", s, np.dtype("i2")) for n, (s, _) in leaves.items()]
    chunks = [chunk for _, chunk in leaves.values()]
    table = ChunkTable(made, chunks)
    ends, row = [3, 0], 0
    for leaf, chunk in zip(made, chunks, strict=True):
        for _, box in iter_cells(leaf.shape, chunk):
            table.file[row], table.crc[row] = row % 2, row
            full = database and not compressed
            table.nbytes[row] = 2 * math.prod(chunk) if full else lengths(2 * size_of(box))
            table.offset[row] = ends[row % 2]
            ends[row % 2] += int(table.nbytes[row])
            row += 1
    small = encode_tree_files(made, chunks, ())
    if database:
        table.file += 1
        files = [DataFile(f"d/{0:032x}"), *[DataFile(file) for file in FILES]]
        level = 3 if compressed else None
        nodes, small[MANIFEST] = build_database(made, chunks, table, files, 0, level)
        data = {file: bytes(end - short * (end > 0)) for file, end in zip(FILES, ends, strict=True)}
        return Memory({**small, **data, files[0].path: nodes})
    listed = list(zip(FILES, ends, strict=True))
    crcs = np.zeros(len(made), "<u4")
    index = encode_index_file(made, chunks, table, listed, small, (), compressed, crcs)
    data = {file: bytes(end) for file, end in listed}
    return Memory({**small, **data, INDEX_FILE: index})


def locate(catalog: tx.Catalog, locate: Any) -> Any:
    """Name → chunks, or the error."""
    entries = [entry for entry in catalog.entries if entry.kind != "string"]
    try:
        return {name: tuple(chunks) for name, chunks in locate(catalog, entries).items()}
    except tx.TemplaxError as error:
        return str(error)


@st.composite
def leaves(draw: st.DrawFn) -> dict[str, tuple[Shape, Shape]]:
    """One to three leaves, and how they are chunked."""
    found: dict[str, tuple[Shape, Shape]] = {}
    for i in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
        found[f"l{i}"] = shape, tuple(draw(st.integers(1, max(1, n))) for n in shape)
    return found


@given(leaves(), st.booleans(), st.data())
@settings(deadline=None)
def test_columns_are_the_chunks_of_the_catalog(
    drawn: dict[str, tuple[Shape, Shape]], compressed: bool, data: st.DataObject
) -> None:
    """Or the error is that of the catalog: a few lengths are impossible."""

    def choose(nbytes: int) -> int:
        if compressed:
            return data.draw(st.sampled_from([*range(1, 20), 1 << 20]))
        return nbytes + (data.draw(st.integers(0, 30)) == 0)

    catalog = tx.open(make_item(drawn, choose, compressed=compressed))
    assert locate(catalog, locate_columns) == locate(catalog, tx.Catalog.locate)


def test_a_chunk_is_made_when_it_is_asked_for() -> None:
    catalog = tx.open(make_item({"w": ((4, 6), (2, 3))}, int, compressed=False))
    found = locate_columns(catalog, catalog.entries)["w"]
    assert isinstance(found, ChunkColumns)
    expected = catalog.locate(catalog.entries)["w"]
    assert len(found) == len(expected) == 4
    assert (found[1], found[-1], [*found[1:3]]) == (expected[1], expected[3], [*expected[1:3]])
    with pytest.raises(IndexError):
        found[4]


def test_a_missing_data_file_is_damage() -> None:
    item = make_item({"w": ((4, 6), (2, 3))}, int, compressed=False)
    kept = {info.key: bytes(item.read(info.key)) for info in item.walk("") if info.key != FILES[1]}
    catalog = tx.open(Memory(kept))
    assert "Expected a data file, found none - at `w`" in locate(catalog, locate_columns)


@given(leaves(), st.booleans(), st.data())
@settings(deadline=None)
def test_columns_of_a_database_are_the_chunks_of_the_catalog(
    drawn: dict[str, tuple[Shape, Shape]], compressed: bool, data: st.DataObject
) -> None:
    """As above, without the index of templax: Orbax stores chunks at the edge at full size."""

    def choose(nbytes: int) -> int:
        return data.draw(st.sampled_from([*range(1, 20), 1 << 20]))

    short = data.draw(st.integers(0, 5)) == 0
    item = make_item(drawn, choose, compressed=compressed, database=True, short=short)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("templax.formats.zarr.columns._MIN_CHUNKS", data.draw(st.integers(1, 4)))
        catalog = tx.open(item)
        assert locate(catalog, locate_columns) == locate(catalog, tx.Catalog.locate)


def test_a_chunk_of_a_database_is_made_when_it_is_asked_for() -> None:
    leaves = {"w": ((9, 6), (2, 1)), "v": ((9, 6), (2, 1))}
    catalog = tx.open(make_item(leaves, int, compressed=False, database=True))
    found = locate_columns(catalog, catalog.entries)
    assert all(isinstance(chunks, ChunkColumns) for chunks in found.values())
    assert found["v"][29] == catalog.locate(catalog.entries)["v"][29]


def test_files_of_arrays_are_chunks() -> None:
    """As of Orbax without a database."""
    catalog = tx.open(CORPUS / "orbax-0.12.8-noocdbt" / "ckpt")
    assert locate(catalog, locate_columns) == locate(catalog, tx.Catalog.locate)
