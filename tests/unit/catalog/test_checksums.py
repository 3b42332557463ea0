"""Checksums of blocks: comparing bytes in pieces, and joining chunks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import templax as tx
from helpers import flip_bit
from stored_leaves import (
    block_checksums,
)
from templax._catalog.checksums import (
    BlockVerifier,
    align_to_blocks,
    check_blocks,
    covers_whole_blocks,
)
from templax._catalog.entry import Chunk, Extent
from templax._codecs.crc32c import crc32c
from templax._plan.parts import merge_chunks


@given(st.data())
def test_bytes_in_any_pieces_are_compared_block_by_block(data: Any) -> None:
    """Blocks that are not complete are not compared."""
    n = data.draw(st.integers(1, 60))
    block, origin = data.draw(st.integers(1, 70)), data.draw(st.integers(0, 9))
    stored = np.random.default_rng(n).bytes(n)
    chunk = Chunk(
        Extent("f", origin, origin + n), ((0, n),), sums=block_checksums(stored, block), block=block
    )
    start = data.draw(st.one_of(st.just(0), st.integers(0, n - 1)))
    stop = data.draw(st.one_of(st.just(n), st.integers(start + 1, n)))
    at = data.draw(st.integers(0, n - 1))
    damaged = flip_bit(stored, at)
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


def test_joined_chunks_keep_their_checksums_as_blocks() -> None:
    stored = bytes(range(70))
    chunks = [
        Chunk(
            Extent("f", i, min(i + 20, 70)),
            ((i // 10, min(i // 10 + 2, 7)), (0, 10)),
            checked=True,
            sums=block_checksums(stored[i : i + 20], 20),
            block=20,
        )
        for i in range(0, 70, 20)
    ]
    (one,) = merge_chunks(chunks)
    assert one == Chunk(
        Extent("f", 0, 70), ((0, 7), (0, 10)), (), "C", True, block_checksums(stored, 20), 20
    )
    assert merge_chunks(chunks[:3])[0].sums == one.sums[:3]
    two_each = structs.replace(chunks[0], sums=block_checksums(stored[:20], 10), block=10)
    none = structs.replace(chunks[1], sums=(), block=0)
    for others in ([two_each, *chunks[1:]], [chunks[0], none], [chunks[3], *chunks[:0]]):
        assert merge_chunks(others) is others
    longer = Chunk(Extent("f", 70, 100), ((7, 10), (0, 10)), sums=(1,), block=30)
    back = [structs.replace(chunks[3], box=((6, 7), (0, 10))), longer]
    assert merge_chunks(back) is back
