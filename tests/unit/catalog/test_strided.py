"""Chunks whose elements are stored in another order than the leaf's, or with gaps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from templax._audit import diff_blocks
from templax._catalog.catalog import Catalog
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._catalog.strided import divide_chunk, make_strided_chunk, move_chunk
from templax._catalog.written import Leaf
from templax._convert.read import LeafReader
from templax._core.boxes import size_of
from templax.storage import Memory


def make_catalog(stored: np.ndarray, shape: tuple[int, ...], chunks: tuple[Chunk, ...]) -> Catalog:
    """A checkpoint of the leaf `w`, whose chunks are in one file."""
    entry = LeafEntry("w", ("w",), shape, stored.dtype)

    def locate(
        entries: Iterable[LeafEntry], damages: list[tx.Corrupted] | None = None
    ) -> dict[str, tuple[Chunk, ...]]:
        return {entry.name: chunks for entry in entries}

    source = Memory({"": stored.tobytes()})
    return Catalog("memory", "made", "a test", (entry,), source, locate)


@given(st.data())
def test_chunks_with_any_steps_are_read_wherever_they_lie(data: st.DataObject) -> None:
    """A leaf of two chunks side by side, each with steps of its own."""
    rank = data.draw(st.integers(1, 3))
    axis = data.draw(st.integers(0, rank - 1))
    chunks: list[Chunk] = []
    parts: list[np.ndarray] = []
    stored = np.arange(4096, dtype=np.int32)
    first = [data.draw(st.integers(1, 4)) for _ in range(rank)]
    at = 0
    for _ in range(2):
        shape = tuple(data.draw(st.integers(1, 4)) if i == axis else first[i] for i in range(rank))
        strides, reach = [0] * rank, 0
        for i in data.draw(st.permutations(range(rank))):
            if data.draw(st.integers(0, 4)):  # else the same elements for all indices
                strides[i] = reach + data.draw(st.integers(1, 3))
                reach += (shape[i] - 1) * strides[i]
        want = np.lib.stride_tricks.as_strided(stored[at:], shape, [4 * n for n in strides])
        extent = Extent("", 4 * at, 4 * (at + reach + 1))
        chunk = make_strided_chunk(extent, shape, tuple(strides), stored.dtype)
        assert chunk is not None
        corner = [0] * rank
        corner[axis] = sum(part.shape[axis] for part in parts)
        chunks.append(move_chunk(chunk, tuple(corner)))
        parts.append(want)
        at += reach + data.draw(st.integers(1, 5))
    leaf = np.concatenate(parts, axis)
    catalog = make_catalog(stored, leaf.shape, tuple(chunks))
    got = tx.restore(catalog, {"w": np.zeros(leaf.shape, np.int32)})["w"]
    assert np.array_equal(got, leaf)


def test_a_chunk_in_fortran_order_that_does_not_begin_the_leaf_is_divided() -> None:
    stored = np.arange(24, dtype=np.float32)
    chunks = tuple(
        divide_chunk(Chunk(Extent("", at, at + 48), box, order="F"), stored.dtype, 0)
        for at, box in [(0, ((0, 3), (0, 4))), (48, ((3, 6), (0, 4)))]
    )
    assert [chunk.order for chunk in chunks] == ["C", "C"]
    halves = [part.reshape((3, 4), order="F") for part in np.split(stored, 2)]
    got = tx.restore(make_catalog(stored, (6, 4), chunks), {"w": np.zeros((6, 4), np.float32)})
    assert np.array_equal(got["w"], np.concatenate(halves))


def test_a_large_leaf_in_fortran_order_is_converted_and_compared_in_blocks() -> None:
    """Its file would have 1 GiB; only what would be read is looked at."""
    shape, dtype = (1 << 14, 1 << 14), np.dtype(np.float32)
    box = ((0, shape[0]), (0, shape[1]))
    chunk = Chunk(Extent("", 0, 1 << 30), box, order="F")
    catalog = make_catalog(np.zeros(0, dtype), shape, (chunk,))
    (entry,) = catalog.entries
    leaf = Leaf("w", ("w",), "jax.Array", shape, dtype, None, None)
    cuts = list(LeafReader(catalog, {"w": entry}).cut(leaf, (1, shape[1])))
    assert len(cuts) > 8
    assert max(memory for _, memory in cuts) <= diff_blocks.SPREAD_BYTES
    side = diff_blocks.Side("A", catalog)
    pairs = [(entry, entry)]
    blocks = list(diff_blocks._list_blocks((side, side), pairs, [0]))
    assert max(size_of(block.box) for block in blocks) * 4 <= diff_blocks.SPREAD_BYTES


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(Extent("", 0, 48), ((0, 3), (0, 4))),
        Chunk(Extent("", 0, 48), ((0, 3), (0, 4)), ("zstd",), "F"),
        Chunk(Extent("", 0, 48, bytes(48)), ((0, 3), (0, 4)), (), "F"),
        Chunk(Extent("", 0, 48), ((0, 3), (0, 4)), (), "F", True, (1,), 48),
    ],
)
def test_other_chunks_are_not_divided(chunk: Chunk) -> None:
    assert divide_chunk(chunk, np.dtype(np.float32), 0) is chunk
    small = Chunk(Extent("", 0, 48), ((0, 3), (0, 4)), (), "F")
    assert divide_chunk(small, np.dtype(np.float32), 48) is small


def test_elements_that_overlap_in_steps_are_refused() -> None:
    assert make_strided_chunk(Extent("", 0, 20), (3, 3), (1, 1), np.dtype(np.int32)) is None
