"""JAX. A tree that is saved → its leaves, with their values in host memory."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from .._catalog.written import Leaf
from .._core.arguments import PyTree
from .._core.boxes import Box, full_box
from .._core.dtypes import DTYPES, PYTHON_DTYPES
from .._core.memory import ALIGN, allocate_aligned
from .._core.names import Path, join_path
from .._jax.paths import path_element
from .._jax.support import key_data_spec
from ..errors import SaveError, UsageError
from .owners import all_boxes, is_local, written_boxes

Empty = tuple[Path, str]
"""A key path without a leaf, and what Orbax calls what is there."""

_SMALL_BYTES = 1024 * 1024

_BLOCK_BYTES = 16 * 1024 * 1024

_ARENA_BYTES = 256 * 1024 * 1024


def collect_leaves(tree: PyTree) -> tuple[list[Leaf], list[Empty]]:
    """The leaves of a tree, and what is there instead of one.

    Nothing is copied: arrays on CPU are seen as they lie, those on other devices are fetched when a
    piece is called; their transfers begin.

    Args:
        tree: Leaves are `jax.Array`s (typed PRNG keys too), numpy arrays and scalars, Python
            numbers and strings. Functions and types are left out: templates supply them.

    Raises:
        SaveError: A leaf holds no values that can be saved, or two share a name; names all of them.
        UsageError: `tree` is no pytree.
    """
    try:
        keyed, _ = jtu.tree_flatten_with_path(tree, is_leaf=lambda x: _empty(x) is not None)
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
            if (kind := _empty(value)) is not None:
                empties.append((path, kind))
                continue
            if callable(value):
                continue
            name = join_path(path)
            if name in names:
                wrong.append(f"two leaves are named `{name}`")
                continue
            names.add(name)
            leaf = _leaf(name, path, value)
            if isinstance(leaf, str):
                wrong.append(f"`{name}` {leaf}")
                continue
            leaves.append(leaf)
            if isinstance(value, jax.Array):
                ready.append(value)
        if wrong:
            raise SaveError(f"This tree can't be saved: {'; '.join(wrong[:20])}{_more(wrong)}")
        jax.block_until_ready(ready)  # a computation that failed says so before a file is made
    return leaves, empties


def _more(wrong: list[str]) -> str:
    return f"; and {len(wrong) - 20} more" if len(wrong) > 20 else ""


def _empty(value: Any) -> str | None:
    """What Orbax calls a container without leaves; None of anything else."""
    if value is None:
        return "None"
    if isinstance(value, (dict, list, tuple)) and not value:
        if isinstance(value, tuple):
            return "NamedTuple" if hasattr(value, "_fields") else "Tuple"
        return "Dict" if isinstance(value, dict) else "List"
    return None


def _leaf(name: str, path: Path, value: Any) -> Leaf | str:
    """A leaf, or why it is none, in words that follow its name."""
    if isinstance(value, jax.Array):
        return _of_jax(name, path, value)
    if isinstance(value, str):
        return _of_text(name, path, value)
    if isinstance(value, np.ma.MaskedArray):
        return "is a masked array, whose mask would be lost"
    if isinstance(value, (np.ndarray, np.generic)):
        scalar = isinstance(value, np.generic)
        return _of_numpy(name, path, np.asarray(value), "scalar" if scalar else "np.ndarray")
    number = next((t for t in (bool, int, float, complex) if isinstance(value, t)), None)
    if number is not None:
        try:
            array = np.asarray(value, PYTHON_DTYPES[number])
        except OverflowError:
            return f"is an int that int64 can't hold: {str(value)[:40]}"
        return _of_numpy(name, path, array, "scalar")
    if isinstance(value, jax.ShapeDtypeStruct):
        return "is abstract: it has a shape and a dtype, but no values"
    if value is ...:
        return "is `...`, which was never restored"
    as_array: Callable[[], Any] | None = getattr(value, "__jax_array__", None)
    if as_array is not None:
        return _leaf(name, path, as_array())
    if isinstance(value, (bytes, bytearray)):
        return "holds bytes: save np.frombuffer(value, np.uint8)"
    return f"is a {type(value).__module__}.{type(value).__qualname__}, which holds no array"


def _of_text(name: str, path: Path, value: str) -> Leaf | str:
    try:
        value.encode()
    except UnicodeEncodeError:
        return "is a string that is no Unicode text"
    return Leaf(name, path, "string", (), np.dtype(str), text=str.__str__(value))


def _of_numpy(name: str, path: Path, value: np.ndarray, value_type: Any) -> Leaf | str:
    native = value.dtype.newbyteorder("=")
    if not _holds_numbers(native):
        return f"is a numpy array of dtype {value.dtype}"
    held = np.asarray(value, native)
    return Leaf(name, path, value_type, held.shape, native, pieces=_one(held))


@functools.cache
def _holds_numbers(dtype: np.dtype) -> bool:
    return DTYPES.get(dtype.name) == dtype


def _one(array: np.ndarray) -> tuple[tuple[Box, Callable[[], np.ndarray]], ...]:
    return ((full_box(array.shape), lambda: array),)


def _of_jax(name: str, path: Path, value: jax.Array) -> Leaf | str:
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
        if not _holds_numbers(np.dtype(value.dtype)):
            return f"is an array of dtype {value.dtype}"
    leaf = Leaf(name, path, "jax.Array", shape, np.dtype(value.dtype), impl)
    leaf.sharding = _serialised(sharding)
    one_cpu, leaf.transient = _where(value.sharding)
    if one_cpu:
        leaf.pieces = ((full_box(shape), _fetched(value, False)),)
        return leaf
    if is_local(value) and value.is_fully_replicated:
        leaf.pieces = ((full_box(shape), _fetched(value, leaf.transient)),)
        return leaf
    leaf.pieces = tuple(
        (box, _fetched(data, leaf.transient))
        for box, data in written_boxes(value, jax.process_index(), everywhere=False)
    )
    if not is_local(value):
        leaf.tile, leaf.owners = value.sharding.shard_shape(shape), all_boxes(value)
        first, *others = {process for _, process in leaf.owners}
        if not others:  # it has all of it
            leaf.tile, leaf.owners = shape, ((full_box(shape), first),)
    return leaf


def _fetched(value: jax.Array, transient: bool) -> Callable[[], np.ndarray]:
    """The values of an array on host; of one on CPU already now, without a copy."""
    if not transient:
        array = _host(value)
        return lambda: array

    def fetch() -> np.ndarray:
        with jax.transfer_guard("allow"):  # each thread has its own
            return _host(value)

    return fetch


def _host(value: jax.Array) -> np.ndarray:
    """An array on host. JAX keeps a copy that it made with the array: here with one of our own."""
    one_cpu, _ = _where(value.sharding)
    if not one_cpu or value.dtype.itemsize == 1:
        one = value.addressable_data(0)
        value = jax.make_array_from_single_device_arrays(one.shape, one.sharding, [one])
    return np.asarray(value)


@functools.lru_cache(maxsize=512)
def _where(sharding: jax.sharding.Sharding) -> tuple[bool, bool]:
    """Whether a sharding is of one CPU device of this process, and whether of other devices."""
    first, *others = sharding.device_set
    cpu = first.platform == "cpu"
    return cpu and not others and first.process_index == jax.process_index(), not cpu


def copy_values(leaves: Sequence[Leaf], threads: int) -> None:
    """Gives leaves values of their own: nothing that happens to the tree changes them any more.

    A `jax.Array` on CPU is not copied: JAX leaves its memory alone while numpy sees it. Others
    share arenas, freed as the leaves in them are written: the first touch of fresh memory takes
    longer than the copy, and is fastest of large pieces. What is fetched from a device is a copy
    already.
    """
    held = any(leaf.value_type == "jax.Array" and not leaf.transient for leaf in leaves)
    held = held and _views_hold_memory()
    leaves = [
        leaf for leaf in leaves if leaf.transient or leaf.value_type != "jax.Array" or not held
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
                    mine = np.ndarray(values.shape, values.dtype, arena, used)
                    used, total = used + size, total - size
                    if size > _SMALL_BYTES:
                        copies += [pool.submit(np.copyto, *pair) for pair in _blocks(mine, values)]
                    else:
                        np.copyto(mine, values)
                    values = mine
                pieces.append((box, functools.partial(np.asarray, values)))
            leaf.pieces, leaf.transient = tuple(pieces), False
        for copy in copies:
            copy.result()


@functools.cache
def _views_hold_memory() -> bool:
    """Whether this JAX leaves the memory of a CPU array as it is while numpy sees it, even if the
    array is donated or deleted: a computation gets other memory then.
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


def _blocks(to: np.ndarray, values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of views that threads can copy between at the same time."""
    if not values.flags.c_contiguous:
        yield to, values
        return
    to, values = to.reshape(-1).view(np.uint8), values.reshape(-1).view(np.uint8)
    for i in range(0, len(values), _BLOCK_BYTES):
        yield to[i : i + _BLOCK_BYTES], values[i : i + _BLOCK_BYTES]


@functools.lru_cache(maxsize=512)
def _serialised(sharding: jax.sharding.Sharding) -> str | None:
    """A sharding as Orbax writes it (`metadata/sharding.py` of 0.12); None of those it can't."""
    if isinstance(sharding, SingleDeviceSharding):
        (device,) = sharding.device_set
        # What JAX before 0.10 calls its CPUs: an older Orbax looks for this very text, a newer one
        # takes either.
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
            "device_mesh": {"mesh": _ids(mesh.devices)},
        }
    )


def _ids(devices: Any) -> Any:
    if isinstance(devices, np.ndarray):
        return [_ids(d) for d in devices]
    return {"id": devices.id}
