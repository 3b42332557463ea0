"""How leaves are split into chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templax._core.boxes import full_box, is_contiguous, shape_of, size_of
from templax._core.chunk_grid import CHUNK_BYTES, chunk_shape, grid_shape, is_row_major, iter_cells

SHAPES = (
    st.lists(st.integers(0, 3000) | st.sampled_from([2**k for k in range(22)]), max_size=4)
    .map(tuple)
    .filter(lambda shape: math.prod(shape) <= 2**31)
)
ITEMSIZES = st.sampled_from([1, 2, 4, 8, 16])


@given(SHAPES, ITEMSIZES, st.booleans())
def test_chunks_are_consecutive_ranges_of_the_leaf(
    shape: tuple[int, ...], itemsize: int, padded: bool
) -> None:
    chunk = chunk_shape(shape, itemsize, padded=padded)
    assert len(chunk) == len(shape)
    assert is_row_major(shape, chunk) or 0 in shape
    count = math.prod(grid_shape(shape, chunk))
    if count > 1:
        # Only the last chunk is smaller, and only along the first dimension.
        ragged = [n % c for n, c in zip(shape, chunk, strict=True)]
        assert not any(ragged[1:])
        assert padded or not any(ragged)
    if count <= 4096:
        boxes = [box for _, box in iter_cells(shape, chunk)]
        assert sum(size_of(box) for box in boxes) == math.prod(shape)
        assert all(is_contiguous(box, shape) for box in boxes)
        ends = np.cumsum([size_of(box) for box in boxes])
        starts = [
            sum(a * math.prod(shape[i + 1 :]) for i, (a, _) in enumerate(box)) for box in boxes
        ]
        assert starts == [0, *ends[:-1].tolist()][: len(starts)]


@given(SHAPES, ITEMSIZES)
def test_chunks_have_at_most_4_mib_if_a_row_does(shape: tuple[int, ...], itemsize: int) -> None:
    chunk = chunk_shape(shape, itemsize)
    nbytes = math.prod(chunk) * itemsize
    cut = next((i for i, (n, c) in enumerate(zip(shape, chunk, strict=True)) if c != n), None)
    if cut == 0 and chunk[0] > 1 and 0 not in shape:  # the first dimension can always be split
        assert nbytes <= CHUNK_BYTES
        row = nbytes // chunk[0]
        assert (nbytes + row) * 4 > CHUNK_BYTES
    if 0 not in shape and math.prod(shape) * itemsize <= CHUNK_BYTES:
        assert chunk == shape


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("rows", [64, 1024, 8192, 32_000, 50_304])
def test_shards_along_the_first_dimension_are_whole_chunks(rows: int, devices: int) -> None:
    """So that a process that reads one shard can verify all it reads."""
    chunk = chunk_shape((rows, 16_384), 4)
    if grid_shape((rows, 16_384), chunk)[0] >= devices and rows % devices == 0:
        assert (rows // devices) % chunk[0] == 0


def test_an_array_without_elements_has_no_chunks() -> None:
    assert list(iter_cells((0, 3), chunk_shape((0, 3), 4))) == []
    assert shape_of(full_box(())) == ()
