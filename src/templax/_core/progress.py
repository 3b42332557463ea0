"""The callback `on_progress=` of saves, restores and verifications."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import UsageError

Progress = Callable[[int, int], object]
"""Called with the bytes done so far and the bytes in all. `templax.restore` says when."""

PROGRESS_S = 0.1
"""Seconds between two calls, at least."""


def check_progress(value: object) -> None:
    """Checks the argument `on_progress=`.

    Raises:
        UsageError: It is neither None nor a function.
    """
    if value is not None and not callable(value):
        raise UsageError(f"Expected on_progress= a function of two numbers, got {value!r}")
