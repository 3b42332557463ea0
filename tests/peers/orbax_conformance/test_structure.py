"""What Orbax's own tests assert of reading, asserted of templax, row by row.

Rows are those of the project's list of Orbax's tests (google/orbax, commit 3ff7b24): sections A
(golden corpus, altered checkpoints), B (matching), C (structure and types), D (sharding and memory)
and F (durability). Where templax must be stricter, the stricter behaviour is asserted. Real Orbax
saves; rows that only concern saving, safetensors (E) or several processes (43) have no test here.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState
from jax.sharding import AbstractMesh, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import templax as tx
import templax.compat.orbax as compat

logging.getLogger("absl").setLevel(logging.CRITICAL)

S = jax.ShapeDtypeStruct
CORPUS = Path(__file__).parents[2] / "corpus"


def golden() -> dict[str, Any]:
    return {"a": jnp.arange(8, dtype=jnp.int32), "b": {"c": jnp.array([1, 2, 3], jnp.int32)}}


def golden_template() -> dict[str, Any]:
    return {"a": S((8,), jnp.int32), "b": {"c": S((3,), jnp.int32)}}


def save(path: Path, tree: Any, save_args: Any = None, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handler = ocp.PyTreeCheckpointHandler(**options)
        ocp.Checkpointer(handler).save(path, args=ocp.args.PyTreeSave(tree, save_args=save_args))
    return path


def own(path: Path) -> Any:
    return tx.restore(path, tx.open(path).template())


def abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: S(x.shape, x.dtype), tree)


def assert_equal(ours: Any, wanted: Any) -> None:
    """Same tree, same dtypes, same bits."""
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        if isinstance(b, jax.Array) and jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
            assert a.dtype == b.dtype
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def mismatches(path: Path, template: Any, **options: Any) -> list[tuple[str, str]]:
    """What `restore` raises, as (problem, name)."""
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(path, template, **options)
    return [(m.problem, m.name) for m in caught.value.mismatches]


def device_mesh(*shape: int, names: tuple[str, ...] = ("x", "y"), reverse: bool = False) -> Mesh:
    devices = jax.devices()[: int(np.prod(shape))]
    return Mesh(np.array(devices[::-1] if reverse else devices).reshape(shape), names)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> SimpleNamespace:
    """The golden tree in every layout that Orbax 0.12.8 writes."""
    root = tmp_path_factory.mktemp("golden")
    save(root / "v0-direct", golden())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        composite = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        composite.save(
            root / "v0-composite", args=ocp.args.Composite(state=ocp.args.PyTreeSave(golden()))
        )
        ocp.v1.save(root / "v1-composite", golden())
        with ocp.CheckpointManager(root / "manager") as manager:
            for step in (1, 2):
                manager.save(step, args=ocp.args.StandardSave(golden()))
    save(root / "files", golden(), use_ocdbt=False)
    return SimpleNamespace(root=root, v0=root / "v0-direct", files=root / "files")


COMPOSITE = ["v0-composite", "v1-composite"]
LAYOUTS = ["v0-direct", *COMPOSITE]


def item_of(checkpoint: Path) -> Path:
    return checkpoint if checkpoint.name.startswith("v0-direct") else checkpoint / "state"


@pytest.fixture(params=LAYOUTS)
def checkpoint(request, saved, tmp_path) -> Path:
    """A copy to alter, in each layout."""
    shutil.copytree(saved.root / request.param, tmp_path / request.param)
    return tmp_path / request.param


# A. Golden corpus


@pytest.mark.parametrize("metadata", ["present", "missing"])
@pytest.mark.parametrize("template", ["given", "own"])
def test_row_1_loads_from_the_step_and_from_the_item(checkpoint, metadata, template):
    """Each layout, with and without `_CHECKPOINT_METADATA`, through either directory."""
    if metadata == "missing":
        (checkpoint / "_CHECKPOINT_METADATA").unlink()
    for path in {checkpoint, item_of(checkpoint)}:
        restored = tx.restore(path, golden_template()) if template == "given" else own(path)
        assert_equal(restored, golden())


KEYS = [
    "item_handlers",
    "metrics",
    "performance_metrics",
    "init_timestamp_nsecs",
    "commit_timestamp_nsecs",
    "custom_metadata",
]


@pytest.mark.parametrize("missing", [*KEYS, "array_metadatas", "_sharding"])
def test_row_2_loads_without_what_is_not_critical(checkpoint, missing):
    """With a template and, which Orbax does not manage for `_sharding`, without one."""
    if missing in KEYS:
        file = checkpoint / "_CHECKPOINT_METADATA"
        text = json.loads(file.read_text())
        del text[missing]
        file.write_text(json.dumps(text))
    elif missing == "_sharding":
        (item_of(checkpoint) / missing).unlink()
    else:
        shutil.rmtree(item_of(checkpoint) / missing)
    for path in {checkpoint, item_of(checkpoint)}:
        assert_equal(tx.restore(path, golden_template()), golden())
        assert_equal(own(path), golden())


def test_row_3_missing_manifest_is_named(checkpoint):
    """The error says which file is missing from a save that was finished."""
    (item_of(checkpoint) / "manifest.ocdbt").unlink()
    with pytest.raises(tx.Damaged) as caught:
        tx.restore(checkpoint, golden_template())
    assert str(caught.value) == (
        "The save was committed, but `manifest.ocdbt`, the index of its arrays, is missing "
        "- file `manifest.ocdbt`"
    )


def test_row_3_missing_index_is_named(checkpoint):
    """`d/` gone: the node that the manifest names is."""
    (node,) = (item_of(checkpoint) / "d").iterdir()
    size = node.stat().st_size
    shutil.rmtree(node.parent)
    with pytest.raises(tx.Damaged) as caught:
        tx.restore(checkpoint, golden_template())
    assert caught.value.what == "Expected the file of an index node, found none"
    assert (caught.value.file, caught.value.start) == (f"d/{node.name}", 0)
    assert caught.value.stop == size


def test_row_3_missing_values_are_named(tmp_path):
    """The process's files gone: leaf and file are."""
    path = save(tmp_path / "big", {"w": jnp.asarray(np.random.default_rng(0).random((64, 64)))})
    shutil.rmtree(path / "ocdbt.process_0")
    with pytest.raises(tx.TemplaxError) as caught:
        tx.restore(path, {"w": S((64, 64), jnp.float32)})
    assert "`w`" in str(caught.value)
    assert "ocdbt.process_0/d/" in str(caught.value)


def test_row_4_a_part_of_a_checkpoint_names_the_whole(saved):
    """A directory inside an item is no checkpoint: the error says of which it is a part."""
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(saved.v0 / "d")
    assert str(caught.value) == (
        f'{saved.v0 / "d"} is a part of the checkpoint {saved.v0}; hint: open "{saved.v0}"'
    )


def test_row_4_the_parent_lists_the_checkpoints_below(saved):
    """A directory of checkpoints, with names that are no steps, lists them."""
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(saved.root)
    for name in LAYOUTS:
        assert name in str(caught.value)


def test_row_4_a_directory_of_steps_names_the_latest(saved):
    """The hint opens."""
    manager = saved.root / "manager"
    with pytest.raises(tx.UnknownFormat) as caught:
        tx.open(manager)
    assert str(caught.value) == (
        f'{manager} holds 2 steps; the latest committed step is 2; hint: open "{manager}/2"'
    )
    assert_equal(own(manager / "2"), golden())


def test_row_5_without_tree_metadata_names_come_from_the_index(checkpoint):
    """`_METADATA` gone: a template still drives the load, and `open` lists the names."""
    (item_of(checkpoint) / "_METADATA").unlink()
    assert_equal(tx.restore(checkpoint, golden_template()), golden())
    assert set(tx.open(checkpoint).leaves) == {"a", "b.c"}


@pytest.mark.parametrize("checkpoint", COMPOSITE, indirect=True)
def test_row_6_a_junk_item_is_ignored(checkpoint):
    """A directory that is no item does not make a step ambiguous."""
    (checkpoint / "dummy").mkdir()
    (checkpoint / "dummy" / "foo.txt").write_text("hi")
    assert_equal(tx.restore(checkpoint, golden_template()), golden())


@pytest.mark.parametrize("checkpoint", COMPOSITE, indirect=True)
def test_row_6_a_deleted_item_is_named(checkpoint):
    """Asked for by its path, and through Orbax's names."""
    shutil.rmtree(checkpoint / "state")
    with pytest.raises(tx.NotFound, match="state"):
        tx.open(checkpoint / "state")
    checkpointer = compat.Checkpointer(compat.CompositeCheckpointHandler())
    with pytest.raises(KeyError, match="Expected item `state`"):
        checkpointer.restore(
            checkpoint, args=compat.args.Composite(state=compat.args.StandardRestore())
        )


def test_row_7_metadata_is_readable(checkpoint):
    """Names, shapes, dtypes, saved sharding; no array is read, and `_sharding` may be missing."""
    for path in {checkpoint, item_of(checkpoint)}:
        leaves = tx.open(path).leaves
        assert {n: (e.shape, e.dtype.name) for n, e in leaves.items()} == {
            "a": ((8,), "int32"),
            "b.c": ((3,), "int32"),
        }
        assert leaves["a"].saved_sharding is not None
    (item_of(checkpoint) / "_sharding").unlink()
    assert tx.open(checkpoint).leaves["a"].saved_sharding is None


# B. Template matching and errors


def test_row_9_subset_is_an_error_unless_extra_is_ignored(saved):
    """Half a tree is refused; asked for, it comes."""
    template = {"a": S((8,), jnp.int32)}
    assert mismatches(saved.v0, template) == [("extra", "b.c")]
    assert_equal(tx.restore(saved.v0, template, extra="ignore"), {"a": golden()["a"]})


def test_row_9_superset_names_what_is_missing(saved):
    """The whole message, since it is what a user gets to see."""
    template = golden_template() | {"z": S((2,), jnp.float32)}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(saved.v0, template)
    assert str(caught.value) == (
        f"1 of 3 leaves does not match {saved.v0}\n  Expected a leaf, found none - at `z`"
    )


def test_row_9_renamed_key_hints_the_rename(saved):
    """A near name is hinted, and the hint works."""
    template = {"a": S((8,), jnp.int32), "b": {"C": S((3,), jnp.int32)}}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(saved.v0, template)
    assert {(m.problem, m.name) for m in caught.value.mismatches} == {
        ("missing", "b.C"),
        ("extra", "b.c"),
    }
    assert 'rename={"b.c": "b.C"}' in str(caught.value)
    restored = tx.restore(saved.v0, template, rename={"b.c": "b.C"})
    assert restored["b"]["C"].tolist() == [1, 2, 3]


def test_row_10_partial_restore_by_omission_and_by_placeholder(saved, tmp_path):
    """Only what is named is read: the rest may even be damaged."""
    path = tmp_path / "files"
    shutil.copytree(saved.files, path)
    (path / "a" / "0").unlink()
    restored = tx.restore(path, {"b": golden_template()["b"]}, extra="ignore")
    assert_equal(restored, {"b": golden()["b"]})
    restored = tx.restore(path, {"a": ..., "b": golden_template()["b"]})
    assert restored["a"] is ...
    assert_equal(restored["b"], golden()["b"])


@pytest.mark.parametrize("template", [{"a": 0}, {"a": S((8,), jnp.int32), "z": 0}])
def test_row_11_unexpected_keys_are_an_error(saved, template):
    """Orbax gives the template's `0` back as if restored."""
    assert mismatches(saved.v0, template, extra="ignore")


def test_row_12_every_missing_leaf_is_listed(saved):
    """All at once, in template order."""
    template = golden_template() | {f"z{i}": S((1,), jnp.int32) for i in range(30)}
    found = mismatches(saved.v0, template)
    assert found == [("missing", f"z{i}") for i in sorted(range(30), key=str)]


def test_row_13_shape_mismatch_names_the_leaf(saved):
    """All at once, with both shapes."""
    template = {"a": S((4,), jnp.int32), "b": {"c": S((3, 1), jnp.int32)}}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(saved.v0, template)
    assert str(caught.value) == (
        f"2 of 2 leaves do not match {saved.v0}\n"
        "  Expected shape `(4,)`, got `(8,)` - at `a`\n"
        "  Expected shape `(3, 1)`, got `(3,)` - at `b.c`"
    )


@pytest.mark.parametrize("n", [0, 1, 7, 9, 16])
@pytest.mark.parametrize("sharded", [False, True])
def test_rows_14_and_15_nothing_is_padded_or_cut(saved, n, sharded):
    """Whatever the sharding, and under every option there is."""
    sharding = NamedSharding(device_mesh(1, 1), P("x")) if sharded else None
    template = {"a": S((n,), jnp.int32, sharding=sharding), "b": ...}
    for cast in ("float", "widen", "exact"):
        assert mismatches(saved.v0, template, cast=cast, extra="ignore") == [("shape", "a")]


CASTS = [
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("bfloat16", "float32"),
    ("float16", "bfloat16"),
    ("int8", "int32"),
    ("int16", "float32"),
    ("uint8", "int16"),
]
REFUSED = [
    ("int32", "int16"),
    ("int32", "bfloat16"),
    ("float32", "int32"),
    ("bfloat16", "int32"),
    ("int32", "uint32"),
    ("bool", "int32"),
    ("complex64", "float32"),
]


def numbers(dtype: str) -> jax.Array:
    values = np.linspace(-100, 100, 41) if dtype[0] not in "ub" else np.arange(41)
    return jnp.asarray(values).astype(dtype)


@pytest.mark.parametrize(("stored", "wanted"), CASTS)
def test_rows_16_and_17_casts_give_what_orbax_gives(tmp_path, stored, wanted):
    """Announced once; the bits are Orbax's, and JAX's."""
    path = save(tmp_path / "x", {"x": numbers(stored)})
    sharding = SingleDeviceSharding(jax.devices()[0])
    template = {"x": S((41,), wanted, sharding=sharding)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ocp.StandardCheckpointer().restore(path, template)
    with pytest.warns(tx.CastWarning, match=f"{stored} to {wanted}") as caught:
        ours = tx.restore(path, template)
    assert len(caught) == 1
    assert_equal(ours, theirs)
    assert_equal(ours, {"x": numbers(stored).astype(wanted)})
    assert mismatches(path, template, cast="exact") == [("dtype", "x")]


@pytest.mark.parametrize(("stored", "wanted"), REFUSED)
def test_rows_16_and_17_lossy_casts_are_refused(tmp_path, stored, wanted):
    """By name, under each policy; Orbax does them in silence."""
    path = save(tmp_path / "x", {"x": numbers(stored)})
    for cast in ("float", "widen", "exact"):
        assert mismatches(path, {"x": S((41,), wanted)}, cast=cast) == [("dtype", "x")]


def test_row_17_python_numbers(tmp_path):
    """A float stays a float, an int an int: `int` for 1.5 is an error, not 1."""
    path = save(tmp_path / "x", {"f": 1.5, "i": 3})
    assert tx.restore(path, {"f": float, "i": int}) == {"f": 1.5, "i": 3}
    assert tx.restore(path, {"f": 0.0, "i": 0}) == {"f": 1.5, "i": 3}
    assert mismatches(path, {"f": int, "i": 0}) == [("dtype", "f")]


def test_rows_18_and_19_the_template_leaf_decides_the_kind(tmp_path):
    """numpy saved → `jax.Array`, and the other way; numpy for all."""
    tree = {"n": np.arange(4, dtype=np.float32), "j": jnp.arange(4)}
    path = save(tmp_path / "x", tree)
    swapped = tx.restore(path, {"n": S((4,), jnp.float32), "j": np.zeros(4, np.int32)})
    assert isinstance(swapped["n"], jax.Array)
    assert isinstance(swapped["j"], np.ndarray)
    assert_equal(swapped, tree)
    everything = tx.restore(path, jax.tree.map(np.asarray, tree))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(everything))


class Point(NamedTuple):
    x: Any
    y: Any


@flax.struct.dataclass
class Struct:
    x: Any
    y: Any


@pytest.mark.parametrize(
    "container",
    [
        lambda x, y: {"x": x, "y": y},
        lambda x, y: flax.core.freeze({"x": x, "y": y}),
        Point,
        Struct,
    ],
    ids=["dict", "FrozenDict", "NamedTuple", "struct"],
)
def test_row_20_legal_containers_meet_by_name(tmp_path, container):
    """Saved from a dict, restored into any container whose leaves have the same names."""
    path = save(tmp_path / "x", {"x": jnp.arange(2), "y": jnp.arange(3.0)})
    restored = tx.restore(path, container(S((2,), jnp.int32), S((3,), jnp.float32)))
    assert_equal(restored, container(jnp.arange(2), jnp.arange(3.0)))


def test_row_20_an_illegal_leaf_is_refused_before_a_read(saved):
    """A leaf that can't describe an array leaves the stored one unasked for."""
    assert ("extra", "a") in mismatches(saved.v0, golden_template() | {"a": object()})


def test_row_21_abstract_mesh_is_resolved_to_the_one_in_context(saved):
    """A template made for a mesh shape goes to the devices of `jax.set_mesh`."""
    mesh = device_mesh(4, 2)
    sharding = NamedSharding(AbstractMesh((4, 2), ("x", "y")), P("x"))
    template = golden_template() | {"a": S((8,), jnp.int32, sharding=sharding)}
    with jax.set_mesh(mesh):
        restored = tx.restore(saved.v0, template)
    assert_equal(restored, golden())
    assert restored["a"].sharding.is_equivalent_to(NamedSharding(mesh, P("x")), 1)


def test_row_22_optax_masked_nodes(tmp_path):
    """A masked optimiser's state, from `eval_shape`."""
    params = {"w": jnp.ones((2, 3)), "frozen": jnp.ones(2)}
    optimiser = optax.masked(optax.adam(0.1), {"w": True, "frozen": False})
    state = jax.tree.map(lambda x: x + 1, optimiser.init(params))
    path = save(tmp_path / "x", state)
    assert_equal(tx.restore(path, jax.eval_shape(optimiser.init, params)), state)


@pytest.mark.parametrize("template", [{}, [], (), None, {"x": {}, "y": [None]}])
def test_row_23_an_empty_tree_restores_as_itself(saved, template):
    """Orbax rejects it; all of the checkpoint is then extra."""
    assert tx.restore(saved.v0, template, extra="ignore") == template
    assert mismatches(saved.v0, template) == [("extra", "a"), ("extra", "b.c")]


def test_row_23_empty_containers_inside_are_kept(tmp_path):
    """With a template and without."""
    tree = {"e": {}, "l": [], "n": None, "x": jnp.ones(1)}
    path = save(tmp_path / "x", tree)
    assert_equal(own(path), tree)
    assert_equal(tx.restore(path, tree), tree)


def test_row_24_unknown_items_are_listed_with_what_there_is(saved):
    """A `KeyError`, as Orbax's."""
    manager = compat.CheckpointManager(saved.root / "manager")
    with pytest.raises(KeyError) as caught:
        manager.restore(1, args=compat.args.Composite(nope=compat.args.StandardRestore()))
    assert caught.value.args == (
        f"Expected item `nope` in {saved.root / 'manager'}/1, found `default`",
    )


# C. Structure and types


def test_row_25_keys_with_slashes_are_not_nesting(tmp_path):
    """`a/b` is one key."""
    tree = {"a/b": jnp.ones(1), "a": {"b": jnp.zeros(2)}, "/": {"c/": jnp.ones(3)}}
    path = save(tmp_path / "x", tree)
    assert_equal(tx.restore(path, abstract(tree)), tree)
    assert_equal(own(path), tree)


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_a_backslash_in_a_key_is_what_tensorstore_makes_of_it(tmp_path, use_ocdbt):
    """A slash where arrays are files, itself in a database."""
    tree = {"a\\b": jnp.arange(3), "c\\": jnp.arange(5)}
    restored = tx.restore(save(tmp_path / "x", tree, use_ocdbt=use_ocdbt), tree)
    np.testing.assert_array_equal(restored["a\\b"], tree["a\\b"])
    np.testing.assert_array_equal(restored["c\\"], tree["c\\"])


@pytest.mark.parametrize("use_ocdbt", [True, False])
def test_row_28_a_bare_array_is_a_tree(tmp_path, use_ocdbt):
    """Its name is empty: without OCDBT its files lie beside `_METADATA`."""
    path = save(tmp_path / "x", jnp.arange(3), use_ocdbt=use_ocdbt)
    assert_equal(tx.restore(path, S((3,), jnp.int32)), jnp.arange(3))
    assert_equal(own(path), jnp.arange(3))


def test_row_26_named_tuples_come_from_the_template(tmp_path):
    """Without one they are dicts: the file does not know."""
    tree = {"p": Point(jnp.ones(1), (jnp.zeros(2), [jnp.ones(3)]))}
    path = save(tmp_path / "x", tree)
    assert_equal(tx.restore(path, abstract(tree)), tree)
    assert sorted(own(path)["p"]) == ["x", "y"]


def test_row_27_flax_train_state(tmp_path):
    """struct.dataclass, optax `EmptyState` and functions, with and without a template."""
    model = nn.Dense(3)
    x = jnp.ones((2, 4))

    def init(key: jax.Array) -> TrainState:
        params = model.init(key, x)["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(0.1))

    state = init(jax.random.key(0))
    path = save(tmp_path / "x", state)
    template = jax.eval_shape(init, jax.random.key(1))
    # `TrainState.create` makes `step` a Python int, of which `eval_shape` makes an int32.
    restored = tx.restore(path, template)
    assert (restored.step.dtype, int(restored.step)) == (jnp.int32, 0)
    assert tx.restore(path, template.replace(step=int)).step == 0
    assert_equal(restored.params, state.params)
    assert_equal(restored.opt_state, state.opt_state)
    assert type(restored.opt_state[1]) is optax.EmptyState
    assert_equal(own(path)["params"], state.params)


def test_row_28_lists_keep_their_order(tmp_path):
    """Past nine elements names no longer sort as numbers do."""
    tree = {"layers": [jnp.full(2, i) for i in range(12)]}
    path = save(tmp_path / "x", tree)
    assert_equal(own(path), tree)
    assert_equal(tx.restore(path, abstract(tree)), tree)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_row_29_random_keys(tmp_path, impl):
    """Typed keys, single and in arrays, from `eval_shape`; another implementation is refused."""
    tree = {
        "one": jax.random.key(3, impl=impl),
        "many": jax.random.split(jax.random.key(4, impl=impl), 3),
    }
    path = save(tmp_path / "x", tree)
    assert_equal(tx.restore(path, jax.eval_shape(lambda: tree)), tree)
    other = "rbg" if impl == "threefry2x32" else "threefry2x32"
    template = jax.eval_shape(lambda: tree | {"one": jax.random.key(0, impl=other)})
    assert mismatches(path, template) == [("dtype", "one")]


def test_row_30_zero_size_arrays(tmp_path, saved):
    """Orbax refuses to save them; a Recipe has them, and a template may ask for them."""
    tree = tx.restore(tx.Recipe(lambda: {"z": jnp.zeros((0, 3))}), {"z": S((0, 3), jnp.float32)})
    assert_equal(tree, {"z": jnp.zeros((0, 3))})
    with pytest.raises(ValueError, match="zero size"):
        save(tmp_path / "x", tree)
    assert mismatches(saved.v0, golden_template() | {"a": S((0,), jnp.int32)}) == [("shape", "a")]


DTYPES = [
    "bool",
    "int4",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "float8_e4m3fn",
    "float8_e5m2",
    "bfloat16",
    "float16",
    "float32",
    "complex64",
]


@pytest.mark.parametrize("zarr3", [False, True])
def test_row_31_every_dtype(tmp_path, zarr3):
    """int4 stays int4."""
    names = [name for name in DTYPES if not (zarr3 and name == "complex64")]
    tree = {name: numbers(name)[20:28].reshape(2, 4) for name in names}
    path = save(tmp_path / "x", tree, use_zarr3=zarr3)
    assert_equal(tx.restore(path, abstract(tree)), tree)
    assert_equal(own(path), tree)


def test_row_31_wide_dtypes_as_numpy(tmp_path):
    """64-bit numbers keep every bit without `jax_enable_x64`."""
    tree = {"i": np.array([2**62 + 1]), "f": np.array([1 / 3]), "c": np.array([1j / 3])}
    path = save(tmp_path / "x", tree)
    assert_equal(tx.restore(path, tree), tree)
    assert_equal(own(path), tree)


@pytest.mark.parametrize("case", ["orbax-0.2.3-aggregate", "orbax-0.4.4-aggregate"])
def test_row_32_old_aggregate_files(case):
    """Values in the msgpack file `checkpoint`."""
    if not CORPUS.exists():
        pytest.skip("the corpus is not here")
    expected = json.loads((CORPUS / case / "expected.json").read_text())
    tree = own(CORPUS / case / "ckpt")
    scale = expected["state/params/scale"]
    assert tree["state"]["params"]["scale"].dtype.name == scale["dtype"]


def test_row_33_standard_leaf_types(tmp_path):
    """Strings and numbers; complex arrays, which Orbax's handler of the time rejected."""
    tree = {"s": "hällo", "b": True, "i": -7, "f": 0.1, "x": jnp.ones(1), "c": jnp.full(2, 1j)}
    path = save(tmp_path / "x", tree)
    restored = own(path)
    assert [restored[k] for k in "sbif"] == ["hällo", True, -7, 0.1]
    assert [type(restored[k]) for k in "sbif"] == [str, bool, int, float]
    assert_equal(restored["c"], tree["c"])
    assert mismatches(path, tree | {"s": 0}) == [("kind", "s")]


def test_row_34_rename(tmp_path):
    """A prefix, several at once, and a function."""
    tree = {"old": {"w": jnp.ones(1), "b": jnp.zeros(2)}, "gone": jnp.ones(3)}
    path = save(tmp_path / "x", tree)
    leaf = {"w": S((1,), jnp.float32), "b": S((2,), jnp.float32)}
    wanted = {"new": tree["old"]}
    assert_equal(tx.restore(path, {"new": leaf}, rename={"old": "new"}, extra="ignore"), wanted)
    deep = {"x": {"y": {"kernel": leaf["w"], "b": leaf["b"]}}}
    restored = tx.restore(path, deep, rename={"old": "x.y", "old.w": "x.y.kernel"}, extra="ignore")
    assert restored["x"]["y"]["kernel"].tolist() == [1.0]
    upper = tx.restore(
        path, {"OLD": {"W": leaf["w"], "B": leaf["b"]}}, rename=str.upper, extra="ignore"
    )
    assert upper["OLD"]["B"].tolist() == [0.0, 0.0]


# D. Sharding, resharding, memory

SPECS = [P(), P("x"), P("y"), P(None, "x"), P("x", "y"), P(("x", "y")), P("y", "x")]


@pytest.mark.parametrize("stored", SPECS, ids=str)
def test_row_35_reshard(tmp_path, stored):
    """Any spec to any spec on 8 devices; and to one device, and back."""
    mesh = device_mesh(4, 2)
    values = jnp.arange(128.0).reshape(16, 8)
    tree = {"w": jax.device_put(values, NamedSharding(mesh, stored))}
    path = save(tmp_path / "x", tree)
    shardings = [NamedSharding(mesh, spec) for spec in SPECS]
    for sharding in [*shardings, SingleDeviceSharding(jax.devices()[5])]:
        restored = tx.restore(path, {"w": S((16, 8), jnp.float32, sharding=sharding)})
        assert restored["w"].sharding == sharding
        assert np.array_equal(restored["w"], values)
        assert_equal(tx.restore(path, abstract(tree), shardings=sharding), restored)


def test_row_36_odd_resharding(tmp_path):
    """12 elements, saved on 2 devices, read on 3: the chunk borders don't meet."""
    sharding = NamedSharding(device_mesh(2, names=("x",)), P("x"))
    path = save(tmp_path / "x", {"w": jax.device_put(jnp.arange(12), sharding)})
    wanted = NamedSharding(device_mesh(3, names=("x",)), P("x"))
    restored = tx.restore(path, {"w": S((12,), jnp.int32, sharding=wanted)})["w"]
    assert [s.data.tolist() for s in restored.addressable_shards] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert restored.sharding == wanted


def test_row_37_reversed_mesh(tmp_path):
    """The same spec on the same devices in the other order."""
    values = jnp.arange(64).reshape(8, 8)
    stored = NamedSharding(device_mesh(4, 2), P("x", "y"))
    path = save(tmp_path / "x", {"w": jax.device_put(values, stored)})
    wanted = NamedSharding(device_mesh(4, 2, reverse=True), P("x", "y"))
    restored = tx.restore(path, {"w": S((8, 8), jnp.int32, sharding=wanted)})["w"]
    assert restored.sharding == wanted
    assert np.array_equal(restored, values)
    for shard in restored.addressable_shards:
        assert np.array_equal(shard.data, values[shard.index])


@pytest.mark.parametrize("how", ["foreign devices", "garbage", "empty", "missing"])
def test_row_38_the_saved_sharding_is_never_fatal(tmp_path, how):
    """Whatever `_sharding` says: with a template, and without."""
    sharding = NamedSharding(device_mesh(4, 2), P("x"))
    path = save(tmp_path / "x", {"w": jax.device_put(jnp.arange(8), sharding)})
    file = path / "_sharding"
    if how == "foreign devices":
        file.write_text(file.read_text().replace('\\"id\\": 7', '\\"id\\": 70000'))
    elif how == "missing":
        file.unlink()
    else:
        file.write_text("{garbage" if how == "garbage" else "")
    for restored in (own(path), tx.restore(path, {"w": S((8,), jnp.int32)})):
        assert restored["w"].tolist() == list(range(8))
        assert restored["w"].sharding.device_set == {jax.devices()[0]}


def test_row_39_custom_layout(tmp_path):
    """The `Format` of the template is the array's."""
    from jax.experimental.layout import Format, Layout

    values = jnp.arange(12.0).reshape(3, 4)
    path = save(tmp_path / "x", {"w": values})
    wanted = Format(Layout(major_to_minor=(1, 0)), SingleDeviceSharding(jax.devices()[0]))
    restored = tx.restore(path, {"w": S((3, 4), jnp.float32, sharding=wanted)})["w"]
    assert restored.format.layout.major_to_minor == (1, 0)
    assert np.array_equal(restored, values)


@pytest.mark.parametrize("kind", ["pinned_host", "unpinned_host", "device"])
def test_row_40_memory_kinds(tmp_path, kind):
    """The memory kind of the template is the array's."""
    path = save(tmp_path / "x", {"w": jnp.arange(8.0)})
    kinds = {memory.kind for memory in jax.devices()[0].addressable_memories()}
    if kind not in kinds:
        pytest.skip(f"no {kind} on this device")
    wanted = NamedSharding(device_mesh(4, 2), P("x"), memory_kind=kind)
    restored = tx.restore(path, {"w": S((8,), jnp.float32, sharding=wanted)})["w"]
    assert restored.sharding.memory_kind == kind
    assert np.array_equal(restored, np.arange(8.0))


PEAK = """
import sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import jax.numpy as jnp
import templax as tx

def now(what):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(what))

mesh = Mesh(np.array(jax.devices()).reshape(8), ("r",))
def restore(name, n):
    wanted = jax.ShapeDtypeStruct((n,), jnp.float32, sharding=NamedSharding(mesh, P()))
    return tx.restore(f"{sys.argv[1]}/{name}", {"w": wanted})
restore("small", 1024)
open("/proc/self/clear_refs", "w").write("5")
before = now("VmRSS")
tree = restore("big", 8 << 20)
print(now("VmHWM") - before)
assert len(tree["w"].addressable_shards) == 8
"""


@pytest.mark.slow
def test_row_41_a_replicated_array_is_held_once(tmp_path):
    """32 MB on each of 8 CPU devices, in at most 34 MB of host memory."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak of a process can't be reset here")
    # Not compressed: the encoded chunk has its place in memory, too.
    save(tmp_path / "small", {"w": jnp.zeros(1024)}, use_compression=False)
    big = {"w": jnp.arange(8 << 20, dtype=jnp.float32)}
    save(tmp_path / "big", big, use_compression=False)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= 34 << 20


@pytest.mark.parametrize("zarr3", [False, True])
def test_row_44_subchunks(tmp_path, zarr3):
    """Written 4 wide, chunked 2 wide."""
    sharding = NamedSharding(device_mesh(2, names=("x",)), P("x"))
    tree = {"w": jax.device_put(jnp.arange(8, dtype=jnp.int32), sharding)}
    chunked = ocp.SaveArgs(chunk_byte_size=8)
    path = save(tmp_path / "x", tree, save_args={"w": chunked}, use_zarr3=zarr3)
    noted = json.loads((path / "array_metadatas" / "process_0").read_text())
    assert noted["array_metadatas"][0]["array_metadata"]["chunk_shape"] == [2]
    assert own(path)["w"].tolist() == list(range(8))
    wanted = NamedSharding(device_mesh(8, names=("x",)), P("x"))
    restored = tx.restore(path, {"w": S((8,), jnp.int32, sharding=wanted)})["w"]
    assert [s.data.tolist() for s in restored.addressable_shards] == [[i] for i in range(8)]


@pytest.mark.parametrize("promise", [True, False])
def test_row_45_an_incomplete_write_is_an_error(saved, tmp_path, promise):
    """A chunk that was never written is never zeros, unless the file gives a fill value."""
    path = tmp_path / "x"
    shutil.copytree(saved.files, path)
    text = json.loads((path / "_METADATA").read_text())
    text["store_array_data_equal_to_fill_value"] = promise
    (path / "_METADATA").write_text(json.dumps(text))
    (path / "b.c" / "0").unlink()
    with pytest.raises(tx.Damaged) as caught:
        tx.restore(path, golden_template())
    assert (caught.value.leaf, caught.value.file) == ("b.c", "b.c/0")


# F. Durability


@pytest.mark.parametrize("suffix", [".orbax-checkpoint-tmp", ".orbax-checkpoint-tmp-12345"])
def test_row_53_a_temporary_directory_is_refused(checkpoint, suffix):
    """And read by those who say so; nothing is deleted."""
    path = checkpoint.with_name(checkpoint.name + suffix)
    checkpoint.rename(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(tx.Uncommitted) as caught:
        tx.restore(path, golden_template())
    assert path.name in str(caught.value)
    opened = tx.open(path, uncommitted="allow")
    assert_equal(tx.restore(opened, golden_template()), golden())
    assert sorted(path.rglob("*")) == before


@pytest.mark.parametrize("call", ["restore", "check", "open"])
def test_row_53_a_missing_path_is_not_found(tmp_path, call):
    """A `FileNotFoundError`."""
    path = tmp_path / "nope"
    with pytest.raises(FileNotFoundError) as caught:
        tx.open(path) if call == "open" else getattr(tx, call)(path, golden_template())
    assert isinstance(caught.value, tx.NotFound)
    assert str(path) in str(caught.value)


def test_row_54_a_lost_zarray_is_named(saved, tmp_path):
    """The dot-files that a copy by `*` leaves behind."""
    path = tmp_path / "x"
    shutil.copytree(saved.files, path)
    (path / "a" / ".zarray").unlink()
    with pytest.raises(tx.Damaged) as caught:
        tx.restore(path, golden_template())
    assert caught.value.leaf == "a"
    assert ".zarray" in str(caught.value)


def test_row_55_unfinished_steps_are_not_listed_and_not_deleted(saved, tmp_path):
    """A reader deletes nothing."""
    root = tmp_path / "manager"
    shutil.copytree(saved.root / "manager", root)
    (root / "2").rename(root / "2.orbax-checkpoint-tmp")
    before = sorted(root.rglob("*"))
    manager = compat.CheckpointManager(root)
    assert manager.all_steps() == [1]
    assert_equal(manager.restore(manager.latest_step()), golden())
    with pytest.raises(tx.UnknownFormat, match="latest committed step is 1"):
        tx.open(root)
    assert sorted(root.rglob("*")) == before
