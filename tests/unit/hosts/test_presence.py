"""What a process tells the others of itself."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from templax._hosts.presence import Presence


class _Store:
    catches_sigterm = True

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: bytes, *, overwrite: bool = False) -> bool:
        self.values[key] = value
        return True


def test_a_process_has_sent_a_heartbeat_before_it_can_offer_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the others could not tell that it died soon after."""
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    store: Any = _Store()
    Presence(store, 3)
    assert store.values == {"templax/alive/3": b"0"}
