"""JAX. The leaves to save that are `jax.Array`s."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from .._catalog.written import Leaf, hold_array
from .._core.arguments import PyTree
from .._core.boxes import full_box
from .._core.dtypes import is_known
from .._core.names import Path
from .._jax.paths import list_paths
from .._jax.support import key_data_spec
from .._jax.versions import ensure_on_device
from .._template.flatten import flatten_tree
from .owners import all_boxes, held_boxes, holds_all, is_local, written_boxes


def make_empty_test(is_container: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A test whether a value is a node without children, of any class that JAX knows as a node.

    Args:
        is_container: The same test for the containers of Python, and for None.
    """
    leaf_types: set[type] = set()
    flatten_one_level = jtu.default_registry.flatten_one_level

    def is_empty(value: Any) -> bool:
        if type(value) in leaf_types:
            return False
        if value is None or isinstance(value, (dict, list, tuple)):
            return is_container(value)
        flat = flatten_one_level(value)
        if flat is None:
            leaf_types.add(type(value))
            return False
        return not tuple(flat[0])

    return is_empty


def flatten_with_paths(tree: PyTree, is_leaf: Callable[[Any], bool]) -> list[tuple[Path, Any]]:
    """The leaves of any pytree, with their key paths. What modules of NNX share is one leaf.

    Raises:
        ValueError: JAX can't flatten it.
    """
    keyed = flatten_tree(tree, is_leaf=is_leaf).keyed
    return list(zip(list_paths(keyed), [value for _, value in keyed], strict=True))


def allow_transfers() -> AbstractContextManager[Any]:
    """A context in which arrays may be fetched from devices, whatever guard is set."""
    return jax.transfer_guard("allow")


def await_arrays(arrays: Sequence[jax.Array]) -> None:
    """Waits for the computations of arrays; one that failed raises here."""
    jax.block_until_ready(arrays)


_DELETED = "was deleted or donated"


def make_jax_leaf(name: str, path: Path, value: Any, replicas: bool) -> Leaf | str | None:
    """A leaf, or the reason why it cannot be saved; None if the value is not JAX's."""
    if not _is_array_type(type(value)):
        if isinstance(value, jax.core.Tracer):
            return "is traced: save outside of jax.jit"
        is_abstract = isinstance(value, jax.ShapeDtypeStruct)
        return "is abstract: it has a shape and a dtype, but no values" if is_abstract else None
    dtype, impl = _find_dtype(value.dtype), None
    if dtype is None:
        if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return f"is an array of dtype {value.dtype}"
        value = ensure_on_device(value)
    shape = value.shape
    saved, one_cpu, transient = _examine_sharding(value.sharding)
    if (dtype is None or not one_cpu) and value.is_deleted():
        return _DELETED
    if dtype is None:
        shape, _, impl = key_data_spec(shape, value.dtype)
        value = jax.random.key_data(value)
        dtype = np.dtype(value.dtype)
        one_cpu, transient = _classify_devices(value.sharding)
    leaf = Leaf(name, path, "jax.Array", shape, dtype, impl, sharding=saved, transient=transient)
    if one_cpu:
        try:
            array = np.asarray(value) if dtype.itemsize > 1 else _to_host(value)
        except RuntimeError:
            if value.is_deleted():  # only asked now, since that takes as long as a small copy
                return _DELETED
            raise
        leaf.pieces = hold_array(array)
        return leaf
    if is_local(value) and value.is_fully_replicated:
        leaf.pieces = ((full_box(shape), _make_fetch(value, leaf.transient)),)
        return leaf
    own = replicas and not is_local(value) and holds_all(value)
    boxes = (
        held_boxes(value) if own else written_boxes(value, jax.process_index(), everywhere=False)
    )
    leaf.pieces = tuple((box, _make_fetch(data, leaf.transient)) for box, data in boxes)
    if not own and not is_local(value):
        leaf.tile, leaf.owners = value.sharding.shard_shape(shape), all_boxes(value)
        first, *others = {process for _, process in leaf.owners}
        if not others:  # one process, not necessarily this one, holds all of it
            leaf.tile, leaf.owners = shape, ((full_box(shape), first),)
    return leaf


@functools.cache
def _is_array_type(kind: type) -> bool:
    """Whether values of this type are arrays that exist."""
    return issubclass(kind, jax.Array) and not issubclass(kind, jax.core.Tracer)


@functools.cache
def _find_dtype(dtype: Any) -> np.dtype | None:
    """The dtype of NumPy, or None if it is one of JAX's own, or of no kind that can be saved."""
    if jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    found = np.dtype(dtype)
    return found if is_known(found) else None


@functools.lru_cache(maxsize=512)
def _examine_sharding(sharding: jax.sharding.Sharding) -> tuple[str | None, bool, bool]:
    """A sharding as Orbax serialises it, and what `_classify_devices` tells of it."""
    return _serialize_sharding(sharding), *_classify_devices(sharding)


def _make_fetch(value: jax.Array, transient: bool) -> Callable[[], np.ndarray]:
    """A callable that returns the values in host memory. An array on CPU is viewed here, once."""
    if not transient:
        array = _to_host(value)
        return lambda: array

    def fetch() -> np.ndarray:
        with jax.transfer_guard("allow"):  # the guard is set per thread
            return _to_host(value)

    return fetch


def _to_host(value: jax.Array) -> np.ndarray:
    """The values of an array in host memory.

    JAX caches the host copy that it makes on the array object. The array made here takes that copy,
    so that the caller's array does not keep it alive.
    """
    one_cpu, _ = _classify_devices(value.sharding)
    if not one_cpu or value.dtype.itemsize == 1:
        one = value.addressable_data(0)
        value = jax.make_array_from_single_device_arrays(one.shape, one.sharding, [one])
    return np.asarray(value)


@functools.lru_cache(maxsize=512)
def _classify_devices(sharding: jax.sharding.Sharding) -> tuple[bool, bool]:
    """Whether a sharding is one CPU device of this process; and whether it is not on CPU."""
    first, *others = sharding.device_set
    cpu = first.platform == "cpu"
    return cpu and not others and first.process_index == jax.process_index(), not cpu


@functools.cache
def views_hold_memory() -> bool:
    """Whether this version of JAX leaves the memory of a CPU array alone while NumPy has a view of
    it, even if the array is donated or deleted. JAX does not promise it, so it is tried out.
    """
    with jax.transfer_guard("allow"), jax.default_device(jax.local_devices(backend="cpu")[0]):
        for spend in (jax.jit(lambda x: x * 2, donate_argnums=0), lambda x: x.delete()):
            array = jax.block_until_ready(jnp.arange(256, dtype=jnp.float32) + 1)
            view = np.asarray(array)
            before = view.copy()
            spend(array)
            jax.block_until_ready([jnp.full(256, i, jnp.float32) for i in range(8)])
            if not np.array_equal(view, before):
                return False
    return True


def _serialize_sharding(sharding: jax.sharding.Sharding) -> str | None:
    """A sharding as Orbax 0.12 serialises it (`metadata/sharding.py`); None if Orbax cannot."""
    if isinstance(sharding, SingleDeviceSharding):
        (device,) = sharding.device_set
        # JAX before 0.10 names its CPUs like this. Older versions of Orbax require this text; newer
        # ones accept either.
        name = str(device).replace("cpu:", "TFRT_CPU_")
        return json.dumps({"sharding_type": "SingleDeviceSharding", "device_str": name})
    if not isinstance(sharding, NamedSharding):
        return None
    mesh = sharding.mesh
    spec: Any = getattr(sharding.spec, "partitions", None) or tuple(sharding.spec)
    if any(axes is PartitionSpec.UNCONSTRAINED for axes in spec):
        return None
    return json.dumps(
        {
            "sharding_type": "NamedSharding",
            "shape": list(mesh.shape.values()),
            "axis_names": [str(name) for name in mesh.axis_names],
            "axis_types": [str(kind) for kind in mesh.axis_types],
            "partition_spec": [
                axes if isinstance(axes, str) or axes is None else list(axes) for axes in spec
            ],
            "device_mesh": {"mesh": _list_ids(mesh.devices)},
        }
    )


def _list_ids(devices: Any) -> Any:
    if isinstance(devices, np.ndarray):
        return [_list_ids(d) for d in devices]
    return {"id": devices.id}
