"""The hosts and devices of a job that need not exist, and which boxes each host holds. Pure."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .._core.boxes import Box, Shape, full_box
from ..errors import UsageError

Spec = tuple[str | tuple[str, ...] | None, ...]
"""See `Sharding.spec`."""

Indices = tuple[int, ...]
"""Along each dimension, the number of the slice that a device holds."""


@dataclass(frozen=True)
class Topology:
    """The machine of a job: hosts with devices, which a mesh spans. It need not exist.

    The devices of the mesh, in row-major order, are those of host 0, then of host 1, and so on, as
    `jax.make_mesh` orders CPUs and GPUs; on TPUs it may order them otherwise.

    Attributes:
        hosts: Number of processes.
        devices_per_host: Number of devices of each.
        mesh: Size of each mesh axis by its name, in mesh order. It spans all devices.
        platform: What the devices are. Arrays for a "gpu" or "tpu" pass through host memory; on
            "cpu", they are read into the memory that they keep.

    Raises:
        UsageError: A number is not positive, or the mesh does not span all devices.

    Example:
        >>> import templax as tx
        >>> tx.Topology(hosts=2, devices_per_host=4, mesh={"data": 4, "model": 2}).devices
        8
    """

    hosts: int
    devices_per_host: int
    mesh: Mapping[str, int]
    platform: Literal["cpu", "gpu", "tpu"] = "tpu"
    _indices: dict[tuple[Spec, int], tuple[Indices, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        sizes = {"hosts": self.hosts, "devices_per_host": self.devices_per_host, **self.mesh}
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise UsageError(f"Expected {name} to be a number of at least 1, got {size!r}")
        if math.prod(self.mesh.values()) != self.devices:
            raise UsageError(
                f"Expected a mesh of {self.devices:,} devices, {self.hosts:,} hosts ×"
                f" {self.devices_per_host:,}, got {dict(self.mesh)}"
            )
        if self.platform not in ("cpu", "gpu", "tpu"):
            raise UsageError(f'Expected platform="cpu", "gpu" or "tpu", got {self.platform!r}')

    @property
    def devices(self) -> int:
        """Number of devices of all hosts."""
        return self.hosts * self.devices_per_host

    @functools.cached_property
    def _coordinates(self) -> list[dict[str, int]]:
        """The place of each device on the mesh axes."""
        ranges = [range(size) for size in self.mesh.values()]
        return [dict(zip(self.mesh, at, strict=True)) for at in itertools.product(*ranges)]

    def find_indices(self, spec: Spec, host: int) -> tuple[Indices, ...]:
        """The distinct slices that the devices of a host hold, in the order of the devices."""
        found = self._indices.get((spec, host))
        if found is None:
            first = host * self.devices_per_host
            devices = self._coordinates[first : first + self.devices_per_host]
            found = tuple(
                dict.fromkeys(tuple(self._index(axes, at) for axes in spec) for at in devices)
            )
            self._indices[spec, host] = found
        return found

    def find_boxes(self, spec: Spec | None, shape: Shape, host: int) -> tuple[Box, ...]:
        """The boxes of a leaf that a host holds: all of it, without a spec.

        Args:
            spec: Divides `shape` evenly.
            shape: Of the leaf, in elements.
            host: Number of the host.
        """
        if spec is None:
            return (full_box(shape),)
        steps = [
            size // math.prod(self.mesh[axis] for axis in _list_axes(axes))
            for axes, size in zip(spec, shape, strict=False)
        ]
        rest = full_box(shape[len(steps) :])
        return tuple(
            (*((i * step, (i + 1) * step) for i, step in zip(index, steps, strict=True)), *rest)
            for index in self.find_indices(spec, host)
        )

    def _index(self, axes: str | tuple[str, ...] | None, at: Mapping[str, int]) -> int:
        index = 0
        for axis in _list_axes(axes):
            index = index * self.mesh[axis] + at[axis]
        return index


def _list_axes(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())
