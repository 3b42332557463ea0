"""Places finished host buffers on devices, and builds the tree when every leaf is there."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from .._core.boxes import Box, box_from_index, box_slices, contains, relative_box
from .._core.dtypes import WIDE, cast_into, host_cast_is_exact
from .._core.gc_pause import pause_gc
from .._core.memory import SMALL_BYTES
from .._jax.put import Put, aval_of, batched_put, default_device, make_weak
from .._jax.support import jax_supports
from .._jax.versions import Format
from .._match.result import Match
from .._template.from_pytree import Placement
from .._template.jax_shardings import has_free_axes
from .._template.template import Target
from ..errors import Corrupted
from .execute import FilledBatch, StageSeconds

CAST_BLOCK = 1 << 20
"""Elements per cast by XLA. Casting each leaf in its own shape would compile once per shape."""


def place_batches(match: Match, finished: Iterable[FilledBatch]) -> tuple[Any, StageSeconds]:
    """Places each batch as it comes, then builds the tree.

    Args:
        match: A match without mismatches.
        finished: The batches of its plan. Their buffers now belong to the result: on CPU the arrays
            are the buffers.

    Returns:
        The tree, with the template's treedef, and the seconds spent on the batches and here.
    """
    results: dict[str, Any] = {}
    started: dict[str, dict[int, list[jax.Array]]] = {}
    busy = StageSeconds()
    for done in finished:
        begin = time.perf_counter()
        busy += done.busy
        with pause_gc():
            busy.cast_s += _place_batch(done, results, started)
        busy.place_s += time.perf_counter() - begin
        del done  # frees its memory before the next batch needs more
    begin = time.perf_counter()
    for pair in match.pairs:
        target = pair.target
        if target.kind == "string":
            results[target.name] = pair.entry.value
        elif not target.boxes:
            results[target.name] = _make_remote_array(target)
        if target.placement.weak:
            results[target.name] = make_weak(results[target.name])
    kept = set(match.kept)
    leaves = [
        t.placement.leaf
        if t.kind in ("skip", "static")
        else _keep_value(t)
        if t.name in kept
        else results[t.name]
        for t in match.template.targets
    ]
    tree = match.template.treedef.unflatten(leaves)
    busy.place_s += time.perf_counter() - begin
    return tree, busy


def _make_remote_array(target: Target) -> jax.Array:
    """An array that lies only on devices of other processes."""
    placement: Placement = target.placement
    assert placement.sharding is not None
    dtype = placement.leaf.dtype if target.kind == "key" else target.dtype
    return jax.make_array_from_single_device_arrays(
        target.user_shape, placement.sharding, [], dtype=dtype
    )


def _keep_value(target: Target) -> Any:
    """The template's own value. What moves to a device is copied first: the caller owns it.

    `jax.device_put` onto devices of several processes compares a value among them, or computes
    there. So each process places the parts that it needs from what it has.
    """
    placement: Placement = target.placement
    value, sharding, layout = placement.leaf, placement.sharding, placement.layout
    if sharding is None:
        return value
    if isinstance(value, jax.Array):
        if value.sharding == sharding and layout is None:
            return value
        here = value.is_fully_addressable and sharding.is_fully_addressable
        if here and not has_free_axes(sharding):
            return jax.device_put(value, _sharding_or_format(sharding, layout))
    if not target.boxes:
        made = _make_remote_array(target)
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


def _place_batch(
    done: FilledBatch, results: dict[str, Any], started: dict[str, dict[int, list[jax.Array]]]
) -> float:
    """Adds the leaves of a batch to `results`; returns the seconds that casts took.

    For a leaf too large for one batch, `started` holds the boxes of earlier batches: index of a box
    → an array on each device that wants it.
    """
    cast_s = 0.0
    put, default = batched_put(), default_device()
    here = None if put is None or default is None else SingleDeviceSharding(default)
    plain: list[tuple[str, np.ndarray]] = []
    by_box: dict[str, tuple[Target, list[tuple[int, np.ndarray]]]] = {}
    copied: list[str] = []
    for buffer, array in zip(done.batch.buffers, done.arrays, strict=True):
        target = buffer.pair.target
        name, placement = target.name, target.placement
        if array.dtype != target.dtype and target.kind != "scalar":
            begin = time.perf_counter()
            array = cast_array(array, target.dtype)
            cast_s += time.perf_counter() - begin
        if put is not None and placement.usual and len(placement.devices) == 1:
            aval, (device, _) = aval_of(target.shape, target.dtype), placement.devices[0]
            results[name] = put(aval, placement.sharding, [array], [device], True)
        elif target.kind == "scalar":
            results[name] = _make_number(target.dtype, array)
        elif target.kind == "key" and placement.sharding is None:
            results[name] = _wrap_key(target, jax.device_put(array))
        elif target.host:
            results[name] = _make_numpy(placement.leaf, array)
        elif len(target.boxes) > 1:
            box = target.boxes.index(buffer.box)
            by_box.setdefault(name, (target, []))[1].append((box, array))
        elif placement.sharding is not None:
            results[name] = _make_sharded_array(target, {0: array}, put)
        elif put is not None and here is not None:
            aval = aval_of(target.shape, target.dtype)
            results[name] = put(aval, here, [array], [default], False)
        else:
            plain.append((name, array))
        if target.transient:
            copied.append(name)
    for (name, _), value in zip(plain, jax.device_put([a for _, a in plain]), strict=True):
        results[name] = value
    for name, (target, arrays) in by_box.items():
        if len(arrays) == len(target.boxes):
            results[name] = _make_sharded_array(target, dict(arrays), put)
            continue
        boxes = started.setdefault(name, {})
        for box, array in arrays:
            boxes[box] = jax.block_until_ready(_put_box(target, box, array))
        if len(boxes) == len(target.boxes):
            results[name] = _assemble_boxes(target, started.pop(name))
    # Waits for copies to accelerators, so that these buffers are freed before the next batch.
    jax.block_until_ready([results[name] for name in copied if name in results])
    return cast_s


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


def _make_numpy(leaf: Any, array: np.ndarray) -> Any:
    """A numpy result that owns its memory, in the byte order of the template's leaf."""
    if not isinstance(leaf, np.ndarray):
        return array[()]
    if array.nbytes <= SMALL_BYTES:
        array = array.copy()  # it would keep its whole arena alive
    return array.astype(leaf.dtype, copy=False)


def _make_number(dtype: np.dtype, array: np.ndarray) -> int | float | bool | complex:
    python = {"i": int, "f": float, "b": bool, "c": complex}[dtype.kind]
    return python(array[()])


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


def cast_array(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`jnp.asarray(values).astype(dtype)` on the host, bit for bit, NaNs included.

    XLA casts block by block. Dtypes that a `jax.Array` can't have are cast by numpy.
    """
    out = np.empty(values.shape, dtype)
    known = values.dtype.name in WIDE or jax_supports(values.dtype)  # JAX narrows wide ones itself
    if host_cast_is_exact(values.dtype, dtype) or not known or not jax_supports(dtype):
        cast_into(out, values)
        return out
    flat, flat_out = values.reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, CAST_BLOCK):
        block = flat[start : start + CAST_BLOCK]
        size = min(CAST_BLOCK, 1 << (len(block) - 1).bit_length())
        padded = np.zeros(size, block.dtype)
        padded[: len(block)] = block
        # JAX narrows 64 bits with numpy, which would warn about values that do not fit.
        quiet, allowed = np.errstate(all="ignore"), jax.transfer_guard("allow")
        with quiet, allowed, jax.ensure_compile_time_eval():
            done = np.asarray(jnp.asarray(padded).astype(dtype))
        flat_out[start : start + len(block)] = done[: len(block)]
    return out
