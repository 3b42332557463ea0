"""JAX. Orbax's `ShardingMetadata`: a sharding as it is saved, whose devices need not be there."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

import templax as tx

from ....formats.orbax.sidecars import SHARDING, iter_sharding_texts
from ....storage.source import Source


@dataclass
class DeviceMetadata:
    """A device, by its number."""

    id: int


@dataclass
class DeviceMetadataMesh:
    """The devices of a mesh.

    Attributes:
        mesh: Nested lists of `DeviceMetadata`.
    """

    mesh: Any

    @classmethod
    def from_jax_mesh(cls, mesh: jax.sharding.Mesh) -> DeviceMetadataMesh:
        """The devices of a mesh of JAX."""
        devices = cast("Any", np.asarray(mesh.devices))
        return cls(_map_nested(lambda device: DeviceMetadata(device.id), devices.tolist()))

    def to_jax_device_mesh(self) -> Any:
        """The devices of this process with these numbers, in nested lists.

        Raises:
            UsageError: There are no such devices.
        """
        known = {device.id: device for device in jax.devices()}

        def find(saved: Any) -> Any:
            if saved.id not in known:
                raise tx.UsageError(
                    f"Expected the devices of the save, found none with id {saved.id}; hint: pass"
                    " shardings for the devices that there are"
                )
            return known[saved.id]

        return _map_nested(find, self.mesh)

    def __eq__(self, other: object) -> bool:
        return isinstance(getattr(other, "mesh", None), list) and _list_ids(self) == _list_ids(
            other
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _map_nested(change: Any, nested: Any) -> Any:
    if isinstance(nested, list):
        return [_map_nested(change, each) for each in cast("list[Any]", nested)]
    return change(nested)


def _list_ids(mesh: Any) -> Any:
    return _map_nested(lambda device: device.id, mesh.mesh)


class ShardingMetadata:
    """A saved sharding."""

    def to_jax_sharding(self) -> Any:
        """The sharding, for the devices of this process.

        Raises:
            UsageError: The devices of the save are not there.
        """
        raise NotImplementedError

    @classmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> ShardingMetadata | None:
        """The metadata of a sharding of JAX; None for a kind that Orbax does not save."""
        return describe_sharding(jax_sharding)


@dataclass(eq=False)
class NamedShardingMetadata(ShardingMetadata):
    """A `NamedSharding`.

    Attributes:
        shape: The shape of the mesh.
        axis_names: The names of its axes.
        partition_spec: The spec, a tuple of names, tuples of names and None.
        axis_types: The types of the axes; None if they are not recorded.
        device_mesh: The devices; None if they are not recorded, for those that there are.
    """

    shape: np.ndarray
    axis_names: list[str]
    partition_spec: tuple[Any, ...]
    axis_types: tuple[jax.sharding.AxisType, ...] | None = None
    device_mesh: DeviceMetadataMesh | None = None

    @classmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> NamedShardingMetadata:
        """The metadata of a `NamedSharding`."""
        mesh = jax_sharding.mesh
        return cls(
            np.array(list(mesh.shape.values())),
            list(mesh.axis_names),
            tuple(jax_sharding.spec),
            tuple(mesh.axis_types),
            DeviceMetadataMesh.from_jax_mesh(mesh),
        )

    @classmethod
    def from_deserialized_dict(cls, deserialized_dict: dict[str, Any]) -> NamedShardingMetadata:
        """The metadata that a `_sharding` file has as JSON."""
        spec = deserialized_dict["partition_spec"]
        types = deserialized_dict.get("axis_types")
        devices = deserialized_dict.get("device_mesh")
        known = {str(each): each for each in jax.sharding.AxisType}
        return cls(
            np.array(deserialized_dict["shape"]),
            list(deserialized_dict["axis_names"]),
            tuple(tuple(e) if isinstance(e, list) else e for e in spec),
            tuple(known[each] for each in types) if types else None,
            DeviceMetadataMesh(_parse_devices(devices["mesh"])) if devices else None,
        )

    def to_serialized_string(self) -> str:
        """The JSON that a `_sharding` file has."""
        saved: dict[str, Any] = {
            "sharding_type": "NamedSharding",
            "shape": np.asarray(self.shape).tolist(),
            "axis_names": self.axis_names,
        }
        if self.axis_types is not None:
            saved["axis_types"] = [str(each) for each in self.axis_types]
        saved["partition_spec"] = self.partition_spec
        if self.device_mesh is not None:
            mesh = _map_nested(lambda device: {"id": device.id}, self.device_mesh.mesh)
            saved["device_mesh"] = {"mesh": mesh}
        return json.dumps(saved)

    def to_jax_sharding(self) -> jax.sharding.NamedSharding:
        """See `ShardingMetadata.to_jax_sharding`."""
        found: Any = self.device_mesh.to_jax_device_mesh() if self.device_mesh else jax.devices()
        devices = np.asarray(found, object)
        if devices.size != np.prod(self.shape):
            raise tx.UsageError(
                f"Expected a mesh of shape {tuple(self.shape)}, found {devices.size} devices; hint:"
                " pass shardings for the devices that there are"
            )
        mesh = jax.sharding.Mesh(
            devices.reshape(self.shape), self.axis_names, axis_types=self.axis_types
        )
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*self.partition_spec))

    def __eq__(self, other: object) -> bool:
        return hasattr(other, "partition_spec") and _named_facts(self) == _named_facts(other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _named_facts(saved: Any) -> tuple[Any, ...]:
    shape = np.asarray(saved.shape).tolist()
    devices = None if saved.device_mesh is None else _list_ids(saved.device_mesh)
    return shape, saved.axis_names, tuple(saved.partition_spec), saved.axis_types, devices


def _parse_devices(nested: Any) -> Any:
    if isinstance(nested, list):
        return [_parse_devices(each) for each in cast("list[Any]", nested)]
    return DeviceMetadata(nested["id"])


@dataclass(eq=False)
class SingleDeviceShardingMetadata(ShardingMetadata):
    """A `SingleDeviceSharding`.

    Attributes:
        device_str: The device as JAX prints it.
    """

    device_str: str

    @classmethod
    def from_jax_sharding(cls, jax_sharding: Any) -> SingleDeviceShardingMetadata:
        """The metadata of a `SingleDeviceSharding`."""
        return cls(str(next(iter(jax_sharding.device_set))))

    @classmethod
    def from_deserialized_dict(
        cls, deserialized_dict: dict[str, Any]
    ) -> SingleDeviceShardingMetadata:
        """The metadata that a `_sharding` file has as JSON."""
        return cls(str(deserialized_dict["device_str"]))

    def to_serialized_string(self) -> str:
        """The JSON that a `_sharding` file has."""
        return json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": self.device_str})

    def to_jax_sharding(self) -> jax.sharding.SingleDeviceSharding:
        """See `ShardingMetadata.to_jax_sharding`."""
        known = {_spell_device(str(device)): device for device in jax.local_devices()}
        if _spell_device(self.device_str) not in known:
            raise tx.UsageError(
                f"Expected the device of the save, found no {self.device_str}; hint: pass shardings"
                " for the devices that there are"
            )
        return jax.sharding.SingleDeviceSharding(known[_spell_device(self.device_str)])

    def __eq__(self, other: object) -> bool:
        text = getattr(other, "device_str", None)
        return text is not None and _spell_device(text) == _spell_device(self.device_str)

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _spell_device(text: str) -> str:
    return text.replace("TFRT_CPU_", "cpu:")  # as JAX spelled it before 0.10


def describe_sharding(jax_sharding: Any) -> ShardingMetadata | None:
    """The metadata of a sharding of JAX; None for a kind that Orbax does not save."""
    if isinstance(jax_sharding, jax.sharding.NamedSharding):
        return NamedShardingMetadata.from_jax_sharding(jax_sharding)
    if isinstance(jax_sharding, jax.sharding.SingleDeviceSharding):
        return SingleDeviceShardingMetadata.from_jax_sharding(jax_sharding)
    return None


def resolve_sharding(sharding: Any) -> Any:
    """A sharding of JAX, from one or from the metadata of one; None stays None.

    Raises:
        UsageError: The devices of the metadata are not there.
    """
    convert = getattr(sharding, "to_jax_sharding", None)
    return sharding if convert is None else convert()


@functools.lru_cache(maxsize=256)  # the leaves of a checkpoint share a few
def _parse_sharding(text: str) -> ShardingMetadata | None:
    saved = json.loads(text)
    if saved["sharding_type"] == "NamedSharding":
        return NamedShardingMetadata.from_deserialized_dict(saved)
    if saved["sharding_type"] == "SingleDeviceSharding":
        return SingleDeviceShardingMetadata.from_deserialized_dict(saved)
    return None


def read_shardings(source: Source) -> dict[str, ShardingMetadata]:
    """Leaf name → the sharding that it was saved with. Unreadable ones are left out.

    Args:
        source: The directory of an item.
    """
    found: dict[str, ShardingMetadata] = {}
    if source.stat(SHARDING) is None:
        return found
    for leaf, text in iter_sharding_texts(source):
        try:
            saved = _parse_sharding(text)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if saved is not None:
            found[leaf] = saved
    return found
