"""Index maps against every element of small arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import count_examples
from templax._core.index_map import IndexMap, MapAxis, merge_dims, span_copies, strides_of


@st.composite
def index_maps(draw: st.DrawFn) -> tuple[IndexMap, tuple[int, ...], tuple[int, ...]]:
    """A map whose steps are nested in each dimension, and the shapes of its arrays."""
    ranks = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    places = [
        (draw(st.integers(0, ranks[0] - 1)), draw(st.integers(0, ranks[1] - 1))) for _ in sizes
    ]
    repeated = [draw(st.integers(0, 5)) == 0 for _ in sizes]
    steps: list[list[tuple[int, int]]] = []
    shapes: list[list[int]] = []
    starts: list[list[int]] = []
    for side, rank in enumerate(ranks):
        shape, found = [1] * rank, []
        for size, place, same in zip(sizes, places, repeated, strict=True):
            dim = place[side]
            found.append((dim, shape[dim]))
            if not (same and side == 0):
                shape[dim] *= size + draw(st.integers(0, 1))  # a stride may leave elements out
        before = [draw(st.integers(0, 2)) for _ in range(rank)]
        steps.append(found)
        shapes.append([n + b for n, b in zip(shape, before, strict=True)])
        starts.append(before)
    axes: list[MapAxis] = []
    for size, source, target, same in zip(sizes, *steps, repeated, strict=True):
        if not same and draw(st.booleans()):  # reversed in the source
            starts[0][source[0]] += (size - 1) * source[1]
            source = source[0], -source[1]
        axes.append(MapAxis(size, None if same else source, target))
    made = IndexMap(tuple(axes), tuple(starts[0]), tuple(starts[1]))
    return made, tuple(shapes[0]), tuple(shapes[1])


def list_pairs(made: IndexMap) -> dict[tuple[int, ...], tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every index of the axes → the elements that it stands for."""
    pairs = {}
    for index in itertools.product(*[range(axis.size) for axis in made.axes]):
        source, target = list(made.source), list(made.target)
        for i, axis in zip(index, made.axes, strict=True):
            target[axis.target[0]] += i * axis.target[1]
            if axis.source is not None:
                source[axis.source[0]] += i * axis.source[1]
        pairs[index] = tuple(source), tuple(target)
    return pairs


def draw_box(data: st.DataObject, shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(tuple(sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in shape)


def is_in(index: tuple[int, ...], box: tuple[tuple[int, int], ...]) -> bool:
    return all(low <= i < high for i, (low, high) in zip(index, box, strict=True))


@pytest.mark.slow
@count_examples(300)
@given(case=index_maps(), data=st.data())
def test_boxes_of_either_array_are_the_pairs_that_lie_in_them(case, data):
    made, source_shape, target_shape = case
    pairs = list_pairs(made)
    for side, shape, split in (
        (0, source_shape, made.split_source),
        (1, target_shape, made.split_target),
    ):
        box = draw_box(data, shape)
        found = [
            index for part in split(box) for index in itertools.product(*[range(*r) for r in part])
        ]
        assert len(found) == len(set(found))
        assert set(found) == {index for index, pair in pairs.items() if is_in(pair[side], box)}
        for part in split(box):
            inside = [pairs[i][1] for i in itertools.product(*[range(*r) for r in part])]
            if inside:
                bound = tuple((min(d), max(d) + 1) for d in zip(*inside, strict=True))
                assert made.bound_target(part) == bound


@pytest.mark.slow
@count_examples(300)
@given(case=index_maps(), data=st.data(), order=st.sampled_from("CF"))
def test_a_copy_moves_the_elements_of_a_box(case, data, order):
    made, source_shape, target_shape = case
    pairs = list_pairs(made)
    values = np.arange(np.prod(source_shape)).reshape(source_shape)
    stored = values.ravel(order=order)
    box = draw_box(data, target_shape)
    sizes = tuple(high - low for low, high in box)
    whole = tuple((0, n) for n in source_shape)
    got = np.full(int(np.prod(sizes)), -1)
    copies = []
    for part in made.split_target(box):
        if all(low < high for low, high in part):
            copy = made.make_copy(
                part, whole, strides_of(source_shape, order), box, strides_of(sizes)
            )
            copies.append(copy)
            for index in np.ndindex(*copy.shape):
                at = copy.dst + sum(i * s for i, s in zip(index, copy.dst_strides, strict=True))
                of = copy.src + sum(i * s for i, s in zip(index, copy.src_strides, strict=True))
                low, high = span_copies([copy])
                assert low <= of < high
                got[at] = stored[of]
    expected = np.full(sizes, -1)
    for source, target in pairs.values():
        if is_in(target, box):
            expected[tuple(t - low for t, (low, _) in zip(target, box, strict=True))] = values[
                source
            ]
    np.testing.assert_array_equal(got.reshape(sizes), expected)


def test_dimensions_that_are_neighbours_in_both_arrays_are_merged():
    assert merge_dims([(2, 12, 4), (3, 4, 8), (4, 1, 1)]) == ((3, 2, 4), (4, 12, 1), (8, 4, 1))
    assert merge_dims([(3, 8, 8), (2, 4, 4), (4, 1, 1)]) == ((24,), (1,), (1,))
    assert merge_dims([]) == ((), (), ())
