"""JAX. The leaves of a tree to save, and the snapshot of their values in host memory."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from .._catalog.written import Leaf, refuse_leaves
from .._core.arguments import PyTree
from .._core.boxes import Box, full_box
from .._core.dtypes import DTYPES, PYTHON_DTYPES
from .._core.memory import ALIGN, allocate_aligned
from .._core.names import Path, join_path
from .._core.text import is_unicode
from .._jax.paths import path_element
from .._jax.support import key_data_spec
from .._template.flatten import flatten_tree
from ..errors import UsageError
from .owners import all_boxes, held_boxes, holds_all, is_local, written_boxes

Empty = tuple[Path, str]
"""The key path of a container without leaves, and Orbax's name for its kind."""

_SMALL_BYTES = 1024 * 1024
"""Values up to this size are copied at once; larger ones are split among threads."""

_BLOCK_BYTES = 16 * 1024 * 1024
"""The unit in which threads copy large values."""

_ARENA_BYTES = 256 * 1024 * 1024
"""The size of the allocations that copies share."""


def collect_leaves(tree: PyTree, *, replicas: bool = False) -> tuple[list[Leaf], list[Empty]]:
    """The leaves of a tree, and its containers that have no leaves.

    Nothing is copied: arrays on CPU are viewed in place; arrays on other devices are fetched when
    the callable of a piece is called.

    Args:
        tree: A pytree of `jax.Array`s (including typed PRNG keys), NumPy arrays and scalars, Python
            numbers and strings. Functions and types are left out: templates supply them. What
            modules of Flax NNX share is one leaf, under the first of its names.
        replicas: Whether a leaf of which this process has all counts as its own, even if it is
            another process that saves it.

    Raises:
        SaveError: Leaves hold no values that can be saved, or share a name. The message names them.
        UsageError: `tree` is not a pytree.
    """
    try:
        keyed = flatten_tree(tree, is_leaf=lambda x: _empty_kind(x) is not None).keyed
    except ValueError as error:  # a dict with keys 0 and "0", which JAX can't sort
        raise UsageError(f"Expected a pytree to save: {error}") from error
    leaves: list[Leaf] = []
    empties: list[Empty] = []
    wrong: list[str] = []
    names: set[str] = set()
    ready: list[jax.Array] = []
    with jax.transfer_guard("allow"):  # saving is what the caller asked for
        for keys, value in keyed:
            path = tuple([path_element(key) for key in keys])
            if (kind := _empty_kind(value)) is not None:
                empties.append((path, kind))
                continue
            if callable(value):
                continue
            name = join_path(path)
            if name in names:
                wrong.append(f"two leaves are named `{name}`")
                continue
            names.add(name)
            leaf = _make_leaf(name, path, value, replicas)
            if isinstance(leaf, str):
                wrong.append(f"`{name}` {leaf}")
                continue
            leaves.append(leaf)
            if isinstance(value, jax.Array):
                ready.append(value)
        found = [*names, *(join_path(path) for path, _ in empties)]
        if not is_unicode("".join(found)):
            wrong += [
                f"`{name}` is a name that is not valid Unicode"
                for name in found
                if not is_unicode(name)
            ]
        refuse_leaves(wrong)
        jax.block_until_ready(ready)  # a failed computation raises here, before a file is made
    return leaves, empties


def _empty_kind(value: Any) -> str | None:
    """Orbax's name for a container without leaves, or None for any other value."""
    if value is None:
        return "None"
    if isinstance(value, (dict, list, tuple)) and not value:
        if isinstance(value, tuple):
            return "NamedTuple" if hasattr(value, "_fields") else "Tuple"
        return "Dict" if isinstance(value, dict) else "List"
    return None


def _make_leaf(name: str, path: Path, value: Any, replicas: bool) -> Leaf | str:
    """A leaf, or the reason why it cannot be saved, in words that follow its name."""
    if isinstance(value, jax.Array):
        return _make_jax_leaf(name, path, value, replicas)
    if isinstance(value, str):
        return _make_text_leaf(name, path, value)
    if isinstance(value, np.ma.MaskedArray):
        return "is a masked array, whose mask would be lost"
    if isinstance(value, (np.ndarray, np.generic)):
        scalar = isinstance(value, np.generic)
        return _make_numpy_leaf(name, path, np.asarray(value), "scalar" if scalar else "np.ndarray")
    number = next((t for t in (bool, int, float, complex) if isinstance(value, t)), None)
    if number is not None:
        try:
            array = np.asarray(value, PYTHON_DTYPES[number])
        except OverflowError:
            return f"is an int that int64 can't hold: {str(value)[:40]}"
        leaf = _make_numpy_leaf(name, path, array, "scalar")
        if isinstance(leaf, Leaf):
            leaf.is_python = True
        return leaf
    if isinstance(value, jax.ShapeDtypeStruct):
        return "is abstract: it has a shape and a dtype, but no values"
    if value is ...:
        return "is `...`, which was never restored"
    as_array: Callable[[], Any] | None = getattr(value, "__jax_array__", None)
    if as_array is not None:
        return _make_leaf(name, path, as_array(), replicas)
    if isinstance(value, (bytes, bytearray)):
        return "holds bytes: save np.frombuffer(value, np.uint8)"
    return f"is a {type(value).__module__}.{type(value).__qualname__}, which holds no array"


def _make_text_leaf(name: str, path: Path, value: str) -> Leaf | str:
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is a string that is not valid Unicode"
    return Leaf(name, path, "string", (), np.dtype(str), text=str.__str__(value))


def _make_numpy_leaf(name: str, path: Path, value: np.ndarray, value_type: Any) -> Leaf | str:
    native = value.dtype.newbyteorder("=")
    if not _is_supported(native):
        return f"is a numpy array of dtype {value.dtype}"
    array = np.asarray(value, native)
    return Leaf(name, path, value_type, array.shape, native, pieces=_whole_piece(array))


@functools.cache
def _is_supported(dtype: np.dtype) -> bool:
    return DTYPES.get(dtype.name) == dtype


def _whole_piece(array: np.ndarray) -> tuple[tuple[Box, Callable[[], np.ndarray]], ...]:
    return ((full_box(array.shape), lambda: array),)


def _make_jax_leaf(name: str, path: Path, value: jax.Array, replicas: bool) -> Leaf | str:
    if isinstance(value, jax.core.Tracer):
        return "is traced: save outside of jax.jit"
    if value.is_deleted():
        return "was deleted or donated"
    shape, impl = value.shape, None
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return f"is an array of dtype {value.dtype}"
        shape, _, impl = key_data_spec(shape, value.dtype)
        sharding = value.sharding
        value = jax.random.key_data(value)
    else:
        sharding = value.sharding
        if not _is_supported(np.dtype(value.dtype)):
            return f"is an array of dtype {value.dtype}"
    leaf = Leaf(name, path, "jax.Array", shape, np.dtype(value.dtype), impl)
    leaf.sharding = _serialize_sharding(sharding)
    one_cpu, leaf.transient = _classify_devices(value.sharding)
    if one_cpu:
        leaf.pieces = ((full_box(shape), _make_fetch(value, False)),)
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


def copy_values(leaves: Sequence[Leaf], threads: int) -> None:
    """Gives the leaves values of their own, which later changes to the tree do not affect.

    A `jax.Array` on CPU need not be copied: JAX does not reuse its memory while NumPy has a view of
    it. Values fetched from a device are copies already. The remaining copies share arenas, each
    freed once all leaves in it are written: the first touch of fresh memory takes longer than the
    copy, and is fastest for large allocations.
    """
    on_cpu = any(leaf.value_type == "jax.Array" and not leaf.transient for leaf in leaves)
    views_suffice = on_cpu and _views_hold_memory()
    leaves = [
        leaf
        for leaf in leaves
        if leaf.transient or leaf.value_type != "jax.Array" or not views_suffice
    ]
    total = sum(-(-leaf.nbytes // ALIGN) * ALIGN for leaf in leaves)
    arena, used = allocate_aligned(0), 0
    with ThreadPoolExecutor(threads, thread_name_prefix="templax-copy") as pool:
        copies: list[Future[None]] = []
        for leaf in leaves:
            pieces: list[tuple[Box, Callable[[], np.ndarray]]] = []
            for box, fetch in leaf.pieces:
                values = fetch()
                if not leaf.transient:
                    size = -(-values.nbytes // ALIGN) * ALIGN
                    if used + size > len(arena):
                        arena, used = allocate_aligned(max(size, min(total, _ARENA_BYTES))), 0
                    copied = np.ndarray(values.shape, values.dtype, arena, used)
                    used, total = used + size, total - size
                    if size > _SMALL_BYTES:
                        copies += [
                            pool.submit(np.copyto, *pair) for pair in _split_blocks(copied, values)
                        ]
                    else:
                        np.copyto(copied, values)
                    values = copied
                pieces.append((box, functools.partial(np.asarray, values)))
            leaf.pieces, leaf.transient = tuple(pieces), False
        for copy in copies:
            copy.result()


@functools.cache
def _views_hold_memory() -> bool:
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


def _split_blocks(to: np.ndarray, values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of destination and source views, which threads can copy in parallel."""
    if not values.flags.c_contiguous:
        yield to, values
        return
    to, values = to.reshape(-1).view(np.uint8), values.reshape(-1).view(np.uint8)
    for i in range(0, len(values), _BLOCK_BYTES):
        yield to[i : i + _BLOCK_BYTES], values[i : i + _BLOCK_BYTES]


@functools.lru_cache(maxsize=512)
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
