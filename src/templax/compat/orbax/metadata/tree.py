"""JAX. Orbax's tree metadata: describes a saved tree without reading an array."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from ...._catalog.catalog import Catalog
from ...._catalog.entry import LeafEntry
from ...._core.arguments import PyTree
from ...._jax.paths import name_leaf
from ...._jax.support import find_key_dtype
from ....formats.file_names import INDEX_FILE
from ....formats.orbax.leaf_names import read_metadata_of_item
from ....formats.orbax.sidecars import read_write_shapes
from ..own_tree import make_own_template
from ..unmapped import make_getattr
from .sharding import ShardingMetadata, read_shardings
from .value import ArrayMetadata, Metadata, ScalarMetadata, StorageMetadata, StringMetadata

__all__ = ["TreeMetadata"]


@jax.tree_util.register_pytree_with_keys_class
class TreeMetadata:
    """The metadata of a saved tree: a mapping or a sequence, as the tree itself is.

    As a pytree it has the keys and the leaves of the tree. It can be the template of a restore.

    Attributes:
        tree: The tree; its leaves are `ArrayMetadata`, `ScalarMetadata` and `StringMetadata`.
        custom_metadata: The JSON that was saved with the tree, or None.
        use_zarr3: Whether the arrays are in the format zarr 3.
    """

    def __init__(self, tree: PyTree, custom_metadata: Any = None, use_zarr3: bool = False) -> None:
        self.tree = tree
        self.custom_metadata = custom_metadata
        self.use_zarr3 = use_zarr3

    @classmethod
    def build(
        cls, tree: PyTree, *, custom_metadata: Any = None, use_zarr3: bool = False
    ) -> TreeMetadata:
        """Makes metadata with these attributes."""
        return cls(tree, custom_metadata, use_zarr3)

    def __getitem__(self, key: Any) -> Any:
        return self.tree[key]

    def __contains__(self, key: Any) -> bool:
        return key in self.tree

    def __len__(self) -> int:
        return len(self.tree)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tree)

    def get(self, key: Any, default: Any = None) -> Any:
        """What is at a key of the tree, or `default`."""
        try:
            return self.tree[key]
        except (KeyError, IndexError):
            return default

    def keys(self) -> Any:
        """The keys of a tree that is a dict."""
        return self.tree.keys()

    def values(self) -> Any:
        """What is at the keys of a tree that is a dict."""
        return self.tree.values()

    def items(self) -> Any:
        """The keys of a tree that is a dict, each with what is there."""
        return self.tree.items()

    def __repr__(self) -> str:
        return f"TreeMetadata({self.tree!r}, custom_metadata={self.custom_metadata!r})"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], Any]:
        """For JAX: the children of the tree itself, so that key paths are those of the tree."""
        is_child = _make_child_test(self.tree)
        children, treedef = jax.tree_util.tree_flatten_with_path(self.tree, is_leaf=is_child)
        keyed = [(keys[0] if keys else _WHOLE, child) for keys, child in children]
        return keyed, (treedef, self.custom_metadata, self.use_zarr3)

    @classmethod
    def tree_unflatten(cls, aux_data: Any, children: Any) -> TreeMetadata:
        """For JAX: the inverse of `tree_flatten_with_keys`."""
        treedef, *others = aux_data
        return cls(jax.tree_util.tree_unflatten(treedef, children), *others)


_WHOLE = jax.tree_util.GetAttrKey("tree")
"""The key of a tree that is a leaf."""


def _make_child_test(tree: PyTree) -> Any:
    # None is a child as well: it has to stay where it is.
    return lambda x: x is not tree


def read_tree_metadata(catalog: Catalog) -> TreeMetadata:
    """The metadata of the tree that a checkpoint holds. No array is read."""
    shardings = read_shardings(catalog.source)
    chunks = {} if catalog.chunk_shapes is None else catalog.chunk_shapes()
    indexed = catalog.source.stat(INDEX_FILE) is not None
    writes = {} if indexed else read_write_shapes(catalog.source)
    directory = Path(catalog.url)
    known: dict[str, Metadata] = {}
    for entry in catalog.entries:
        storage = None
        if entry.name in chunks:
            storage = StorageMetadata(tuple(chunks[entry.name]), writes.get(entry.name))
        known[entry.name] = _describe_entry(entry, directory, shardings.get(entry.name), storage)
    abstract = make_own_template(catalog)
    keyed, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    # `...` stands for what is not read.
    found = [known.get(name_leaf(keys), ...) for keys, _ in keyed]
    return TreeMetadata(
        treedef.unflatten(found),
        read_metadata_of_item(catalog.source),
        bool(catalog.metadata.get("use_zarr3")),
    )


def _describe_entry(
    entry: LeafEntry,
    directory: Path,
    sharding: ShardingMetadata | None,
    storage: StorageMetadata | None,
) -> Metadata:
    if entry.kind == "string":
        return StringMetadata(entry.name, directory)
    if entry.kind == "scalar":
        return ScalarMetadata(entry.name, directory, dtype=entry.dtype)
    dtype = find_key_dtype(entry.key_impl) if entry.kind == "key" else entry.dtype
    return ArrayMetadata(entry.name, directory, entry.user_shape, sharding, dtype, storage)


def unwrap_tree(item: PyTree) -> PyTree:
    """The tree of a `TreeMetadata`, of Orbax's own class too; or any other tree itself."""
    return item.tree if type(item).__name__.endswith(("TreeMetadata", "TreeMetadataImpl")) else item


__getattr__ = make_getattr("metadata.tree.")
