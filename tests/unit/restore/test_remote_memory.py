"""Restores from object stores hold no more than `memory=` beyond the tree."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import obstore
import pytest

import templax as tx
from templax.storage import ObjectSource
from templax.storage.requests import CONCURRENCY
from templax.storage.stores import ProcessMemory

MIB = 1024 * 1024
MEMORY = 32 * MIB


class Answers:
    """Counts the bytes that answers hold at most until they are copied to their place."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = self.most = self.piece_bytes = 0
        self.lock, self.get = threading.Lock(), obstore.get_async
        monkeypatch.setattr(obstore, "get_async", self.get_slowly)

    async def get_slowly(self, store: Any, path: str, *, options: Any = None) -> Any:
        found = await self.get(store, path, options=options)
        return found if options is None else _Body(found, self)


class _Body:
    """An answer that takes as long as it does for all others to arrive."""

    def __init__(self, found: Any, answers: Answers):
        self.meta, self.range = found.meta, found.range
        self._found, self._answers = found, answers

    async def stream(self, *, min_chunk_size: int) -> AsyncIterator[memoryview]:
        answers, data = self._answers, memoryview(await self._found.bytes_async())
        answers.piece_bytes = max(answers.piece_bytes, min_chunk_size)
        for at in range(0, len(data), min_chunk_size):
            chunk = data[at : at + min_chunk_size]
            answers.held += len(chunk)
            await asyncio.sleep(0.01)
            answers.most = max(answers.most, answers.held)
            answers.held -= len(chunk)
            yield chunk


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_answers_and_scratch_fit_in_the_memory(
    monkeypatch: pytest.MonkeyPatch, compression: str | None
) -> None:
    rng = np.random.default_rng(0)
    tree = {f"w{i}": rng.standard_normal((1024, 1024), np.float32) for i in range(24)}
    url = f"memory://{uuid.uuid4().hex}/run"
    tx.save(url, tree, compression=compression)
    plan = tx.plan(url, tree, memory=MEMORY)
    answers = Answers(monkeypatch)
    assert plan.peak_bytes <= MEMORY
    found = tx.run(plan)
    assert all(np.array_equal(found[name], tree[name]) for name in tree)
    assert answers.piece_bytes * CONCURRENCY <= MEMORY // 4
    assert 0 < answers.most <= MEMORY // 4
    assert answers.held == 0


@pytest.mark.slow
def test_pieces_of_answers_are_large_where_memory_is_not_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = {f"w{i}": np.ones((1024, 1024), np.float32) for i in range(16)}
    url = f"memory://{uuid.uuid4().hex}/run"
    tx.save(url, tree)
    answers = Answers(monkeypatch)
    tx.restore(url, tree)
    assert answers.piece_bytes == MIB


def test_what_is_read_around_short_ranges_is_bounded() -> None:
    settings, url = ProcessMemory(), f"memory://{uuid.uuid4().hex}/run"
    store = settings.make(settings.locate(url))
    obstore.put(store, "run/x", bytes(100 * MIB))
    source = ObjectSource(settings, url)
    kept = source._kept  # pyright: ignore[reportPrivateUsage]
    kept.requests._latencies.extend([1.0] * 64)  # pyright: ignore[reportPrivateUsage]
    kept.requests._rates.extend([50e6] * 64)  # pyright: ignore[reportPrivateUsage]
    for start in range(0, 90 * MIB, 9 * MIB):
        assert source.read("x", start, start + 10) == bytes(10)
        assert 8 * MIB <= sum(map(len, kept.blocks.values())) <= 16 * MIB
