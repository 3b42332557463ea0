"""JAX. The shardings that a pytree asks for: resolves and checks them, and finds local boxes.

`sharding` holds shardings as data, and the check of a shape that needs no JAX.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import jax.core
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from .._core.boxes import Box, Shape, box_from_index, contains, full_box
from .._core.text import format_value
from .._jax.versions import SET_MESH, Format, Layout, current_mesh, format_of, layout_of
from ..errors import Mismatch, UsageError
from .sharding import NO_DEVICES, Sharding, find_sharding_problem


def resolve_sharding(leaf: Any, override: Any) -> tuple[jax.sharding.Sharding | None, Any]:
    """Finds the sharding and the memory layout that a template leaf asks for.

    Args:
        leaf: A leaf of the template. The sharding of a `jax.Array` counts only if the array is
            committed.
        override: A sharding, `Format` or device to use instead, or None.

    Returns:
        The sharding and the layout, each None if the leaf does not ask for one.

    Raises:
        UsageError: `override` is something else.
    """
    sharding, layout = override, None
    format: Any
    if override is None and isinstance(leaf, jax.Array):
        if not isinstance(leaf, jax.core.Tracer) and leaf.committed:
            sharding = leaf.sharding
    elif override is None:
        sharding = getattr(leaf, "sharding", None)
        format = format_of(leaf)
        layout = None if format is None else layout_of(format)
        if not isinstance(sharding, jax.sharding.Sharding):
            sharding = None  # Orbax's metadata: how the leaf was sharded when it was saved
    if isinstance(sharding, jax.Device):
        sharding = SingleDeviceSharding(sharding)
    elif isinstance(override, Format):
        format = override
        sharding, layout = format.sharding, layout_of(format)
    if isinstance(sharding, NamedSharding) and sharding.mesh.empty:
        sharding = None  # JAX puts it on abstract values that were traced without a mesh
    if layout is Layout.AUTO:
        layout = None
    if sharding is not None and not isinstance(sharding, jax.sharding.Sharding):
        raise UsageError(
            f"Expected a jax.sharding.Sharding or a device, got {format_value(sharding)}"
        )
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        mesh = current_mesh()
        if mesh is not None and mesh.shape == sharding.mesh.shape:
            sharding = NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    return sharding, layout


def describe_sharding(sharding: jax.sharding.Sharding | None) -> Sharding | None:
    """A `NamedSharding` as data; None for other shardings, which have no mesh axes."""
    if not isinstance(sharding, NamedSharding):
        return None
    spec = tuple(
        axes if axes is None or isinstance(axes, str) else tuple(axes)
        for axes in (None if a is PartitionSpec.UNCONSTRAINED else a for a in _axes(sharding.spec))
    )
    return Sharding({str(a): n for a, n in sharding.mesh.shape.items()}, spec, sharding.memory_kind)


def _axes(spec: PartitionSpec) -> tuple[Any, ...]:
    # Iterating over a spec with unreduced axes raises.
    partitions = getattr(spec, "partitions", None)
    return tuple(spec if partitions is None else partitions)


def find_jax_sharding_problems(
    name: str, shape: Shape, sharding: jax.sharding.Sharding | None, layout: Any
) -> tuple[Mismatch, ...]:
    """Why a leaf of `shape` can't have this sharding and memory layout; empty if it can.

    Includes the check of `find_sharding_problem` that the mesh divides the shape; the other checks
    need JAX.
    """
    found: list[Mismatch] = []
    order = getattr(layout, "major_to_minor", None)
    if order is not None and sorted(order) != list(range(len(shape))):
        what = f"a memory layout of {len(shape)} dimensions"
        found.append(Mismatch("sharding", name, what, f"major_to_minor={tuple(order)}"))
    return tuple(found + _find_sharding_problems(name, shape, sharding))


def find_key_problems(
    name: str, shape: Shape, data_shape: Shape, sharding: jax.sharding.Sharding | None, layout: Any
) -> tuple[Mismatch, ...]:
    """`find_jax_sharding_problems` of an array of typed PRNG keys.

    Args:
        shape: Of the keys.
        data_shape: Of their data.
        name, sharding, layout: See there.
    """
    found: list[Mismatch] = []
    if layout is not None:
        # JAX lays out keys in C order, whatever is asked of it, and says so of their data.
        order = tuple(layout.major_to_minor)
        if order not in (tuple(range(len(shape))), tuple(range(len(data_shape)))) or layout.tiling:
            what = f"major_to_minor={order}, tiling={layout.tiling}"
            found.append(Mismatch("sharding", name, "keys in C order", what))
    reduced = getattr(getattr(sharding, "spec", None), "reduced", None)
    if reduced:
        what = f"one reduced over {', '.join(f'`{a}`' for a in sorted(map(str, reduced)))}"
        found.append(Mismatch("sharding", name, "a sharding that typed keys can have", what))
    return tuple(found + _find_sharding_problems(name, shape, sharding))


def find_packing_problem(name: str, dtype: np.dtype, layout: Any) -> tuple[Mismatch, ...]:
    """Why JAX can't give elements of less than a byte this memory layout; empty if it can."""
    if dtype.name not in _PACKED or not getattr(layout, "tiling", None):
        return ()
    bits = getattr(layout, "sub_byte_element_size_in_bits", 0)
    if bits:
        return ()
    what = "a tiled memory layout that says sub_byte_element_size_in_bits"
    return (Mismatch("sharding", name, what, f"tiling={layout.tiling} of `{dtype.name}`"),)


def _find_sharding_problems(
    name: str, shape: Shape, sharding: jax.sharding.Sharding | None
) -> list[Mismatch]:
    found: list[Mismatch] = []
    data = describe_sharding(sharding)
    if isinstance(sharding, NamedSharding) and data is not None:
        if isinstance(sharding.mesh, AbstractMesh):
            note = f"no mesh of its shape is set: `with {SET_MESH}(mesh):`"
            what = f"an AbstractMesh, sharding {data}"
            found.append(Mismatch("sharding", name, NO_DEVICES, what, note=note))
        partial = getattr(sharding.spec, "unreduced", None)
        if partial:
            what = f"one unreduced over {', '.join(f'`{a}`' for a in sorted(map(str, partial)))}"
            found.append(Mismatch("sharding", name, "a sharding of whole values", what))
        manual = _manual_axes(sharding.mesh)
        if manual:
            what = f"{', '.join(f'`{a}`' for a in manual)} of type Manual, sharding {data}"
            found.append(Mismatch("sharding", name, "mesh axes of type Auto or Explicit", what))
        uneven = find_sharding_problem(name, shape, data)
        if uneven is not None:
            found.append(uneven)
    if sharding is not None and not found:  # anything else that JAX objects to
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            what = f"{sharding}: {str(error).splitlines()[0]}"
            found.append(Mismatch("sharding", name, f"a sharding for shape {shape}", what))
    return found


def has_free_axes(sharding: jax.sharding.Sharding) -> bool:
    """Whether a sharding leaves a dimension to the compiler, which `jax.device_put` refuses."""
    return isinstance(sharding, NamedSharding) and PartitionSpec.UNCONSTRAINED in _axes(
        sharding.spec
    )


def _manual_axes(mesh: Any) -> list[str]:
    """The axes of a mesh that only the body of `jax.shard_map` can use."""
    types: Any = getattr(mesh, "axis_types", None)
    if not isinstance(types, tuple):  # JAX before 0.6 has a dict, or None
        return [str(a) for kind, a in (types or {}).items() if str(kind).endswith("Manual")]
    return [str(a) for a, kind in zip(mesh.axis_names, types, strict=True) if "Manual" in str(kind)]


def find_local_boxes(
    sharding: jax.sharding.Sharding, shape: Shape
) -> tuple[tuple[Box, ...], tuple[tuple[Any, int], ...]]:
    """Finds which boxes of a leaf this process holds.

    Returns:
        The distinct boxes, and each device of this process with the position of its box among
        them. Devices that hold replicas share a box, which is then read once.
    """
    positions: dict[Box, int] = {}
    devices = []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        box = _make_box(index, shape)
        devices.append((device, positions.setdefault(box, len(positions))))
    return tuple(positions), tuple(devices)


def _make_box(index: tuple[slice, ...] | None, shape: Shape) -> Box:
    return full_box(shape) if index is None else box_from_index(index, shape)


@functools.lru_cache(maxsize=512)
def holds_what_is_wanted(
    held: jax.sharding.Sharding, wanted: jax.sharding.Sharding, shape: Shape
) -> bool:
    """Whether each process has what it needs to move an array from one sharding to another.

    All processes of a job get the same answer: it depends on the shardings alone.
    """
    boxes: defaultdict[int, set[Box]] = defaultdict(set)
    for device, index in held.devices_indices_map(shape).items():
        boxes[device.process_index].add(_make_box(index, shape))
    needs = {
        (d.process_index, _make_box(i, shape)) for d, i in wanted.devices_indices_map(shape).items()
    }
    return all(any(contains(outer, box) for outer in boxes[p]) for p, box in needs)


def is_default_memory(sharding: jax.sharding.Sharding, device: Any) -> bool:
    """Whether a sharding uses the default memory of `device`."""
    kind = sharding.memory_kind
    return kind is None or (device is not None and kind == device.default_memory().kind)


_PACKED = frozenset({"int2", "uint2", "int4", "uint4", "float4_e2m1fn"})
"""Dtypes of less than a byte. JAX can't use numpy's buffer, which has one byte per element."""


def device_put_copies(device: Any, layout: Any, dtype: np.dtype) -> bool:
    """Whether JAX copies the host buffer of such a leaf instead of using it as the array."""
    return device is None or device.platform != "cpu" or layout is not None or dtype.name in _PACKED
