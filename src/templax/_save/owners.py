"""JAX. Which process writes which box of a leaf. Every distinct box is written once.

All processes reach the same answer from the sharding alone: of the devices that hold a box, the
first in the sharding's order writes it, which is the one whose shard has `replica_id` 0.

A leaf that is wholly on one process, such as a NumPy array or an array on that process's devices,
may exist once per process or on one process only. Process 0 can tell: in the first case it holds
the leaf too; in the second it has an array without any addressable shard.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from .._core.boxes import Box, Shape, box_from_index, full_box


def is_local(leaf: Any) -> bool:
    """Whether this process holds all of a leaf. Other processes may hold a copy each."""
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def holds_all(leaf: Any) -> bool:
    """Whether the devices of this process hold all of a leaf, whatever those of others hold."""
    if is_local(leaf):
        return True
    boxes, own = _held_boxes(leaf.sharding, leaf.shape, jax.process_index())
    return boxes == own


@functools.lru_cache(maxsize=4096)
def _held_boxes(
    sharding: jax.sharding.Sharding, shape: Shape, process: int
) -> tuple[set[Box], set[Box]]:
    """The distinct boxes of an array, and those that a process holds."""
    boxes, own = set[Box](), set[Box]()
    for device, index in sharding.devices_indices_map(shape).items():
        box = full_box(shape) if index is None else box_from_index(index, shape)
        boxes.add(box)
        if device.process_index == process:
            own.add(box)
    return boxes, own


def held_boxes(leaf: jax.Array) -> list[tuple[Box, jax.Array]]:
    """The distinct boxes of an array that this process holds, with their values, not copied."""
    held: dict[Box, jax.Array] = {}
    for shard in leaf.addressable_shards:
        held.setdefault(box_from_index(shard.index, leaf.shape), shard.data)
    return list(held.items())


def all_boxes(leaf: Any) -> tuple[tuple[Box, int], ...]:
    """The distinct boxes of a leaf, each with the index of the process that writes it.

    This is the view of process 0. Other processes have the same view of leaves that are not local
    to them.

    >>> all_boxes(np.ones((2, 3)))
    ((((0, 2), (0, 3)), 0),)
    """
    if not isinstance(leaf, jax.Array):
        return ((full_box(np.shape(leaf)), 0),)
    writers = _writing_devices(leaf.sharding, leaf.shape)
    return tuple((box, device.process_index) for device, box in writers.items())


@functools.lru_cache(maxsize=4096)
def _writing_devices(sharding: jax.sharding.Sharding, shape: Shape) -> dict[Any, Box]:
    """The devices that write a box, each with its box."""
    first: dict[Box, Any] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        first.setdefault(full_box(shape) if index is None else box_from_index(index, shape), device)
    return {device: box for box, device in first.items()}


def written_boxes(leaf: Any, index: int, *, everywhere: bool) -> list[tuple[Box, Any]]:
    """The boxes of a leaf that this process writes, and their values.

    Args:
        leaf: A `jax.Array`, or anything that NumPy converts to an array.
        index: The index of this process.
        everywhere: Whether the leaf is local to process 0, by `is_local` there. If so, process 0
            writes its copy, and those of other processes are not saved.

    Returns:
        Boxes in the order of the sharding's devices, each with its values: for a `jax.Array` an
        array on one device, not copied; otherwise the leaf itself.
    """
    is_jax = isinstance(leaf, jax.Array)
    if is_local(leaf) and index != 0 and (everywhere or not is_jax):
        return []
    if not is_jax or len(leaf.sharding.device_set) == 1:
        # The only shard is the leaf itself: no need to have JAX make an array of it.
        return [(full_box(np.shape(leaf)), leaf)] if is_local(leaf) else []
    writers = _writing_devices(leaf.sharding, leaf.shape)
    return [
        (writers[shard.device], shard.data)
        for shard in leaf.addressable_shards
        if shard.device in writers
    ]
