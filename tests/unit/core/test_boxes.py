"""Box arithmetic against numpy: what a box selects is what slicing selects."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import count_examples
from templax._core.boxes import (
    Box,
    Shape,
    box_from_index,
    box_slices,
    full_box,
    intersect,
    is_contiguous,
    relative_box,
    shape_of,
    size_of,
    span_of,
)
from templax.testing import strategies

SHAPES = strategies.shapes().filter(lambda shape: 0 not in shape)
SHAPES_AND_BOX = SHAPES.flatmap(lambda s: st.tuples(st.just(s), strategies.boxes(s)))
SHAPES_AND_TWO = SHAPES.flatmap(
    lambda s: st.tuples(st.just(s), strategies.boxes(s), strategies.boxes(s))
)
MANY = count_examples(80)


def make_numbered(shape: Shape) -> np.ndarray:
    """An array whose elements are their positions in C order."""
    return np.arange(math.prod(shape)).reshape(shape)


def list_elements(array: np.ndarray, box: Box) -> set[int]:
    return set(np.ravel(array[box_slices(box)]).tolist())


@given(strategies.shapes())
def test_whole_is_everything(shape: Shape) -> None:
    array = make_numbered(shape)
    assert shape_of(full_box(shape)) == shape
    assert size_of(full_box(shape)) == array.size
    assert list_elements(array, full_box(shape)) == set(range(array.size))


@MANY
@given(SHAPES_AND_BOX)
def test_a_box_has_the_shape_and_size_of_its_slice(case: tuple[Shape, Box]) -> None:
    shape, box = case
    piece = make_numbered(shape)[box_slices(box)]
    assert shape_of(box) == piece.shape
    assert size_of(box) == piece.size


@MANY
@given(SHAPES_AND_TWO)
def test_intersect_has_the_elements_of_both(case: tuple[Shape, Box, Box]) -> None:
    shape, a, b = case
    array = make_numbered(shape)
    both = list_elements(array, a) & list_elements(array, b)
    overlap = intersect(a, b)
    assert (set() if overlap is None else list_elements(array, overlap)) == both
    assert overlap == intersect(b, a)


@MANY
@given(SHAPES_AND_TWO)
def test_intersect_with_a_containing_box_changes_nothing(
    case: tuple[Shape, Box, Box],
) -> None:
    shape, a, b = case
    assert intersect(a, a) == a
    assert intersect(a, full_box(shape)) == a
    overlap = intersect(a, b)
    if overlap is not None:
        assert intersect(overlap, a) == overlap == intersect(overlap, b)


@MANY
@given(SHAPES_AND_TWO)
def test_within_finds_the_overlap_inside_either_box(case: tuple[Shape, Box, Box]) -> None:
    """Every copy between two buffers relies on this."""
    shape, a, b = case
    overlap = intersect(a, b)
    if overlap is None:
        return
    array = make_numbered(shape)
    for outer in (a, b):
        piece = array[box_slices(outer)][box_slices(relative_box(overlap, outer))]
        assert np.array_equal(piece, array[box_slices(overlap)])
    assert relative_box(overlap, full_box(shape)) == overlap
    assert relative_box(a, a) == full_box(shape_of(a))


@MANY
@given(SHAPES_AND_BOX)
def test_a_box_is_contiguous_if_its_elements_are_adjacent(case: tuple[Shape, Box]) -> None:
    shape, box = case
    places = np.ravel(make_numbered(shape)[box_slices(box)])
    back_to_back = np.array_equal(places, np.arange(places[0], places[0] + places.size))
    assert is_contiguous(box, shape) == back_to_back


@MANY
@given(SHAPES_AND_BOX, st.sampled_from([1, 2, 3, 8]))
def test_span_of_is_the_smallest_range_that_holds_the_box(
    case: tuple[Shape, Box], itemsize: int
) -> None:
    shape, box = case
    places = make_numbered(shape)[box_slices(box)]
    start, stop = span_of(box, shape, itemsize)
    assert start == places.min() * itemsize
    assert stop == (places.max() + 1) * itemsize
    if is_contiguous(box, shape):
        assert stop - start == size_of(box) * itemsize
    else:
        assert stop - start > size_of(box) * itemsize


@MANY
@given(SHAPES_AND_BOX)
def test_bytes_of_a_contiguous_box_are_its_span(case: tuple[Shape, Box]) -> None:
    shape, box = case
    array = make_numbered(shape).astype("<u4")
    start, stop = span_of(box, shape, 4)
    if is_contiguous(box, shape):
        assert array.tobytes()[start:stop] == array[box_slices(box)].tobytes()


@MANY
@given(SHAPES_AND_BOX, st.data())
def test_slices_and_from_index_are_inverse(case: tuple[Shape, Box], data: st.DataObject) -> None:
    """Including the open slices of shardings, for dimensions that they do not split."""
    shape, box = case
    assert box_from_index(box_slices(box), shape) == box
    opened = tuple(
        slice(None if start == 0 else start, None if stop == n else stop)
        if data.draw(st.booleans())
        else slice(start, stop)
        for (start, stop), n in zip(box, shape, strict=True)
    )
    assert box_from_index(opened, shape) == box


@MANY
@given(SHAPES.flatmap(lambda s: st.tuples(st.just(s), strategies.grids(s), strategies.boxes(s))))
def test_a_grid_cuts_a_box_into_pieces_that_tile_it(case: tuple[Shape, list[Box], Box]) -> None:
    """Edge chunks reach past the shape; each element inside is covered once."""
    shape, grid, box = case
    pieces = [piece for chunk in grid if (piece := intersect(chunk, box)) is not None]
    counts = np.zeros(shape, int)
    for piece in pieces:
        counts[box_slices(piece)] += 1
    wanted = np.zeros(shape, int)
    wanted[box_slices(box)] = 1
    assert np.array_equal(counts, wanted)


def test_a_0d_array_has_one_box() -> None:
    assert full_box(()) == ()
    assert size_of(()) == 1
    assert intersect((), ()) == ()
    assert relative_box((), ()) == ()
    assert is_contiguous((), ())
    assert span_of((), (), 4) == (0, 4)


def test_empty_boxes_do_not_intersect() -> None:
    assert intersect(((2, 2),), ((0, 4),)) is None
    assert intersect(((0, 3), (0, 0)), ((0, 3), (0, 5))) is None


def test_boxes_that_only_touch_do_not_intersect() -> None:
    assert intersect(((0, 2),), ((2, 4),)) is None
    assert intersect(((0, 2), (0, 4)), ((0, 2), (4, 8))) is None


def test_boxes_of_different_rank_are_refused() -> None:
    for call in (intersect, relative_box):
        with pytest.raises(ValueError, match="zip"):
            call(((0, 1),), ((0, 1), (0, 1)))
