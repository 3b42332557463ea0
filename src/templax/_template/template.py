"""Templates: one target for each leaf. No JAX here, so a template can be read from JSON."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any, Literal

from .._catalog.entry import LeafSpec
from .._core.boxes import Box
from .._core.dtypes import PYTHON_NAMES
from ..errors import Mismatch
from .sharding import Sharding

TargetKind = Literal["array", "scalar", "string", "key", "skip", "static"]


class Target(LeafSpec, frozen=True, gc=False):
    """One leaf of a template.

    Attributes:
        name: Key path joined by `.`.
        path: Elements of the key path; ints are indices of a list or tuple.
        shape: In elements. For a typed PRNG key, the shape of its uint32 key data.
        dtype: The dtype that the result must have. For a Python number, the widest dtype of its
            kind; for a string, `np.dtype(str)`.
        kind: "scalar" is a Python number, "skip" is `...`, and "static" is a leaf without data,
            such as a function. Leaves of the last two kinds are returned unchanged.
        key_impl: PRNG implementation of a key; None for other leaves.
        boxes: The distinct boxes of the leaf that this process must hold.
        host: The result is a numpy array or a Python value, not a `jax.Array`.
        concrete: The template leaf holds a value, which `missing="keep"` can keep.
        remote: The value that the template leaf holds can't be kept without communication: some
            process is to hold a part of it that only others have.
        optional: A Python value of an Equinox module. It is kept if the checkpoint does not hold
            it, since users of Equinox often save only the arrays.
        problems: Why no checkpoint can satisfy this target: a sharding or memory layout that does
            not fit the shape, a dtype that is not numeric ("kind"), or one that no `jax.Array`
            holds ("dtype"). `found` of the last is empty, since only the match knows what the
            checkpoint holds.
        sharding: The requested sharding as data, for messages and template files.
        placement: Opaque here; used by `_restore.place`.
        transient: JAX copies the host memory that the leaf is read into, for example to an
            accelerator, so that memory can be reused after placement.
        aliases: Its other names, if the template holds the same object in several places.
    """

    kind: TargetKind = "array"
    boxes: tuple[Box, ...] = ()
    host: bool = False
    concrete: bool = False
    remote: bool = False
    optional: bool = False
    problems: tuple[Mismatch, ...] = ()
    sharding: Sharding | None = None
    placement: Any = None
    transient: bool = False
    aliases: tuple[str, ...] = ()

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
    """The targets of a pytree, in the order of its leaves.

    Attributes:
        targets: One per leaf, `...` and leaves without data included.
        treedef: The structure of the pytree, from which `_restore.place` rebuilds it: a treedef of
            JAX, a `SharedTree` or a `PlainTree`. None if the template was read from a file.
    """

    targets: tuple[Target, ...]
    treedef: Any = field(default=None, repr=False, compare=False)

    @property
    def spans_processes(self) -> bool:
        """Whether a leaf is to lie on devices of several processes."""
        placements = {id(t.placement): t.placement for t in self.targets if not t.host}.values()
        shardings = {id(p.sharding): p.sharding for p in placements if p is not None}
        return any(s is not None and _is_on_several_processes(s) for s in shardings.values())

    def __reduce__(self) -> tuple[Any, ...]:
        if self.treedef is None:
            return Template, (self.targets,)
        from .._jax.pickling import dump_with_devices

        return _load_template, (self.targets, dump_with_devices(self.treedef, "plan"))


def _is_on_several_processes(sharding: Any) -> bool:
    """Whether a sharding spans several processes. False if all devices are on one other process."""
    try:
        if sharding.is_fully_addressable:
            return False
    except ValueError:  # an abstract mesh, which the match refuses
        return False
    return len({device.process_index for device in sharding.device_set}) > 1


def _load_template(targets: tuple[Target, ...], treedef: bytes) -> Template:
    from .._jax.pickling import name_missing_jax

    with name_missing_jax("plan"):
        return Template(targets, pickle.loads(treedef))  # noqa: S301, a part of what is being loaded
