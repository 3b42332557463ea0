"""Argument types of public functions, and checks that several of them share."""

from __future__ import annotations

import operator
from typing import Any

from ..errors import UsageError
from .text import format_value

PyTree = Any
"""Any pytree. JAX does not give them a type either."""


def check_int(name: str, value: Any, minimum: int = 1) -> int:
    """Checks an integer argument and returns it as an int.

    Args:
        name: Name of the argument, for the message.
        value: What the user passed. numpy integers are accepted, bools are not.
        minimum: The smallest valid value.

    Raises:
        UsageError: `value` is not an integer, or is less than `minimum`.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:  # an array of one element has `__index__`, too
        number = None
    if number is None or number < minimum:
        got = format_value(value)
        raise UsageError(f"Expected {name}= an int of at least {minimum}, got {got}")
    return number


def check_company(timeout: Any, alone: Any) -> None:
    """Refuses invalid arguments `timeout=` and `alone=` of a call that a job makes together.

    Raises:
        UsageError: `timeout` is neither None nor a positive number; or `alone` is not a bool.
    """
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout > 0
    if timeout is not None and not number:
        got = format_value(timeout)
        raise UsageError(f"Expected timeout= a number of seconds above 0, got {got}")
    if not isinstance(alone, bool):
        raise UsageError(f"Expected alone=True or False, got {format_value(alone)}")
