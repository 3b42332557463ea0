"""Where the finished leaves of a template go. No JAX: what is of JAX is opaque here."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a finished leaf goes.

    Attributes:
        leaf: The template's own leaf, which is returned for `...`, leaves without data and kept
            values.
        sharding: The sharding of the result, or None for JAX's default device, uncommitted.
        layout: The memory layout that a `Format` asks for, or None.
        devices: Each device of this process in `sharding`, with the position of its box in
            `Target.boxes`.
        usual: The result is a `jax.Array` in the default layout and memory of its devices.
        weak: The result has a weak type, as the template's leaf has.
    """

    leaf: Any
    sharding: jax.sharding.Sharding | None = None
    layout: Any = None
    devices: tuple[tuple[Any, int], ...] = ()
    usual: bool = False
    weak: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        from .._jax.pickling import dump_with_devices

        values = tuple(getattr(self, field.name) for field in fields(self))
        return _load_placement, (dump_with_devices(values, "plan"),)


def _load_placement(values: bytes) -> Placement:
    from .._jax.pickling import name_missing_jax

    with name_missing_jax("plan"):
        return Placement(*pickle.loads(values))  # noqa: S301, a part of what is being loaded
