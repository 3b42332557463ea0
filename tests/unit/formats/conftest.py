"""Copies of checkpoints to change, and the event loops of Orbax."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers import copy_case


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A directory with nothing beside it, nor beside the directories above that errors look at."""
    path = tmp_path / "alone" / "alone" / "alone" / "alone"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def case(tmp_path: Path) -> Callable[..., Path]:
    """Copies a case of the corpus below `tmp_path`."""
    return lambda name, to="ckpt": copy_case(name, tmp_path / to)


@pytest.fixture
def own_event_loop() -> Iterator[None]:
    """Closes the event loop that Orbax leaves open, so that no other test gets its warning."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)
