"""JAX. Which process writes which box of a leaf: every distinct box is written once.

All processes come to the same answer from the sharding alone: of the devices that hold a box, the
first in the sharding's order writes it, which is the one whose shard has `replica_id` 0.

A leaf that one process holds alone, an array on its own devices or one of numpy, may be there once
for each process or in one process only. Process 0 can tell: it has it, too, or it has an array
without a shard of its own.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from .._core.boxes import Box, Shape, box_from_index, full_box


def is_local(leaf: Any) -> bool:
    """Whether this process holds all of a leaf, as every other may with one of its own."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def all_boxes(leaf: Any) -> tuple[tuple[Box, int], ...]:
    """The distinct boxes of a leaf, and the index of the process that writes each, as process 0
    sees it. Others see the same of leaves that are not local to them.

    >>> all_boxes(np.ones((2, 3)))
    ((((0, 2), (0, 3)), 0),)
    """
    if not isinstance(leaf, jax.Array):
        return ((full_box(np.shape(leaf)), 0),)
    writers = _writers(leaf.sharding, leaf.shape)
    return tuple((box, device.process_index) for device, box in writers.items())


@functools.lru_cache(maxsize=4096)
def _writers(sharding: jax.sharding.Sharding, shape: Shape) -> dict[Any, Box]:
    """The devices that write, with their boxes."""
    first: dict[Box, Any] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        first.setdefault(full_box(shape) if index is None else box_from_index(index, shape), device)
    return {device: box for box, device in first.items()}


def written_boxes(leaf: Any, index: int, *, everywhere: bool) -> list[tuple[Box, Any]]:
    """The boxes of a leaf that this process writes, and their values.

    Args:
        leaf: A `jax.Array`, or something that numpy takes for an array.
        index: Of this process.
        everywhere: Whether the leaf is local to process 0 (`is_local` there): then process 0
            writes its own, and those of other processes are not saved.

    Returns:
        Boxes in the order of the sharding's devices, each with an array of its shape: on one
        device, not copied, for a `jax.Array`, else the leaf itself.
    """
    array = isinstance(leaf, jax.Array)
    if is_local(leaf) and index != 0 and (everywhere or not array):
        return []
    if not array or len(leaf.sharding.device_set) == 1:
        # The one shard is the leaf, which spares JAX to make an array of it.
        return [(full_box(np.shape(leaf)), leaf)] if is_local(leaf) else []
    writers = _writers(leaf.sharding, leaf.shape)
    return [
        (writers[shard.device], shard.data)
        for shard in leaf.addressable_shards
        if shard.device in writers
    ]
