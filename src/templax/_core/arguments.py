"""Argument types of public functions, and checks that several of them share."""

from __future__ import annotations

import operator
from typing import Any

from ..errors import UsageError

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
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool)
    if not is_integer or operator.index(value) < minimum:
        raise UsageError(f"Expected {name}= an int of at least {minimum}, got {value!r}")
    return operator.index(value)
