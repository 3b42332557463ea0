"""Checks of the step numbers and metrics that callers pass. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._core.arguments import check_int
from .._core.dtypes import read_number
from .._core.json_text import encode_json
from ..errors import UsageError

STEP_LIMIT = 10**18
"""Steps are below this number: a directory named by a larger one is not recognised as a step."""


def check_step(step: Any) -> int:
    """A step number as an int.

    Raises:
        UsageError: It is not an int from 0 to below `STEP_LIMIT`.
    """
    number = check_int("step", step, minimum=0)
    if number >= STEP_LIMIT:
        raise UsageError(f"Expected step= below {STEP_LIMIT}, got {number}")
    return number


def read_step(step: Any) -> int | None:
    """A step number as an int; None if it is none, which `check_step` then explains."""
    try:
        return check_step(step)
    except UsageError:
        return None


def check_metrics(metrics: Any) -> dict[str, float] | None:
    """Metrics as JSON stores them: Python numbers by name.

    Raises:
        UsageError: They are not a mapping of names to numbers or scalar arrays, or JSON can't hold
            them.
    """
    if metrics is None:
        return None
    if not isinstance(metrics, Mapping):
        raise UsageError(f"Expected metrics= a dict of numbers, got {metrics!r}")
    numbers = {_check_name(name): _to_number(name, value) for name, value in metrics.items()}
    try:
        encode_json(numbers)
    except ValueError as error:
        raise UsageError(f"Expected metrics= that JSON can hold: {error}") from error
    return numbers


def _check_name(name: Any) -> str:
    if not isinstance(name, str):
        raise UsageError(f"Expected names (str) in metrics=, got {name!r}")
    return name


def _to_number(name: str, value: Any) -> float:
    """A Python, NumPy or JAX number as a Python number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    number = read_number(value)
    if number is None or isinstance(number, bool):
        raise UsageError(f"Expected a number in metrics=, got {value!r} for `{name}`")
    return number
