"""The same code restores under Orbax and under `templax.compat.orbax`, with equal results."""

import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import templax as tx
import templax.compat.orbax as compat
from helpers import abstract
from side_by_side import (
    assert_same,
    first_device,
    make_mesh,
    quiet,
    rich_template,
    sharded_tree,
    small_tree,
)

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
S = jax.ShapeDtypeStruct


def pytree_item(ocp, at):
    return ocp.PyTreeCheckpointer().restore(at.small_pytree, item=abstract(small_tree()))


def pytree_own_tree(ocp, at):
    return ocp.PyTreeCheckpointer().restore(at.rich_pytree)


def pytree_item_of_rich_containers(ocp, at):
    return ocp.PyTreeCheckpointer().restore(at.rich_pytree, item=rich_template())


def pytree_positional(ocp, at):
    item = abstract(small_tree(), first_device())
    args = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.PyTreeCheckpointer().restore(at.small_pytree, item, args)


def pytree_numpy_by_construct_restore_args(ocp, at):
    item = abstract(small_tree())
    args = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.PyTreeCheckpointer().restore(at.small_pytree, item=item, restore_args=args)


def pytree_sharding_tree(ocp, at):
    item = abstract({"w": sharded_tree()["w"]})
    shardings = {"w": NamedSharding(make_mesh(), PartitionSpec("model"))}
    args = ocp.checkpoint_utils.construct_restore_args(item, shardings)
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    return checkpointer.restore(at.sharded_pytree, item=item, restore_args=args, transforms={})


def pytree_all_numpy_from_metadata(ocp, at):
    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(at.small_pytree).item_metadata.tree
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(at.small_pytree, restore_args=args)


def pytree_numpy_by_metadata(ocp, at):
    """Metadata is a template: what was saved from NumPy becomes so again."""
    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(at.rich_pytree).item_metadata
    restored = checkpointer.restore(at.rich_pytree, item=tree)
    assert type(restored["numpy"]) is np.ndarray
    return restored["numpy"], checkpointer.restore(at.rich_pytree, item=tree.tree)["numpy"]


def pytree_mesh_and_axes_without_item(ocp, at):
    args = {
        "w": ocp.ArrayRestoreArgs(mesh=make_mesh(), mesh_axes=PartitionSpec(None, "data")),
        "key": ocp.ArrayRestoreArgs(sharding=first_device()),
    }
    return ocp.PyTreeCheckpointer().restore(at.sharded_pytree, restore_args=args)


def pytree_transforms_empty_is_partial(ocp, at):
    item = {"a": S((8,), jnp.float32, sharding=first_device())}
    args = ocp.checkpoint_utils.construct_restore_args(item)
    return ocp.PyTreeCheckpointer().restore(
        at.small_pytree, item=item, restore_args=args, transforms={}
    )


def pytree_partial_restore(ocp, at):
    item = {"b": {"c": S((3,), jnp.int32, sharding=first_device())}}
    args = ocp.args.PyTreeRestore(
        item, ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(at.small_pytree, args=args)


def pytree_placeholder_leaf(ocp, at):
    item = {"a": S((8,), jnp.float32), "b": {"c": ocp.PLACEHOLDER}}
    return ocp.PyTreeCheckpointer().restore(at.small_pytree, item=item)


def standard_target(ocp, at):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(at.rich_standard, rich_template(first_device()))


def standard_own_tree(ocp, at):
    checkpointer = ocp.StandardCheckpointer()
    try:
        return checkpointer.restore(at.rich_standard)
    finally:
        checkpointer.close()


def standard_concrete_target(ocp, at):
    target = jax.tree.map(lambda x: x * 0, small_tree())
    return ocp.StandardCheckpointer().restore(at.small_standard, target)


def standard_numpy_target(ocp, at):
    target = jax.tree.map(np.zeros_like, small_tree())
    return ocp.StandardCheckpointer().restore(at.small_standard, target)


def standard_other_sharding(ocp, at):
    target = {
        "w": S(
            (8, 4), jnp.float32, sharding=NamedSharding(make_mesh(), PartitionSpec("model", None))
        ),
        "key": S((), jax.random.key(0).dtype, sharding=first_device()),
    }
    return ocp.StandardCheckpointer().restore(at.sharded_standard, target)


def standard_float_cast(ocp, at):
    target = {
        "a": S((8,), jnp.bfloat16, sharding=first_device()),
        "b": {"c": S((3,), jnp.int32, sharding=first_device())},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tx.CastWarning)
        return ocp.StandardCheckpointer().restore(at.small_standard, target)


def standard_handler(ocp, at):
    checkpointer = ocp.Checkpointer(ocp.StandardCheckpointHandler())
    return checkpointer.restore(
        at.small_standard, args=ocp.args.StandardRestore(abstract(small_tree(), first_device()))
    )


def manager_step(ocp, at):
    manager = ocp.CheckpointManager(at.manager, options=ocp.CheckpointManagerOptions())
    target = {"a": S((4,), jnp.float32, sharding=first_device())}
    return manager.restore(3, args=ocp.args.StandardRestore(target))


def manager_latest_as_saved(ocp, at):
    with ocp.CheckpointManager(at.manager) as manager:
        return manager.restore(manager.latest_step())


def manager_step_none_is_latest(ocp, at):
    manager = ocp.CheckpointManager(at.manager)
    return manager.restore(None, args=ocp.args.StandardRestore())


def manager_steps(ocp, at):
    manager = ocp.CheckpointManager(at.manager)
    return [list(manager.all_steps()), manager.latest_step()]


def manager_prefixed_steps(ocp, at):
    options = ocp.CheckpointManagerOptions(step_prefix="ckpt", step_format_fixed_length=8)
    manager = ocp.CheckpointManager(at.prefixed, options=options)
    return [manager.latest_step(), manager.restore(3)]


def manager_composite(ocp, at):
    manager = ocp.CheckpointManager(at.items, item_names=("state", "meta"))
    restored = manager.restore(
        7,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract(small_tree(), first_device())),
            meta=ocp.args.JsonRestore(),
        ),
    )
    return [restored.state, restored["meta"]]


def manager_composite_as_saved(ocp, at):
    return dict(ocp.CheckpointManager(at.items).restore(7).items())


def manager_composite_of_none(ocp, at):
    manager = ocp.CheckpointManager(at.items)
    manager.restore(7)  # Orbax learns from it what the items are
    return dict(manager.restore(7, args=ocp.args.Composite(meta=None, state=None)).items())


def manager_items_by_keyword(ocp, at):
    manager = ocp.CheckpointManager(at.manager, ocp.Checkpointer(ocp.PyTreeCheckpointHandler()))
    item = {"a": S((4,), jnp.float32)}
    args = {"a": ocp.RestoreArgs(restore_type=np.ndarray)}
    return manager.restore(3, items=item, restore_kwargs={"restore_args": args})


def manager_items_by_name(ocp, at):
    manager = ocp.CheckpointManager(
        at.items, {"state": ocp.Checkpointer(ocp.PyTreeCheckpointHandler())}
    )
    return dict(manager.restore(7, items={"state": abstract(small_tree())}).items())


def manager_metadata_shapes(ocp, at):
    manager = ocp.CheckpointManager(at.items)
    manager.restore(7)
    tree = manager.item_metadata(7)["state"].tree
    return jax.tree.map(lambda leaf: [list(leaf.shape), str(leaf.dtype)], tree)


def composite_handler(ocp, at):
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    target = abstract(small_tree(), first_device())
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    return checkpointer.restore(at.items / "7", args=args)["state"]


def json_handler(ocp, at):
    return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(at.items / "7" / "meta")


def v1_load(ocp, at):
    return ocp.v1.load(at.small_v1, abstract(small_tree(), first_device()))


def v1_load_own_tree(ocp, at):
    return ocp.v1.load(at.small_v1)


def v1_load_by_name(ocp, at):
    return ocp.v1.load(at.small_v1, checkpointable_name="state")


USER_CODE = [
    value
    for name, value in list(globals().items())
    if name.startswith(("pytree_", "standard_", "manager_", "composite_", "json_", "v1_"))
]


@pytest.mark.parametrize("code", USER_CODE, ids=lambda code: code.__name__)
def test_restores_give_what_orbax_gives(code, at):
    """The same structure, types, dtypes, bits and shardings after one changed import."""
    with quiet():
        theirs = code(orbax, at)
    assert_same(code(compat, at), theirs)


def test_the_common_snippet_runs_unchanged(at, monkeypatch):
    """As tutorials write it, with `utils.empty_array`, which Orbax 0.12.8 lacks."""
    params_skeleton = small_tree()
    ocp = compat
    ckptr = ocp.PyTreeCheckpointer()
    template = jax.tree_util.tree_map(
        lambda x: ocp.utils.empty_array(x.shape, x.dtype), params_skeleton
    )
    loaded_params = ckptr.restore(str(at.small_pytree), item=template)
    assert_same(loaded_params, params_skeleton)
    assert not hasattr(orbax.utils, "empty_array")


@pytest.mark.slow
def test_importing_the_layer_does_not_import_orbax():
    """So it works where Orbax is not installed."""
    code = "import sys, templax.compat.orbax; print('orbax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("args", [compat.RestoreArgs, orbax.RestoreArgs])
def test_restore_args_in_place_of_the_item_are_obeyed(at, args):
    """Orbax takes them for the item, and restores what is stored."""
    asked = jax.tree.map(lambda _: args(restore_type=np.ndarray), small_tree())
    path = at.small_pytree
    restored = compat.Checkpointer(compat.PyTreeCheckpointHandler()).restore(
        path, args=compat.args.PyTreeRestore(asked)
    )
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(restored))
    assert_same(restored, jax.tree.map(np.asarray, small_tree()))
