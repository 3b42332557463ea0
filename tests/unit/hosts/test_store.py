"""The key-value store of a job whose service can't be reached; tests/hosts has real jobs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from jax._src import distributed  # pyright: ignore
from jax.errors import JaxRuntimeError

from templax._jax.coordination import JobStore, StoreError

CALLS: dict[str, Callable[[JobStore], Any]] = {
    "set": lambda store: store.set("key", b""),
    "get": lambda store: store.get("key", 1.0),
    "delete": lambda store: store.delete("key"),
    "peek": lambda store: store.peek("key"),
    "by_process": lambda store: store.by_process("key"),
    "by_process_and_number": lambda store: store.by_process_and_number("key"),
    "put": lambda store: store.put("key", b"value"),
    "take": lambda store: store.take("key", 5),
}


def _raise(*arguments: Any, **options: Any) -> Any:
    raise JaxRuntimeError("UNAVAILABLE: failed to connect to all addresses")


CLIENT = SimpleNamespace(
    key_value_set_bytes=_raise,
    blocking_key_value_get_bytes=_raise,
    key_value_dir_get_bytes=_raise,
    key_value_delete=_raise,
    key_value_try_get_bytes=_raise,
)


@pytest.mark.parametrize("name", CALLS)
def test_every_call_says_that_the_service_cannot_be_reached(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed.global_state, "client", CLIENT)
    with pytest.raises(StoreError, match="UNAVAILABLE: failed to connect to all addresses"):
        CALLS[name](JobStore())
