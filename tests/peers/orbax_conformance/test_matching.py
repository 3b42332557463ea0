"""Taken from Orbax's own tests: matching, and the errors where it fails."""

import shutil

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import templax as tx
from helpers import assert_same_tree, catch_mismatches, list_mismatches, save_with_orbax

S = jax.ShapeDtypeStruct


@pytest.mark.slow
def test_a_subset_is_an_error_unless_extra_leaves_are_ignored(saved, golden):
    """A template for half of the tree."""
    template = {"a": S((8,), jnp.int32)}
    assert catch_mismatches(saved.v0, template) == [("extra", "b.c")]
    assert_same_tree(tx.restore(saved.v0, template, extra="ignore"), {"a": golden["a"]})


def test_a_superset_names_the_missing_leaf(saved, golden_template):
    """The test compares the whole message."""
    template = golden_template | {"z": S((2,), jnp.float32)}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(saved.v0, template)
    assert str(caught.value) == (
        f"1 of 3 leaves does not match {saved.v0}\n  Expected a leaf, found none - at `z`;"
        " hint: missing=tx.Recipe(init, ...), where init(...) makes such a tree"
    )


def test_a_renamed_key_comes_with_a_hint_that_works(saved):
    """The hint names the most similar key."""
    template = {"a": S((8,), jnp.int32), "b": {"C": S((3,), jnp.int32)}}
    with pytest.raises(tx.TemplateError) as caught:
        tx.restore(saved.v0, template)
    assert set(list_mismatches(caught.value)) == {("missing", "b.C"), ("extra", "b.c")}
    assert 'rename={"b.c": "b.C"}' in str(caught.value)
    restored = tx.restore(saved.v0, template, rename={"b.c": "b.C"})
    assert restored["b"]["C"].tolist() == [1, 2, 3]


def test_leaves_are_renamed(tmp_path):
    """By one prefix, by several, and by a function."""
    tree = {"old": {"w": jnp.ones(1), "b": jnp.zeros(2)}, "gone": jnp.ones(3)}
    path = save_with_orbax(tmp_path / "x", tree)
    leaf = {"w": S((1,), jnp.float32), "b": S((2,), jnp.float32)}
    wanted = {"new": tree["old"]}
    assert_same_tree(tx.restore(path, {"new": leaf}, rename={"old": "new"}, extra="ignore"), wanted)
    deep = {"x": {"y": {"kernel": leaf["w"], "b": leaf["b"]}}}
    restored = tx.restore(path, deep, rename={"old": "x.y", "old.w": "x.y.kernel"}, extra="ignore")
    assert restored["x"]["y"]["kernel"].tolist() == [1.0]
    upper = tx.restore(
        path, {"OLD": {"W": leaf["w"], "B": leaf["b"]}}, rename=str.upper, extra="ignore"
    )
    assert upper["OLD"]["B"].tolist() == [0.0, 0.0]


def test_leaves_are_skipped_by_omission_and_by_placeholder(
    saved, tmp_path, golden, golden_template
):
    """Skipped leaves are not read, so they may be damaged."""
    path = tmp_path / "files"
    shutil.copytree(saved.files, path)
    (path / "a" / "0").unlink()
    restored = tx.restore(path, {"b": golden_template["b"]}, extra="ignore")
    assert_same_tree(restored, {"b": golden["b"]})
    restored = tx.restore(path, {"a": ..., "b": golden_template["b"]})
    assert restored["a"] is ...
    assert_same_tree(restored["b"], golden["b"])


@pytest.mark.parametrize("template", [{"a": 0}, {"a": S((8,), jnp.int32), "z": 0}])
def test_a_number_is_not_a_wildcard(saved, template):
    """Orbax returns the `0` of the template as if it had been restored."""
    assert catch_mismatches(saved.v0, template, extra="ignore")


def test_every_missing_leaf_is_listed(saved, golden_template):
    """In one error, in the order of the template."""
    template = golden_template | {f"z{i}": S((1,), jnp.int32) for i in range(30)}
    found = catch_mismatches(saved.v0, template)
    assert found == [("missing", f"z{i}") for i in sorted(range(30), key=str)]


def test_every_wrong_shape_is_listed(saved):
    """In one error, with both shapes."""
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
def test_nothing_is_padded_or_cut(saved, n, sharded):
    """Whatever the sharding, and with every value of `cast`."""
    sharding = NamedSharding(jax.make_mesh((1, 1), ("x", "y")), P("x")) if sharded else None
    template = {"a": S((n,), jnp.int32, sharding=sharding), "b": ...}
    for cast in ("float", "widen", "exact"):
        assert catch_mismatches(saved.v0, template, cast=cast, extra="ignore") == [("shape", "a")]


def test_a_leaf_that_describes_no_array_is_refused(saved, golden_template):
    """Then nothing in the template asks for the stored leaf."""
    assert ("extra", "a") in catch_mismatches(saved.v0, golden_template | {"a": object()})


@pytest.mark.parametrize("template", [{}, [], (), None, {"x": {}, "y": [None]}])
def test_an_empty_tree_restores_as_itself(saved, template):
    """Orbax rejects it. Every leaf of the checkpoint is extra."""
    assert tx.restore(saved.v0, template, extra="ignore") == template
    assert catch_mismatches(saved.v0, template) == [("extra", "a"), ("extra", "b.c")]
