"""JAX. Orbax's `type_handlers`: how leaves are saved and restored.

templax saves and restores leaves of all types itself. Handlers of a caller's own are refused; those
of Orbax's names say which types a leaf may have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ...formats.file_names import MANIFEST
from ...storage.open import open_source
from .leaf_args import ArrayRestoreArgs, RestoreArgs, SaveArgs, SingleReplicaArrayRestoreArgs
from .saver import PathLike
from .transformed_restore import ParamInfo
from .unmapped import make_getattr, make_unmapped_error

__all__ = [
    "ArrayHandler",
    "ArrayRestoreArgs",
    "NumpyHandler",
    "ParamInfo",
    "RestoreArgs",
    "SaveArgs",
    "ScalarHandler",
    "SingleReplicaArrayHandler",
    "SingleReplicaArrayRestoreArgs",
    "StringHandler",
    "TypeHandler",
    "get_type_handler",
    "has_type_handler",
    "is_ocdbt_checkpoint",
    "is_supported_empty_value",
    "is_supported_type",
    "register_standard_handlers_with_options",
    "register_type_handler",
    "supported_types",
]


class TypeHandler:
    """How leaves of a type are saved and restored. Those of Orbax's names only name types."""

    types: tuple[type, ...] = ()
    """The types."""

    def __init__(self, **options: Any) -> None:
        del options  # they describe files

    def typestr(self) -> str:
        """The name of the type in a checkpoint."""
        return self.types[0].__name__


class ArrayHandler(TypeHandler):
    """`jax.Array`s. All options tune, and have no effect."""

    types = (jax.Array,)

    def typestr(self) -> str:
        """See `TypeHandler.typestr`."""
        return "jax.Array"


class SingleReplicaArrayHandler(ArrayHandler):
    """`jax.Array`s of which one replica reads. Every process reads what its devices hold."""


class NumpyHandler(TypeHandler):
    """NumPy arrays."""

    types = (np.ndarray,)

    def typestr(self) -> str:
        """See `TypeHandler.typestr`."""
        return "np.ndarray"


class ScalarHandler(TypeHandler):
    """Numbers."""

    types = (int, float, np.number)

    def typestr(self) -> str:
        """See `TypeHandler.typestr`."""
        return "scalar"


class StringHandler(TypeHandler):
    """Strings."""

    types = (str,)

    def typestr(self) -> str:
        """See `TypeHandler.typestr`."""
        return "string"


_STANDARD = (ArrayHandler, NumpyHandler, ScalarHandler, StringHandler)


def _find_handler(ty: Any) -> type[TypeHandler] | None:
    is_type = isinstance(ty, type)
    return next((h for h in _STANDARD if is_type and issubclass(ty, h.types)), None)


def has_type_handler(ty: Any) -> bool:
    """Whether leaves of a type can be saved.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> ocp.type_handlers.has_type_handler(float), ocp.type_handlers.has_type_handler(set)
        (True, False)
    """
    return _find_handler(ty) is not None


def get_type_handler(ty: Any) -> TypeHandler:
    """The handler of a type.

    Raises:
        ValueError: There is none.
    """
    found = _find_handler(ty)
    if found is None:
        raise ValueError(f"Expected a type of leaves that can be saved, got {ty!r}")
    return found()


def supported_types() -> list[Any]:
    """The types of leaves that can be saved."""
    return [ty for handler in _STANDARD for ty in handler.types]


def is_supported_type(value: Any, pytree_metadata_options: Any = None) -> bool:
    """Whether a value is a leaf that can be saved, or a node as in `is_supported_empty_value`."""
    known = has_type_handler(type(value))
    return known or is_supported_empty_value(value, pytree_metadata_options)


def is_supported_empty_value(value: Any, pytree_metadata_options: Any = None) -> bool:
    """Whether a value is a node without children that a checkpoint records.

    Args:
        value: Any value.
        pytree_metadata_options: Its attribute `support_rich_types` says whether an empty NamedTuple
            is such a node; with None it is not.
    """
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return bool(getattr(pytree_metadata_options, "support_rich_types", False)) and not value
    return value is None or (isinstance(value, (Mapping, list, tuple)) and not value)


def register_type_handler(
    ty: Any,
    handler: Any,
    func: Callable[[Any], bool] | None = None,
    override: bool = False,
) -> None:
    """Accepts a handler of this module, which changes nothing, and refuses all others.

    Raises:
        NotImplementedError: It is a handler of the caller's own.
    """
    if type(handler) not in (*_STANDARD, SingleReplicaArrayHandler):
        raise make_unmapped_error(
            f"register_type_handler({getattr(ty, '__name__', ty)}, ...)",
            "convert such leaves before save and after restore, or save them as an item with a"
            " CheckpointHandler of your own",
        )


def register_standard_handlers_with_options(**options: Any) -> None:
    """Does nothing: all options tune."""
    del options


def is_ocdbt_checkpoint(path: PathLike) -> bool:
    """Whether the arrays of an item are in a database, and not in a directory each."""
    return open_source(path).stat(MANIFEST) is not None


__getattr__ = make_getattr("type_handlers.")
