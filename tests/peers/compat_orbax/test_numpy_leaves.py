"""Leaves saved from NumPy, in a template of abstract arrays, under Orbax and under templax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from side_by_side import assert_same, first_device, quiet

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
WRITERS = pytest.mark.parametrize("writer", [orbax, compat], ids=["of theirs", "of ours"])


def make_tree() -> dict[str, Any]:
    return {
        "w": jnp.ones(2),
        "nested": [{"seen": np.arange(3)}, np.array(7)],
        "narrow": np.arange(3, dtype=np.int32),
        "step": 3,
    }


def make_abstract(ocp: Any) -> dict[str, Any]:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, make_tree())


def standard(ocp: Any, path: Any, template: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, template)


def pytree(ocp: Any, path: Any, template: Any) -> Any:
    return ocp.PyTreeCheckpointer().restore(path, item=template)


def pytree_restore_args(ocp: Any, path: Any, template: Any) -> Any:
    args = ocp.checkpoint_utils.construct_restore_args(template)
    return ocp.PyTreeCheckpointer().restore(path, item=template, restore_args=args)


def pytree_default_args(ocp: Any, path: Any, template: Any) -> Any:
    args = jax.tree.map(lambda _: ocp.RestoreArgs(), template)
    return ocp.PyTreeCheckpointer().restore(path, item=template, restore_args=args)


def pytree_no_transforms(ocp: Any, path: Any, template: Any) -> Any:
    args = jax.tree.map(lambda _: ocp.RestoreArgs(), template)
    options = {"restore_args": args, "transforms": {}}
    return ocp.PyTreeCheckpointer().restore(path, item=template, **options)


def pytree_transforms(ocp: Any, path: Any, template: Any) -> Any:
    args = jax.tree.map(lambda _: ocp.RestoreArgs(), template)
    options = {"restore_args": args, "transforms": {"narrow": ocp.Transform("narrow")}}
    return ocp.PyTreeCheckpointer().restore(path, item=template, **options)


RESTORES = [
    standard,
    pytree,
    pytree_restore_args,
    pytree_default_args,
    pytree_no_transforms,
    pytree_transforms,
]


@WRITERS
@pytest.mark.parametrize("restore", RESTORES, ids=lambda restore: restore.__name__)
def test_numpy_comes_back_where_the_template_says_no_sharding(writer, restore, tmp_path):
    """64-bit ones as well, which a `jax.Array` could not hold."""
    with quiet():
        writer.PyTreeCheckpointer().save(tmp_path / "ckpt", make_tree())
        theirs = restore(orbax, tmp_path / "ckpt", make_abstract(orbax))
    ours = restore(compat, tmp_path / "ckpt", make_abstract(compat))
    assert_same(ours, theirs)
    assert isinstance(ours["narrow"], np.ndarray)
    assert ours["nested"][0]["seen"].dtype == np.int64


@WRITERS
def test_a_manager_restores_numpy_as_well(writer, tmp_path):
    def restore(ocp):
        with ocp.CheckpointManager(tmp_path / "run") as manager:
            return manager.restore(1, args=ocp.args.StandardRestore(make_abstract(ocp)))

    with quiet():
        with writer.CheckpointManager(tmp_path / "run") as manager:
            manager.save(1, args=writer.args.StandardSave(make_tree()))
        theirs = restore(orbax)
    assert_same(restore(compat), theirs)


@WRITERS
def test_a_sharding_in_the_template_makes_a_jax_array(writer, tmp_path):
    template = {"x": jax.ShapeDtypeStruct((3,), np.int32, sharding=first_device())}
    with quiet():
        writer.PyTreeCheckpointer().save(tmp_path / "ckpt", {"x": np.arange(3, dtype=np.int32)})
        theirs = standard(orbax, tmp_path / "ckpt", template)
    ours = standard(compat, tmp_path / "ckpt", template)
    assert_same(ours, theirs)
    assert isinstance(ours["x"], jax.Array)


def test_numpy_of_another_shape_or_dtype_does_not_fit(tmp_path):
    compat.PyTreeCheckpointer().save(tmp_path / "ckpt", {"x": np.arange(3)})
    for shape, dtype, problem in (((4,), np.int64, "shape"), ((3,), np.int8, "dtype")):
        with pytest.raises(tx.TemplateError) as caught:
            standard(compat, tmp_path / "ckpt", {"x": jax.ShapeDtypeStruct(shape, dtype)})
        assert [each.problem for each in caught.value.mismatches] == [problem]


def test_an_abstract_key_for_a_numpy_leaf_does_not_fit(tmp_path):
    compat.PyTreeCheckpointer().save(tmp_path / "ckpt", {"x": np.zeros(2, np.uint32)})
    template = {"x": jax.ShapeDtypeStruct((), jax.random.key(0).dtype)}
    with pytest.raises(tx.TemplateError, match="key"):
        standard(compat, tmp_path / "ckpt", template)
