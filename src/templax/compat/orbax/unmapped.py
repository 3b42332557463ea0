"""The errors about names and arguments of Orbax that have no counterpart here."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn


def unmapped_argument(argument: str, native: str) -> NotImplementedError:
    """The error about an argument that is not mapped.

    Args:
        argument: The argument as the caller wrote it.
        native: The way to say it with templax.
    """
    return NotImplementedError(f"templax.compat.orbax does not map `{argument}`; hint: {native}")


def unmapped_attribute(prefix: str = "") -> Callable[[str], NoReturn]:
    """A module's `__getattr__`, which names the native functions in its error.

    Args:
        prefix: The module below `templax.compat.orbax`, with a dot at the end.
    """

    def __getattr__(name: str) -> NoReturn:
        raise AttributeError(
            f"templax.compat.orbax has no `{prefix}{name}`; "
            f"hint: templax.save(path, tree) and templax.restore(path, template)"
        )

    return __getattr__
