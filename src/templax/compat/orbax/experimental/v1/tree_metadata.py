"""JAX. Describes a saved tree without reading an array, as Orbax's v1 API does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import msgspec

import templax as tx

from ....._catalog.catalog import Catalog
from ....._core.arguments import PyTree
from ....._jax.paths import name_leaf
from ....._jax.support import find_key_dtype
from .....formats.orbax.directory import TREE
from .....formats.orbax.sidecars import read_json, read_write_shapes
from .....storage.open import open_source
from .....storage.source import Source
from ...metadata.sharding import ShardingMetadata, read_shardings
from ...metadata.value import StorageMetadata
from ...own_tree import make_own_template


class _Described:
    """Compares metadata by content, also with the class of the same name in Orbax."""

    def __eq__(self, other: object) -> bool:
        same_kind = type(other).__name__ == type(self).__name__
        return same_kind and _list_facts(self) == _list_facts(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _list_facts(leaf: Any) -> tuple[Any, ...]:
    storage = leaf.storage_metadata
    stored = None if storage is None else (storage.chunk_shape, storage.write_shape)
    return leaf.shape, leaf.dtype, getattr(leaf, "sharding_metadata", None), stored


@dataclass(eq=False)
class NumpyMetadata(_Described):
    """A saved `np.ndarray`, which it is loaded as.

    Attributes:
        shape: In elements.
        dtype: As stored.
        storage_metadata: How it is stored; None if that is not recorded.
    """

    shape: tuple[int, ...] | None
    dtype: Any
    storage_metadata: StorageMetadata | None


@dataclass(eq=False)
class ArrayMetadata(_Described):
    """A saved `jax.Array`, which it is loaded as.

    Attributes:
        shape: In elements. That of the keys for typed PRNG keys.
        dtype: As stored. A dtype of JAX for typed PRNG keys.
        sharding_metadata: The sharding that it was saved with; None if that is not recorded.
        storage_metadata: How it is stored; None if that is not recorded.
    """

    shape: tuple[int, ...] | None
    dtype: Any
    sharding_metadata: ShardingMetadata | None
    storage_metadata: StorageMetadata | None

    @property
    def sharding(self) -> Any:
        """The sharding for the devices of this process; None if it is not recorded.

        Raises:
            UsageError: The devices of the save are not there.
        """
        saved = self.sharding_metadata
        return None if saved is None else saved.to_jax_sharding()


class _Key(msgspec.Struct, gc=False):
    key: str | int


class _Value(msgspec.Struct, gc=False):
    value_type: str
    write_shape: Any = None


class _Parameter(msgspec.Struct, gc=False):
    key_metadata: list[_Key]
    value_metadata: _Value


class _Tree(msgspec.Struct):
    tree_metadata: dict[str, _Parameter]


def read_values(source: Source) -> dict[tuple[str, ...], _Value]:
    """Key path → what `_METADATA` of an item says of the leaf; empty if there is no such file."""
    if source.stat(TREE) is None:
        return {}
    parameters = read_json(source, TREE, _Tree).tree_metadata.values()
    return {
        tuple(str(each.key) for each in parameter.key_metadata): parameter.value_metadata
        for parameter in parameters
    }


def read_tree_metadata(path: str) -> PyTree:
    """The tree that an item holds, of abstract leaves: a template for what was saved.

    Arrays are an `ArrayMetadata` or a `NumpyMetadata`; numbers are the zero of their type, and
    strings are the word "string".

    Args:
        path: The directory of the item.

    Raises:
        NotFound: It holds no tree of Orbax.
        CheckpointError: It can't be read.
    """
    if open_source(path).stat(TREE) is None:
        raise tx.NotFound(f"Expected a tree with its `{TREE}`, found none", file=path)
    catalog = tx.open(path)
    described = _describe_arrays(catalog)
    abstract = make_own_template(catalog)
    keyed, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    return treedef.unflatten(
        _describe_number(leaf) if isinstance(leaf, type) else described[name_leaf(keys)]
        for keys, leaf in keyed
    )


def _describe_number(kind: type) -> Any:
    return "string" if kind is str else kind(0)


def _describe_arrays(catalog: Catalog) -> dict[str, Any]:
    """Name → metadata of each array."""
    source = catalog.source
    values, shardings = read_values(source), read_shardings(source)
    chunks = {} if catalog.chunk_shapes is None else catalog.chunk_shapes()
    noted = read_write_shapes(source)
    found: dict[str, Any] = {}
    for entry in catalog.entries:
        if entry.kind == "string":
            continue
        name, value = entry.name, values.get(tuple(map(str, entry.path)))
        chunk = chunks.get(name)
        written = noted.get(name) or (value and value.write_shape)
        storage = (
            None
            if chunk is None
            else StorageMetadata(tuple(chunk), tuple(written) if written else None)
        )
        dtype: Any = entry.dtype
        if entry.kind == "key":
            dtype = find_key_dtype(entry.key_impl)
        elif value is not None and value.value_type == "np.ndarray":
            found[name] = NumpyMetadata(entry.shape, dtype, storage)
            continue
        found[name] = ArrayMetadata(entry.user_shape, dtype, shardings.get(name), storage)
    return found
