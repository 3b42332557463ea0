"""JAX. Pytree and shardings → Template."""

from __future__ import annotations

import functools
import operator
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from msgspec import structs

from .._core.arguments import PyTree
from .._core.boxes import Box, Shape, full_box
from .._core.dtypes import PYTHON_DTYPES, WIDE, class_of
from .._core.names import Path, join_path
from .._jax.paths import broadcast_prefix, path_element
from .._jax.put import default_device
from .._jax.support import jax_supports, key_data_spec
from ..errors import Mismatch, UsageError
from .shardings import (
    describe_sharding,
    device_put_copies,
    find_sharding_problems,
    is_default_memory,
    local_boxes,
    requested_sharding,
)
from .template import Target, Template


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a finished leaf goes.

    Attributes:
        leaf: The template's own leaf: what `...`, statics and kept values come back as.
        sharding: Of the result; None is JAX's default device, uncommitted.
        layout: A memory layout asked for by a `Format`, or None.
        devices: Each device of this process that `sharding` has, and the index of its box in
            `Target.boxes`.
        usual: The leaf is a `jax.Array` in the usual layout and memory of its devices.
    """

    leaf: Any
    sharding: jax.sharding.Sharding | None = None
    layout: Any = None
    devices: tuple[tuple[Any, int], ...] = ()
    usual: bool = False


def as_template(tree: PyTree, shardings: PyTree = None) -> Template:
    """The template of a pytree.

    Args:
        tree: Leaves as `restore` documents them.
        shardings: A prefix of `tree` with shardings or devices, which override those of `tree`;
            None leaves them.

    Raises:
        UsageError: `shardings` is not a prefix of `tree`, or holds something else; `tree` is not a
            pytree; or a leaf has an invalid shape or dtype.
    """
    try:
        keyed, treedef = jtu.tree_flatten_with_path(tree)
    except ValueError as error:  # a dict with keys 0 and "0", which JAX can't sort
        raise UsageError(f"Expected a pytree as template: {error}") from error
    overrides: Sequence[Any] = [None] * len(keyed)
    if shardings is not None:
        overrides = broadcast_prefix(shardings, tree, "shardings")
    modules = _equinox_modules(tree)
    # Leaves of one shape and sharding share their boxes, and all else that has no name.
    boxes: Boxes = {}
    alike: defaultdict[int, dict[Any, tuple[Any, ...]]] = defaultdict(dict)
    targets: list[Target] = []
    for (keys, leaf), override in zip(keyed, overrides, strict=True):
        path = tuple(
            [
                key.key if type(key) is jtu.DictKey and type(key.key) is str else path_element(key)
                for key in keys
            ]
        )
        if type(leaf) is jax.ShapeDtypeStruct:
            rest = alike[id(override)].get(leaf)
            if rest is not None:
                targets.append(Target(join_path(path), path, *rest))
                continue
        target = _target(path, leaf, override, boxes)
        if type(leaf) is jax.ShapeDtypeStruct and not target.problems:
            alike[id(override)][leaf] = structs.astuple(target)[2:]
        if modules and target.concrete and target.kind in ("scalar", "string"):
            optional = any(keys[:n] in modules for n in range(len(keys)))
            target = structs.replace(target, optional=optional)
        targets.append(target)
    return Template(tuple(targets), treedef)


Boxes = dict[Any, tuple[tuple[Box, ...], tuple[tuple[Any, int], ...]]]
"""Of sharding, layout and shape: what `local_boxes` says."""


def _equinox_modules(tree: PyTree) -> set[tuple[Any, ...]]:
    """Key paths of the outermost Equinox modules; of none if Equinox was never imported."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return set()

    def is_module(x: Any) -> bool:
        return isinstance(x, equinox.Module)

    keyed, _ = jtu.tree_flatten_with_path(tree, is_leaf=is_module)
    return {keys for keys, x in keyed if is_module(x)}


def _target(path: Path, leaf: Any, override: Any, boxes: Boxes) -> Target:
    name = join_path(path)
    bare = functools.partial(Target, name, path, (), placement=Placement(leaf))
    if leaf is ...:
        return bare(np.dtype("V0"), "skip")
    if leaf is str or isinstance(leaf, str):
        return bare(np.dtype(str), "string", host=True, concrete=leaf is not str)
    number = _number_type(leaf)
    if number is not None:
        concrete = not isinstance(leaf, type)
        return bare(PYTHON_DTYPES[number], "scalar", host=True, concrete=concrete, boxes=((),))
    if _is_numpy_type(leaf) or isinstance(leaf, type(jnp.float32)):
        return _array(name, path, leaf, (), np.dtype(leaf), override, boxes)
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return _array(name, path, leaf, *_shape_and_dtype(name, leaf), override, boxes)
    return bare(np.dtype("V0"), "static")


def _inconclusive() -> type[Exception]:
    """What a symbolic dimension raises. JAX takes 20 ms to import it, more than a small restore."""
    from jax.extend.core import InconclusiveDimensionOperation

    return InconclusiveDimensionOperation


def _shape_and_dtype(name: str, leaf: Any) -> tuple[Shape, Any]:
    try:
        shape = tuple(operator.index(n) for n in leaf.shape)
        if any(n < 0 for n in shape):
            raise ValueError("negative")
    except (TypeError, ValueError, _inconclusive()) as error:
        raise UsageError(f"Expected a shape, got {leaf.shape!r} - at `{name}`") from error
    dtype = leaf.dtype
    if not isinstance(dtype, np.dtype) and not jnp.issubdtype(dtype, jax.dtypes.extended):
        try:
            dtype = np.dtype(dtype) if dtype is not None else None
        except TypeError:
            dtype = None
        if dtype is None:
            raise UsageError(f"Expected a dtype, got {leaf.dtype!r} - at `{name}`")
    return shape, dtype


def _number_type(leaf: Any) -> type | None:
    """The type of a Python number or the type itself: `int` for `int` and for 3; else None."""
    if isinstance(leaf, type):
        return leaf if leaf in PYTHON_DTYPES else None
    if isinstance(leaf, np.generic):
        return None
    # bool first: it is an int, too.
    return next((t for t in (bool, int, float, complex) if isinstance(leaf, t)), None)


def _is_numpy_type(leaf: Any) -> bool:
    return isinstance(leaf, type) and issubclass(leaf, np.generic)


def _array(
    name: str,
    path: Path,
    leaf: Any,
    shape: Shape,
    dtype: Any,
    override: Any,
    boxes: Boxes,
) -> Target:
    numpy = isinstance(leaf, (np.ndarray, np.generic)) or _is_numpy_type(leaf)
    host = numpy and override is None
    sharding, layout = (None, None) if host else requested_sharding(leaf, override)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        data_shape, dtype, impl = key_data_spec(shape, dtype)
        return Target(
            name,
            path,
            data_shape,
            dtype,
            "key",
            key_impl=impl,
            boxes=(full_box(data_shape),),
            concrete=_is_concrete(leaf),
            sharding=describe_sharding(sharding),
            problems=find_sharding_problems(name, shape, sharding, layout),
            placement=Placement(leaf, sharding),
        )
    dtype = np.dtype(dtype).newbyteorder("=")
    local, wrong, devices = (full_box(shape),), (), ()
    if sharding is not None and (sharding, layout, shape) in boxes:
        local, devices = boxes[sharding, layout, shape]
    elif sharding is not None:
        wrong = find_sharding_problems(name, shape, sharding, layout)
        if not wrong:
            local, devices = boxes[sharding, layout, shape] = local_boxes(sharding, shape)
    if class_of(dtype) == "other":
        what = f"a template leaf of dtype {dtype}"
        wrong = (*wrong, Mismatch("kind", name, "an array of numbers", what))
    elif not host and not jax_supports(dtype):
        why = _X64 if dtype.name in WIDE else "no jax.Array holds this dtype"
        wrong = (*wrong, Mismatch("dtype", name, dtype.name, "", note=why))
    device = devices[0][0] if devices else default_device()
    usual = (
        not host and layout is None and (sharding is None or is_default_memory(sharding, device))
    )
    return Target(
        name,
        path,
        shape,
        dtype,
        boxes=local,
        host=host,
        concrete=_is_concrete(leaf),
        problems=wrong,
        sharding=describe_sharding(sharding),
        placement=Placement(leaf, sharding, layout, devices, usual),
        transient=not host and device_put_copies(device, layout, dtype),
    )


_X64 = "a jax.Array holds no 64-bit numbers while jax_enable_x64 is off"


def _is_concrete(leaf: Any) -> bool:
    """Whether a leaf holds a value: a donated array holds none any more."""
    if isinstance(leaf, jax.Array):
        return not isinstance(leaf, jax.core.Tracer) and not leaf.is_deleted()
    return isinstance(leaf, (np.ndarray, np.generic))
