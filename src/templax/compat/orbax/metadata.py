"""JAX. The objects that Orbax's `metadata` and `item_metadata` return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

import templax as tx

from ..._core.arguments import PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TreeMetadata:
    """The leaves of a saved tree.

    Attributes:
        tree: The tree with abstract leaves, which serves as a template for the checkpoint.
    """

    tree: PyTree

    def __getitem__(self, key: Any) -> Any:
        return self.tree[key]


@dataclass(frozen=True)
class StepMetadata:
    """The metadata of a checkpoint.

    Attributes:
        item_metadata: A `TreeMetadata` with the shapes and dtypes; a `Composite` of several items.
        custom_metadata: The JSON that was saved with the checkpoint, or None.
        metrics: The metrics of a step.
    """

    item_metadata: Any
    custom_metadata: Any
    metrics: Any = None


@dataclass(frozen=True)
class RootMetadata:
    """The metadata of a directory of steps.

    Attributes:
        custom_metadata: The `metadata` that its manager was made with.
    """

    custom_metadata: Any


def read_metadata(directory: str) -> StepMetadata:
    """The metadata of a checkpoint that holds one tree, without reading any array."""
    catalog = tx.open(directory)
    return StepMetadata(TreeMetadata(catalog.template()), catalog.metadata.get("custom_metadata"))


def unwrap_tree(item: PyTree) -> PyTree:
    """The tree of a `TreeMetadata`, or any other tree itself."""
    return item.tree if isinstance(item, TreeMetadata) else item
