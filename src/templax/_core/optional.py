"""Packages that templax can do without, and the error where one is needed. No JAX at import."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

from ..errors import MissingPackage


def is_jax_loaded() -> bool:
    """Whether the program has imported JAX. If not, it has no arrays, pytrees or jobs of it."""
    return hasattr(sys.modules.get("jax"), "Array")  # any directory can be imported as `jax`


def is_jax_installed() -> bool:
    """Whether there is a package of this name. Does not import it, so it may be a broken one."""
    if is_jax_loaded():
        return True
    try:
        spec = find_spec("jax")
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def can_import_jax() -> bool:
    """Whether JAX is installed, and not broken. Imports it."""
    return _import_jax() is None


def require_jax(what: str, otherwise: str = "") -> None:
    """Imports JAX, for a call that can't do without it.

    Args:
        what: What needs it, as the error begins: "templax.Recipe".
        otherwise: What to do instead of installing it, if anything.

    Raises:
        MissingPackage: JAX is not installed, or can't be imported.
    """
    error = _import_jax()
    if error is not None:
        missing = isinstance(error, ImportError) and error.name == "jax"
        why = "is not installed" if missing else f"can't be imported ({error})"
        hint = 'pip install "templax[jax]"' + (f", or {otherwise}" if otherwise else "")
        raise MissingPackage(f"{what} needs JAX, which {why}", name="jax", hint=hint) from error


def _import_jax() -> Exception | None:
    try:
        import_module("jax")
    except (ImportError, RuntimeError, AttributeError) as error:
        return error  # the last two: jaxlib, or numpy, is not of a version that goes with it
    return None if is_jax_loaded() else ImportError("a directory", name="jax")
