"""Checksums of blocks: what is read in full is compared, and damage is named to the block."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import templax as tx
from templax._catalog.catalog import Catalog
from templax._catalog.checksums import (
    BlockVerifier,
    align_to_blocks,
    check_blocks,
    covers_whole_blocks,
)
from templax._catalog.entry import Chunk, Extent, LeafEntry
from templax._codecs.crc32c import crc32c
from templax._core.boxes import Box, box_slices, full_box, intersect, relative_box, shape_of
from templax._match.result import Match, Pair
from templax._plan.build import build_plan
from templax._plan.parts import merge_chunks
from templax._plan.plan import Plan
from templax._restore.buffers import HostMemory
from templax._restore.execute import execute_plan
from templax._template.template import Target, Template
from templax.storage import Local, Memory, Source
from templax.testing import Watched, strategies


def sums(stored: bytes, block: int) -> tuple[int, ...]:
    return tuple(crc32c(stored[i : i + block]) for i in range(0, len(stored), block))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


# --- one chunk


@given(st.data())
def test_bytes_that_come_in_any_pieces_are_compared_block_by_block(data: Any) -> None:
    """Of blocks that are not all there nothing is said."""
    n = data.draw(st.integers(1, 60))
    block, origin = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 9))
    stored = np.random.default_rng(n).bytes(n)
    chunk = Chunk(Extent("f", origin, origin + n), ((0, n),), sums=sums(stored, block), block=block)
    start = data.draw(st.one_of(st.just(0), st.integers(0, n - 1)))
    stop = data.draw(st.one_of(st.just(n), st.integers(start + 1, n)))
    at = data.draw(st.integers(0, n - 1))
    damaged = flipped(stored, at)
    cuts = sorted({start, stop, *data.draw(st.lists(st.integers(start, stop), max_size=4))})
    first = at // block * block
    last = min(first + block, n)
    hit = start <= first and last <= stop

    def run() -> None:
        blocks = BlockVerifier(chunk, origin + start, origin + stop)
        for a, b in itertools.pairwise(cuts):
            blocks.feed(memoryview(damaged)[a:b])

    for compared in (
        run,
        lambda: check_blocks(chunk, origin + start, memoryview(damaged)[start:stop]),
    ):
        if not hit:
            compared()
            continue
        with pytest.raises(tx.Corrupted) as caught:
            compared()
        assert (caught.value.start, caught.value.stop) == (origin + first, origin + last)
        assert caught.value.what == (
            f"Expected crc32c `{crc32c(stored[first:last]):08x}`,"
            f" got `{crc32c(damaged[first:last]):08x}`"
        )
    low, high = align_to_blocks(chunk, origin + start, origin + stop)
    borders = {origin + i for i in range(0, n, block)} | {origin + n}
    assert low == max(b for b in borders if b <= origin + start)
    assert high == min(b for b in borders if b >= origin + stop)
    assert covers_whole_blocks(chunk, low, high)
    assert covers_whole_blocks(chunk, origin + start, origin + stop) == (
        {origin + start, origin + stop} <= borders
    )


def test_chunks_back_to_back_keep_their_checksums_as_blocks_of_one() -> None:
    stored = bytes(range(70))
    chunks = [
        Chunk(
            Extent("f", i, min(i + 20, 70)),
            ((i // 10, min(i // 10 + 2, 7)), (0, 10)),
            checked=True,
            sums=sums(stored[i : i + 20], 20),
            block=20,
        )
        for i in range(0, 70, 20)
    ]
    (one,) = merge_chunks(chunks)
    assert one == Chunk(Extent("f", 0, 70), ((0, 7), (0, 10)), (), "C", True, sums(stored, 20), 20)
    assert merge_chunks(chunks[:3])[0].sums == one.sums[:3]
    two_each = structs.replace(chunks[0], sums=sums(stored[:20], 10), block=10)
    none = structs.replace(chunks[1], sums=(), block=0)
    for others in ([two_each, *chunks[1:]], [chunks[0], none], [chunks[3], *chunks[:0]]):
        assert merge_chunks(others) is others
    longer = Chunk(Extent("f", 70, 100), ((7, 10), (0, 10)), sums=(1,), block=30)
    back = [structs.replace(chunks[3], box=((6, 7), (0, 10))), longer]
    assert merge_chunks(back) is back


# --- any leaf, any boxes, any damage


class Leaf(NamedTuple):
    """A stored leaf, and where its chunks are."""

    values: np.ndarray
    pair: Pair
    chunks: tuple[Chunk, ...]


@st.composite
def _block(draw: Any, shape: tuple[int, ...], itemsize: int) -> int:
    """Bytes of a block: rows of some dimension as a rule, else any number."""
    nbytes = math.prod(shape) * itemsize
    axis = draw(st.integers(0, len(shape)))
    if axis == len(shape):
        return draw(st.one_of(st.just(nbytes), st.integers(1, nbytes)))
    row = math.prod(shape[axis + 1 :]) * itemsize
    return row * draw(st.integers(1, shape[axis]))


@st.composite
def _leaf(draw: Any, number: int, objects: dict[str, bytearray], mapped: bool) -> Leaf:
    shape = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    dtype = np.dtype(draw(st.sampled_from(["u1", "<i2", "<f4"])))
    wanted = np.dtype("i4") if dtype == "i2" and draw(st.booleans()) else dtype
    values = np.random.default_rng(number).integers(0, 100, shape).astype(dtype)
    size = shape
    if draw(st.booleans()):
        size = tuple(draw(st.integers(1, n)) for n in shape)
    if shape and draw(st.booleans()):
        size = (size[0], *shape[1:])  # back to back in memory
    kind = draw(st.sampled_from(["raw"] * 5 + ["zstd", "F", "inline"]))
    file = objects.setdefault(draw(st.sampled_from(["f", "g"])), bytearray(b"?" * 5))
    key = next(k for k, v in objects.items() if v is file)
    file += b"?" * (-len(file) % 64 if draw(st.booleans()) else draw(st.integers(0, 70)))
    tight, valid_only = draw(st.booleans()), draw(st.booleans())
    summed = draw(st.sampled_from(["all", "all", "some"]))
    chunks: list[Chunk] = []
    for box in strategies.grid(shape, size):
        inside = intersect(box, full_box(shape))
        assert inside is not None
        if valid_only:
            box = inside
        piece = np.zeros(shape_of(box), dtype)
        piece[box_slices(relative_box(inside, box))] = values[box_slices(inside)]
        stored = piece.tobytes(order="F" if kind == "F" else "C")
        if kind == "zstd":
            stored = zstandard.compress(stored)
        if not tight:
            file += b"?" * draw(st.integers(0, 3))
        extent = Extent(key, len(file), len(file) + len(stored))
        if kind == "inline":
            extent = Extent("index", 0, len(stored), stored)
        else:
            file += stored
        block, covered = len(stored), summed == "all" or draw(st.booleans())
        if kind == "raw" and draw(st.booleans()):
            block = draw(_block(shape_of(box), dtype.itemsize))
        made = Chunk(extent, box, ("zstd",) if kind == "zstd" else (), "F" if kind == "F" else "C")
        if covered:
            made = structs.replace(made, checked=True, sums=sums(stored, block), block=block)
        chunks.append(made)
    boxes: list[Box] = [full_box(shape)]
    if draw(st.booleans()) and not (mapped and draw(st.booleans())):
        boxes = draw(st.lists(strategies.boxes(shape), min_size=1, max_size=8))
    name = f"l{number}"
    target = Target(
        name,
        (name,),
        shape,
        wanted,
        boxes=tuple(dict.fromkeys(boxes)),
        transient=not mapped and draw(st.booleans()),
    )
    return Leaf(values, Pair(target, LeafEntry(name, (name,), shape, dtype)), tuple(chunks))


class Asked(NamedTuple):
    """A restore: what is stored, and how it is asked for."""

    leaves: list[Leaf]
    objects: dict[str, bytes]
    options: dict[str, Any]
    sizes: dict[str, int]


@st.composite
def _asked(draw: Any) -> Asked:
    mapped = draw(st.booleans())
    objects: dict[str, bytearray] = {}
    leaves = [draw(_leaf(i, objects, mapped)) for i in range(draw(st.integers(1, 3)))]
    options = {
        "verify": draw(st.sampled_from(["available", "available", "required", "off"])),
        "threads": draw(st.integers(1, 3)),
        "memory": draw(st.sampled_from([1, 1 << 31])),
        "mapped": (True,) if mapped else (),
    }
    sizes = {
        "SCATTER_BYTES": draw(st.sampled_from([4, 12, 40, 1 << 20])),
        "SPLIT_BYTES": draw(st.sampled_from([4, 20, 64, 1 << 20])),
        "IN_PLACE_BYTES": draw(st.sampled_from([8, 1 << 20])),
        "CHECKED_BYTES": draw(st.sampled_from([3, 16, 1 << 20])),
        "REQUEST_BYTES": draw(st.sampled_from([10, 1 << 20])),
        "GAP_BYTES": draw(st.sampled_from([1, 1 << 16])),
    }
    return Asked(leaves, {k: bytes(v) + b"??" for k, v in objects.items()}, options, sizes)


@contextmanager
def _small(sizes: dict[str, int]) -> Iterator[None]:
    """The sizes at which leaves are cut, as small as the leaves here."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in sizes.items():
            for module in ("_plan.parts", "_plan.build", "_restore.fill"):
                patch.setattr(f"templax.{module}.{name}", size, raising=False)
        yield


def _planned(asked: Asked, leaves: Sequence[Leaf]) -> Plan:
    pairs = tuple(leaf.pair for leaf in leaves)
    match = Match("memory", Template(tuple(p.target for p in pairs)), pairs)
    chunks = {leaf.pair.entry.name: leaf.chunks for leaf in leaves}
    return build_plan(match, [chunks], **asked.options)


def _wanted(leaf: Leaf, chunk: Chunk) -> set[int]:
    """Stored bytes of a chunk that some box needs: all of one that can't be read in part."""
    shape, itemsize = shape_of(chunk.box), leaf.values.dtype.itemsize
    every = np.arange(math.prod(shape) * itemsize).reshape(*shape, itemsize)
    found: set[int] = set()
    for box in leaf.pair.target.boxes:
        overlap = intersect(chunk.box, box)
        if overlap is None:
            continue
        if chunk.codecs or chunk.order == "F" or chunk.extent.inline is not None:
            return set(range(chunk.extent.nbytes))
        found |= set(every[box_slices(relative_box(overlap, chunk.box))].ravel().tolist())
    return found


def _jobs(made: Plan, chunk: Chunk) -> list[tuple[int, int]]:
    """Bytes of the chunk's object that one job has at once."""
    parts = [p for b in made.batches for op in b.reads for p in op.parts]
    checks = [c for b in made.batches for job in b.checks for c in job]
    extent = chunk.extent
    return [
        (x.start, x.stop)
        for x in (*parts, *checks)
        if x.chunk.extent.key == extent.key
        and (x.chunk.extent.inline is extent.inline)
        and x.start < extent.stop
        and extent.start < x.stop
    ]


def _same(made: Plan, source: Source, leaves: Sequence[Leaf]) -> bool:
    by_name = {leaf.pair.target.name: leaf.values for leaf in leaves}
    return all(
        np.array_equal(array, by_name[buffer.pair.target.name][box_slices(buffer.box)])
        for finished in execute_plan(made, [source])
        for buffer, array in zip(finished.batch.buffers, finished.arrays, strict=True)
    )


@given(_asked())
def test_what_is_sound_is_restored_however_it_is_checked(asked: Asked) -> None:
    with _small(asked.sizes):
        made = _planned(asked, asked.leaves)
        assert _same(made, Memory(asked.objects), asked.leaves)
    for batch in made.batches:
        counts = [np.full(b.shape, int(b.view is not None)) for b in batch.buffers]
        for copy in (c for op in batch.reads for part in op.parts for c in part.copies):
            assert shape_of(copy.src) == shape_of(copy.dst)
            counts[copy.buffer][box_slices(copy.dst)] += 1
        assert all((count == 1).all() for count in counts)
    assert 0 <= made.useful_bytes <= made.read_bytes


@given(_asked(), st.data())
def test_a_flipped_byte_is_reported_wherever_its_block_was_read_in_full(
    asked: Asked, data: Any
) -> None:
    """And required checksums are compared for every block that a box touches."""
    number = data.draw(st.integers(0, len(asked.leaves) - 1))
    leaf, verify = asked.leaves[number], asked.options["verify"]
    chunk = data.draw(st.sampled_from(leaf.chunks))
    if chunk.codecs and (not chunk.sums or verify == "off"):
        return  # found by what decodes it, or not
    extent, at = chunk.extent, data.draw(st.integers(0, chunk.extent.nbytes - 1))
    leaves, objects = list(asked.leaves), dict(asked.objects)
    if extent.inline is None:
        objects[extent.key] = flipped(objects[extent.key], extent.start + at)
    else:
        held = structs.replace(extent, inline=flipped(bytes(extent.inline), at))
        damaged = structs.replace(chunk, extent=held)
        others = tuple(damaged if c is chunk else c for c in leaf.chunks)
        leaves[number], chunk, extent = leaf._replace(chunks=others), damaged, held
    wanted, source = _wanted(leaf, chunk), Watched(Memory(objects))
    error: tx.Corrupted | None = None
    with _small(asked.sizes):
        made = _planned(asked, leaves)
        try:
            same = _same(made, source, leaves)
        except tx.Corrupted as damage:
            error, same = damage, False
    jobs = _jobs(made, chunk)
    if not chunk.sums:
        assert error is None
        assert same or at in wanted
        assert at not in wanted or leaf.pair.target.name in made.unverified
        return
    first = extent.start + at // chunk.block * chunk.block
    last = min(first + chunk.block, extent.stop)
    checked = any(start <= first and last <= stop for start, stop in jobs)
    touched = any(first <= extent.start + byte < last for byte in wanted)
    reported = leaf.pair.target.name in made.unverified
    if verify == "required":
        assert checked or not touched
        assert not reported or any(not c.sums for c in leaf.chunks)
    elif touched:
        assert checked or reported
    if not checked or verify == "off":
        assert error is None
        assert same or at in wanted
        return
    assert error is not None
    assert (error.leaf, error.file) == (leaf.pair.entry.name, extent.key)
    assert (error.start, error.stop) == (first, last)
    assert error.what.startswith("Expected crc32c `")
    read = [(a, b) for key, a, b in source.reads if key == extent.key]
    assert (
        extent.inline is not None
        or any(a <= extent.start + at < b for a, b in read)
        or any(made.mapped_bytes for _ in jobs)
    )


# --- what the engine promises of layouts that matter


def _target(name: str, values: np.ndarray, boxes: Sequence[Box] = (), **more: Any) -> Pair:
    boxes = tuple(boxes) or (full_box(values.shape),)
    target = Target(name, (name,), values.shape, values.dtype, boxes=boxes, **more)
    return Pair(target, LeafEntry(name, (name,), values.shape, values.dtype))


def _plan_of(pair: Pair, chunk: Chunk, **options: Any) -> Plan:
    match = Match("memory", Template((pair.target,)), (pair,))
    return build_plan(match, [{pair.entry.name: (chunk,)}], **options)


ROWS = np.arange(1000 * 8, dtype=np.float32).reshape(1000, 8)
"""Of 32 bytes each; in blocks of 100 rows."""


def _rows_chunk(start: int = 64) -> Chunk:
    stored = ROWS.tobytes()
    extent = Extent("f", start, start + len(stored))
    return Chunk(extent, ((0, 1000), (0, 8)), (), "C", True, sums(stored, 3200), 3200)


def test_some_rows_are_read_alone_unless_their_checksum_is_required() -> None:
    pair, chunk = _target("w", ROWS, [((110, 120), (0, 8))]), _rows_chunk()
    made = _plan_of(pair, chunk)
    (op,) = made.batches[0].reads
    assert (op.start, op.stop) == (64 + 110 * 32, 64 + 120 * 32)
    assert op.parts[0].direct == 0
    assert made.unverified == ("w",)
    made = _plan_of(pair, chunk, verify="required")
    (op,) = made.batches[0].reads
    assert (op.start, op.stop) == (64 + 100 * 32, 64 + 200 * 32)
    assert made.unverified == ()
    assert (made.read_bytes, made.useful_bytes) == (3200, 320)
    assert "bytes useful                   320  10.0% of those read" in str(made)


def test_rows_that_are_whole_blocks_are_read_in_place_and_verified() -> None:
    for verify in ("available", "required"):
        made = _plan_of(_target("w", ROWS, [((100, 300), (0, 8))]), _rows_chunk(), verify=verify)
        (op,) = made.batches[0].reads
        assert (op.parts[0].direct, op.stop - op.start, made.unverified) == (0, 6400, ())


def test_only_the_edges_of_a_large_box_go_through_scratch() -> None:
    """The blocks in between are read in place though the first and the last are cut."""
    with _small({"SCATTER_BYTES": 3200, "IN_PLACE_BYTES": 3200}):
        made = _plan_of(
            _target("w", ROWS, [((150, 850), (0, 8))]), _rows_chunk(), verify="required"
        )
    parts = [part for op in made.batches[0].reads for part in op.parts]
    assert [(p.start - 64) // 3200 for p in parts] == list(range(1, 9))
    assert [p.direct is None for p in parts] == [True, *[False] * 6, True]
    assert made.scratch_bytes == 3200


def test_columns_are_verified_if_all_of_them_go_to_this_process() -> None:
    halves = [((0, 1000), (0, 4)), ((0, 1000), (4, 8))]
    assert _plan_of(_target("w", ROWS, halves), _rows_chunk()).unverified == ()
    assert _plan_of(_target("w", ROWS, halves[:1]), _rows_chunk()).unverified == ("w",)


def test_blocks_along_a_later_dimension_are_split_where_they_begin() -> None:
    """A leading dimension of one, whose only row is no whole number of blocks."""
    values = np.arange(1050 * 8, dtype=np.float32).reshape(1, 1050, 8)
    stored = values.tobytes()
    chunk = Chunk(
        Extent("f", 0, len(stored)), full_box(values.shape), (), "C", True, sums(stored, 3200), 3200
    )
    with _small({"SPLIT_BYTES": 6400, "SCATTER_BYTES": 6400, "IN_PLACE_BYTES": 1}):
        made = _plan_of(_target("w", values), chunk)
    spans = [(op.start, op.stop) for op in made.batches[0].reads]
    assert spans == [(a, min(a + 6400, 33600)) for a in range(0, 33600, 6400)]
    assert made.unverified == ()


def test_a_row_that_begins_within_a_block_is_not_cut_where_no_block_ends() -> None:
    """Or else two jobs would read the block that lies across the cut."""
    values = np.arange(2 * 1050 * 8, dtype=np.float32).reshape(2, 1050, 8)
    stored = values.tobytes()
    chunk = Chunk(
        Extent("f", 0, len(stored)), full_box(values.shape), (), "C", True, sums(stored, 3200), 3200
    )
    with _small({"SPLIT_BYTES": 6400, "SCATTER_BYTES": 6400, "IN_PLACE_BYTES": 1}):
        made = _plan_of(
            _target("w", values, [((1, 2), (0, 1050), (0, 8))]), chunk, verify="required"
        )
    parts = [part for op in made.batches[0].reads for part in op.parts]
    assert [(part.start, part.stop) for part in parts] == [(32000, 67200)]


def test_a_chunk_may_have_checksums_of_both_kinds() -> None:
    values = np.arange(300_000, dtype=np.int32)
    data = values.tobytes()
    stored = data + crc32c(data).to_bytes(4, "little")
    extent, both = Extent("f", 0, len(stored)), (crc32c(stored),)
    pair = _target("w", values)
    chunk = Chunk(extent, full_box(values.shape), ("crc32c",), "C", True, both, len(stored))
    leaf = Leaf(values, pair, (chunk,))
    assert _same(_plan_of(pair, chunk), Memory({"f": stored}), [leaf])
    other = structs.replace(chunk, sums=(both[0] ^ 1,))
    with pytest.raises(tx.Corrupted, match="bytes 0-1200004"):
        _same(_plan_of(pair, other), Memory({"f": stored}), [leaf])


def _small_leaves(sizes: Sequence[int]) -> tuple[list[Leaf], bytes]:
    """Leaves of bytes, each at the next multiple of 64 of a file."""
    leaves, data = [], bytearray()
    for i, n in enumerate(sizes):
        values = np.random.default_rng(i).integers(0, 256, n, np.uint8)
        data += b"\xff" * (-len(data) % 64)
        extent = Extent("f", len(data), len(data) + n)
        data += values.tobytes()
        chunk = Chunk(extent, ((0, n),), (), "C", True, sums(values.tobytes(), n), n)
        leaves.append(Leaf(values, _target(f"l{i}", values), (chunk,)))
    return leaves, bytes(data)


@given(st.lists(st.integers(1, 200), min_size=2, max_size=30))
def test_leaves_padded_to_64_bytes_are_read_in_place_together(sizes: list[int]) -> None:
    leaves, data = _small_leaves(sizes)
    match = Match(
        "m", Template(tuple(x.pair.target for x in leaves)), tuple(x.pair for x in leaves)
    )
    made = build_plan(match, [{x.pair.entry.name: x.chunks for x in leaves}])
    (batch,) = made.batches
    (op,) = batch.reads
    assert HostMemory(batch).find_in_order(op) is not None
    assert made.unverified == ()
    assert _same(made, Memory({"f": data}), leaves)
    for i in (0, len(sizes) - 1):
        extent = leaves[i].chunks[0].extent
        with pytest.raises(tx.Corrupted) as caught:
            _same(made, Memory({"f": flipped(data, extent.stop - 1)}), leaves)
        assert (caught.value.leaf, caught.value.start) == (f"l{i}", extent.start)


@pytest.mark.parametrize(
    "pieces",
    [
        # Each of a piece: the leaf, its first and last byte there, where they are in the file.
        [(0, 0, 20, 0), (0, 40, 60, 40), (0, 20, 40, 200)],  # a gap within a buffer
        [(0, 0, 70, 0), (1, 0, 9, 128), (0, 70, 100, 300)],  # before the end of one
        [(0, 0, 128, 0), (1, 30, 100, 158), (1, 0, 30, 400)],  # after the start of one
    ],
)
def test_gaps_that_another_request_fills_are_not_written_over(pieces: Any) -> None:
    values = {
        i: np.arange(1, 1 + max(p[2] for p in pieces if p[0] == i), dtype=np.uint8) for i in (0, 1)
        if any(p[0] == i for p in pieces)
    }  # fmt: skip
    data = np.full(500, 255, np.uint8)
    chunks: dict[int, list[Chunk]] = {}
    for i, first, last, at in pieces:
        data[at : at + last - first] = values[i][first:last]
        chunk = Chunk(Extent("f", at, at + last - first), ((first, last),))
        chunks.setdefault(i, []).append(chunk)
    leaves = [Leaf(v, _target(f"l{i}", v), tuple(chunks[i])) for i, v in values.items()]
    with _small({"GAP_BYTES": 64, "REQUEST_BYTES": 64 * 1024}):
        match = Match(
            "m", Template(tuple(x.pair.target for x in leaves)), tuple(x.pair for x in leaves)
        )
        made = build_plan(match, [{x.pair.entry.name: x.chunks for x in leaves}])
    together, alone = made.batches[0].reads
    assert (len(together.parts), len(alone.parts)) == (2, 1)
    assert HostMemory(made.batches[0]).find_in_order(together) is None
    assert _same(made, Memory({"f": data.tobytes()}), leaves)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_compressed_chunk_is_compared_as_it_is_decoded(order: Any) -> None:
    """Also where what was altered does not decode: the checksum tells that it was altered."""
    values = np.random.default_rng(0).standard_normal((1200, 1000)).astype(np.float32)
    stored = zstandard.compress(values.tobytes(order=order))
    assert len(stored) > 4 << 20
    box, extent = full_box(values.shape), Extent("f", 0, len(stored))
    sum_ = (crc32c(stored),)
    made = _plan_of(
        _target("w", values), Chunk(extent, box, ("zstd",), order, True, sum_, len(stored))
    )
    leaves = [Leaf(values, _target("w", values), ())]
    assert _same(made, Memory({"f": stored}), leaves)
    for at in (0, 5, len(stored) // 2, len(stored) - 1):
        damaged = flipped(stored, at)
        with pytest.raises(tx.Corrupted) as caught:
            _same(made, Memory({"f": damaged}), leaves)
        assert str(caught.value) == (
            f"Expected crc32c `{sum_[0]:08x}`, got `{crc32c(damaged):08x}`"
            f" - at `w`, file `f`, bytes 0-{len(stored)}"
        )
    # Written so: the checksum agrees, and what does not decode is said.
    broken = flipped(stored, 0)
    made = _plan_of(
        _target("w", values),
        Chunk(extent, box, ("zstd",), order, True, (crc32c(broken),), len(stored)),
    )
    with pytest.raises(tx.Corrupted, match="got bytes that do not decode"):
        _same(made, Memory({"f": broken}), leaves)


# --- restore


def catalog_of(root: Any, values: dict[str, np.ndarray], block: int) -> Catalog:
    """A checkpoint of one file, each leaf at a multiple of 64 bytes, with checksums of blocks."""
    data, chunks = bytearray(), {}
    for name, value in values.items():
        data += b"\0" * (-len(data) % 64)
        stored = value.tobytes()
        extent = Extent("data", len(data), len(data) + len(stored))
        data += stored
        size = min(block, len(stored))
        chunks[name] = (
            Chunk(extent, full_box(value.shape), (), "C", True, sums(stored, size), size),
        )
    (root / "data").write_bytes(data)
    entries = tuple(LeafEntry(n, (n,), v.shape, v.dtype) for n, v in values.items())
    return Catalog(
        str(root),
        "made",
        "made here",
        entries,
        Local(root),
        lambda wanted, damages=None: {entry.name: chunks[entry.name] for entry in wanted},
    )


@pytest.mark.parametrize("mapped", [False, True])
def test_damage_is_found_by_a_restore_and_named_to_the_block(tmp_path: Any, mapped: bool) -> None:
    values = {"a": np.ones(100, np.float32), "b": ROWS, "c": np.ones((), np.int32)}
    catalog = catalog_of(tmp_path, values, 3200)
    template = {n: jax.ShapeDtypeStruct(v.shape, v.dtype) for n, v in values.items()}
    options: dict[str, Any] = {"verify": "required", "mapped": mapped}
    made = tx.plan(catalog, template, **options)
    assert (made.mapped_bytes > 0) == mapped
    restored = tx.run(made)
    assert all(np.array_equal(restored[n], v) for n, v in values.items())
    data = (tmp_path / "data").read_bytes()
    at = 448 + 5 * 3200 + 7
    (tmp_path / "data").write_bytes(flipped(data, at))
    fresh = catalog_of_same(catalog)
    with pytest.raises(tx.Corrupted) as caught:
        tx.restore(fresh, template, **options)
    want, got = crc32c(data[16448:19648]), crc32c(flipped(data, at)[16448:19648])
    assert str(caught.value) == (
        f"Expected crc32c `{want:08x}`, got `{got:08x}` - at `b`, file `data`, bytes 16448-19648"
    )
    options["verify"] = "off"
    changed = np.asarray(tx.restore(fresh, template, **options)["b"])
    assert (changed != ROWS).sum() == 1


def catalog_of_same(catalog: Catalog) -> Catalog:
    """The catalog over a source that has seen no file yet."""
    return Catalog(
        catalog.url, catalog.format, catalog.evidence, catalog.entries,
        Local(catalog.url), catalog.locator,
    )  # fmt: skip


def test_a_part_of_a_block_that_is_mapped_is_checked_only_if_required(tmp_path: Any) -> None:
    """For one device of several processes, say: rows 110 to 120 of blocks of 100 rows."""
    chunk = _rows_chunk(0)
    data = flipped(ROWS.tobytes(), 199 * 32)
    (tmp_path / "f").write_bytes(data)
    pair = _target("w", ROWS, [((110, 120), (0, 8))])
    made = _plan_of(pair, chunk, mapped=(True,))
    assert (made.unverified, made.mapped_bytes) == (("w",), 320)
    (finished,) = execute_plan(made, [Local(tmp_path)])
    np.testing.assert_array_equal(finished.arrays[0], ROWS[110:120])
    made = _plan_of(pair, chunk, mapped=(True,), verify="required")
    assert (made.unverified, made.mapped_bytes, made.read_bytes) == ((), 320, 0)
    with pytest.raises(tx.Corrupted) as caught:
        list(execute_plan(made, [Local(tmp_path)]))
    error = caught.value
    assert (error.leaf, error.file, error.start, error.stop) == ("w", "f", 3200, 6400)


def test_a_large_mapped_leaf_is_checked_by_several_jobs_and_small_ones_by_one() -> None:
    with _small({"SPLIT_BYTES": 6400}):
        made = _plan_of(_target("w", ROWS), _rows_chunk(), mapped=(True,))
    pieces = [(c.start - 64, c.stop - 64) for job in made.batches[0].checks for c in job]
    assert pieces == [(a, a + 6400) for a in range(0, 32000, 6400)]
    leaves, _ = _small_leaves([70] * 100)
    match = Match(
        "m", Template(tuple(x.pair.target for x in leaves)), tuple(x.pair for x in leaves)
    )
    made = build_plan(match, [{x.pair.entry.name: x.chunks for x in leaves}], mapped=(True,))
    assert [len(job) for job in made.batches[0].checks] == [100]


def test_blocks_within_a_part_that_is_mapped_are_checked_whatever_its_edges() -> None:
    pair = _target("w", ROWS, [((150, 850), (0, 8))])
    with _small({"SPLIT_BYTES": 6400}):
        made = _plan_of(pair, _rows_chunk(0), mapped=(True,))
    leaf = Leaf(ROWS, pair, (_rows_chunk(0),))
    for block in range(1, 9):
        broken = Memory({"f": flipped(ROWS.tobytes(), block * 3200 + (0 if block == 8 else 3199))})
        if block in (1, 8):
            assert not _same(made, broken, [leaf])
            continue
        with pytest.raises(tx.Corrupted, match=f"bytes {block * 3200}-{block * 3200 + 3200}"):
            _same(made, broken, [leaf])


def test_a_mapped_file_that_is_gone_is_damage_whoever_looks_first(tmp_path: Any) -> None:
    made = _plan_of(_target("w", ROWS), _rows_chunk(), mapped=(True,), threads=2)
    with pytest.raises(tx.Corrupted) as caught:
        list(execute_plan(made, [Local(tmp_path)]))
    assert str(caught.value) == "Expected a data file, found none - at `w`, file `f`"


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_byte_of_a_saved_checkpoint_that_changes_is_found(
    tmp_path: Any, compression: Any
) -> None:
    tree = {"w": np.random.default_rng(0).random((300, 400), np.float32), "b": np.ones(3)}
    tx.save(tmp_path / "ckpt", tree, compression=compression)
    catalog = tx.open(tmp_path / "ckpt")
    (chunk,) = catalog.locate([catalog.leaves["w"]])["w"]
    file, extent = tmp_path / "ckpt" / chunk.extent.key, chunk.extent
    data = file.read_bytes()
    made = tx.plan(tmp_path / "ckpt", tree, verify="required")
    assert np.array_equal(tx.run(made)["w"], tree["w"])
    for at in (extent.start, extent.start + extent.nbytes // 2, extent.stop - 1):
        file.write_bytes(flipped(data, at))
        with pytest.raises(tx.Corrupted) as caught:
            tx.restore(tmp_path / "ckpt", tree)
        error = caught.value
        assert error.what.startswith("Expected crc32c `")
        assert (error.leaf, error.file) == ("w", chunk.extent.key)
        assert (error.start, error.stop) == (extent.start, extent.stop)
