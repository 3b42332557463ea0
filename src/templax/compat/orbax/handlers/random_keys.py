"""JAX. The handlers of the state of a random number generator, of JAX or NumPy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import templax as tx

from ...._jax.versions import ensure_on_device
from ...._save.contents import Content, Group, Tree
from ...._save.item import Json
from ....formats.orbax.json_item import read_json_item
from ....formats.orbax.write import HANDLERS, PYTREE
from ....storage.open import open_source
from ..checkpoint_args import register_with_handler
from ..item_args import (
    ArrayRestore,
    ArraySave,
    JaxRandomKeyRestore,
    JaxRandomKeySave,
    NumpyRandomKeyRestore,
    NumpyRandomKeySave,
)
from ..leaf_templates import make_numpy_leaf
from ..saver import PathLike
from .built_in import BuiltInHandler
from .trees import ArrayCheckpointHandler


class _RandomKeyHandler(BuiltInHandler):
    """Saves a value in one directory, and what kind of value it is in another beside it."""

    default_name: str

    def __init__(self, key_name: str | None = None) -> None:
        self._key = key_name or self.default_name

    def _group(self, value: Content, kind: Mapping[str, Any]) -> Mapping[str, Content]:
        parts = {self._key: value, f"{self._key}_metadata": Json(dict(kind))}
        return {"": Group(parts, self.name)}

    def _read_kind(self, directory: PathLike) -> Mapping[str, Any]:
        return read_json_item(open_source(f"{os.fspath(directory)}/{self._key}_metadata"))


class JaxRandomKeyCheckpointHandler(_RandomKeyHandler):
    """Saves and restores a random key of JAX, by `JaxRandomKeySave` and `JaxRandomKeyRestore`.

    Args:
        key_name: The name of its directory below that of the item.

    Example:
        >>> import os, tempfile, jax
        >>> from templax.compat import orbax as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "item")
        >>> handler = ocp.handlers.JaxRandomKeyCheckpointHandler()
        >>> handler.save(path, args=ocp.args.JaxRandomKeySave(jax.random.key(7, impl="rbg")))
        >>> key = handler.restore(path)
        >>> jax.random.key_impl(key)
        'rbg'
    """

    name = f"{HANDLERS}random_key_checkpoint_handler.JaxRandomKeyCheckpointHandler"
    default_name = "jax_random_key"

    def make_contents(self, args: JaxRandomKeySave) -> Mapping[str, Content]:
        """See `BuiltInHandler.make_contents`.

        Raises:
            TypeError: The item is not a `jax.Array`.
        """
        key, kind = args.item, {"typed": False}
        if not isinstance(key, jax.Array):
            raise TypeError(f"Expected a random key of JAX, got {type(key).__name__}")
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            # Orbax reads `typed` alone, and takes JAX's default implementation.
            kind = {"typed": True, "impl": str(jax.random.key_impl(key))}
            key = jax.random.key_data(key)
        array = ArrayCheckpointHandler().make_contents(ArraySave(key, args.save_args))
        return self._group(array[""], kind)

    def restore(self, directory: PathLike, *args: Any, **kwargs: Any) -> jax.Array:
        """Restores the key in a directory."""
        given = self.take_args("restore", args, kwargs)
        kind = self._read_kind(directory)
        data = ArrayCheckpointHandler().restore(
            f"{os.fspath(directory)}/{self._key}",
            args=ArrayRestore(restore_args=given.restore_args),
        )
        if not kind["typed"]:
            return data
        return ensure_on_device(jax.random.wrap_key_data(data, impl=kind.get("impl")))


class NumpyRandomKeyCheckpointHandler(_RandomKeyHandler):
    """Saves and restores what `np.random.get_state` returns, by `NumpyRandomKeySave` and
    `NumpyRandomKeyRestore`.

    Args:
        key_name: The name of its directory below that of the item.

    Example:
        >>> import os, tempfile, numpy as np
        >>> from templax.compat import orbax as ocp
        >>> path = os.path.join(tempfile.mkdtemp(), "item")
        >>> handler = ocp.handlers.NumpyRandomKeyCheckpointHandler()
        >>> handler.save(path, args=ocp.args.NumpyRandomKeySave(np.random.get_state()))
        >>> handler.restore(path)[0]
        'MT19937'
    """

    name = f"{HANDLERS}random_key_checkpoint_handler.NumpyRandomKeyCheckpointHandler"
    default_name = "np_random_key"

    def make_contents(self, args: NumpyRandomKeySave) -> Mapping[str, Content]:
        """See `BuiltInHandler.make_contents`.

        Raises:
            TypeError: The item is neither a tuple nor a dict.
        """
        if not isinstance(args.item, (tuple, dict)):
            raise TypeError(
                f"Expected what np.random.get_state() returns, got {type(args.item).__name__}"
            )
        kind = {"legacy": isinstance(args.item, tuple)}
        return self._group(Tree(args.item, PYTREE), kind)

    def restore(self, directory: PathLike, *args: Any, **kwargs: Any) -> Any:
        """Restores the state in a directory, for `np.random.set_state`."""
        self.take_args("restore", args, kwargs)
        legacy = self._read_kind(directory)["legacy"]
        catalog = tx.open(f"{os.fspath(directory)}/{self._key}")
        state = tx.restore(catalog, jax.tree.map(_as_numpy, catalog.template()))
        return tuple(state) if legacy else state


def _as_numpy(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return make_numpy_leaf(leaf.shape, leaf.dtype)


for _handler, _save, _restore in (
    (JaxRandomKeyCheckpointHandler, JaxRandomKeySave, JaxRandomKeyRestore),
    (NumpyRandomKeyCheckpointHandler, NumpyRandomKeySave, NumpyRandomKeyRestore),
):
    register_with_handler(_handler, for_save=True)(_save)
    register_with_handler(_handler, for_restore=True)(_restore)
