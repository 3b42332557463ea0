"""Templates: one target per template leaf. No JAX here, so a template can come from JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from .._catalog.entry import LeafSpec
from .._core.boxes import Box, Shape
from .._core.dtypes import PYTHON_NAMES
from ..errors import Mismatch

TargetKind = Literal["array", "scalar", "string", "key", "skip", "static"]


class Target(LeafSpec, frozen=True, gc=False):
    """One leaf of a template.

    Attributes:
        name, path: See `LeafEntry`.
        shape: In elements. Of a typed PRNG key: of its uint32 key data.
        dtype: Wanted. Of a Python number the widest of its kind, of a string `np.dtype(str)`.
        kind: "scalar" is a Python number; "skip" is `...`; "static" has no data (a function, say):
            both come back as they are.
        key_impl: Of a key, the PRNG implementation.
        boxes: The distinct boxes of the leaf that this process must hold.
        host: The result stays a numpy array or Python value.
        transient: The result is a copy of the host memory it is read into: it is on an accelerator.
        concrete: The template leaf holds a value, which `missing="keep"` can keep.
        optional: A Python value of an Equinox module: kept if the checkpoint lacks it, since
            Equinox users save arrays only.
        problems: Why the template itself can't be met: a sharding that does not divide, or a dtype
            that no `jax.Array` holds (without what was found: the match knows it).
        sharding: For people and JSON: mesh axes and the axes of each dimension.
        placement: Opaque, for `_restore.place`.
    """

    kind: TargetKind = "array"
    boxes: tuple[Box, ...] = ()
    host: bool = False
    concrete: bool = False
    optional: bool = False
    problems: tuple[Mismatch, ...] = ()
    sharding: Sharding | None = None
    placement: Any = None
    transient: bool = False

    @property
    def has_data(self) -> bool:
        return self.kind not in ("skip", "static")

    @property
    def dtype_name(self) -> str:
        if self.kind == "scalar":
            return PYTHON_NAMES[self.dtype.kind]
        return super().dtype_name


@dataclass(frozen=True, slots=True)
class Template:
    """The targets of a pytree in its order, and its tree definition for `_restore.place`."""

    targets: tuple[Target, ...]
    treedef: Any = field(default=None, repr=False, compare=False)


class Sharding(msgspec.Struct, frozen=True):
    """A `NamedSharding` as data.

    Attributes:
        mesh: Axis name → size, in mesh order.
        spec: Per dimension: None, an axis name, or several.
        memory_kind: As JAX names it, or None for the device's default.
    """

    mesh: dict[str, int]
    spec: tuple[str | tuple[str, ...] | None, ...]
    memory_kind: str | None = None

    def __str__(self) -> str:
        parts = [repr(tuple(s) if isinstance(s, (list, tuple)) else s) for s in self.spec]
        return f"P({', '.join(parts)})"


def sharding_problem(name: str, shape: Shape, sharding: Sharding) -> Mismatch | None:
    """Why a `NamedSharding` can't hold an array of `shape`, or None if it can."""
    if len(sharding.spec) > len(shape):
        return Mismatch(
            "sharding",
            name,
            f"at most {len(shape)} dimensions in its sharding",
            f"sharding {sharding}",
        )
    for i, (axes, n) in enumerate(zip(sharding.spec, shape, strict=False)):
        names = [] if axes is None else [axes] if isinstance(axes, str) else list(axes)
        parts = math.prod(sharding.mesh.get(axis, 1) for axis in names)
        if n % parts:
            axis = ", ".join(f"`{a}`" for a in names)
            plural = "axis" if len(names) == 1 else "axes"
            return Mismatch(
                "sharding",
                name,
                f"dimension {i} divisible by {parts} (mesh {plural} {axis})",
                f"{n}, sharding {sharding}",
            )
    return None
