"""Two index maps, one after the other, compared with what they do to arrays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import count_examples
from templax._core.index_map import IndexMap, MapAxis
from templax._views.compose import TooManyMapsError, compose_maps


def list_pairs(map: IndexMap) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All pairs of elements of a map."""
    pairs = set()
    for index in itertools.product(*[range(axis.size) for axis in map.axes]):
        source, target = list(map.source), list(map.target)
        for n, axis in zip(index, map.axes, strict=True):
            target[axis.target[0]] += n * axis.target[1]
            if axis.source is not None:
                source[axis.source[0]] += n * axis.source[1]
        pairs.add((tuple(source), tuple(target)))
    return pairs


@st.composite
def nested(draw: st.DrawFn, rank: int) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Axes as (size, dimension, step), nested in each dimension, and where each begins."""
    axes = []
    for dim in range(rank):
        step = draw(st.integers(1, 2))
        for _ in range(draw(st.integers(0, 3))):
            size = draw(st.integers(1, 4))
            axes.append((size, dim, step))
            step *= size * draw(st.integers(1, 2))
    return draw(st.permutations(axes)), [draw(st.integers(0, 5)) for _ in range(rank)]


@st.composite
def map_pairs(draw: st.DrawFn) -> tuple[IndexMap, IndexMap]:
    rank = draw(st.integers(1, 2))
    made = []
    for is_second in (False, True):
        axes, starts = draw(nested(rank))
        outer = [0, 0]
        step, found = 1, []
        for size, dim, by in axes:
            here = draw(st.integers(0, 1))
            common = dim, by
            if is_second:
                sign = draw(st.sampled_from((1, 1, -1)))
                starts[dim] += by * (size - 1) if sign < 0 else 0
                found.append(MapAxis(size, (dim, sign * by), (here, step)))
            else:
                source = draw(st.sampled_from(((here, step), (here, step), None)))
                found.append(MapAxis(size, source, common))
            step *= size + 1
        if is_second and draw(st.booleans()):
            found.append(MapAxis(2, None, (0, step)))
        ends = tuple(starts), tuple(outer)
        made.append(IndexMap(tuple(found), *(ends if is_second else ends[::-1])))
    return made[0], made[1]


@pytest.mark.slow
@count_examples(400)
@given(map_pairs())
def test_maps_are_composed(maps: tuple[IndexMap, IndexMap]) -> None:
    first, second = maps
    wanted = {
        (source, target)
        for source, middle in list_pairs(first)
        for other, target in list_pairs(second)
        if middle == other
    }
    composed = compose_maps(first, second)
    found = [pair for map in composed for pair in list_pairs(map)]
    assert set(found) == wanted
    assert sum(map.size for map in composed) == len(wanted)
    for map in composed:
        assert all(axis.target[1] > 0 for axis in map.axes)


def test_axes_that_are_the_same_are_not_cut() -> None:
    whole = IndexMap((MapAxis(1 << 40, (0, 1), (0, 1)),), (0,), (0,))
    assert compose_maps(whole, whole) == [whole]
    part = IndexMap((MapAxis(1 << 30, (0, 1), (0, 1)),), (7,), (0,))
    assert compose_maps(whole, part) == [part]


def test_axes_of_sizes_that_do_not_divide_each_other_are_cut_or_refused() -> None:
    def split(n: int, m: int) -> IndexMap:
        return IndexMap((MapAxis(n, (0, 1), (0, m)), MapAxis(m, (1, 1), (0, 1))), (0, 0), (0,))

    def join(n: int, m: int) -> IndexMap:
        return IndexMap((MapAxis(n, (0, m), (0, 1)), MapAxis(m, (0, 1), (1, 1))), (0,), (0, 0))

    composed = compose_maps(split(6, 10), join(10, 6))
    assert sum(map.size for map in composed) == 60
    made, values = np.zeros((10, 6)), np.arange(60).reshape(6, 10)
    for map in composed:
        for source, target in list_pairs(map):
            made[target] = values[source]
    np.testing.assert_array_equal(made, values.reshape(10, 6))
    with pytest.raises(TooManyMapsError):
        compose_maps(split(1000, 1001), join(1001, 1000))
