"""Packages that templax can do without, and the error where one is needed. No JAX at import."""

from __future__ import annotations

import sys
from importlib import import_module

from ..errors import MissingPackage


def is_jax_loaded() -> bool:
    """Whether the program has imported JAX. If not, it has no arrays, pytrees or jobs of it."""
    return sys.modules.get("jax") is not None


def can_import_jax() -> bool:
    """Whether JAX is installed. Imports it."""
    return _import_jax() is None


def require_jax(what: str, otherwise: str = "") -> None:
    """Imports JAX, for a call that can't do without it.

    Args:
        what: What needs it, as the error begins: "templax.Recipe".
        otherwise: What to do instead of installing it, if anything.

    Raises:
        MissingPackage: JAX is not installed.
    """
    error = _import_jax()
    if error is not None:
        why = "is not installed" if error.name == "jax" else f"can't be imported ({error})"
        hint = 'pip install "templax[jax]"' + (f", or {otherwise}" if otherwise else "")
        raise MissingPackage(f"{what} needs JAX, which {why}", name="jax", hint=hint) from error


def _import_jax() -> ImportError | None:
    try:
        jax = import_module("jax")
    except ImportError as error:
        return error
    # Any directory called `jax` can be imported.
    return None if hasattr(jax, "Array") else ImportError("a directory", name="jax")
