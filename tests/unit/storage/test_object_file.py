"""Files of a store: whatever the order of writes, the object has each byte at its place."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from helpers import count_examples
from templax.storage import object_file
from templax.storage.event_loop import run_request
from templax.storage.object_file import ObjectFile
from templax.storage.stores import ProcessMemory


def open_file() -> tuple[ObjectFile, Any]:
    store = ProcessMemory()
    location = store.locate(f"memory://{uuid.uuid4().hex}/x")
    requests = store.connect(location)
    return ObjectFile(store.make(location), requests, "x"), requests


def read(requests: Any) -> bytes:
    return run_request(requests.fetch_whole("x"))[1]


@count_examples(100)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 200)), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
    settles=st.booleans(),
    part=st.integers(1, 300),
)
def test_any_order_of_writes_gives_the_same_object(
    sizes: list[tuple[int, int]], order: Any, settles: bool, part: int
) -> None:
    """Before each write there is a gap, which stays zeros."""
    pieces, want, at = list[tuple[int, bytes]](), bytearray(), 0
    for i, (gap, size) in enumerate(sizes):
        at += gap
        data = bytes([i + 1]) * size
        pieces.append((at, data))
        want += bytes(gap) + data
        at += size
    order.shuffle(pieces)
    file, requests = open_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_file, "PART_BYTES", part)
        file.expect(at, 1 << 30)
        while pieces:
            offset, data = pieces.pop()
            file.write(data, offset)
            if settles:
                file.settle(min((start for start, _ in pieces), default=at))
        file.close()
    assert file.size == at
    assert read(requests) == want


def test_what_is_settled_does_not_wait_in_memory() -> None:
    file, requests = open_file()
    file.write(b"a" * 10, 0)
    file.write(b"c" * 10, 128)
    file.settle(64)
    file.write(b"b" * 10, 64)
    file.settle(128)
    file.write(b"d" * 10, 192)
    assert file._waiting == [(192, 2, b"d" * 10)]  # pyright: ignore[reportPrivateUsage]
    file.close()
    assert read(requests)[64:74] == b"b" * 10
    assert read(requests)[128:138] == b"c" * 10


def test_what_was_sent_cannot_be_written_again() -> None:
    file, requests = open_file()
    file.write(b"x" * 100)
    with pytest.raises(tx.SaveError, match="Expected writes in order"):
        file.write(b"y", 50)
    file.abandon()
    with pytest.raises(tx.SaveError):
        file.write(b"z")
    with pytest.raises(tx.NotFound):
        read(requests)
