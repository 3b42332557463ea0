"""JAX. What Orbax's `metadata` and `item_metadata` return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

import templax as tx


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TreeMetadata:
    """What a saved tree holds: `tree` is abstract, a template of the checkpoint itself."""

    tree: Any

    def __getitem__(self, key: Any) -> Any:
        return self.tree[key]


@dataclass(frozen=True)
class StepMetadata:
    """Of a checkpoint; `item_metadata.tree` has the shapes and dtypes."""

    item_metadata: Any
    custom_metadata: Any
    metrics: Any = None


@dataclass(frozen=True)
class RootMetadata:
    """Of a directory of steps."""

    custom_metadata: Any


def metadata_of(directory: str) -> StepMetadata:
    """Of a checkpoint that holds one tree; no array is read."""
    catalog = tx.open(directory)
    return StepMetadata(TreeMetadata(catalog.template()), catalog.metadata.get("custom_metadata"))
