"""What one process of a job keeps, used by several threads; tests/hosts has real jobs."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from templax._hosts.link import Link


class SlowStore:
    """A store in which every session has been left by all of two processes."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    def set(self, key: str, value: bytes, overwrite: bool = False) -> bool:
        return True

    def by_process(self, key: str) -> dict[int, bytes]:
        time.sleep(0.02)
        return {0: b"", 1: b""}

    def delete(self, key: str) -> None:
        self.deleted.append(key)


def test_saves_that_end_at_once_delete_each_session_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("templax._hosts.link.Presence", lambda *_: None)
    store: Any = SlowStore()
    link = Link(store, 0, 2)
    for number in range(4):
        link.leave_session(number)
    store.deleted.clear()
    errors: list[BaseException] = []

    def leave(number: int) -> None:
        try:
            link.leave_session(number)
        except BaseException as error:  # noqa: BLE001, asserted below
            errors.append(error)

    threads = [threading.Thread(target=leave, args=(number,)) for number in range(4, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(store.deleted) == sorted(set(store.deleted))
    assert len(store.deleted) == 4
