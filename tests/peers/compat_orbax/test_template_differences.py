"""Templates that Orbax ignores or bends, and templax follows or refuses.

Each test asserts what both libraries do; `docs/reference/orbax-differences.md` names it.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as orbax
import pytest

import templax as tx
import templax.compat.orbax as compat
from helpers import abstract, list_mismatches
from side_by_side import (
    assert_same,
    first_device,
    quiet,
    rich_template,
    sharded_tree,
    small_template,
    small_tree,
)

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
S = jax.ShapeDtypeStruct


def test_differs_pytree_item_shape(at):
    """Orbax ignores the shapes of the item; templax refuses a checkpoint with others."""
    template = small_template(shape=(2, 4))
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert theirs["a"].shape == (8,)
    with pytest.raises(tx.TemplateError) as caught:
        compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert list_mismatches(caught.value) == [("shape", "a")]


def test_differs_pytree_item_dtype(at):
    """Orbax ignores the dtypes of the item; templax casts floats with a warning."""
    template = small_template(dtype=jnp.bfloat16)
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert theirs["a"].dtype == jnp.float32
    with pytest.warns(tx.CastWarning):
        ours = compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert ours["a"].dtype == jnp.bfloat16


def test_differs_pytree_item_numpy(at):
    """Orbax ignores that a leaf of an item is a numpy array; templax returns one."""
    template = {"a": np.zeros(8, np.float32), "b": {"c": S((3,), jnp.int32)}}
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert isinstance(theirs["a"], jax.Array)
    ours = compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert isinstance(ours["a"], np.ndarray)


def test_differs_lossy_casts(at):
    """Orbax casts anything to anything silently; templax refuses lossy casts, except of floats."""
    template = small_template(dtype=jnp.int32, c=jnp.int8)
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.small_standard, template)
    assert (theirs["a"].dtype, theirs["b"]["c"].dtype) == (jnp.int32, jnp.int8)
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.small_standard, template)
    assert list_mismatches(caught.value) == [("dtype", "a"), ("dtype", "b.c")]


def test_differs_restore_args_dtype(at):
    """The same, with dtypes in the restore args."""
    ask = {"a": np.int32, "b": {"c": np.float32}}

    def run(ocp):
        args = jax.tree.map(lambda dtype: ocp.RestoreArgs(np.ndarray, dtype), ask)
        return ocp.PyTreeCheckpointer().restore(at.small_pytree, restore_args=args)

    with quiet():
        assert jax.tree.map(lambda x: x.dtype, run(orbax)) == jax.tree.map(np.dtype, ask)
    with pytest.raises(tx.TemplateError) as caught:
        run(compat)
    assert list_mismatches(caught.value) == [("dtype", "a"), ("dtype", "b.c")]


def test_differs_64_bit_into_a_jax_array(tmp_path):
    """Without x64 Orbax wraps 2**40 around to 0; templax refuses, naming the leaf."""
    with quiet():
        orbax.PyTreeCheckpointer().save(tmp_path / "wide", {"n": np.arange(3) + 2**40})

    def run(ocp):
        args = {"n": ocp.ArrayRestoreArgs(sharding=first_device())}
        return ocp.PyTreeCheckpointer().restore(tmp_path / "wide", restore_args=args)

    with quiet():
        assert run(orbax)["n"].tolist() == [0, 1, 2]
    with quiet(), pytest.raises(tx.TemplateError) as caught:
        run(compat)
    assert list_mismatches(caught.value) == [("dtype", "n")]


def test_differs_python_number(at):
    """For a stored 1.5 and a template of `3` Orbax returns 1; templax refuses."""
    template = rich_template() | {"float": 3}
    with quiet():
        assert orbax.StandardCheckpointer().restore(at.rich_standard, template)["float"] == 1
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.rich_standard, template)
    assert list_mismatches(caught.value) == [("dtype", "float")]


def test_differs_number_for_an_array(at):
    """To Orbax, `0` means any leaf; to templax, a number."""
    template = {"a": 0}

    def run(ocp):
        args = ocp.args.PyTreeRestore(template, partial_restore=True)
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(at.small_pytree, args=args)

    with quiet():
        assert run(orbax)["a"].shape == (8,)
    with pytest.raises(tx.TemplateError) as caught:
        run(compat)
    assert {name for _, name in list_mismatches(caught.value)} == {"a"}


def test_differs_numpy_number(tmp_path):
    """For a template of `np.float32(0)` Orbax returns a Python float, templax an `np.float32`."""
    with quiet():
        orbax.PyTreeCheckpointer().save(tmp_path / "number", {"n": np.float32(2.5)})
    template = {"n": np.float32(0)}
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(tmp_path / "number", item=template)
    assert type(theirs["n"]) is float
    ours = compat.PyTreeCheckpointer().restore(tmp_path / "number", item=template)
    assert_same(ours, {"n": np.float32(2.5)})


@pytest.mark.parametrize("n", [4, 12])
def test_differs_strict_false(at, n):
    """Orbax cuts arrays or fills them with zeros; templax never does."""
    template = small_template(shape=(n,))
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.small_standard, template, strict=False)
    assert theirs["a"].tolist() == [*range(8), *[0] * 4][:n]
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.small_standard, template, strict=False)
    assert list_mismatches(caught.value) == [("shape", "a")]


def test_differs_key_implementation(at):
    """Orbax ignores the PRNG implementation of a key template; templax refuses another one."""
    template = abstract(sharded_tree())
    template["key"] = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.sharded_standard, template)
    assert theirs["key"].dtype == jax.random.key(0).dtype
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.sharded_standard, template)
    assert {name for _, name in list_mismatches(caught.value)} == {"key"}


def test_differs_key_data_template(at):
    """Orbax returns a typed key for a template of uint32; templax refuses."""
    template = abstract(sharded_tree()) | {"key": S((2,), jnp.uint32)}
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.sharded_standard, template)
    assert theirs["key"].dtype == jax.random.key(0).dtype
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.sharded_standard, template)
    assert list_mismatches(caught.value) == [("kind", "key")]


def test_differs_key_without_sharding_by_restore_args(at):
    """With `construct_restore_args` of an abstract key Orbax returns its data, templax a key."""
    template = abstract(sharded_tree())

    def run(ocp):
        args = ocp.checkpoint_utils.construct_restore_args(template)
        return ocp.PyTreeCheckpointer().restore(at.sharded_pytree, item=template, restore_args=args)

    with quiet():
        assert run(orbax)["key"].dtype == np.uint32
    assert run(compat)["key"].dtype == jax.random.key(0).dtype


def test_differs_leaf_for_an_empty_value(tmp_path):
    """For a stored `()` and a template of an array Orbax returns `()`; templax refuses."""
    with quiet():
        orbax.PyTreeCheckpointer().save(tmp_path / "empty", {"t": (), "x": jnp.ones(1)})
    template = {"t": S((1,), jnp.float32), "x": S((1,), jnp.float32)}
    with quiet():
        assert orbax.PyTreeCheckpointer().restore(tmp_path / "empty", item=template)["t"] == ()
    with pytest.raises(tx.TemplateError) as caught:
        compat.PyTreeCheckpointer().restore(tmp_path / "empty", item=template)
    assert list_mismatches(caught.value) == [("missing", "t")]


def test_differs_none_for_an_array(at):
    """Orbax skips an array for which the template has `None`; templax reports it as extra.

    `...` skips a leaf in templax.
    """
    template = {"a": S((8,), jnp.float32), "b": {"c": None}}
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert theirs["b"] == {"c": None}
    with pytest.raises(tx.TemplateError) as caught:
        compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert list_mismatches(caught.value) == [("extra", "b.c")]


def test_differs_dotted_keys(tmp_path):
    """`{"a.b": x}` and `{"a": {"b": y}}` have the same name on disk.

    Orbax saves one of the two and restores it twice; templax reports an ambiguous template.
    """
    tree = {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}
    with quiet():
        orbax.PyTreeCheckpointer().save(tmp_path / "dots", tree)
        theirs = orbax.PyTreeCheckpointer().restore(tmp_path / "dots", item=abstract(tree))
    assert theirs["a.b"].tolist() == theirs["a"]["b"].tolist()
    with pytest.raises(tx.TemplateError) as caught:
        compat.PyTreeCheckpointer().restore(tmp_path / "dots", item=abstract(tree))
    assert list_mismatches(caught.value) == [("ambiguous", "a.b")]


def test_differs_shape_error_names_the_leaf(at):
    """Orbax stops at one array without naming it; templax lists all by name."""
    template = {"a": S((4,), jnp.float32), "b": {"c": S((5,), jnp.int32)}}
    with quiet(), pytest.raises(ValueError) as theirs:
        orbax.StandardCheckpointer().restore(at.small_standard, template)
    assert re.match(r"Requested shape: \(\d,\) is not compatible", str(theirs.value))
    assert str(theirs.value).count("Requested shape") == 1
    with pytest.raises(tx.TemplateError) as caught:
        compat.StandardCheckpointer().restore(at.small_standard, template)
    assert list_mismatches(caught.value) == [("shape", "a"), ("shape", "b.c")]


def test_differs_missing_and_extra_messages(at):
    """Both refuse; templax lists the leaves."""
    template = {"a": S((8,), jnp.float32), "b": {"cc": S((3,), jnp.int32)}}
    with quiet(), pytest.raises(ValueError, match="tree structures do not match"):
        orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    with pytest.raises(tx.TemplateError) as caught:
        compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert list_mismatches(caught.value) == [("missing", "b.cc"), ("extra", "b.c")]


@pytest.mark.parametrize("how", ["transforms", "partial_restore"])
def test_differs_missing_in_a_partial_restore(at, how):
    """Orbax returns the leaf of the template as if it were restored; templax reports it missing."""
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
    assert list_mismatches(caught.value) == [("missing", "z")]


def test_same_unexpected_placeholder(at):
    """In both, `...` at a name that was not saved is not an error, and stays."""
    template = {"a": S((8,), jnp.float32), "b": {"c": ...}, "zz": ...}
    with quiet():
        theirs = orbax.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert theirs["zz"] is ...
    ours = compat.PyTreeCheckpointer().restore(at.small_pytree, item=template)
    assert_same(ours, theirs)


def test_differs_placeholder_for_a_subtree(at):
    """Orbax accepts `...` only for leaves and not in `StandardCheckpointer`; templax anywhere."""
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
    """Orbax restores a leaf in spite of its placeholder; templax skips it."""
    template = {"a": S((8,), jnp.float32), "b": {"c": ...}}

    def run(ocp):
        args = ocp.args.PyTreeRestore(template, partial_restore=True)
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(at.small_pytree, args=args)

    with quiet():
        assert run(orbax)["b"]["c"].tolist() == [1, 2, 3]
    assert run(compat)["b"]["c"] is ...


def test_differs_template_without_empty_values(at):
    """Orbax wants `None`, `{}` and `[]` in the template, too; to templax they are not leaves."""
    template = rich_template()
    for name in ("none", "empty", "nothing"):
        del template[name]
    with quiet(), pytest.raises(ValueError, match="tree structures do not match"):
        orbax.StandardCheckpointer().restore(at.rich_standard, template)
    ours = compat.StandardCheckpointer().restore(at.rich_standard, template)
    assert jax.tree.structure(ours) == jax.tree.structure(template)


def test_differs_list_for_a_dict_of_integers(at):
    """templax matches `ints.0` with an element of a list, too; Orbax refuses."""
    template = rich_template() | {"ints": [S((1,), jnp.float32), S((1,), jnp.float32)]}
    with quiet(), pytest.raises(ValueError, match="tree structures do not match"):
        orbax.StandardCheckpointer().restore(at.rich_standard, template)
    ours = compat.StandardCheckpointer().restore(at.rich_standard, template)
    assert [x.tolist() for x in ours["ints"]] == [[1.0], [0.0]]


def test_same_containers_without_a_template(at):
    """In both, a NamedTuple becomes a dict, a tuple a list, and integer keys become strings."""
    with quiet():
        theirs = orbax.StandardCheckpointer().restore(at.rich_standard)
    ours = compat.StandardCheckpointer().restore(at.rich_standard)
    for tree in (ours, theirs):
        assert sorted(tree["pair"]) == ["x", "y"]
        assert isinstance(tree["tuple"], list)
        assert sorted(tree["ints"]) == ["0", "1"]
        assert (tree["none"], tree["empty"], tree["nothing"]) == (None, {}, [])


def test_differs_numpy_leaves_without_a_template(tmp_path):
    """Orbax returns numpy for saved numpy; templax `jax.Array`, except for 64-bit dtypes."""
    tree = {"narrow": np.arange(3, dtype=np.float32), "wide": np.arange(3, dtype=np.int64)}
    with quiet():
        orbax.PyTreeCheckpointer().save(tmp_path / "numpy", tree)
        theirs = orbax.PyTreeCheckpointer().restore(tmp_path / "numpy")
    assert_same(theirs, tree)
    ours = compat.PyTreeCheckpointer().restore(tmp_path / "numpy")
    assert_same(ours, {"narrow": jnp.arange(3, dtype=jnp.float32), "wide": tree["wide"]})


def test_differs_stored_shape_with_transforms(at, caplog):
    """Orbax ignores the shape of the item; with `transforms={}`, templax does and says so."""
    item = {"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(3, jnp.int32)}}
    for ocp in (orbax, compat):
        args = jax.tree.map(lambda _, ocp=ocp: ocp.ArrayRestoreArgs(sharding=first_device()), item)
        with quiet():
            got = ocp.PyTreeCheckpointer().restore(
                at.small_pytree, item=item, restore_args=args, transforms={}
            )
        assert_same(got, jax.device_put(small_tree(), first_device()))
    assert "not in that of item=: `a`" in caplog.text
    with pytest.raises(tx.TemplateError, match=r"shape `\(2, 3\)`"):
        compat.PyTreeCheckpointer().restore(at.small_pytree, item=item, restore_args=args)


def test_differs_leaf_that_no_transform_gives(at, caplog):
    """Orbax returns leaves of the item; templax names them, and refuses those without a value."""
    item = {"a": np.zeros(8, np.float32), "new": np.ones(2, np.float32)}
    for ocp in (orbax, compat):
        args = jax.tree.map(lambda _, ocp=ocp: ocp.RestoreArgs(np.ndarray), item)
        rules = {"a": ocp.Transform(original_key="a")}
        options = {"restore_args": args, "transforms": rules}
        with quiet():
            got = ocp.PyTreeCheckpointer().restore(at.small_pytree, item=item, **options)
        np.testing.assert_array_equal(got["new"], item["new"])
    assert "for `new`: kept as in the new tree" in caplog.text
    without = item | {"new": S((2,), np.float32)}
    with pytest.raises(tx.UsageError, match="got none for `new`"):
        compat.PyTreeCheckpointer().restore(at.small_pytree, item=without, **options)


def test_differs_mesh_without_axes(at):
    """Orbax replays the saved sharding; templax refuses half a sharding."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    for ocp in (orbax, compat):
        half = jax.tree.map(lambda _, ocp=ocp: ocp.ArrayRestoreArgs(mesh=mesh), small_tree())
        if ocp is orbax:
            with quiet():
                got = ocp.PyTreeCheckpointer().restore(at.small_pytree, restore_args=half)
            assert got["a"].sharding.device_set == {jax.devices()[0]}
    with pytest.raises(tx.UsageError, match="mesh_axes="):
        compat.PyTreeCheckpointer().restore(at.small_pytree, restore_args=half)
