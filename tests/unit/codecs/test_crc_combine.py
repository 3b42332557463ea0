"""Combining CRC-32C checksums of pieces gives that of the whole."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from templax._codecs.crc32c import crc32c
from templax._codecs.crc_combine import (
    combine_crcs,
    crc_of_zeros,
    piece_contribution,
    shift_contribution,
    strided_contribution,
)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=6), st.randoms())
def test_checksums_of_pieces_in_any_order_combine(pieces: list[bytes], random: np.random.Generator):
    whole = b"".join(pieces)
    parts = []
    after = len(whole)
    for data in pieces:
        after -= len(data)
        parts.append(piece_contribution(crc32c(data), len(data), after))
    random.shuffle(parts)
    total = crc_of_zeros(len(whole))
    for part in parts:
        total ^= part
    assert total == crc32c(whole)


@given(st.binary(min_size=1, max_size=2000), st.integers(1, 300))
def test_checksums_of_equal_blocks_combine(data: bytes, block: int):
    crcs = [crc32c(data[i : i + block]) for i in range(0, len(data), block)]
    assert combine_crcs(crcs, block, len(data)) == crc32c(data)


def test_the_checksum_of_no_bytes_is_zero():
    assert combine_crcs([], 64, 0) == crc32c(b"") == crc_of_zeros(0) == 0


@given(st.integers(1, 9), st.integers(1, 40), st.lists(st.integers(1, 39), max_size=2))
def test_checksums_of_columns_combine_to_that_of_the_matrix(
    rows: int, columns: int, cuts: list[int]
):
    matrix = np.random.default_rng(0).integers(0, 256, (rows, columns), np.uint8)
    edges = sorted({0, columns, *(c for c in cuts if c < columns)})
    total = crc_of_zeros(matrix.size)
    for a, b in itertools.pairwise(edges):
        crcs = [crc32c(row[a:b].tobytes()) for row in matrix]
        total ^= shift_contribution(strided_contribution(crcs, b - a, columns), columns - b)
    assert total == crc32c(matrix.tobytes())


def test_the_checksum_of_a_terabyte_of_zeros_is_computed_at_once():
    assert combine_crcs([crc_of_zeros(2**39)] * 2, 2**39, 2**40) == crc_of_zeros(2**40)
