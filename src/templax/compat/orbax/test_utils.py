"""JAX. Orbax's `test_utils`: trees for tests, how they are compared, and directories for them."""

# ruff: noqa: PT009  # the assertions of the caller's test class

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from ..._core.arguments import PyTree
from .leaf_args import SingleReplicaArrayRestoreArgs
from .saver import PathLike
from .tree import to_flat_dict
from .unmapped import make_getattr

__all__ = [
    "apply_function",
    "assert_array_equal",
    "assert_tree_equal",
    "assert_tree_same_structure",
    "create_sharded_array",
    "create_single_replica_restore_args",
    "empty_directory",
    "erase_and_create_empty",
    "filter_metadata_fields",
    "is_leaf",
    "print_directory",
    "replicate_sharded_array",
    "setup_pytree",
    "setup_sharded_pytree",
    "sync_global_processes",
]

_log = logging.getLogger("templax")


def erase_and_create_empty(directory: PathLike) -> Path:
    """Deletes a directory and all that is in it, if it exists, and creates it.

    Example:
        >>> import os, tempfile
        >>> from templax.compat import orbax as ocp
        >>> path = ocp.test_utils.erase_and_create_empty(os.path.join(tempfile.mkdtemp(), "d"))
        >>> ocp.PyTreeCheckpointer().save(path / "ckpt", {"step": 7})
    """
    path = Path(directory)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
    return path


def empty_directory(directory: PathLike) -> bool:
    """Deletes all that is in a directory. Returns whether the directory exists."""
    path = Path(directory)
    if not path.exists():
        return False
    for child in path.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    return True


def print_directory(directory: PathLike, level: int = 0) -> None:
    """Logs the names of all files and directories below a directory.

    Raises:
        ValueError: It is not a directory.
    """
    path = Path(directory)
    if not path.is_dir():
        raise ValueError(f"Expected a directory, got {os.fspath(path)}")
    for child in sorted(path.iterdir()):
        _log.info("%s%s%s", "  " * level, child.name, "/" if child.is_dir() else "")
        if child.is_dir():
            print_directory(child, level + 1)


def sync_global_processes(name: str) -> None:
    """Waits until all processes of the job are here."""
    multihost_utils.sync_global_devices(name)


def is_leaf(x: Any) -> bool:
    """Whether a value is a leaf of the trees of these functions."""
    return isinstance(x, (np.ndarray, jax.sharding.Mesh, jax.sharding.PartitionSpec))


def create_sharded_array(arr: Any, mesh: Any, mesh_axes: Any) -> jax.Array:
    """An array with a `NamedSharding`.

    Args:
        arr: A NumPy array or a number.
        mesh, mesh_axes: The two parts of the sharding.
    """
    array = np.asarray(arr)
    sharding = jax.sharding.NamedSharding(mesh, mesh_axes)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicate_sharded_array(arr: jax.Array) -> jax.Array:
    """The array with a copy on every device."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(lambda x: x, out_shardings=sharding)(arr)


def apply_function(tree: PyTree, function: Callable[[Any], Any]) -> PyTree:
    """The tree with a function, compiled, applied to each array."""

    def apply(leaf: Any) -> jax.Array:
        mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
        if mesh is None or not hasattr(jax, "set_mesh"):
            return jax.jit(function)(leaf)
        with jax.set_mesh(mesh):  # another one may be set, with other devices
            return jax.jit(function)(leaf)

    return jax.tree.map(apply, tree)


def setup_pytree(add: int = 0) -> dict[str, Any]:
    """A small tree of NumPy arrays.

    Args:
        add: A number to add to all values.

    Example:
        >>> from templax.compat import orbax as ocp
        >>> sorted(ocp.test_utils.setup_pytree())
        ['a', 'b', 'c']
    """
    return {
        "a": np.arange(8) + add,
        "b": np.arange(16) * 2 + add,
        "c": {
            "a": np.arange(8).reshape(2, 4) * 3 + add,
            "e": np.arange(16).reshape(4, 4) * 4 + add,
        },
    }


def setup_sharded_pytree(
    pytree: PyTree = None,
    reverse_devices: bool = False,
    devices: Sequence[Any] | None = None,
) -> tuple[PyTree, PyTree, PyTree]:
    """A tree like that of `setup_pytree`, of sharded arrays; with their meshes and axes.

    Args:
        pytree: A tree of the same structure to shard instead.
        reverse_devices: Whether the devices are in descending order.
        devices: The devices, an even number; default all.
    """
    chosen: Any = list(jax.devices() if devices is None else devices)
    chosen = np.asarray(chosen[::-1] if reverse_devices else chosen, object)
    line = jax.sharding.Mesh(chosen, ("x",))
    plane = jax.sharding.Mesh(chosen.reshape(2, -1), ("x", "y"))
    meshes = {"a": line, "b": line, "c": {"a": plane, "e": plane}}
    spec = jax.sharding.PartitionSpec
    axes = {"a": spec(None), "b": spec("x"), "c": {"a": spec("x", "y"), "e": spec("x", "y")}}
    tree = setup_pytree() if pytree is None else pytree
    sharded = jax.tree.map(create_sharded_array, tree, meshes, axes, is_leaf=is_leaf)
    return sharded, meshes, axes


def create_single_replica_restore_args(
    arr: jax.Array, mesh: jax.sharding.Mesh, pspec: jax.sharding.PartitionSpec
) -> SingleReplicaArrayRestoreArgs:
    """Restore args for an array, with another sharding."""
    return SingleReplicaArrayRestoreArgs(
        sharding=jax.sharding.NamedSharding(mesh, pspec), global_shape=arr.shape, dtype=arr.dtype
    )


def assert_array_equal(testclass: Any, v_expected: Any, v_actual: Any) -> None:
    """Asserts that two leaves have the same type, dtype, shards and values.

    Args:
        testclass: A `unittest.TestCase`, whose assertions are used.
        v_expected: The leaf that is expected.
        v_actual: The leaf that is compared with it.
    """
    if hasattr(v_expected, "dtype"):
        testclass.assertEqual(v_expected.dtype, v_actual.dtype)
    testclass.assertIsInstance(v_actual, type(v_expected))
    if isinstance(v_expected, jax.Array):
        if jnp.issubdtype(v_expected.dtype, jax.dtypes.prng_key):
            v_expected, v_actual = map(jax.random.key_data, (v_expected, v_actual))
        testclass.assertEqual(v_expected.shape, v_actual.shape)
        shards = v_expected.addressable_shards, v_actual.addressable_shards
        testclass.assertEqual(*map(len, shards))
        for one, other in zip(*shards, strict=True):
            np.testing.assert_array_equal(other.data, one.data)
    elif isinstance(v_expected, np.ndarray):
        np.testing.assert_array_equal(v_actual, v_expected)
    else:
        testclass.assertEqual(v_expected, v_actual)


def assert_tree_equal(testclass: Any, expected: PyTree, actual: PyTree) -> None:
    """Asserts that two trees have the same structure and, by `assert_array_equal`, equal leaves.

    Args:
        testclass: A `unittest.TestCase`, whose assertions are used.
        expected: The tree that is expected.
        actual: The tree that is compared with it.
    """
    testclass.assertEqual(set(to_flat_dict(expected)), set(to_flat_dict(actual)))

    def compare(one: Any, other: Any) -> None:
        if one is not None:
            assert_array_equal(testclass, one, other)

    jax.tree.map(compare, expected, actual, is_leaf=lambda x: x is None)


def assert_tree_same_structure(testclass: Any, expected: PyTree, actual: PyTree) -> None:
    """Asserts that two trees have the same structure.

    Args:
        testclass: A `unittest.TestCase`, whose assertions are used.
        expected: The tree that is expected.
        actual: The tree that is compared with it.
    """
    testclass.assertEqual(jax.tree.structure(expected), jax.tree.structure(actual))


def filter_metadata_fields(pytree: PyTree, include_fields: Sequence[str]) -> PyTree:
    """The tree with a dict of some attributes in place of each leaf, of those that it has.

    Args:
        pytree: A tree of metadata of leaves.
        include_fields: The names of the attributes.
    """

    def select(leaf: Any) -> dict[str, Any]:
        return {name: getattr(leaf, name) for name in include_fields if hasattr(leaf, name)}

    return jax.tree.map(select, pytree)


__getattr__ = make_getattr("test_utils.")
