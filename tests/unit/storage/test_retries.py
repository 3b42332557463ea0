"""How long requests are retried: as long as bytes arrive, and no longer than the timeout after."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import obstore
import pytest

import templax as tx
from templax.storage import ObjectSource
from templax.storage.stores import ProcessMemory

TIMEOUT_S = 0.6
STEP = 1024 * 1024


class Body:
    """An answer whose body breaks off after `limit` bytes, a while after its first."""

    def __init__(self, found: Any, limit: int):
        self.meta, self.range, self._data = found.meta, found.range, found.bytes()
        self._limit = limit

    async def stream(self, *, min_chunk_size: int) -> AsyncIterator[bytes]:
        del min_chunk_size
        await asyncio.sleep(TIMEOUT_S / 3)
        if self._limit:
            yield bytes(self._data)[: self._limit]
        raise ConnectionError("reset")


def cut_bodies(monkeypatch: pytest.MonkeyPatch, limit: int) -> tuple[ObjectSource, bytes]:
    """An object of 8 MiB of which each request brings at most `limit` bytes."""
    data = bytes(range(256)) * (8 * STEP // 256)
    settings, url = ProcessMemory(timeout=TIMEOUT_S), f"memory://{uuid.uuid4().hex}/run"
    store, get = settings.make(settings.locate(url)), obstore.get_async
    obstore.put(store, "run/x", data)

    async def get_cut(store: Any, path: str, *, options: Any = None) -> Any:
        start, stop = options["range"]
        found = await get(store, path, options=options)
        return found if stop - start <= limit else Body(found, limit)

    monkeypatch.setattr(obstore, "get_async", get_cut)
    return ObjectSource(settings, url), data


def test_a_long_body_is_not_given_up_while_bytes_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = cut_bodies(monkeypatch, STEP)
    begin = time.monotonic()
    assert source.read("x") == data
    assert time.monotonic() - begin > 2 * TIMEOUT_S
    assert source.traffic.retried == 7


def test_a_body_of_which_no_byte_arrives_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = cut_bodies(monkeypatch, 0)
    begin = time.monotonic()
    with pytest.raises(tx.SourceError, match=r"reset; tried [2-9] times"):
        source.read("x")
    assert time.monotonic() - begin < 10 * TIMEOUT_S
