"""Transforms: trees made of other trees, and of checkpoints, by rules on the names of leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from side_by_side import assert_same, quiet, small_tree

BOTH = pytest.mark.parametrize("ocp", [orbax, compat], ids=["orbax", "templax"])


def make_rules(ocp):
    """A rename by a pattern, a function of a leaf, one of two, and a leaf that is new."""
    args = {"a": ocp.RestoreArgs(np.ndarray), r"b/.*": ocp.RestoreArgs(np.ndarray)}
    return {
        r"new(.*)/(c)": ocp.Transform(original_key=r"b/\2"),
        "doubled": ocp.Transform(original_key="a", value_fn=lambda x: x * 2),
        "sum": ocp.RestoreTransform(
            multi_value_fn=lambda key, tree, args: tree["a"].sum() + tree["b"]["c"].sum(),
            multi_value_fn_input_args=args,
        ),
        "fresh": ocp.Transform(use_fallback=True),
    }


def restore(ocp, path, item, rules, **options):
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), item)
    args = ocp.args.PyTreeRestore(item, restore_args, rules, **options)
    with quiet():
        return ocp.PyTreeCheckpointer().restore(path, args=args)


def test_transforms_of_a_checkpoint(at):
    """The values are those of Orbax, and so are the types; rules of Orbax's own class count."""
    item = {
        "newer": {"c": np.zeros(3, np.int32)},
        "doubled": np.zeros(8, np.float32),
        "sum": np.zeros((), np.float32),
        "fresh": np.full(2, 7),
        "a": np.zeros(8, np.float32),
    }
    theirs = restore(orbax, at.small_pytree, item, make_rules(orbax))
    for ocp in (compat, orbax):
        ours = restore(compat, at.small_pytree, item, make_rules(ocp))
        assert_same(ours, theirs)
    np.testing.assert_array_equal(ours["doubled"], np.arange(8) * 2)
    assert ours["sum"] == np.arange(8).sum() + 6


def test_one_leaf_in_several_forms(at):
    """Each as its own restore args ask: with Orbax, the first ones hold for all."""
    sharding = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices()), ("x",)), jax.sharding.PartitionSpec("x")
    )
    item = {"one": jax.ShapeDtypeStruct((8,), np.float32), "two": np.zeros(8, np.float32)}
    restore_args = {
        "one": compat.ArrayRestoreArgs(sharding=sharding), "two": compat.RestoreArgs(np.ndarray)
    }  # fmt: skip
    rules = {name: compat.Transform(original_key="a") for name in item}
    args = compat.args.PyTreeRestore(item, restore_args, rules)
    got = compat.PyTreeCheckpointer().restore(at.small_pytree, args=args)
    assert got["one"].sharding == sharding
    assert isinstance(got["two"], np.ndarray)
    np.testing.assert_array_equal(got["one"], got["two"])


def test_what_a_transform_cannot_give(at):
    """Names what is missing: leaves of the checkpoint, args, inputs."""
    item = {"x": np.zeros(8, np.float32)}
    rules = {"x": compat.Transform(original_key="absent")}
    with pytest.raises(tx.UsageError, match="`absent`"):
        restore(compat, at.small_pytree, item, rules)
    plain = {"x": compat.Transform(multi_value_fn=lambda key, tree, args: 0)}
    with pytest.raises(tx.UsageError, match="multi_value_fn_input_args"):
        restore(compat, at.small_pytree, item, plain)
    checkpointer = compat.PyTreeCheckpointer()
    with pytest.raises(tx.UsageError, match="restore_args="):
        checkpointer.restore(at.small_pytree, item=item, transforms=rules)
    with pytest.raises(tx.UsageError, match="legacy_transform_fn="):
        restore(compat, at.small_pytree, item, rules, legacy_transform_fn=print)
    with pytest.raises(tx.UsageError, match="got both"):
        compat.Transform(original_key="a", use_fallback=True)
    with pytest.raises(tx.UsageError, match="got both"):
        compat.Transform(value_fn=abs, multi_value_fn=print)
    with pytest.raises(tx.UsageError, match="Expected multi_value_fn="):
        compat.RestoreTransform(original_key="a", multi_value_fn_input_args={})


@BOTH
def test_values_of_the_item_by_default(ocp, at):
    """`transforms_default_to_original=False` restores what rules name only."""
    item = {"a": np.full(8, 9, np.float32), "b": {"c": np.zeros(3, np.int32)}}
    rules = {r"b/c": ocp.Transform(use_fallback=True)}
    got = restore(ocp, at.small_pytree, item, rules, transforms_default_to_original=False)
    np.testing.assert_array_equal(got["a"], item["a"])
    np.testing.assert_array_equal(got["b"]["c"], [1, 2, 3])


@BOTH
def test_legacy_transform_functions(ocp, at):
    """They say where the leaves of the result are stored, by name."""

    def rename(item, structure, infos):
        return (
            {"x": structure["a"], "y": structure["b"]["c"]},
            {"x": infos["a"], "y": infos["b"]["c"]},
        )

    item = {"x": 0, "y": 0}
    restore_args = {"x": ocp.RestoreArgs(np.ndarray), "y": ocp.RestoreArgs(np.ndarray)}
    args = ocp.args.PyTreeRestore(item, restore_args, legacy_transform_fn=rename)
    with quiet():
        got = ocp.PyTreeCheckpointer().restore(at.small_pytree, args=args)
    np.testing.assert_array_equal(got["x"], small_tree()["a"])
    np.testing.assert_array_equal(got["y"], [1, 2, 3])


@BOTH
def test_transforms_of_trees(ocp):
    """Without a checkpoint."""
    tree = {"a": 1, "b": {"c": 2, "d": [3, 4]}}
    rules = {
        "x": ocp.Transform(original_key="b/c", value_fn=lambda x: x + 0.5),
        "y": ocp.Transform(multi_value_fn=lambda key, tree: (key, tree["a"])),
        "b": {"c": ocp.Transform()},
    }
    new = {"x": 0, "y": 0, "b": {"c": 0, "d": [0, 0]}, "kept": 9}
    with quiet():
        got = ocp.apply_transformations(tree, rules, new)
    assert got == {"x": 2.5, "y": ("y", 1), "b": {"c": 2, "d": [3, 4]}, "kept": 9}
    assert ocp.merge_trees(tree, {"b": {"e": 5}, "a": 0}) == {
        "a": 0, "b": {"c": 2, "d": {"0": 3, "1": 4}, "e": 5}
    }  # fmt: skip
    assert ocp.transform_utils.intersect_trees(tree, {"a": 7, "z": 8}) == {"a": 7}
    assert jnp.asarray(ocp.merge_trees(jnp.ones(2))).shape == (2,)
