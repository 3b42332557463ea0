"""Blocks of a conversion: they tile a leaf, consist of whole chunks, and any layout is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from templax._catalog.catalog import Catalog
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._catalog.written import ChunkTable, Leaf
from templax._convert import cut as cut_module
from templax._convert.cut import cut_blocks
from templax._convert.read import LeafReader
from templax._core.boxes import Box, box_slices, full_box, intersect, relative_box, shape_of
from templax._core.chunk_grid import chunk_shape, grid_shape, iter_cells
from templax._save import jobs
from templax._save.jobs import Block, JobPlan, WriteOptions
from templax.errors import Corrupted
from templax.storage import Memory
from templax.testing import strategies


def store(values: np.ndarray, grid: Sequence[Box], codecs: Sequence[str]) -> tuple[bytes, Any]:
    """A file of the chunks of a leaf, and the chunks; a codec for each."""
    file, chunks = b"", list[Chunk]()
    for box, codec in zip(grid, codecs, strict=True):
        inside = intersect(box, full_box(values.shape))
        assert inside is not None
        piece = np.zeros(shape_of(box), values.dtype)
        piece[box_slices(relative_box(inside, box))] = values[box_slices(inside)]
        raw = piece.tobytes()
        stored = zstandard.compress(raw) if codec else raw
        chunks.append(
            Chunk(Extent("x", len(file), len(file) + len(stored)), box, (codec,) if codec else ())
        )
        file += stored
    return file, tuple(chunks)


def make_reader(values: np.ndarray, chunks: Any, file: bytes) -> LeafReader:
    entry = LeafEntry("w", ("w",), values.shape, values.dtype)
    catalog = Catalog(
        "here", "made", "a test", (entry,), Memory({"x": file}), lambda es, _=None: {"w": chunks}
    )
    return LeafReader(catalog, {"w": entry})


@given(st.data())
def test_any_layout_is_read_in_blocks_of_whole_chunks(data: Any) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), max_size=4)))
    values = np.arange(math.prod(shape), dtype=np.uint16).reshape(shape)
    grid = data.draw(strategies.grids(shape))
    codecs = data.draw(
        st.lists(st.sampled_from(["", "zstd"]), min_size=len(grid), max_size=len(grid))
    )
    file, chunks = store(values, grid, codecs)
    unit = chunk_shape(shape, 2, data.draw(st.integers(2, 60)))
    leaf = Leaf("w", ("w",), "np.ndarray", shape, values.dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cut_module, "BLOCK_BYTES", data.draw(st.integers(2, 200)))
        patch.setattr(cut_module, "MAX_STREAMS", data.draw(st.sampled_from([0, 64])))
        reader = make_reader(values, chunks, file)
        cells = [box for _, box in iter_cells(shape, unit)]
        first = 0
        for boxes, memory in reader.cut(leaf, unit):
            blocks = [Block(leaf, box, 0) for box in boxes]
            assert memory >= max(math.prod(shape_of(box)) * 2 for box in boxes)
            for block, read in zip(blocks, reader.read(blocks), strict=True):
                np.testing.assert_array_equal(read, values[(*box_slices(block.box), ...)])
                last = first + math.prod(grid_shape(shape_of(block.box), unit))
                assert {intersect(c, block.box) for c in cells[first:last]} == {*cells[first:last]}
                first = last
        assert first == len(cells)


def test_a_large_chunk_is_decoded_once_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_module, "BLOCK_BYTES", 64)
    grid = strategies.grid((8, 16), (8, 8))  # two chunks side by side
    chunks = [Chunk(Extent("x", 0, 1), box, ("zstd",)) for box in grid]
    (cuts,) = list(cut_blocks(full_box((8, 16)), 4, (1, 16), chunks))
    assert [cut.box[0] for cut in cuts] == [(i, i + 1) for i in range(8)]
    assert all(cut.streamed and len(cut.chunks) == 2 for cut in cuts)
    gzip = [Chunk(Extent("x", 0, 1), box, ("gzip",)) for box in grid]
    assert [
        [cut.box for cut in cuts] for cuts in cut_blocks(full_box((8, 16)), 4, (1, 16), gzip)
    ] == [[full_box((8, 16))]]


def test_a_streamed_chunk_is_checked_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_module, "BLOCK_BYTES", 64)
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for change in (slice(0, -9), slice(0, 3)):
        file, chunks = store(values, [full_box((16, 16))], ["zstd"])
        cut = file[change]
        chunks = (Chunk(Extent("x", 0, len(cut)), chunks[0].box, ("zstd",)),)
        reader = make_reader(values, chunks, cut)
        leaf = Leaf("w", ("w",), "np.ndarray", (16, 16), values.dtype)
        ((boxes, _),) = list(reader.cut(leaf, (1, 16)))
        with pytest.raises(Corrupted, match="decoded bytes") as caught:
            list(reader.read([Block(leaf, box, 0) for box in boxes]))
        assert caught.value.leaf == "w"


def test_small_leaves_are_read_together() -> None:
    values = np.arange(4, dtype=np.uint16)
    leaves = [Leaf(f"w{i}", (f"w{i}",), "np.ndarray", (4,), values.dtype) for i in range(100)]
    chunks = [(4,)] * 100

    class Reader:
        def cut(self, leaf: Leaf, chunk: Any) -> Any:
            raise AssertionError("small leaves are not divided")

        def read(self, blocks: Sequence[Block]) -> Any:
            return (values for _ in blocks)

    options = WriteOptions(0, None, 1, jobs.PACK_BYTES, forget=False, reader=Reader())
    (job,) = list(JobPlan(ChunkTable(leaves, chunks), options).list_jobs(leaves, chunks, None))
    assert len(job.blocks) == 100
