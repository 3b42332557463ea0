"""Programs that die while they write to an object store, and what they leave there."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import templax as tx
from templax.storage import lease
from templax.storage.requests import Requests

LEASE_S = 0.2
"""How long leases last in these tests."""


class Dead(tx.SourceError):
    """What every request raises once the program is dead: it can't even clean up."""


class Dying:
    """Counts what requests change, and lets the program that makes them die at one of them.

    Connections that are made after its death are those of other programs.

    Args:
        monkeypatch: Patches `Requests`.
        at: The number of the request, from 1; 0 for a program that lives.
        applied: Whether the store still carries out that request.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int = 0, *, applied: bool = False):
        self.count, self._at, self._applied = 0, at, applied
        self._dying: set[int] = set()
        self._all: list[Requests] = []  # so that no id is used twice
        monkeypatch.setattr(lease, "LEASE_S", LEASE_S)
        monkeypatch.setattr(Requests, "repeat", self._wrap(Requests.repeat))

    @property
    def dead(self) -> bool:
        """Whether the program has died."""
        return 0 < self._at <= self.count

    def _wrap(self, repeat: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(repeat)
        async def request(requests: Requests, attempt: Any, path: str, action: str = "read") -> Any:
            if not self.dead:
                self._all.append(requests)
                self._dying.add(id(requests))
            elif id(requests) in self._dying:
                raise Dead("the program is dead")
            if self.dead or action == "read":
                return await repeat(requests, attempt, path, action)
            self.count += 1
            if self.dead:
                if self._applied:
                    await repeat(requests, attempt, path, action)
                raise Dead("the program is dead")
            return await repeat(requests, attempt, path, action)

        return request
