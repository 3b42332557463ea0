"""Saves to object stores hold no more bytes than `memory=`, whichever thread is slow."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import templax as tx
from templax.storage.object_file import ObjectFile
from templax.storage.requests import Requests

pytest.importorskip("obstore")

MIB = 1024 * 1024
MEMORY = 48 * MIB


class Held:
    """The bytes of data files that are in memory: behind gaps, in parts, and with the upload."""

    def __init__(self) -> None:
        self.sending = self.most = self.most_waiting = 0
        self.lock = threading.Lock()

    def note(self, file: ObjectFile) -> None:
        waiting = sum(len(data) for _, _, data in list(file._waiting))
        queued = sum(len(part) for part in list(file._parts._queue) if part is not None)  # pyright: ignore
        part = 0 if file._part is None else file._part_bytes
        with self.lock:
            self.most = max(self.most, waiting + queued + part + self.sending)
            self.most_waiting = max(self.most_waiting, waiting)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Counts what is held while parts are sent slowly."""
    held, upload, write = Held(), Requests.upload, ObjectFile.write
    slots: dict[int, asyncio.Semaphore] = {}

    async def upload_slowly(
        self: Requests, store: Any, path: str, parts: Any, part_bytes: int, concurrency: int
    ) -> None:
        slots[0] = asyncio.Semaphore(concurrency)

        async def send(size: int) -> None:
            await asyncio.sleep(0.05)
            held.sending -= size
            slots[0].release()

        async def slow() -> AsyncIterator[Any]:
            sending: list[asyncio.Task[None]] = []
            async for part in parts:
                held.sending += len(part)
                await slots[0].acquire()
                sending.append(asyncio.ensure_future(send(len(part))))
                yield part
            await asyncio.gather(*sending)

        await upload(self, store, path, slow(), part_bytes, concurrency)

    def write_first_slowly(self: ObjectFile, data: Any, offset: int | None = None) -> None:
        if offset is not None and offset < 16 * MIB and threading.current_thread().name[-1] == "0":
            time.sleep(0.02)
        write(self, data, offset)
        held.note(self)

    monkeypatch.setattr(Requests, "upload", upload_slowly)
    monkeypatch.setattr(ObjectFile, "write", write_first_slowly)
    yield held
    assert held.sending == 0


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_save_holds_no_more_than_its_memory(held: Held, compression: str | None) -> None:
    rng = np.random.default_rng(0)
    tree = {f"w{i}": rng.standard_normal((2048, 1024), np.float32) for i in range(16)}
    tree |= {f"b{i}": rng.standard_normal(100, np.float32) for i in range(100)}
    url = f"memory://{uuid.uuid4().hex}/run"
    tx.save(url, tree, memory=MEMORY, threads=4, compression=compression)
    assert 16 * MIB < held.most <= MEMORY
    assert held.most_waiting <= MEMORY // 2
    found = tx.restore(url, tree)
    assert all(np.array_equal(found[name], tree[name]) for name in tree)


@pytest.mark.slow
def test_what_is_compressed_does_not_wait_behind_gaps(held: Held) -> None:
    rng = np.random.default_rng(0)
    tree = {f"w{i}": rng.standard_normal((1024, 1024), np.float32) for i in range(20)}
    tx.save(f"memory://{uuid.uuid4().hex}/run", tree, memory=MEMORY, threads=4, compression="zstd")
    assert held.most_waiting < MIB  # the index, behind what aligns it
