"""JAX. Puts finished host buffers on devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from .._core.boxes import Box, box_from_index, box_slices, contains, relative_box
from .._jax.put import (
    Put,
    aval_of,
    batched_put,
    check_transfers_allowed,
    default_device,
    make_weak,
)
from .._jax.support import jax_supports
from .._jax.versions import Format, allow_remote_arrays
from .._match.result import Pair
from .._plan.buffers import Buffer
from .._template.jax_shardings import has_free_axes
from .._template.placement import Placement
from .._template.template import Target
from ..errors import Corrupted, UsageError


def check_jax_settings(pairs: Sequence[Pair]) -> None:
    """Refuses a plan that was made with 64-bit types enabled and is run with them disabled, and one
    that a transfer guard forbids.
    """
    for dtype in {pair.target.dtype for pair in pairs if not pair.target.host}:
        if not jax_supports(dtype):
            raise UsageError(
                f"Expected jax_enable_x64 as it was when the plan was made: no jax.Array holds"
                f" `{dtype.name}` now"
            )
    check_transfers_allowed()


class DevicePlacer:
    """Places the leaves of a restore that become `jax.Array`s, batch by batch.

    Args:
        results: Receives the leaves by name, each when all of its boxes are there.
    """

    def __init__(self, results: dict[str, Any]):
        self._results = results
        # Of leaves too large for one batch: index of a box → an array on each device that wants it.
        self._started: dict[str, dict[int, list[jax.Array]]] = {}

    def place(self, batch: Iterable[tuple[Buffer, np.ndarray]]) -> None:
        """Places a batch, and waits until none of its arrays is needed any more.

        Args:
            batch: Buffers, each with its values in the dtype of the target. On CPU, they are the
                result.
        """
        results, put, default = self._results, batched_put(), default_device()
        here = None if put is None or default is None else SingleDeviceSharding(default)
        plain: list[tuple[str, np.ndarray]] = []
        by_box: dict[str, tuple[Target, list[tuple[int, np.ndarray]]]] = {}
        copied: list[str] = []
        for buffer, array in batch:
            target = buffer.pair.target
            name, placement = target.name, target.placement
            if put is not None and placement.usual and len(placement.devices) == 1:
                aval, (device, _) = aval_of(target.shape, target.dtype), placement.devices[0]
                results[name] = put(aval, placement.sharding, [array], [device], True)
            elif target.kind == "key" and placement.sharding is None:
                results[name] = _wrap_key(target, jax.device_put(array))
            elif len(target.boxes) > 1:
                boxes = by_box.setdefault(name, (target, []))[1]
                boxes.append((target.boxes.index(buffer.box), array))
            elif placement.sharding is not None:
                results[name] = _make_sharded_array(target, {0: array}, put)
            elif put is not None and here is not None:
                aval = aval_of(target.shape, target.dtype)
                results[name] = put(aval, here, [array], [default], False)
            else:
                plain.append((name, array))
            if target.transient:
                copied.append(name)
        values = jax.device_put([array for _, array in plain])
        for (name, _), value in zip(plain, values, strict=True):
            results[name] = value
        self._assemble_sharded(by_box, put)
        # Waits for copies to accelerators, so that these buffers are freed before the next batch.
        jax.block_until_ready([results[name] for name in copied if name in results])

    def _assemble_sharded(
        self, by_box: Mapping[str, tuple[Target, list[tuple[int, np.ndarray]]]], put: Put | None
    ) -> None:
        """Makes the leaves of several boxes, once these are all there."""
        results = self._results
        for name, (target, arrays) in by_box.items():
            if len(arrays) == len(target.boxes):
                results[name] = _make_sharded_array(target, dict(arrays), put)
                continue
            boxes = self._started.setdefault(name, {})
            for box, array in arrays:
                boxes[box] = jax.block_until_ready(_put_box(target, box, array))
            if len(boxes) == len(target.boxes):
                results[name] = _assemble_boxes(target, self._started.pop(name))


def make_remote_array(target: Target) -> jax.Array:
    """An array that lies only on devices of other processes."""
    placement: Placement = target.placement
    assert placement.sharding is not None
    dtype = placement.leaf.dtype if target.kind == "key" else target.dtype
    with allow_remote_arrays():
        return jax.make_array_from_single_device_arrays(
            target.user_shape, placement.sharding, [], dtype=dtype
        )


def keep_value(target: Target) -> Any:
    """The template's own value on the devices of the target. It is copied: the caller owns it.

    `jax.device_put` onto devices of several processes compares a value among them, or computes
    there. So each process places the parts that it needs from what it has.
    """
    placement: Placement = target.placement
    value, sharding, layout = placement.leaf, placement.sharding, placement.layout
    assert sharding is not None
    if isinstance(value, jax.Array):
        if value.sharding == sharding and layout is None:
            return value
        here = value.is_fully_addressable and sharding.is_fully_addressable
        if here and not has_free_axes(sharding):
            return jax.device_put(value, _sharding_or_format(sharding, layout))
    if not target.boxes:
        made = make_remote_array(target)
    else:
        pieces = {i: _copy_box(value, box) for i, box in enumerate(target.boxes)}
        made = _make_sharded_array(target, pieces, batched_put())
    return make_weak(made) if placement.weak else made


def _copy_box(value: Any, box: Box) -> np.ndarray:
    """The part of a value in a box, which this process holds, in memory of its own.

    Of typed keys, `value` and the result are their data.
    """
    if isinstance(value, jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        for shard in value.addressable_shards:
            outer = box_from_index(shard.index, value.shape)
            if contains(outer, box):
                value, box = shard.data, relative_box(box, outer)
                break
    return np.array(np.asarray(value)[(*box_slices(box), ...)])


def _sharding_or_format(sharding: jax.sharding.Sharding, layout: Any) -> Any:
    return sharding if layout is None else Format(layout, sharding)


def _make_sharded_array(
    target: Target, arrays: Mapping[int, np.ndarray], put: Put | None
) -> jax.Array:
    """An array on devices, made from the host arrays of all boxes of this process, by index."""
    placement: Placement = target.placement
    sharding = placement.sharding
    assert sharding is not None
    if put is not None and placement.usual:
        pieces = [arrays[box] for _, box in placement.devices]
        devices = [device for device, _ in placement.devices]
        return put(aval_of(target.shape, target.dtype), sharding, pieces, devices, True)
    if not placement.usual and placement.layout is None:
        # On a single device only device_put keeps the memory space in the array's type.
        if isinstance(sharding, SingleDeviceSharding):
            return _wrap_key(target, jax.device_put(arrays[0], sharding))
        placed = {box: _put_box(target, box, array) for box, array in arrays.items()}
        return _assemble_boxes(target, placed)

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        return arrays[
            0 if index is None else target.boxes.index(box_from_index(index, target.shape))
        ]

    where = _sharding_or_format(sharding, placement.layout)
    return jax.make_array_from_callback(target.shape, where, piece, dtype=target.dtype)


def _put_box(target: Target, box: int, array: np.ndarray) -> list[jax.Array]:
    """Puts a box of a leaf on each device of this process that wants it."""
    placement: Placement = target.placement
    kind = placement.sharding.memory_kind if placement.sharding is not None else None
    wanting = [device for device, wanted in placement.devices if wanted == box]
    places = [SingleDeviceSharding(device, memory_kind=kind) for device in wanting]
    return [
        _wrap_key(target, jax.device_put(array, _sharding_or_format(place, placement.layout)))
        for place in places
    ]


def _assemble_boxes(target: Target, boxes: Mapping[int, list[jax.Array]]) -> jax.Array:
    """Assembles a leaf from the arrays that `_put_box` made of its boxes."""
    placement: Placement = target.placement
    assert placement.sharding is not None
    remaining = {box: iter(arrays) for box, arrays in boxes.items()}
    # Typed keys have to be in the order of the sharding's devices.
    arrays = [next(remaining[box]) for _, box in placement.devices]
    return jax.make_array_from_single_device_arrays(target.user_shape, placement.sharding, arrays)


def _wrap_key(target: Target, data: jax.Array) -> jax.Array:
    """Typed keys from their data on a device; other leaves unchanged."""
    if target.kind != "key":
        return data
    try:
        return jax.random.wrap_key_data(data, impl=target.key_impl)
    except (TypeError, ValueError) as error:
        raise Corrupted(
            f"Expected key data for PRNG `{target.key_impl}`, got shape {data.shape}",
            leaf=target.name,
        ) from error
