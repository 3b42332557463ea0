"""The same user code under Orbax and under `templax.compat.orbax`, on checkpoints that Orbax wrote.

Where the template fits, both give the same bits, types and shardings. Where they differ, both sides
are asserted, so that `docs/orbax_differences.md` (whose last column names these tests) stays true.
"""

import contextlib
import gc
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import templax as tx
import templax.compat.orbax as compat

logging.getLogger("absl").setLevel(logging.CRITICAL)
# A read that fails in Orbax leaves coroutines and futures behind, which complain when collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

S = jax.ShapeDtypeStruct
DOC = Path(__file__).parents[3] / "docs" / "orbax_differences.md"


class Pair(NamedTuple):
    x: Any
    y: Any


def first_device() -> SingleDeviceSharding:
    return SingleDeviceSharding(jax.devices()[0])


def mesh() -> Mesh:
    return Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))


def small_tree() -> dict[str, Any]:
    return {"a": jnp.arange(8, dtype=jnp.float32), "b": {"c": jnp.array([1, 2, 3], jnp.int32)}}


def rich_tree() -> dict[str, Any]:
    return {
        "pair": Pair(jnp.arange(2.0), jnp.arange(3.0)),
        "tuple": (jnp.ones(1), jnp.zeros(1)),
        "list": [jnp.ones(2)],
        "ints": {0: jnp.ones(1), 1: jnp.zeros(1)},
        "none": None,
        "empty": {},
        "nothing": [],
        "bf16": jnp.arange(4, dtype=jnp.bfloat16),
        "numpy": np.arange(3, dtype=np.int64),
        "int": 5,
        "float": 1.5,
    }


def sharded_tree() -> dict[str, Any]:
    sharding = NamedSharding(mesh(), PartitionSpec("data", "model"))
    return {
        "w": jax.device_put(jnp.arange(32.0).reshape(8, 4), sharding),
        "key": jax.random.key(7),
    }


def abstract(tree: Any, sharding: Any = None) -> Any:
    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        return S(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, tree)


@contextlib.contextmanager
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def at(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """Checkpoints saved by Orbax: one tree a directory, and two managers."""
    root = tmp_path_factory.mktemp("saved")
    pytree, standard = orbax.PyTreeCheckpointer(), orbax.StandardCheckpointer()
    files = orbax.PyTreeCheckpointer(use_ocdbt=False)
    with quiet():
        for name, tree in (
            ("small", small_tree()),
            ("rich", rich_tree()),
            ("sharded", sharded_tree()),
        ):
            pytree.save(root / f"{name}-pytree", tree)
            standard.save(root / f"{name}-standard", tree)
            standard.wait_until_finished()
            orbax.v1.save(root / f"{name}-v1", tree)
        files.save(root / "files", small_tree())
        with orbax.CheckpointManager(root / "manager") as manager:
            for step in (1, 3, 12):
                manager.save(step, args=orbax.args.StandardSave({"a": jnp.full(4, float(step))}))
        with orbax.CheckpointManager(root / "items", item_names=("state", "meta")) as manager:
            manager.save(
                7,
                args=orbax.args.Composite(
                    state=orbax.args.StandardSave(small_tree()),
                    meta=orbax.args.JsonSave({"note": "x", "n": [1, 2]}),
                ),
            )
        options = orbax.CheckpointManagerOptions(step_prefix="ckpt", step_format_fixed_length=8)
        with orbax.CheckpointManager(root / "prefixed", options=options) as manager:
            manager.save(3, args=orbax.args.StandardSave({"a": jnp.arange(4.0)}))
    names = {p.name.replace("-", "_"): p for p in root.iterdir()}
    yield SimpleNamespace(root=root, **names)
    gc.collect()


def copied(path: Path, to: Path) -> Path:
    shutil.copytree(path, to)
    return to


def assert_same(ours: Any, theirs: Any) -> None:
    """Same tree, types, dtypes, bits and placement."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert isinstance(a, jax.Array) == isinstance(b, jax.Array), (a, b)
        if isinstance(a, jax.Array):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (a.sharding, b.sharding)
            if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
                assert a.dtype == b.dtype
                a, b = jax.random.key_data(a), jax.random.key_data(b)
        else:
            assert type(a) is type(b), (a, b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


# Where the template fits: each function is user code, run with either module as `ocp`.


def pytree_item(ocp, at):
    return ocp.PyTreeCheckpointer().restore(at.small_pytree, item=abstract(small_tree()))


def pytree_own_tree(ocp, at):
    return ocp.PyTreeCheckpointer().restore(at.rich_pytree)


def pytree_item_of_rich_containers(ocp, at):
    return ocp.PyTreeCheckpointer().restore(at.rich_pytree, item=abstract(rich_tree()))


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
    shardings = {"w": NamedSharding(mesh(), PartitionSpec("model"))}
    args = ocp.checkpoint_utils.construct_restore_args(item, shardings)
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    return checkpointer.restore(at.sharded_pytree, item=item, restore_args=args, transforms={})


def pytree_all_numpy_from_metadata(ocp, at):
    checkpointer = ocp.PyTreeCheckpointer()
    tree = checkpointer.metadata(at.small_pytree).item_metadata.tree
    args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(at.small_pytree, restore_args=args)


def pytree_mesh_and_axes_without_item(ocp, at):
    args = {
        "w": ocp.ArrayRestoreArgs(mesh=mesh(), mesh_axes=PartitionSpec(None, "data")),
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
        return checkpointer.restore(at.rich_standard, abstract(rich_tree(), first_device()))


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
        "w": S((8, 4), jnp.float32, sharding=NamedSharding(mesh(), PartitionSpec("model", None))),
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
    manager.restore(7)  # Orbax needs it once, to know what the items are
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
def test_user_code_gives_what_orbax_gives(code, at):
    """One changed import, and the same tree: structure, types, dtypes, bits, shardings."""
    with quiet():
        theirs = code(orbax, at)
    assert_same(code(compat, at), theirs)


def test_the_classic_snippet_runs_as_it_stands(at, monkeypatch):
    """The one that the issue quotes, `utils.empty_array` included (Orbax 0.12.8 has none)."""
    params_skeleton = small_tree()
    ocp = compat
    ckptr = ocp.PyTreeCheckpointer()
    template = jax.tree_util.tree_map(
        lambda x: ocp.utils.empty_array(x.shape, x.dtype), params_skeleton
    )
    loaded_params = ckptr.restore(str(at.small_pytree), item=template)
    assert_same(loaded_params, params_skeleton)
    assert not hasattr(orbax.utils, "empty_array")


def test_importing_it_does_not_import_orbax():
    """Nor does restoring need it."""
    code = "import sys, templax.compat.orbax; print('orbax' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("args", "native"),
    [
        ({"transforms": {"x": 1}}, 'templax.restore(path, item, rename={"old": "new"})'),
        ({"legacy_transform_fn": print}, 'templax.restore(path, item, rename={"old": "new"})'),
        (
            {"transforms": {}, "transforms_default_to_original": False},
            'templax.restore(path, item, missing="keep", extra="ignore")',
        ),
    ],
)
def test_unmapped_arguments_name_the_native_option(at, args, native):
    """Nothing is ignored in silence."""
    with pytest.raises(NotImplementedError) as caught:
        compat.PyTreeCheckpointer().restore(at.small_pytree, item=small_tree(), **args)
    assert str(caught.value).endswith(f"; hint: {native}")


def test_fallback_sharding_names_the_native_option(at):
    """`shardings=` says where leaves go."""
    args = compat.args.StandardRestore(small_tree(), fallback_sharding=first_device())
    with pytest.raises(NotImplementedError) as caught:
        compat.StandardCheckpointer().restore(at.small_standard, args=args)
    assert str(caught.value) == (
        "templax.compat.orbax does not map `fallback_sharding`; "
        "hint: templax.restore(path, item, shardings=...)"
    )


def test_a_name_that_is_not_mapped_says_so():
    """An `AttributeError`, so that `hasattr` works."""
    with pytest.raises(AttributeError) as caught:
        _ = compat.PyTreeCheckpointerFactory
    assert str(caught.value) == (
        "templax.compat.orbax has no `PyTreeCheckpointerFactory`; "
        "hint: templax.save(path, tree) and templax.restore(path, template)"
    )
    assert not hasattr(compat.args, "ArraySave")
    assert not hasattr(compat.v1, "Context")


# Where they differ: both sides.


def problems(error: pytest.ExceptionInfo) -> list[tuple[str, str]]:
    return [(m.problem, m.name) for m in error.value.mismatches]


def small_template(shape: tuple[int, ...] = (8,), dtype: Any = jnp.float32, **c: Any) -> Any:
    return {"a": S(shape, dtype), "b": {"c": S((3,), c.get("c", jnp.int32))}}


def test_differs_pytree_item_shape(at):
    """Orbax ignores the item's shapes; templax holds the checkpoint to them."""
    template = small_template(shape=(2, 4))
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert theirs["a"].shape == (8,)
    with pytest.raises(tx.TemplateError) as caught:
        compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert problems(caught) == [("shape", "a")]


def test_differs_pytree_item_dtype(at):
    """Orbax ignores the item's dtypes; templax casts floats and says so, and refuses the rest."""
    template = small_template(dtype=jnp.bfloat16)
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert theirs["a"].dtype == jnp.float32
    with pytest.warns(tx.CastWarning):
        ours = compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert ours["a"].dtype == jnp.bfloat16


def test_differs_lossy_casts(at):
    """Orbax casts anything to anything, unsaid; templax refuses what loses more than floats do."""
    template = small_template(dtype=jnp.int32, c=jnp.int8)
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.small_standard, template)
    assert (theirs["a"].dtype, theirs["b"]["c"].dtype) == (jnp.int32, jnp.int8)
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.small_standard, template)
    assert problems(caught) == [("dtype", "a"), ("dtype", "b.c")]


def test_differs_restore_args_dtype(at):
    """The same for a dtype that restore args ask for."""
    ask = {"a": np.int32, "b": {"c": np.float32}}

    def run(ocp):
        args = jax.tree.map(lambda dtype: ocp.RestoreArgs(np.ndarray, dtype), ask)
        return ocp.PyTreeCheckpointer().restore(at.small_pytree, restore_args=args)

    with quiet():
        assert jax.tree.map(lambda x: x.dtype, run(orbax)) == jax.tree.map(np.dtype, ask)
    with pytest.raises(tx.TemplateError) as caught:
        run(compat)
    assert problems(caught) == [("dtype", "a"), ("dtype", "b.c")]


def test_differs_shape_error_names_the_leaf(at):
    """Orbax stops at one array and does not say which; templax lists all, by name."""
    template = {"a": S((4,), jnp.float32), "b": {"c": S((5,), jnp.int32)}}
    with quiet(), pytest.raises(ValueError) as theirs:
        orbax.StandardCheckpointer().restore(at.small_standard, template)
    assert re.match(r"Requested shape: \(\d,\) is not compatible", str(theirs.value))
    assert str(theirs.value).count("Requested shape") == 1
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.small_standard, template)
    assert problems(caught) == [("shape", "a"), ("shape", "b.c")]


@pytest.mark.parametrize("n", [4, 12])
def test_differs_strict_false(at, n):
    """Orbax cuts or fills with zeros; templax never does."""
    template = small_template(shape=(n,))
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.small_standard, template, strict=False)
    assert theirs["a"].tolist() == [*range(8), *[0] * 4][:n]
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.small_standard, template, strict=False)
    assert problems(caught) == [("shape", "a")]


@pytest.mark.parametrize("how", ["transforms", "partial_restore"])
def test_differs_missing_in_a_partial_restore(at, how):
    """Orbax hands the template's leaf back as if it were restored; templax names it."""
    template = {"a": S((8,), jnp.float32), "z": S((2,), jnp.float32)}

    def run(ocp):
        more = {"transforms": {}} if how == "transforms" else {"partial_restore": True}
        args = ocp.args.PyTreeRestore(
            template, ocp.checkpoint_utils.construct_restore_args(template), **more
        )
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(at.small_pytree, args=args)

    with quiet():
        assert run(orbax)["z"] == S((2,), jnp.float32)
    with pytest.raises(tx.TemplateError) as caught:
        run(compat)
    assert problems(caught) == [("missing", "z")]


def test_differs_missing_and_extra_messages(at):
    """Both refuse; templax gives shapes, and the rename that helps."""
    template = {"a": S((8,), jnp.float32), "b": {"cc": S((3,), jnp.int32)}}
    with quiet(), pytest.raises(ValueError, match="tree structures do not match"):
        orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    with pytest.raises(tx.TemplateError) as caught:
        compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert problems(caught) == [("missing", "b.cc"), ("extra", "b.c")]


def test_same_unexpected_placeholder(at):
    """An unknown `...` is no error in either; it stays what it is."""
    template = {"a": S((8,), jnp.float32), "b": {"c": ...}, "zz": ...}
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert theirs["zz"] is ...
    ours = compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert_same(ours, theirs)


def test_differs_placeholder_for_a_subtree(at):
    """Orbax takes `...` for leaves only, and not with `StandardCheckpointer`; templax anywhere."""
    template = {"a": S((8,), jnp.float32), "b": ...}
    with quiet():
        with pytest.raises(ValueError, match="tree structures do not match"):
            orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
        with pytest.raises(ValueError, match="Unsupported type"):
            orbax.StandardCheckpointer().restore(at.small_standard, template)
    for ours in (
        compat.PyTreeCheckpointer().restore(at.small_pytree, item=template),
        compat.StandardCheckpointer().restore(at.small_standard, template),
    ):
        assert_same(ours, {"a": small_tree()["a"], "b": ...})


def test_differs_placeholder_in_a_partial_restore(at):
    """Orbax restores what the placeholder skips; templax skips it."""
    template = {"a": S((8,), jnp.float32), "b": {"c": ...}}

    def run(ocp):
        args = ocp.args.PyTreeRestore(template, partial_restore=True)
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(at.small_pytree, args=args)

    with quiet():
        assert run(orbax)["b"]["c"].tolist() == [1, 2, 3]
    assert run(compat)["b"]["c"] is ...


def test_differs_number_for_an_array(at):
    """`0` as "restore this, whatever it is": Orbax takes it; templax takes it for a number."""
    template = {"a": 0}

    def run(ocp):
        args = ocp.args.PyTreeRestore(template, partial_restore=True)
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(at.small_pytree, args=args)

    with quiet():
        assert run(orbax)["a"].shape == (8,)
    with pytest.raises(tx.TemplateError) as caught:
        run(compat)
    assert {name for _, name in problems(caught)} == {"a"}


def test_differs_python_number(at):
    """Stored 1.5, template `3`: Orbax returns 1; templax refuses."""
    template = abstract(rich_tree()) | {"float": 3}
    with quiet():
        assert orbax.StandardCheckpointer().restore(at.rich_standard, template)["float"] == 1
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.rich_standard, template)
    assert problems(caught) == [("dtype", "float")]


def test_differs_template_without_empty_values(at):
    """Orbax wants `None`, `{}` and `[]` in the template too; to templax they are no leaves."""
    template = abstract(rich_tree())
    for name in ("none", "empty", "nothing"):
        del template[name]
    with quiet(), pytest.raises(ValueError, match="tree structures do not match"):
        orbax.StandardCheckpointer().restore(at.rich_standard, template)
    ours = compat.StandardCheckpointer().restore(at.rich_standard, template)
    assert jax.tree.structure(ours) == jax.tree.structure(template)


def test_differs_list_for_a_dict_of_integers(at):
    """Names decide: `ints.0` is an element of a list as well. Orbax refuses."""
    template = abstract(rich_tree()) | {"ints": [S((1,), jnp.float32), S((1,), jnp.float32)]}
    with quiet(), pytest.raises(ValueError, match="tree structures do not match"):
        orbax.StandardCheckpointer().restore(at.rich_standard, template)
    ours = compat.StandardCheckpointer().restore(at.rich_standard, template)
    assert [x.tolist() for x in ours["ints"]] == [[1.0], [0.0]]


def test_same_containers_without_a_template(at):
    """NamedTuple → dict, tuple → list, integer keys → strings, in both: the file has no more."""
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.rich_standard)
    ours = compat.StandardCheckpointer().restore(at.rich_standard)
    for tree in (ours, theirs):
        assert sorted(tree["pair"]) == ["x", "y"]
        assert isinstance(tree["tuple"], list)
        assert sorted(tree["ints"]) == ["0", "1"]
        assert (tree["none"], tree["empty"], tree["nothing"]) == (None, {}, [])


def test_differs_saved_sharding_without_one_in_the_template(at):
    """Orbax replays what the file says; templax uses JAX's default device."""
    template = abstract(sharded_tree())
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.sharded_standard, template)
    assert len(theirs["w"].sharding.device_set) == 8
    ours = compat.StandardCheckpointer().restore(at.sharded_standard, template)
    assert ours["w"].sharding.device_set == {jax.devices()[0]}
    assert ours["w"].tolist() == theirs["w"].tolist()


def test_differs_pytree_item_sharding(at):
    """Orbax ignores the sharding of an item without restore args; templax obeys it."""
    template = {
        "w": S((8, 4), jnp.float32, sharding=first_device()),
        "key": S((), jax.random.key(0).dtype),
    }
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.sharded_pytree, item=template)
    assert len(theirs["w"].sharding.device_set) == 8
    ours = compat.PyTreeCheckpointer().restore(at.sharded_pytree, item=template)
    assert ours["w"].sharding.device_set == {jax.devices()[0]}


def test_differs_pytree_item_numpy(at):
    """Orbax ignores that a leaf of an item is a numpy array; templax returns one."""
    template = {"a": np.zeros(8, np.float32), "b": {"c": S((3,), jnp.int32)}}
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert isinstance(theirs["a"], jax.Array)
    ours = compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert isinstance(ours["a"], np.ndarray)


TOPOLOGY = """
import sys, warnings, logging
warnings.simplefilter("ignore"); logging.disable(logging.CRITICAL)
import jax, jax.numpy as jnp
import orbax.checkpoint as orbax
import templax.compat.orbax as compat
assert len(jax.devices()) == 1
root = sys.argv[1]
key = jax.random.key(0).dtype
template = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32), "key": jax.ShapeDtypeStruct((), key)}
def pytree(ocp, *t): return ocp.PyTreeCheckpointer().restore(f"{root}/sharded-pytree", *t)
def standard(ocp, *t): return ocp.StandardCheckpointer().restore(f"{root}/sharded-standard", *t)
def v1(ocp, *t): return ocp.v1.load(f"{root}/sharded-v1", *t)
for call in (pytree, standard, v1):
    for t in ((), (template,)):
        try:
            call(orbax, *t)
        except ValueError as error:
            print(str(error)[:26])
        else:
            print("restored")
        print(call(compat, *t)["w"].sum())
"""


def test_differs_topology(at):
    """Saved on 8 devices, read on one: Orbax refuses six ways, templax needs no word."""
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", TOPOLOGY, str(at.root)],
        capture_output=True,
        text=True,
        env=env,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    lines = out.stdout.split("\n")[:-1]
    assert set(lines[1::2]) == {"496.0"}
    # pytree and v1: "sharding passed to deserialization should be specified ... Got None"
    assert lines[0::2] == [
        "sharding passed to deseria",
        "sharding passed to deseria",
        "Topology mismatch detected",
        "Topology mismatch detected",
        "sharding passed to deseria",
        "sharding passed to deseria",
    ]


@pytest.mark.parametrize("how", ["missing", "garbage"])
def test_differs_sharding_file(at, tmp_path, how):
    """`_sharding` gone or unreadable: Orbax fails or returns numpy; templax never needs it."""
    pytree = copied(at.small_pytree, tmp_path / "pytree")
    standard = copied(at.small_standard, tmp_path / "standard")
    for path in (pytree, standard):
        if how == "missing":
            (path / "_sharding").unlink()
        else:
            (path / "_sharding").write_text("{garbage")
    template = small_template()
    with quiet():
        with pytest.raises(ValueError, match=r"Sharding of jax.Array|Invalid JSON"):
            orbax.PyTreeCheckpointer().restore(pytree, item=template)
        if how == "missing":
            theirs = orbax.StandardCheckpointer().restore(standard, template)
            assert isinstance(theirs["a"], np.ndarray)
        else:
            with pytest.raises(ValueError, match="Invalid JSON"):
                orbax.StandardCheckpointer().restore(standard, template)
    for path in (pytree, standard):
        assert_same(compat.PyTreeCheckpointer().restore(path, item=template), small_tree())
        assert_same(compat.PyTreeCheckpointer().restore(path), small_tree())


def test_differs_key_implementation(at):
    """Orbax ignores which PRNG a key template names; templax refuses another one."""
    template = abstract(sharded_tree())
    template["key"] = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.sharded_standard, template)
    assert theirs["key"].dtype == jax.random.key(0).dtype
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.sharded_standard, template)
    assert {name for _, name in problems(caught)} == {"key"}


def test_differs_key_data_template(at):
    """Orbax wraps the key though the template asks for uint32; templax says what it found."""
    template = abstract(sharded_tree()) | {"key": S((2,), jnp.uint32)}
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.sharded_standard, template)
    assert theirs["key"].dtype == jax.random.key(0).dtype
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.sharded_standard, template)
    assert problems(caught) == [("kind", "key")]


def test_differs_key_without_sharding_by_restore_args(at):
    """By `construct_restore_args` of an abstract key Orbax returns raw data; templax a key."""
    template = abstract(sharded_tree())

    def run(ocp):
        args = ocp.checkpoint_utils.construct_restore_args(template)
        return ocp.PyTreeCheckpointer().restore(at.sharded_pytree, item=template, restore_args=args)

    with quiet():
        assert run(orbax)["key"].dtype == np.uint32
    assert run(compat)["key"].dtype == jax.random.key(0).dtype


def test_differs_relative_path(at, monkeypatch):
    """Orbax wants absolute paths; templax takes any."""
    monkeypatch.chdir(at.root)
    with quiet(), pytest.raises(ValueError, match="should be absolute"):
        orbax.PyTreeCheckpointer().restore("small-pytree", item=small_template())
    ours = compat.PyTreeCheckpointer().restore("small-pytree", item=small_template())
    assert_same(ours, small_tree())


def test_differs_uncommitted(at, tmp_path):
    """Both refuse a save that never finished; templax can be told to read it all the same."""
    path = copied(at.small_standard, tmp_path / "small.orbax-checkpoint-tmp")
    with quiet(), pytest.raises(ValueError, match="Found incomplete checkpoint"):
        orbax.StandardCheckpointer().restore(path, small_template())
    with pytest.raises(tx.TemplaxError, match="not a committed checkpoint"):
        compat.StandardCheckpointer().restore(path, small_template())
    opened = tx.open(path, uncommitted="allow")
    assert_same(tx.restore(opened, small_template()), small_tree())


def test_differs_missing_chunk(at, tmp_path):
    """A chunk is gone. Orbax raises if `_METADATA` promises every chunk, else returns zeros;
    templax raises in both cases, since the array has no fill value, and names leaf and file."""
    path = copied(at.files, tmp_path / "files")
    (path / "a" / "0").unlink()
    with quiet(), pytest.raises(Exception, match="error while reading array index"):
        orbax.PyTreeCheckpointer().restore(path)
    with pytest.raises(tx.Damaged) as promised:
        compat.PyTreeCheckpointer().restore(path)
    metadata = path / "_METADATA"
    text = json.loads(metadata.read_text()) | {"store_array_data_equal_to_fill_value": False}
    metadata.write_text(json.dumps(text))
    with quiet():
        assert orbax.PyTreeCheckpointer().restore(path)["a"].tolist() == [0.0] * 8
    with pytest.raises(tx.Damaged) as unpromised:
        compat.PyTreeCheckpointer().restore(path)
    for caught in (promised, unpromised):
        assert (caught.value.leaf, caught.value.file) == ("a", "a/0")


def test_differs_numpy_leaves_without_a_template(tmp_path):
    """Orbax returns what was saved from numpy as numpy; templax as `jax.Array`, but for 64 bits."""
    tree = {"narrow": np.arange(3, dtype=np.float32), "wide": np.arange(3, dtype=np.int64)}
    with quiet():
        orbax.PyTreeCheckpointer().save(tmp_path / "numpy", tree)
        theirs = orbax.PyTreeCheckpointer().restore(tmp_path / "numpy")
    assert_same(theirs, tree)
    ours = compat.PyTreeCheckpointer().restore(tmp_path / "numpy")
    assert_same(ours, {"narrow": jnp.arange(3, dtype=jnp.float32), "wide": tree["wide"]})


def test_differs_dotted_keys(tmp_path):
    """`{"a.b": x}` and `{"a": {"b": y}}` share a name on disk. Orbax saves one of the two and
    restores it twice; templax calls the template ambiguous."""
    tree = {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}
    with quiet():
        orbax.PyTreeCheckpointer().save(tmp_path / "dots", tree)
        theirs = orbax.PyTreeCheckpointer().restore(tmp_path / "dots", item=abstract(tree))
    assert theirs["a.b"].tolist() == theirs["a"]["b"].tolist()
    with pytest.raises(tx.TemplateError) as caught:
        compat.PyTreeCheckpointer().restore(tmp_path / "dots", item=abstract(tree))
    assert problems(caught) == [("ambiguous", "a.b")]


def test_differs_64_bit_into_a_jax_array(tmp_path):
    """Without x64 Orbax wraps 2**40 around to 0; templax names the leaf."""
    with quiet():
        orbax.PyTreeCheckpointer().save(tmp_path / "wide", {"n": np.arange(3) + 2**40})

    def run(ocp):
        args = {"n": ocp.ArrayRestoreArgs(sharding=first_device())}
        return ocp.PyTreeCheckpointer().restore(tmp_path / "wide", restore_args=args)

    with quiet():
        assert run(orbax)["n"].tolist() == [0, 1, 2]
    with quiet(), pytest.raises(tx.TemplateError) as caught:
        run(compat)
    assert problems(caught) == [("dtype", "n")]


def test_differs_leaf_for_an_empty_value(tmp_path):
    """The file has `()`, the template an array: Orbax returns `()`; templax misses the array."""
    with quiet():
        orbax.PyTreeCheckpointer().save(tmp_path / "empty", {"t": (), "x": jnp.ones(1)})
    template = {"t": S((1,), jnp.float32), "x": S((1,), jnp.float32)}
    with quiet():
        assert orbax.PyTreeCheckpointer().restore(tmp_path / "empty", item=template)["t"] == ()
    with pytest.raises(tx.TemplateError) as caught:
        compat.PyTreeCheckpointer().restore(tmp_path / "empty", item=template)
    assert problems(caught) == [("missing", "t")]


def test_differs_none_for_an_array(at):
    """`None` in the template where the file has an array: Orbax skips it unsaid; templax calls it
    extra (`...` is how to skip)."""
    template = {"a": S((8,), jnp.float32), "b": {"c": None}}
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert theirs["b"] == {"c": None}
    with pytest.raises(tx.TemplateError) as caught:
        compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert problems(caught) == [("extra", "b.c")]


def test_differs_numpy_number(tmp_path):
    """A template of `np.float32(0)`: Orbax returns a Python float; templax a `np.float32`."""
    with quiet():
        orbax.PyTreeCheckpointer().save(tmp_path / "number", {"n": np.float32(2.5)})
    template = {"n": np.float32(0)}
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(tmp_path / "number", item=template)
    assert type(theirs["n"]) is float
    ours = compat.PyTreeCheckpointer().restore(tmp_path / "number", item=template)
    assert_same(ours, {"n": np.float32(2.5)})


def test_same_flipped_bit_in_the_weights(tmp_path):
    """Neither notices: the layout has no checksum of array bytes. Damaged nodes both notice."""
    weights = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
    path = tmp_path / "big"
    with quiet():
        orbax.PyTreeCheckpointer().save(path, weights)
    (file,) = (p for p in path.glob("ocdbt.process_0/d/*") if p.stat().st_size > 4000)
    sound = file.read_bytes()
    random.seed(0)
    altered = bytearray(sound)
    altered[random.randrange(1000, len(sound) - 1000)] ^= 1
    file.write_bytes(altered)
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(path)
    ours = compat.PyTreeCheckpointer().restore(path)
    assert np.asarray(theirs["w"]).tobytes() != np.asarray(weights["w"]).tobytes()
    assert_same(ours, theirs)


def test_differs_step_directory(at):
    """A step with one item: Orbax wants the item's directory, templax opens it by itself."""
    template = {"a": S((4,), jnp.float32)}
    with quiet(), pytest.raises(FileNotFoundError):
        orbax.StandardCheckpointer().restore(at.manager / "3", template)
    ours = compat.StandardCheckpointer().restore(at.manager / "3", template)
    assert ours["a"].tolist() == [3.0] * 4


def test_differs_v1_checkpoint_by_the_older_api(at):
    """A checkpoint of the v1 API opens under the older names, item directory or not."""
    with quiet(), pytest.raises(FileNotFoundError):
        orbax.PyTreeCheckpointer().restore(at.small_v1, item=small_template())
    ours = compat.PyTreeCheckpointer().restore(at.small_v1, item=small_template())
    assert_same(ours, small_tree())


def test_differs_step_names(at):
    """Orbax lists steps only under the right prefix option; templax finds them."""
    with quiet():
        assert list(orbax.CheckpointManager(at.prefixed).all_steps()) == []
    assert compat.CheckpointManager(at.prefixed).all_steps() == [3]


def test_differs_manager_makes_no_directory(tmp_path):
    """Orbax creates the directory that it is to read; templax only reads."""
    with quiet():
        assert orbax.CheckpointManager(tmp_path / "theirs").latest_step() is None
    assert (tmp_path / "theirs").exists()
    assert compat.CheckpointManager(tmp_path / "ours").latest_step() is None
    assert not (tmp_path / "ours").exists()


def test_same_unknown_item(at):
    """A `KeyError` that lists the items, in both."""
    for ocp in (orbax, compat):
        manager = ocp.CheckpointManager(at.items)
        with quiet(), pytest.raises(KeyError, match=r"meta.*state"):
            manager.restore(7, args=ocp.args.Composite(nope=ocp.args.StandardRestore()))


def test_same_missing_step(at):
    """`FileNotFoundError`, in both."""
    for ocp in (orbax, compat):
        manager = ocp.CheckpointManager(at.manager)
        manager.restore(3)  # Orbax then knows that there is one item
        with quiet(), pytest.raises(FileNotFoundError):
            manager.restore(4, args=ocp.args.StandardRestore())


def test_every_row_of_the_document_has_its_test():
    """`docs/orbax_differences.md` claims nothing unasserted, and leaves no assertion out."""
    kind = r"test_(?:differs|same)_\w+"
    named = re.findall(f"`({kind})`", DOC.read_text())
    files = [Path(__file__), Path(__file__).with_name("test_manager.py")]
    here = [n for f in files for n in re.findall(f"^def ({kind})", f.read_text(), re.MULTILINE)]
    assert set(named) == set(here)
    assert len(here) == len(set(here))
