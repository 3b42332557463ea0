"""Types of arguments of public calls, and checks that several calls share."""

from __future__ import annotations

import operator
from typing import Any

from ..errors import UsageError

PyTree = Any
"""Any pytree, as JAX has it."""


def check_int(name: str, value: Any, least: int = 1) -> int:
    """An argument that is a number of things, as an int.

    Raises:
        UsageError: It is none, or below `least`.
    """
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or operator.index(value) < least:
        raise UsageError(f"Expected {name}= an int of at least {least}, got {value!r}")
    return operator.index(value)
