"""Types of arguments of public calls, and checks that several calls share."""

from __future__ import annotations

import operator
from typing import Any

from ..errors import UsageError

PyTree = Any
"""Any pytree, as JAX has it."""


def check_int(name: str, value: Any, minimum: int = 1) -> int:
    """Checks an argument that counts something, and returns it as an int.

    Raises:
        UsageError: It is not an integer, or is below `minimum`.
    """
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or operator.index(value) < minimum:
        raise UsageError(f"Expected {name}= an int of at least {minimum}, got {value!r}")
    return operator.index(value)
