"""Large zstd frames of an object store: the next blocks are fetched while one is decoded."""

from __future__ import annotations

import time
import uuid
from typing import Any

import numpy as np
import obstore
import pytest

import templax as tx
from templax._codecs.zstd import Inflater
from templax._plan.plan import ReadOp
from templax._restore.fill import (
    _RequestStream,  # pyright: ignore[reportPrivateUsage]
    _worker,  # pyright: ignore[reportPrivateUsage]
)
from templax._restore.stats import StageSeconds
from templax.storage import ObjectSource
from templax.storage.stores import ProcessMemory

MIB = 1024 * 1024
SETTINGS = ProcessMemory()


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/run"


def put(url: str, data: bytes) -> None:
    location = SETTINGS.locate(url)
    obstore.put(SETTINGS.make(location), f"{location.path}/x", data)


def open_stream(url: str, stop: int, start: int = 0) -> tuple[_RequestStream, StageSeconds]:
    busy = StageSeconds()
    op = ReadOp(0, "x", start, stop, ())
    return _RequestStream(op, ObjectSource(SETTINGS, url), busy, None), busy


def test_four_blocks_are_fetched_and_decoded_at_a_time(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(url, np.random.default_rng(0).bytes(30 * MIB))
    get, begun = obstore.get_async, list[int]()

    async def note(store: Any, path: str, *, options: Any = None) -> Any:
        begun.append(options["range"][0] // MIB)
        return await get(store, path, options=options)

    def await_requests(count: int) -> None:
        deadline = time.monotonic() + 10
        while len(begun) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)  # any more would have begun by now
        assert sorted(begun) == [4 * i for i in range(count)]

    monkeypatch.setattr(obstore, "get_async", note)
    stream, _ = open_stream(url, 30 * MIB)
    stream.read(MIB)
    await_requests(4)
    stream.read(4 * MIB)  # what is left of the first block
    await_requests(4)
    stream.read(1)
    await_requests(5)
    stream.close()


@pytest.mark.parametrize("start", [0, 1_234_567])
@pytest.mark.parametrize("size", [4 * MIB + 1, 16 * MIB, 41 * MIB + 7])
@pytest.mark.parametrize("step", [MIB, 3_333_333])
def test_the_blocks_make_up_the_request(url: str, start: int, size: int, step: int) -> None:
    data = np.random.default_rng(0).bytes(start + size + 100)
    put(url, data)
    stream, _ = open_stream(url, start + size, start)
    found = bytearray()
    while piece := stream.read(step):
        found += piece
    assert bytes(found) == data[start : start + size]
    stream.close()


def test_a_frame_that_is_given_up_leaves_its_memory_to_the_requests_that_still_fill_it(
    url: str,
) -> None:
    """Else they would fill what the thread reads next to the same memory."""
    put(url, bytes(30 * MIB))

    def find_memory() -> np.ndarray:
        return np.frombuffer(_worker.scratch.bytes("stored", 1), np.uint8)

    stream, _ = open_stream(url, 30 * MIB)
    assert bytes(stream.read(MIB)) == bytes(MIB)
    before = find_memory()
    stream.close()
    after = find_memory()
    assert not np.shares_memory(before, after)
    stream, _ = open_stream(url, 30 * MIB)
    while stream.read(MIB):
        pass
    last = find_memory()
    stream.close()
    assert np.shares_memory(last, find_memory())


@pytest.mark.slow
def test_a_damaged_frame_is_an_error_and_the_next_one_is_read(url: str) -> None:
    zstandard = pytest.importorskip("zstandard")
    value = np.random.default_rng(0).standard_normal((6, 1024, 1024), np.float32)
    frame = bytearray(zstandard.ZstdCompressor(level=1).compress(value.tobytes()))
    put(f"{url}/whole", bytes(frame))
    frame[:4] = bytes(4)
    put(f"{url}/damaged", bytes(frame))
    with pytest.raises(tx.Corrupted, match="do not decode"):
        decode(f"{url}/damaged", value)
    np.testing.assert_array_equal(decode(f"{url}/whole", value), value)


def decode(url: str, like: np.ndarray) -> np.ndarray:
    info = ObjectSource(SETTINGS, url).stat("x")
    assert info is not None
    stream, _ = open_stream(url, info.size)
    out = np.empty_like(like)
    try:
        inflater = Inflater(stream)
        inflater.fill(memoryview(out).cast("B"))
        inflater.finish()
    finally:
        stream.close()
    return out
