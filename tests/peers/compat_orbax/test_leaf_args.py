"""Args of leaves: made by subclasses, by Flax, of Orbax's own classes; for parts of a tree."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from flax.training import orbax_utils
from jax.sharding import NamedSharding, PartitionSpec

import templax as tx
import templax.compat.orbax as compat
from side_by_side import assert_same, make_mesh, quiet, sharded_tree, small_tree

BOTH = pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "templax"])


def restore(ocp: Any, path: Any, item: Any = None, **args: Any) -> Any:
    with quiet():
        return ocp.PyTreeCheckpointer().restore(
            path, args=ocp.args.PyTreeRestore(item=item, **args)
        )


@pytest.mark.slow
@BOTH
def test_args_are_mutable_and_may_be_subclassed(ocp, at):
    """As Orbax's are: programs set attributes after the fact, and add some of their own."""

    @dataclass
    class Noted(ocp.ArrayRestoreArgs):
        note: str = ""

    args = Noted(shape=(8,), note="first")
    assert args.global_shape == (8,)
    assert replace(args, dtype=jnp.float32).note == "first"
    args.sharding = NamedSharding(make_mesh(), PartitionSpec("data"))
    with pytest.raises(ValueError, match="shape"):
        ocp.ArrayRestoreArgs(shape=(8,), global_shape=(4,))
    plain = ocp.RestoreArgs()
    plain.restore_type = np.ndarray
    single = ocp.type_handlers.SingleReplicaArrayRestoreArgs(sharding=args.sharding)
    got = restore(ocp, at.small_pytree, restore_args={"a": args, "b": {"c": plain}})
    assert got["a"].sharding == args.sharding
    assert isinstance(got["b"]["c"], np.ndarray)
    got = restore(ocp, at.small_pytree, restore_args={"a": single, "b": {"c": plain}})
    assert got["a"].sharding == args.sharding


@pytest.mark.slow
def test_args_of_other_classes_are_obeyed(at):
    """Flax makes Orbax's own; the shardings that they ask for are those of the result."""
    target = {
        "w": jax.device_put(
            jnp.zeros((8, 4)), NamedSharding(make_mesh(), PartitionSpec("model", "data"))
        ),
        "key": jax.device_put(jax.random.key(0), NamedSharding(make_mesh(), PartitionSpec())),
    }
    made = orbax_utils.restore_args_from_target(target)
    assert type(made["w"]) is orbax.ArrayRestoreArgs
    got = restore(compat, at.sharded_pytree, target, restore_args=made)
    assert {n: x.sharding for n, x in got.items()} == {n: x.sharding for n, x in target.items()}
    np.testing.assert_array_equal(got["w"], sharded_tree()["w"])
    other = jax.sharding.Mesh(np.array(jax.devices()[::-1]).reshape(4, 2), ("data", "model"))
    with pytest.warns(DeprecationWarning, match="mesh"):
        made = orbax_utils.restore_args_from_target(target, other)
    got = restore(compat, at.sharded_pytree, target, restore_args=made)
    assert got["w"].sharding == NamedSharding(other, PartitionSpec("model", "data"))


def test_save_args_of_other_classes_are_obeyed(tmp_path):
    """Some leaves have none, and empty nodes may have some."""
    tree = {"a": jnp.ones(3), "b": {}, "c": 2}
    save_args = {"a": orbax.SaveArgs(dtype=np.dtype(np.float16)), "b": orbax.SaveArgs(), "c": None}
    compat.PyTreeCheckpointer().save(tmp_path / "ckpt", tree, save_args=save_args)
    assert tx.open(tmp_path / "ckpt").leaves["a"].dtype == np.float16
    for wrong in ({"a": compat.SaveArgs()}, {**save_args, "d": compat.SaveArgs()}):
        with pytest.raises(tx.UsageError, match="save args for each leaf"):
            compat.args.PyTreeSave(tree, wrong).content()


@BOTH
def test_parts_of_a_tree_by_restore_args(ocp, at):
    """Placeholders need no args and may have some; a smaller item may have args for all leaves."""
    spec = NamedSharding(make_mesh(), PartitionSpec("data"))
    args = {"a": ocp.ArrayRestoreArgs(sharding=spec), "b": {"c": ocp.RestoreArgs()}}
    got = restore(ocp, at.small_pytree, {"a": 0, "b": {"c": ...}}, restore_args=args)
    assert got["b"]["c"] is ...
    assert got["a"].sharding == spec
    got = restore(ocp, at.small_pytree, {"a": 0}, restore_args=args, partial_restore=True)
    assert_same(got, {"a": jax.device_put(small_tree()["a"], spec)})
    text = "User-provided restore item and on-disk value"
    for item in ({"a": 0}, {"a": 0, "b": {"c": 0}, "d": 0}):
        with pytest.raises(ValueError, match=text):
            restore(ocp, at.small_pytree, item, restore_args=args if "b" not in item else None)


def test_args_that_name_no_leaf_are_refused(at):
    """They would have no effect."""
    args = {"a": compat.RestoreArgs(), "b": {"c": compat.RestoreArgs(), "d": compat.RestoreArgs()}}
    with pytest.raises(tx.UsageError, match=r"got some for `b\.d`"):
        restore(compat, at.small_pytree, small_tree(), restore_args=args)
    with pytest.raises(tx.UsageError, match=r"found none for `b\.c`"):
        restore(compat, at.small_pytree, small_tree(), restore_args={"a": compat.RestoreArgs()})
    half = compat.ArrayRestoreArgs(mesh=make_mesh())
    with pytest.raises(tx.UsageError, match="mesh_axes="):
        restore(
            compat,
            at.small_pytree,
            small_tree(),
            restore_args=jax.tree.map(lambda _: half, small_tree()),
        )


@BOTH
def test_restore_args_of_metadata(ocp, at):
    """The metadata of a checkpoint says how it was saved, and `to_jax_sharding` where."""
    metadata = ocp.PyTreeCheckpointer().metadata(at.sharded_pytree).item_metadata
    args = ocp.checkpoint_utils.construct_restore_args(metadata)
    assert args["w"].sharding.to_jax_sharding() == sharded_tree()["w"].sharding
    assert args["w"].global_shape == (8, 4)
    got = restore(ocp, at.sharded_pytree, restore_args=args)
    assert_same(got, sharded_tree())
    by_metadata = jax.tree.map(
        lambda leaf: ocp.ArrayRestoreArgs(sharding=leaf.sharding), metadata.tree
    )
    assert_same(restore(ocp, at.sharded_pytree, restore_args=by_metadata), sharded_tree())


@BOTH
def test_construct_restore_args_of_every_leaf(ocp):
    """Of arrays, numbers, texts and placeholders; other leaves are refused."""
    sharding = NamedSharding(make_mesh(), PartitionSpec("data"))
    target = {
        "jax": jax.device_put(jnp.ones(8), sharding),
        "abstract": jax.ShapeDtypeStruct((8,), np.int8, sharding=sharding),
        "numpy": np.ones(3, np.int8),
        "int": 3,
        "text": "x",
        "no": ocp.PLACEHOLDER,
    }
    args = ocp.checkpoint_utils.construct_restore_args(target, strict=False)
    kinds = {name: each.restore_type for name, each in args.items()}
    assert kinds == {
        "jax": jax.Array, "abstract": jax.Array, "numpy": np.ndarray, "int": int, "text": str,
        "no": type(...),
    }  # fmt: skip
    assert (args["jax"].sharding, args["abstract"].dtype) == (sharding, np.int8)
    assert not args["jax"].strict
    free = ocp.checkpoint_utils.construct_restore_args(target, set_global_shape=False)
    assert free["jax"].global_shape is None
    with pytest.raises(ValueError, match=r"[Uu]nsupported|Expected an array"):
        ocp.checkpoint_utils.construct_restore_args({"a": object()})
