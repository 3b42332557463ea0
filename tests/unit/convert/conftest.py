"""What the tests of conversions share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import conversion_kills
from templax._core import chunk_grid


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes small trees take many chunks and writes."""
    for (module, name), size in conversion_kills.SMALL.items():
        monkeypatch.setattr(module, name, size)
    chunk_grid.chunk_shape.cache_clear()
    yield
    chunk_grid.chunk_shape.cache_clear()
