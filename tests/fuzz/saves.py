"""A target for saves: what `save` accepts is read back equal, and nothing else is written.

The property and its strategies are those of `tests/peers/test_round_trips.py`.
"""

from __future__ import annotations

import functools
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .targets import add_target
from .writes import only_writing_to


@functools.cache
def _property() -> Callable[[bytes], object]:
    """Takes the bytes that hypothesis draws its choices from."""
    tests = str(Path(__file__).resolve().parents[1])
    if tests not in sys.path:
        sys.path.insert(0, tests)
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from peers.test_round_trips import METADATA, check_round_trip, trees

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(tree=trees(), metadata=METADATA, compression=st.sampled_from([None, None, "zstd"]))
    def save_and_read(tree: Any, metadata: Any, compression: str | None) -> None:
        with tempfile.TemporaryDirectory() as directory, only_writing_to(directory):
            check_round_trip(Path(directory), tree, metadata, compression)

    return save_and_read.hypothesis.fuzz_one_input


@add_target(
    "save",
    seeds=lambda: [random.Random(i).randbytes(64 << i % 5) for i in range(20)],
    max_bytes=4096,
)
def save_tree(data: bytes) -> None:
    """The choices that draw a tree, metadata and a compression."""
    _property()(data)
