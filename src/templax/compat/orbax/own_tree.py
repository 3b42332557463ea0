"""JAX. What a checkpoint records of the tree that was saved, as Orbax takes it."""

from __future__ import annotations

from ..._catalog.abstract_tree import build_abstract_tree
from ..._catalog.catalog import Catalog
from ..._core.arguments import PyTree
from ...formats.orbax.leaf_names import read_numpy_paths

_ORBAX_EMPTY = {"NamedTuple": "None"}
"""What templax records of an empty node → what Orbax does, where they differ."""


def make_own_template(catalog: Catalog) -> PyTree:
    """The abstract tree of a checkpoint, as `templax.Catalog.template`, with Orbax's empty nodes.

    Orbax restores None for an empty NamedTuple, and so for other nodes of a class of the caller's.
    """
    empties = {path: _ORBAX_EMPTY.get(what, what) for path, what in catalog.empties.items()}
    return build_abstract_tree(catalog.entries, empties, catalog.unread)


def find_numpy_leaves(catalog: Catalog) -> set[str]:
    """The names of the leaves that were saved from NumPy arrays."""
    paths = read_numpy_paths(catalog.source)
    return {entry.name for entry in catalog.entries if tuple(map(str, entry.path)) in paths}
