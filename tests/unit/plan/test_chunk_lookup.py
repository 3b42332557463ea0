"""The chunks of a leaf that boxes overlap, however they are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from templax._catalog.entry import Chunk, Extent
from templax._core.boxes import Box, intersect
from templax._plan.chunk_lookup import ChunkLookup
from templax.testing import strategies


def make_chunks(boxes: list[Box]) -> list[Chunk]:
    return [Chunk(Extent("f", i, i + 1), box) for i, box in enumerate(boxes)]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[Box], list[Box]]:
    """Several boxes that cover a leaf, in any order, of a grid or not; and boxes of that leaf."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    size = tuple(draw(st.integers(1, n)) for n in shape)
    boxes: list[Box] = [
        tuple((start, min(stop, n)) for (start, stop), n in zip(box, shape, strict=True))
        for box in strategies.grid(shape, size)
    ]
    grown = draw(st.integers(0, len(boxes)))
    if grown < len(boxes):  # a box that reaches over its neighbours: no grid any more
        boxes[grown] = tuple((start, n) for (start, _), n in zip(boxes[grown], shape, strict=True))
    wanted: list[Box] = []
    for _ in range(draw(st.integers(0, 3))):
        edges = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
        wanted.append(tuple((a, b) for a, b in edges))
    return draw(st.permutations(boxes)), wanted


@given(cuts())
def test_all_chunks_that_overlap_any_box_are_found_and_no_others(
    drawn: tuple[list[Box], list[Box]],
) -> None:
    boxes, wanted = drawn
    found = ChunkLookup(make_chunks(boxes)).find(wanted)
    if len(boxes) == 1:
        assert list(found) == [0]
    else:
        overlapping = [i for i, b in enumerate(boxes) if any(intersect(b, w) for w in wanted)]
        assert list(found) == overlapping


def test_chunks_of_which_two_begin_alike_are_all_found() -> None:
    """As many as a grid would have, but one is missing and one is there twice."""
    boxes: list[Box] = [((0, 2), (0, 2)), ((0, 2), (2, 4)), ((2, 4), (0, 4)), ((0, 2), (0, 2))]
    lookup = ChunkLookup(make_chunks(boxes))
    assert list(lookup.find([((0, 1), (0, 1))])) == [0, 3]
    assert list(lookup.find([((3, 4), (3, 4))])) == [2]


def test_a_chunk_that_reaches_over_the_next_one_is_found_there() -> None:
    """Their corners form a grid, as those of leaves that a mapping interleaves may."""
    lookup = ChunkLookup(make_chunks([((0, 6),), ((2, 4),), ((4, 6),)]))
    assert list(lookup.find([((5, 6),)])) == [0, 2]
