"""JAX. Makes the template of a pytree and its shardings."""

from __future__ import annotations

import operator
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from msgspec import structs

from .._core.arguments import PyTree
from .._core.boxes import Box, Shape, full_box
from .._core.dtypes import WIDE
from .._core.names import Path, join_paths
from .._jax.paths import broadcast_prefix, list_paths, name_leaf
from .._jax.put import default_device
from .._jax.support import jax_supports, key_data_spec
from .._jax.versions import ensure_on_device, symbolic_dimension_error
from ..errors import Mismatch, UsageError
from .flatten import flatten_tree, is_nnx_module
from .host_leaves import find_kind_problem, is_numpy, make_host_target
from .jax_shardings import (
    describe_sharding,
    device_put_copies,
    find_jax_sharding_problems,
    find_key_problems,
    find_local_boxes,
    find_packing_problem,
    holds_what_is_wanted,
    is_default_memory,
    resolve_sharding,
)
from .placement import Placement
from .template import Target, Template


def as_template(tree: PyTree, shardings: PyTree = None) -> Template:
    """Makes the template of a pytree.

    Args:
        tree: See `restore` for the leaves that it may have.
        shardings: A prefix of `tree` with shardings or devices, which override those of `tree`.
            Where it holds None, the sharding of the leaf applies.

    Raises:
        UsageError: `shardings` is not a prefix of `tree`, or holds something else, or two
            shardings for one leaf; `tree` is not a pytree; or a leaf has an invalid shape or dtype.
    """
    try:
        flat = flatten_tree(tree)
    except (TypeError, ValueError) as error:  # such as a dict with keys 0 and "0", for JAX to sort
        raise UsageError(f"Expected a pytree as template: {error}") from error
    overrides: Sequence[Any] = [None] * len(flat.keyed)
    if shardings is not None:
        overrides = flat.select(broadcast_prefix(shardings, tree, "shardings"), "sharding")
    modules = _equinox_modules(tree)
    # Fast path: equal `ShapeDtypeStruct`s with the same override differ only in name and path, so
    # the remaining fields of their targets are made once. Other leaves share at least their boxes.
    boxes: Boxes = {}
    shared: defaultdict[int, dict[Any, tuple[Any, ...]]] = defaultdict(dict)
    targets: list[Target] = []
    paths = list_paths(flat.keyed)
    rows = zip(join_paths(paths), paths, flat.keyed, overrides, strict=True)
    for name, path, (keys, leaf), override in rows:
        alike = None
        if type(leaf) is jax.ShapeDtypeStruct:
            # Leaves with equal keys get equal targets. A struct without a sharding has no layout
            # either, so its shape and dtype are enough; hashing the whole struct is slow.
            alike = leaf if leaf.sharding is not None else (leaf.shape, leaf.dtype, leaf.weak_type)
            fields = shared[id(override)].get(alike)
            if fields is not None:
                targets.append(Target(name, path, *fields))
                continue
        target = _make_target(name, path, leaf, override, boxes)
        if alike is not None and not target.problems:
            shared[id(override)][alike] = structs.astuple(target)[2:]
        if modules and target.concrete and target.kind in ("scalar", "string"):
            optional = any(keys[:n] in modules for n in range(len(keys)))
            target = structs.replace(target, optional=optional)
        targets.append(target)
    for keys, i in flat.repeats:
        alias = name_leaf(keys)
        targets[i] = structs.replace(targets[i], aliases=(*targets[i].aliases, alias))
    return Template(tuple(targets), flat.treedef)


Boxes = dict[Any, tuple[tuple[Box, ...], tuple[tuple[Any, int], ...]]]
"""The result of `find_local_boxes`, by sharding, layout and shape."""


def _equinox_modules(tree: PyTree) -> set[tuple[Any, ...]]:
    """Key paths of the outermost Equinox modules. Without Equinox imported, there are none."""
    equinox = sys.modules.get("equinox")
    if equinox is None:
        return set()

    def is_module(x: Any) -> bool:
        return isinstance(x, equinox.Module)

    keyed, _ = jtu.tree_flatten_with_path(tree, is_leaf=is_module)
    return {keys for keys, x in keyed if is_module(x)}


def _make_target(name: str, path: Path, leaf: Any, override: Any, boxes: Boxes) -> Target:
    """Makes the target of one leaf, which may be anything that a pytree holds."""
    if isinstance(leaf, type(jnp.float32)):  # such as `jnp.float32`, which is not a numpy type
        return _make_array_target(name, path, leaf, (), np.dtype(leaf), override, boxes)
    if override is None or not is_numpy(leaf):
        target = make_host_target(name, path, leaf)
        if target is not None:
            if target.kind == "static" and is_nnx_module(leaf):
                raise _make_nnx_error(name, leaf)
            return target
    if isinstance(leaf, type) and is_numpy(leaf):
        return _make_array_target(name, path, leaf, (), np.dtype(leaf), override, boxes)
    shape, dtype = _check_shape_and_dtype(name, leaf)
    return _make_array_target(name, path, leaf, shape, dtype, override, boxes)


def _make_nnx_error(name: str, leaf: Any) -> UsageError:
    """The error for an object of NNX that is a leaf for JAX: nothing in it would be restored."""
    where = f" - at `{name}`" if name else ""
    return UsageError(
        f"Expected a pytree, got {type(leaf).__name__}, whose variables JAX does not see{where};"
        " hint: restore into nnx.state(module), and put the result into the module by nnx.update"
    )


def _check_shape_and_dtype(name: str, leaf: Any) -> tuple[Shape, Any]:
    """The shape and dtype of a leaf, as ints and as a dtype of numpy or JAX."""
    try:
        shape = tuple(operator.index(n) for n in leaf.shape)
        if any(n < 0 for n in shape):
            raise ValueError("negative")
    except (TypeError, ValueError, symbolic_dimension_error()) as error:
        raise UsageError(f"Expected a shape, got {leaf.shape!r} - at `{name}`") from error
    dtype = leaf.dtype
    try:
        if not isinstance(dtype, np.dtype) and not jnp.issubdtype(dtype, jax.dtypes.extended):
            dtype = np.dtype(dtype) if dtype is not None else None
    except TypeError:  # such as one of PyTorch
        dtype = None
    if dtype is None:
        raise UsageError(f"Expected a dtype of numpy or JAX, got {leaf.dtype!r} - at `{name}`")
    return shape, dtype


def _make_array_target(
    name: str,
    path: Path,
    leaf: Any,
    shape: Shape,
    dtype: Any,
    override: Any,
    boxes: Boxes,
) -> Target:
    """Makes the target of a `jax.Array`, typed PRNG keys included."""
    is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if is_key:
        leaf = ensure_on_device(leaf)
    sharding, layout = resolve_sharding(leaf, override)
    if is_key:
        return _make_key_target(name, path, leaf, shape, dtype, sharding, layout)
    dtype = np.dtype(dtype).newbyteorder("=")
    local_boxes, problems, devices = (full_box(shape),), (), ()
    if sharding is not None and (sharding, layout, shape) in boxes:
        local_boxes, devices = boxes[sharding, layout, shape]
    elif sharding is not None:
        problems = find_jax_sharding_problems(name, shape, sharding, layout)
        if not problems:
            local_boxes, devices = find_local_boxes(sharding, shape)
            boxes[sharding, layout, shape] = local_boxes, devices
    problems = (*problems, *find_packing_problem(name, dtype, layout))
    wrong_kind = find_kind_problem(name, dtype)
    problems = (*problems, *wrong_kind)
    if not wrong_kind and not jax_supports(dtype):
        why = _X64 if dtype.name in WIDE else "no jax.Array holds this dtype"
        problems = (*problems, Mismatch("dtype", name, dtype.name, "", note=why))
    device = devices[0][0] if devices else default_device()
    usual = layout is None and (sharding is None or is_default_memory(sharding, device))
    weak = getattr(leaf, "weak_type", False) is True
    return Target(
        name,
        path,
        shape,
        dtype,
        boxes=local_boxes,
        concrete=_is_concrete(leaf),
        remote=not problems and _is_remote(leaf, sharding),
        problems=problems,
        sharding=describe_sharding(sharding),
        placement=Placement(leaf, sharding, layout, devices, usual, weak),
        transient=device_put_copies(device, layout, dtype),
    )


def _make_key_target(
    name: str,
    path: Path,
    leaf: Any,
    shape: Shape,
    dtype: Any,
    sharding: jax.sharding.Sharding | None,
    layout: Any,
) -> Target:
    """Makes the target of typed PRNG keys: of their data, whose last dimensions are not sharded."""
    data_shape, data_dtype, impl = key_data_spec(shape, dtype)
    problems = find_key_problems(name, shape, data_shape, sharding, layout)
    local_boxes, devices = (full_box(shape),), ()
    if sharding is not None and not problems:
        local_boxes, devices = find_local_boxes(sharding, shape)
    device = devices[0][0] if devices else default_device()
    data_box = full_box(data_shape[len(shape) :])
    return Target(
        name,
        path,
        data_shape,
        data_dtype,
        "key",
        key_impl=impl,
        boxes=tuple((*box, *data_box) for box in local_boxes),
        concrete=_is_concrete(leaf),
        remote=not problems and _is_remote(leaf, sharding),
        problems=problems,
        sharding=describe_sharding(sharding),
        placement=Placement(leaf, sharding, devices=devices),
        transient=device_put_copies(device, None, data_dtype),
    )


_X64 = "a jax.Array holds no 64-bit numbers while jax_enable_x64 is off"


def _is_concrete(leaf: Any) -> bool:
    """Whether a leaf holds a value. A donated (deleted) array no longer does."""
    if isinstance(leaf, jax.Array):
        return not isinstance(leaf, jax.core.Tracer) and not leaf.is_deleted()
    return isinstance(leaf, (np.ndarray, np.generic))


def _is_remote(leaf: Any, sharding: jax.sharding.Sharding | None) -> bool:
    """Whether some process is to hold what the leaf's own value has on other processes only."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return False
    if sharding is None or leaf.is_fully_addressable or leaf.sharding == sharding:
        return False
    return not holds_what_is_wanted(leaf.sharding, sharding, leaf.shape)
