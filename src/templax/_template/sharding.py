"""Shardings as data, and the check that one divides a shape. Needs no JAX.

`jax_shardings` converts the shardings of JAX to these, and adds the checks that need JAX.
"""

from __future__ import annotations

import math

import msgspec

from .._core.boxes import Shape
from ..errors import Mismatch

NO_DEVICES = "a mesh of devices"
"""What a sharding over an abstract mesh is expected to have; a plan for other hosts does not."""


class Sharding(msgspec.Struct, frozen=True):
    """A `NamedSharding` as data.

    Attributes:
        mesh: Size of each mesh axis by its name, in mesh order.
        spec: For each dimension: None, the name of a mesh axis, or several names.
        memory_kind: As JAX names it, or None for the default memory of the device.
    """

    mesh: dict[str, int]
    spec: tuple[str | tuple[str, ...] | None, ...]
    memory_kind: str | None = None

    def __str__(self) -> str:
        parts = [repr(tuple(s) if isinstance(s, (list, tuple)) else s) for s in self.spec]
        return f"P({', '.join(parts)})"


def find_sharding_problem(name: str, shape: Shape, sharding: Sharding) -> Mismatch | None:
    """Why an array of `shape` can't be sharded like this, or None if it can.

    JAX requires that the spec has at most as many dimensions as the array, and that the mesh axes
    of a dimension divide it evenly.

    Args:
        name: The leaf, for the message.
        shape: In elements.
        sharding: Where the leaf is to go.

    >>> sharding = Sharding(mesh={"data": 8}, spec=("data",))
    >>> print(find_sharding_problem("w", (100, 4), sharding))
    Expected dimension 0 divisible by 8 (mesh axis `data`), got 100, sharding P('data') - at `w`
    >>> find_sharding_problem("w", (16, 4), sharding) is None
    True
    """
    if len(sharding.spec) > len(shape):
        return Mismatch(
            "sharding",
            name,
            f"at most {len(shape)} dimensions in its sharding",
            f"sharding {sharding}",
        )
    for i, (axes, size) in enumerate(zip(sharding.spec, shape, strict=False)):
        names = [] if axes is None else [axes] if isinstance(axes, str) else list(axes)
        parts = math.prod(sharding.mesh.get(axis, 1) for axis in names)
        if size % parts:
            plural = "axis" if len(names) == 1 else "axes"
            listed = ", ".join(f"`{axis}`" for axis in names)
            return Mismatch(
                "sharding",
                name,
                f"dimension {i} divisible by {parts} (mesh {plural} {listed})",
                f"{size}, sharding {sharding}",
            )
    return None
