"""Orbax's `metadata`: descriptions of checkpoints, trees, leaves and shardings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..unmapped import load_lazily

if TYPE_CHECKING:
    from . import sharding as sharding
    from . import tree as tree
    from . import value as value
    from .checkpoint import MetadataStore as MetadataStore
    from .checkpoint import RootMetadata as RootMetadata
    from .checkpoint import StepMetadata as StepMetadata
    from .checkpoint import get_step_metadata as get_step_metadata
    from .checkpoint import metadata_store as metadata_store
    from .checkpoint import read_metadata as read_metadata
    from .sharding import NamedShardingMetadata as NamedShardingMetadata
    from .sharding import ShardingMetadata as ShardingMetadata
    from .sharding import SingleDeviceShardingMetadata as SingleDeviceShardingMetadata
    from .tree import TreeMetadata as TreeMetadata
    from .tree import unwrap_tree as unwrap_tree
    from .value import ArrayMetadata as ArrayMetadata
    from .value import Metadata as Metadata
    from .value import ScalarMetadata as ScalarMetadata
    from .value import StorageMetadata as StorageMetadata
    from .value import StringMetadata as StringMetadata

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
"""Where each name is defined. A module of Orbax is one of the same name here."""

__getattr__, __dir__ = load_lazily("metadata.", _MODULES)
