"""Checksums of blocks: what a plan reads, verifies and reports for typical layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import templax as tx
from helpers import flip_bit
from stored_leaves import (
    StoredLeaf,
    block_checksums,
    make_pair,
    plan_leaves,
    plan_pair,
    reads_values,
    small_sizes,
)
from templax._catalog.entry import Chunk, Extent
from templax._codecs.crc32c import crc32c
from templax._core.boxes import full_box
from templax._restore.buffers import HostMemory
from templax._restore.execute import execute_plan
from templax.storage import Local, Memory

ROWS = np.arange(1000 * 8, dtype=np.float32).reshape(1000, 8)
"""Rows of 32 bytes, in blocks of 100 rows."""


def make_rows_chunk(start: int = 64) -> Chunk:
    stored = ROWS.tobytes()
    extent = Extent("f", start, start + len(stored))
    return Chunk(extent, ((0, 1000), (0, 8)), (), "C", True, block_checksums(stored, 3200), 3200)


def test_rows_within_a_block_are_read_alone_unless_verify_is_required() -> None:
    pair, chunk = make_pair("w", ROWS, [((110, 120), (0, 8))]), make_rows_chunk()
    made = plan_pair(pair, chunk)
    (op,) = made.batches[0].reads
    assert (op.start, op.stop) == (64 + 110 * 32, 64 + 120 * 32)
    assert op.parts[0].direct == 0
    assert made.unverified == ("w",)
    made = plan_pair(pair, chunk, verify="required")
    (op,) = made.batches[0].reads
    assert (op.start, op.stop) == (64 + 100 * 32, 64 + 200 * 32)
    assert made.unverified == ()
    assert (made.read_bytes, made.useful_bytes) == (3200, 320)
    assert "bytes useful                   320  10.0% of those read" in str(made)


def test_rows_of_whole_blocks_are_read_in_place_and_verified() -> None:
    for verify in ("available", "required"):
        made = plan_pair(
            make_pair("w", ROWS, [((100, 300), (0, 8))]), make_rows_chunk(), verify=verify
        )
        (op,) = made.batches[0].reads
        assert (op.parts[0].direct, op.stop - op.start, made.unverified) == (0, 6400, ())


def test_only_the_edges_of_a_large_box_go_through_scratch() -> None:
    """The blocks in between are read in place."""
    with small_sizes({"SCATTER_BYTES": 3200, "IN_PLACE_BYTES": 3200}):
        made = plan_pair(
            make_pair("w", ROWS, [((150, 850), (0, 8))]), make_rows_chunk(), verify="required"
        )
    parts = [part for op in made.batches[0].reads for part in op.parts]
    assert [(p.start - 64) // 3200 for p in parts] == list(range(1, 9))
    assert [p.direct is None for p in parts] == [True, *[False] * 6, True]
    assert made.scratch_bytes == 3200


def test_columns_are_verified_if_this_process_gets_all_of_them() -> None:
    halves = [((0, 1000), (0, 4)), ((0, 1000), (4, 8))]
    assert plan_pair(make_pair("w", ROWS, halves), make_rows_chunk()).unverified == ()
    upper = [((0, 750), (0, 4))]  # ends within a block
    assert plan_pair(make_pair("w", ROWS, upper), make_rows_chunk()).unverified == ("w",)


def test_blocks_of_which_nearly_all_is_wanted_are_read_whole() -> None:
    """The left columns reach from the first row to the last: they lack 16 bytes of the blocks."""
    left = [((0, 1000), (0, 4))]
    made = plan_pair(make_pair("w", ROWS, left), make_rows_chunk())
    assert made.unverified == ()
    assert made.read_bytes == 32000
    assert made.useful_bytes == 32000 - 16
    few = plan_pair(make_pair("w", ROWS, [((0, 10), (0, 4))]), make_rows_chunk())
    assert few.unverified == ("w",)
    assert few.read_bytes == 320 - 16


def test_a_split_along_a_later_dimension_is_at_block_borders() -> None:
    """The only row of the leading dimension is not a whole number of blocks."""
    values = np.arange(1050 * 8, dtype=np.float32).reshape(1, 1050, 8)
    stored = values.tobytes()
    chunk = Chunk(
        Extent("f", 0, len(stored)),
        full_box(values.shape),
        (),
        "C",
        True,
        block_checksums(stored, 3200),
        3200,
    )
    with small_sizes({"SPLIT_BYTES": 6400, "SCATTER_BYTES": 6400, "IN_PLACE_BYTES": 1}):
        made = plan_pair(make_pair("w", values), chunk)
    spans = [(op.start, op.stop) for op in made.batches[0].reads]
    assert spans == [(a, min(a + 6400, 33600)) for a in range(0, 33600, 6400)]
    assert made.unverified == ()


def test_a_row_that_begins_within_a_block_is_not_split_inside_blocks() -> None:
    """Otherwise two jobs would read the block across the split."""
    values = np.arange(2 * 1050 * 8, dtype=np.float32).reshape(2, 1050, 8)
    stored = values.tobytes()
    chunk = Chunk(
        Extent("f", 0, len(stored)),
        full_box(values.shape),
        (),
        "C",
        True,
        block_checksums(stored, 3200),
        3200,
    )
    with small_sizes({"SPLIT_BYTES": 6400, "SCATTER_BYTES": 6400, "IN_PLACE_BYTES": 1}):
        made = plan_pair(
            make_pair("w", values, [((1, 2), (0, 1050), (0, 8))]), chunk, verify="required"
        )
    parts = [part for op in made.batches[0].reads for part in op.parts]
    assert [(part.start, part.stop) for part in parts] == [(32000, 67200)]


def test_a_chunk_may_have_a_trailing_and_an_index_checksum() -> None:
    values = np.arange(300_000, dtype=np.int32)
    data = values.tobytes()
    stored = data + crc32c(data).to_bytes(4, "little")
    extent, both = Extent("f", 0, len(stored)), (crc32c(stored),)
    pair = make_pair("w", values)
    chunk = Chunk(extent, full_box(values.shape), ("crc32c",), "C", True, both, len(stored))
    leaf = StoredLeaf(values, pair, (chunk,))
    assert reads_values(plan_pair(pair, chunk), Memory({"f": stored}), [leaf])
    other = structs.replace(chunk, sums=(both[0] ^ 1,))
    with pytest.raises(tx.Corrupted, match="bytes 0-1200004"):
        reads_values(plan_pair(pair, other), Memory({"f": stored}), [leaf])


def make_small_leaves(sizes: Sequence[int]) -> tuple[list[StoredLeaf], bytes]:
    """Leaves of bytes, each at the next multiple of 64 of a file."""
    leaves, data = [], bytearray()
    for i, n in enumerate(sizes):
        values = np.random.default_rng(i).integers(0, 256, n, np.uint8)
        data += b"\xff" * (-len(data) % 64)
        extent = Extent("f", len(data), len(data) + n)
        data += values.tobytes()
        chunk = Chunk(extent, ((0, n),), (), "C", True, block_checksums(values.tobytes(), n), n)
        leaves.append(StoredLeaf(values, make_pair(f"l{i}", values), (chunk,)))
    return leaves, bytes(data)


@given(st.lists(st.integers(1, 200), min_size=2, max_size=30))
def test_leaves_padded_to_64_bytes_are_read_in_place_together(sizes: list[int]) -> None:
    leaves, data = make_small_leaves(sizes)
    made = plan_leaves(leaves)
    (batch,) = made.batches
    (op,) = batch.reads
    assert HostMemory(batch).find_in_order(op) is not None
    assert made.unverified == ()
    assert reads_values(made, Memory({"f": data}), leaves)
    for i in (0, len(sizes) - 1):
        extent = leaves[i].chunks[0].extent
        with pytest.raises(tx.Corrupted) as caught:
            reads_values(made, Memory({"f": flip_bit(data, extent.stop - 1)}), leaves)
        assert (caught.value.leaf, caught.value.start) == (f"l{i}", extent.start)


@pytest.mark.parametrize(
    "pieces",
    [
        # Of each piece: the leaf, the range of its bytes, and their place in the file.
        [(0, 0, 20, 0), (0, 40, 60, 40), (0, 20, 40, 200)],  # a gap within a buffer
        [(0, 0, 70, 0), (1, 0, 9, 128), (0, 70, 100, 300)],  # before the end of one
        [(0, 0, 128, 0), (1, 30, 100, 158), (1, 0, 30, 400)],  # after the start of one
    ],
)
def test_a_gap_filled_by_another_request_is_not_overwritten(pieces: Any) -> None:
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
    leaves = [StoredLeaf(v, make_pair(f"l{i}", v), tuple(chunks[i])) for i, v in values.items()]
    with small_sizes({"GAP_BYTES": 64, "REQUEST_BYTES": 64 * 1024}):
        made = plan_leaves(leaves)
    together, alone = made.batches[0].reads
    assert (len(together.parts), len(alone.parts)) == (2, 1)
    assert HostMemory(made.batches[0]).find_in_order(together) is None
    assert reads_values(made, Memory({"f": data.tobytes()}), leaves)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_compressed_chunk_is_verified_while_it_is_decoded(order: Any) -> None:
    """A changed chunk is reported by its checksum even if it does not decode either."""
    values = np.random.default_rng(0).standard_normal((1200, 1000)).astype(np.float32)
    stored = zstandard.compress(values.tobytes(order=order))
    assert len(stored) > 4 << 20
    box, extent = full_box(values.shape), Extent("f", 0, len(stored))
    sum_ = (crc32c(stored),)
    made = plan_pair(
        make_pair("w", values), Chunk(extent, box, ("zstd",), order, True, sum_, len(stored))
    )
    leaves = [StoredLeaf(values, make_pair("w", values), ())]
    assert reads_values(made, Memory({"f": stored}), leaves)
    for at in (0, 5, len(stored) // 2, len(stored) - 1):
        damaged = flip_bit(stored, at)
        with pytest.raises(tx.Corrupted) as caught:
            reads_values(made, Memory({"f": damaged}), leaves)
        assert str(caught.value) == (
            f"Expected crc32c `{sum_[0]:08x}`, got `{crc32c(damaged):08x}`"
            f" - at `w`, file `f`, bytes 0-{len(stored)}"
        )
    # Written like this: the checksum agrees, so the decoder reports the error.
    broken = flip_bit(stored, 0)
    made = plan_pair(
        make_pair("w", values),
        Chunk(extent, box, ("zstd",), order, True, (crc32c(broken),), len(stored)),
    )
    with pytest.raises(tx.Corrupted, match="got bytes that do not decode"):
        reads_values(made, Memory({"f": broken}), leaves)


def test_a_mapped_part_of_a_block_is_verified_only_if_required(tmp_path: Any) -> None:
    """Rows 110 to 120 of blocks of 100 rows."""
    chunk = make_rows_chunk(0)
    data = flip_bit(ROWS.tobytes(), 199 * 32)
    (tmp_path / "f").write_bytes(data)
    pair = make_pair("w", ROWS, [((110, 120), (0, 8))])
    made = plan_pair(pair, chunk, mapped=(True,))
    assert (made.unverified, made.mapped_bytes) == (("w",), 320)
    (finished,) = execute_plan(made, [Local(tmp_path)])
    np.testing.assert_array_equal(finished.arrays[0], ROWS[110:120])
    made = plan_pair(pair, chunk, mapped=(True,), verify="required")
    assert (made.unverified, made.mapped_bytes, made.read_bytes) == ((), 320, 0)
    with pytest.raises(tx.Corrupted) as caught:
        list(execute_plan(made, [Local(tmp_path)]))
    error = caught.value
    assert (error.leaf, error.file, error.start, error.stop) == ("w", "f", 3200, 6400)


def test_large_mapped_leaves_are_verified_by_several_jobs() -> None:
    with small_sizes({"SPLIT_BYTES": 6400}):
        made = plan_pair(make_pair("w", ROWS), make_rows_chunk(), mapped=(True,))
    pieces = [(c.start - 64, c.stop - 64) for job in made.batches[0].checks for c in job]
    assert pieces == [(a, a + 6400) for a in range(0, 32000, 6400)]
    leaves, _ = make_small_leaves([70] * 100)
    made = plan_leaves(leaves, mapped=(True,))
    assert [len(job) for job in made.batches[0].checks] == [100]


def test_whole_blocks_of_a_mapped_part_are_verified() -> None:
    pair = make_pair("w", ROWS, [((150, 850), (0, 8))])
    with small_sizes({"SPLIT_BYTES": 6400}):
        made = plan_pair(pair, make_rows_chunk(0), mapped=(True,))
    leaf = StoredLeaf(ROWS, pair, (make_rows_chunk(0),))
    for block in range(1, 9):
        broken = Memory({"f": flip_bit(ROWS.tobytes(), block * 3200 + (0 if block == 8 else 3199))})
        if block in (1, 8):
            assert not reads_values(made, broken, [leaf])
            continue
        with pytest.raises(tx.Corrupted, match=f"bytes {block * 3200}-{block * 3200 + 3200}"):
            reads_values(made, broken, [leaf])


def test_a_missing_mapped_file_is_damage(tmp_path: Any) -> None:
    made = plan_pair(make_pair("w", ROWS), make_rows_chunk(), mapped=(True,), threads=2)
    with pytest.raises(tx.Corrupted) as caught:
        list(execute_plan(made, [Local(tmp_path)]))
    assert str(caught.value) == "Expected a data file, found none - at `w`, file `f`"
