"""Plans: every buffer is tiled exactly once, and each byte is read at most once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from templax import Corrupted, SourceError
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._core.boxes import Box, box_slices, full_box, intersect, shape_of, size_of
from templax._core.memory import ALIGN
from templax._match.result import Match, Pair
from templax._plan.build import build_plan
from templax._plan.parts import GAP_BYTES
from templax._plan.plan import Plan
from templax._restore.buffers import HostMemory
from templax._restore.execute import execute_plan
from templax._template.template import Target, Template
from templax.storage import Memory
from templax.testing import Watched


def cut_range(n: int, size: int) -> list[tuple[int, int]]:
    return [(i, i + size) for i in range(0, n, size)]


@st.composite
def boxes_in(draw: Any, shape: tuple[int, ...]) -> Box:
    box = []
    for n in shape:
        start = draw(st.integers(0, n - 1))
        box.append((start, draw(st.integers(start + 1, n))))
    return tuple(box)


@st.composite
def chunked_leaves(
    draw: Any, number: int
) -> tuple[np.ndarray, Pair, tuple[Chunk, ...], dict[str, bytes]]:
    """A leaf in chunks, some raw, some inline, some in Fortran order, in one or two files."""
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    dtype = np.dtype(draw(st.sampled_from(["u1", "<i2", "<f4", "<f8"])))
    wanted = np.dtype("i4") if dtype == "i2" and draw(st.booleans()) else dtype
    values = np.random.default_rng(number).integers(0, 100, shape).astype(dtype)
    sizes = [draw(st.integers(1, n)) for n in shape]
    order = draw(st.sampled_from(["C", "C", "F"]))
    inline = draw(st.booleans()) and draw(st.booleans())
    file = draw(st.sampled_from(["a", "b"]))
    data = bytearray(draw(st.binary(max_size=3)))
    chunks = []
    for box in itertools.product(*map(cut_range, shape, sizes)):
        piece = np.zeros(shape_of(box), dtype)  # edge chunks are stored padded
        inside = intersect(box, full_box(shape))
        assert inside is not None
        piece[box_slices(tuple((0, b - a) for a, b in inside))] = values[box_slices(inside)]
        encoded = piece.tobytes(order=order)
        if inline:
            extent = Extent("index", 0, len(encoded), encoded)
        else:
            data += b"?" * draw(st.integers(0, 2))
            extent = Extent(f"{file}{number}", len(data), len(data) + len(encoded))
            data += encoded
        chunks.append(Chunk(extent, box, (), order))
    boxes = tuple(dict.fromkeys(draw(st.lists(boxes_in(shape), min_size=1, max_size=4))))
    name = f"leaf{number}"
    target = Target(name, (name,), shape, wanted, boxes=boxes)
    pair = Pair(target, LeafEntry(name, (name,), shape, dtype))
    return values, pair, tuple(draw(st.permutations(chunks))), {f"{file}{number}": bytes(data)}


@st.composite
def restores(draw: Any) -> tuple[list[np.ndarray], Plan, Memory]:
    leaves = [draw(chunked_leaves(i)) for i in range(draw(st.integers(1, 4)))]
    objects: dict[str, bytes] = {}
    for leaf in leaves:
        objects |= leaf[3]
    pairs = tuple(leaf[1] for leaf in leaves)
    match = Match("memory", Template(tuple(p.target for p in pairs)), pairs)
    made = build_plan(match, [{leaf[1].entry.name: leaf[2] for leaf in leaves}])
    return [leaf[0] for leaf in leaves], made, Memory(objects)


@given(restores())
def test_every_element_of_every_buffer_is_written_exactly_once(restore: Any) -> None:
    for batch in restore[1].batches:
        counts = [np.zeros(buffer.shape, int) for buffer in batch.buffers]
        for copy in (c for op in batch.reads for part in op.parts for c in part.copies):
            assert shape_of(copy.src) == shape_of(copy.dst)
            counts[copy.buffer][box_slices(copy.dst)] += 1
        for count in counts:
            assert (count == 1).all()


@given(restores())
def test_each_byte_is_read_at_most_once_and_each_chunk_in_one_part(restore: Any) -> None:
    made = restore[1]
    reads = [
        (op.key, op.start, op.stop) for b in made.batches for op in b.reads if op.stop > op.start
    ]
    for key in {key for key, _, _ in reads}:
        spans = sorted((start, stop) for k, start, stop in reads if k == key)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    parts = [part for b in made.batches for op in b.reads for part in op.parts]
    assert len({id(part.chunk) for part in parts}) == len(parts)
    for op in (op for b in made.batches for op in b.reads if op.stop > op.start):
        assert op.start == min(p.start for p in op.parts)
        assert op.stop == max(p.stop for p in op.parts)
        assert all(
            p.chunk.extent.start <= p.start < p.stop <= p.chunk.extent.stop for p in op.parts
        )
    assert made.requests == len(reads)
    assert made.read_bytes == sum(stop - start for _, start, stop in reads)


@given(restores(), st.integers(1, 4))
def test_executing_a_plan_equals_slicing(restore: Any, threads: int) -> None:
    values, made, source = restore
    by_name = {p.target.name: v for p, v in zip(made.match.pairs, values, strict=True)}
    done = 0
    for finished in execute_plan(replace(made, threads=threads), [source]):
        for buffer, array in zip(finished.batch.buffers, finished.arrays, strict=True):
            want = by_name[buffer.pair.target.name][box_slices(buffer.box)]
            assert array.dtype == buffer.dtype
            np.testing.assert_array_equal(array, want.astype(array.dtype))
            done += 1
    assert done == sum(len(p.target.boxes) for p in made.match.pairs)


def plan_spaced_bytes(n: int, gap: int, *, near: int = 0) -> tuple[Plan, Memory]:
    """`n` leaves of `gap`-spaced bytes in one file, whose store reads gaps of up to `near`."""
    pairs, chunks = [], {}
    data = b"".join(bytes([i]) + b"?" * gap for i in range(n))
    for i in range(n):
        name = f"l{i}"
        target = Target(name, (name,), (1,), np.dtype("u1"), boxes=(((0, 1),),))
        pairs.append(Pair(target, LeafEntry(name, (name,), (1,), np.dtype("u1"))))
        start = i * (1 + gap)
        chunks[name] = (Chunk(Extent("f", start, start + 1), ((0, 1),)),)
    match = Match("memory", Template(tuple(p.target for p in pairs)), tuple(pairs))
    return build_plan(match, [chunks], gaps=[near]), Memory({"f": data})


def test_neighbouring_leaves_are_one_request() -> None:
    made, _ = plan_spaced_bytes(200, 10)
    assert made.requests == 1


def test_leaves_further_apart_than_the_gap_are_separate_requests() -> None:
    made, _ = plan_spaced_bytes(3, GAP_BYTES + 1)
    assert made.requests == 3


def test_a_store_that_answers_slowly_reads_wider_gaps() -> None:
    made, source = plan_spaced_bytes(3, 500_000, near=500_000)
    assert made.requests == 1
    assert made.read_bytes == 1_000_003
    (finished,) = execute_plan(made, [source])
    assert [array.tolist() for array in finished.arrays] == [[0], [1], [2]]
    assert plan_spaced_bytes(3, 500_000, near=499_999)[0].requests == 3


def test_a_store_that_answers_slowly_is_asked_for_large_leaves_together() -> None:
    """A leaf is a request of its own only if it takes longer than another answer."""
    pairs, chunks = [], {}
    for i in range(4):
        name = f"l{i}"
        target = Target(name, (name,), (200_000,), np.dtype("u1"), boxes=(((0, 200_000),),))
        pairs.append(Pair(target, LeafEntry(name, (name,), (200_000,), np.dtype("u1"))))
        extent = Extent("f", i * 200_000, (i + 1) * 200_000)
        chunks[name] = (Chunk(extent, ((0, 200_000),)),)
    match = Match("memory", Template(tuple(p.target for p in pairs)), tuple(pairs))
    assert build_plan(match, [chunks]).requests == 4
    assert build_plan(match, [chunks], gaps=[1_000_000]).requests == 1
    assert build_plan(match, [chunks], gaps=[150_000]).requests == 4


def test_part_of_a_leaf_reads_only_that_part() -> None:
    """Rows 10 to 20 of a raw chunk of 1000 rows: 10 rows are read, in place."""
    target = Target("w", ("w",), (1000, 8), np.dtype("f4"), boxes=(((10, 20), (0, 8)),))
    entry = LeafEntry("w", ("w",), (1000, 8), np.dtype("f4"))
    chunk = Chunk(Extent("f", 64, 64 + 32000), ((0, 1000), (0, 8)))
    made = build_plan(Match("m", Template((target,)), (Pair(target, entry),)), [{"w": (chunk,)}])
    (op,) = made.batches[0].reads
    assert (op.start, op.stop) == (64 + 320, 64 + 640)
    assert op.parts[0].direct == 0


def test_buffers_start_at_64_byte_boundaries_and_share_no_memory() -> None:
    made, _ = plan_spaced_bytes(200, 0)
    memory = HostMemory(made.batches[0])
    arrays = [memory.array(i) for i in range(200)]
    addresses = [a.ctypes.data for a in arrays]
    assert all(address % ALIGN == 0 for address in addresses)
    assert len(set(addresses)) == len(addresses)


def test_the_first_error_cancels_the_rest_and_leaves_no_thread() -> None:
    import threading

    made, source = plan_spaced_bytes(3, GAP_BYTES + 1)
    before = set(threading.enumerate())

    def fault(key: str, start: int, stop: int) -> None:
        raise SourceError(f"can't read `{key}`: gone")

    with pytest.raises(SourceError, match="gone"):
        list(execute_plan(replace(made, threads=2), [Watched(source, fault)]))
    assert set(threading.enumerate()) == before


def test_a_truncated_file_names_leaf_file_and_bytes() -> None:
    made, _ = plan_spaced_bytes(3, GAP_BYTES + 1)
    with pytest.raises(Corrupted) as caught:
        list(execute_plan(made, [Memory({"f": b"\0"})]))
    error = caught.value
    assert (error.leaf, error.file) == ("l1", "f")
    assert str(error) == (
        f"Expected at least {GAP_BYTES + 3} bytes, the file has 1"
        f" - at `l1`, file `f`, bytes {GAP_BYTES + 2}-{GAP_BYTES + 3}"
    )


def test_buffers_have_the_sizes_of_their_boxes() -> None:
    made, _ = plan_spaced_bytes(5, 3)
    assert sum(size_of(b.box) for b in made.batches[0].buffers) == 5
