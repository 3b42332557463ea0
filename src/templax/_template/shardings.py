"""JAX. What a template says of where a leaf goes: shardings checked, and cut into boxes."""

from __future__ import annotations

from typing import Any

import jax.core
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from .._core.boxes import Box, Shape, box_from_index, full_box
from ..errors import Mismatch, UsageError
from .template import Sharding, sharding_problem


def requested_sharding(leaf: Any, override: Any) -> tuple[jax.sharding.Sharding | None, Any]:
    """The sharding and the memory layout that a template leaf asks for; None for no wish.

    Args:
        leaf: Of the template. That of a `jax.Array` counts if the array is committed to it.
        override: A sharding, `Format` or device that counts instead, or None.

    Raises:
        UsageError: `override` is something else.
    """
    sharding, layout = override, None
    if override is None and isinstance(leaf, jax.Array):
        if not isinstance(leaf, jax.core.Tracer) and leaf.committed:
            sharding = leaf.sharding
    elif override is None:
        sharding = getattr(leaf, "sharding", None)
        layout = getattr(getattr(leaf, "format", None), "layout", None)
        if not isinstance(sharding, jax.sharding.Sharding):
            sharding = None  # what Orbax's metadata tells of the past
    if isinstance(sharding, jax.Device):
        sharding = SingleDeviceSharding(sharding)
    elif isinstance(sharding, Format):
        sharding, layout = sharding.sharding, sharding.layout
    if isinstance(sharding, NamedSharding) and sharding.mesh.empty:
        sharding = None  # of an aval that was traced without a mesh
    if layout is Layout.AUTO:
        layout = None
    if sharding is not None and not isinstance(sharding, jax.sharding.Sharding):
        raise UsageError(f"Expected a jax.sharding.Sharding or a device, got {sharding!r}")
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        mesh = jax.sharding.get_mesh()
        if mesh.shape == sharding.mesh.shape:
            sharding = NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    return sharding, layout


def describe_sharding(sharding: jax.sharding.Sharding | None) -> Sharding | None:
    """A `NamedSharding` for people and JSON; None of others."""
    if not isinstance(sharding, NamedSharding):
        return None
    spec = tuple(
        axes if axes is None or isinstance(axes, str) else tuple(axes)
        for axes in (None if a is PartitionSpec.UNCONSTRAINED else a for a in _axes(sharding.spec))
    )
    return Sharding({str(a): n for a, n in sharding.mesh.shape.items()}, spec, sharding.memory_kind)


def _axes(spec: PartitionSpec) -> tuple[Any, ...]:
    # A spec with unreduced axes refuses to be iterated.
    partitions = getattr(spec, "partitions", None)
    return tuple(spec if partitions is None else partitions)


def find_sharding_problems(
    name: str, shape: Shape, sharding: jax.sharding.Sharding | None, layout: Any
) -> tuple[Mismatch, ...]:
    """Why a sharding and memory layout can't hold a leaf of `shape`; nothing if they can."""
    found: list[Mismatch] = []
    order = getattr(layout, "major_to_minor", None)
    if order is not None and sorted(order) != list(range(len(shape))):
        what = f"a memory layout of {len(shape)} dimensions"
        found.append(Mismatch("sharding", name, what, f"major_to_minor={tuple(order)}"))
    data = describe_sharding(sharding)
    if isinstance(sharding, NamedSharding) and data is not None:
        if isinstance(sharding.mesh, AbstractMesh):
            note = "no mesh of its shape is set: `with jax.set_mesh(mesh):`"
            what = f"an AbstractMesh, sharding {data}"
            found.append(Mismatch("sharding", name, "a mesh of devices", what, note=note))
        partial = getattr(sharding.spec, "unreduced", None)
        if partial:
            what = f"one unreduced over {', '.join(f'`{a}`' for a in sorted(map(str, partial)))}"
            found.append(Mismatch("sharding", name, "a sharding of whole values", what))
        divides = sharding_problem(name, shape, data)
        if divides is not None:
            found.append(divides)
    if sharding is not None and not found:
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            what = f"{sharding}: {str(error).splitlines()[0]}"
            found.append(Mismatch("sharding", name, f"a sharding for shape {shape}", what))
    return tuple(found)


def local_boxes(
    sharding: jax.sharding.Sharding, shape: Shape
) -> tuple[tuple[Box, ...], tuple[tuple[Any, int], ...]]:
    """The distinct boxes of a leaf that this process holds, and the box of each of its devices."""
    numbers: dict[Box, int] = {}
    devices = [
        (device, numbers.setdefault(_box(index, shape), len(numbers)))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    ]
    return tuple(numbers), tuple(devices)


def _box(index: tuple[slice, ...] | None, shape: Shape) -> Box:
    return full_box(shape) if index is None else box_from_index(index, shape)


def is_default_memory(sharding: jax.sharding.Sharding, device: Any) -> bool:
    """Whether a sharding is of the memory that a device uses unasked."""
    kind = sharding.memory_kind
    return kind is None or (device is not None and kind == device.default_memory().kind)


_PACKED = frozenset({"int2", "uint2", "int4", "uint4", "float4_e2m1fn"})


def device_put_copies(device: Any, layout: Any, dtype: np.dtype) -> bool:
    """Whether JAX copies what it is given for such a leaf, instead of taking it over."""
    return device is None or device.platform != "cpu" or layout is not None or dtype.name in _PACKED
