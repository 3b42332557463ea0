"""Orbax's `metadata`: descriptions of checkpoints, trees, leaves and shardings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..unmapped import unmapped_attribute

if TYPE_CHECKING:
    from . import sharding, tree, value
    from .checkpoint import (
        MetadataStore,
        RootMetadata,
        StepMetadata,
        get_step_metadata,
        metadata_store,
        read_metadata,
    )
    from .sharding import NamedShardingMetadata, ShardingMetadata, SingleDeviceShardingMetadata
    from .tree import TreeMetadata, unwrap_tree
    from .value import ArrayMetadata, Metadata, ScalarMetadata, StorageMetadata, StringMetadata

__all__ = [
    "ArrayMetadata",
    "Metadata",
    "MetadataStore",
    "NamedShardingMetadata",
    "RootMetadata",
    "ScalarMetadata",
    "ShardingMetadata",
    "SingleDeviceShardingMetadata",
    "StepMetadata",
    "StorageMetadata",
    "StringMetadata",
    "TreeMetadata",
    "get_step_metadata",
    "metadata_store",
    "read_metadata",
    "sharding",
    "tree",
    "unwrap_tree",
    "value",
]

_MODULES = {
    "metadata.checkpoint": (
        "MetadataStore",
        "RootMetadata",
        "StepMetadata",
        "get_step_metadata",
        "metadata_store",
        "read_metadata",
    ),
    "metadata.sharding": (
        "NamedShardingMetadata",
        "ShardingMetadata",
        "SingleDeviceShardingMetadata",
        "sharding",
    ),
    "metadata.tree": ("TreeMetadata", "tree", "unwrap_tree"),
    "metadata.value": (
        "ArrayMetadata",
        "Metadata",
        "ScalarMetadata",
        "StorageMetadata",
        "StringMetadata",
        "value",
    ),
}

__getattr__ = unmapped_attribute(
    "metadata.", {name: module for module, names in _MODULES.items() for name in names}
)
