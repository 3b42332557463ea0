"""Restores from any sharding to any other on eight devices, and random wrong templates."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import templax as tx
from helpers import count_examples, list_mismatches, save_with_orbax
from templax.testing import strategies

# Orbax refuses to save arrays without elements.
ARRAYS = strategies.arrays().filter(lambda a: a.size > 0)


def _unify_nans(array: np.ndarray) -> np.ndarray:
    """With JAX 0.12, Orbax saves every NaN of a replicated `float8_e5m2` as the byte 0x7f."""
    if array.dtype == jnp.float8_e5m2:
        array.view(np.uint8)[np.isnan(array)] = 0x7F
    return array


TREES = strategies.trees(ARRAYS.map(_unify_nans))


def _place(data: st.DataObject, tree: Any) -> Any:
    """The tree on devices, with a sharding for each leaf."""

    def place(array: np.ndarray) -> jax.Array:
        sharding = data.draw(strategies.shardings(array.shape))
        return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)

    return jax.tree.map(place, tree)


def _make_template(data: st.DataObject, tree: Any) -> Any:
    """A template of the tree, with another sharding for each leaf."""

    def leaf(array: np.ndarray) -> jax.ShapeDtypeStruct:
        sharding = data.draw(strategies.shardings(array.shape))
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree)


@count_examples(40)
@given(TREES, st.data())
def test_a_tree_saved_with_any_shardings_is_restored_with_any_others(
    tree: Any, data: st.DataObject
) -> None:
    """Random trees, dtypes, bits, meshes, orders of devices and shardings on both sides."""
    value, template = _place(data, tree), _make_template(data, tree)
    with tempfile.TemporaryDirectory() as directory:
        restored = tx.restore(save_with_orbax(Path(directory) / "ckpt", value), template)
    assert jax.tree.structure(restored) == jax.tree.structure(template)
    for got, want, leaf in zip(*map(jax.tree.leaves, (restored, tree, template)), strict=True):
        assert np.asarray(got).tobytes() == want.tobytes()
        assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
        assert got.committed == (leaf.sharding is not None)
        if leaf.sharding is not None:
            assert got.sharding == leaf.sharding


@pytest.mark.slow
@count_examples(40)
@given(TREES, st.data())
def test_an_error_in_a_template_is_reported_alone(tree: Any, data: st.DataObject) -> None:
    """A wrong shape, dtype, kind or name, a leaf too many or too few."""
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    wrong = data.draw(strategies.perturbations(template))
    with tempfile.TemporaryDirectory() as directory:
        path = save_with_orbax(Path(directory) / "ckpt", tree)
        match = tx.check(path, wrong.template)
        assert set(list_mismatches(match)) == wrong.expected
        assert len(match.mismatches) == len(wrong.expected)
        with pytest.raises(tx.TemplateError) as caught:
            tx.restore(path, wrong.template)
    assert caught.value.mismatches == match.mismatches


@given(TREES)
def test_a_checkpoint_matches_its_own_template(tree: Any) -> None:
    match = tx.check(tx.Recipe(lambda: tree), tx.template_of(tree))
    assert match.ok
    assert not match.casts


@pytest.mark.slow
@given(strategies.trees(strategies.arrays()), st.data())
def test_every_hint_works_if_it_is_followed(tree: Any, data: st.DataObject) -> None:
    """A hint that is a keyword argument removes the mismatches that it is attached to."""
    template = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    wrong = data.draw(strategies.perturbations(template)).template
    prefix = data.draw(st.sampled_from(["", "params", "a.b"]))
    checkpoint = tx.Recipe(lambda: {prefix: tree} if prefix else tree)
    match = tx.check(checkpoint, wrong)
    for hint in {m.hint for m in match.mismatches if m.hint}:
        if not hint.startswith(("at=", "rename=", "extra=", "cast=")) or " or " in hint:
            continue
        name, value = hint.split("=", 1)
        argument = match.rename if name == "rename" and match.rename else eval(value)  # noqa: S307
        after = tx.check(checkpoint, wrong, **{name: argument})
        left = set(list_mismatches(after))
        removed = {(m.problem, m.name) for m in match.mismatches if m.hint == hint}
        assert not removed & left, hint


@pytest.mark.parametrize(
    "key", ["/", "//", "/a", "//a", "a/", "a//", "a//b", "", " ", ".", "./a", "a/.", "a/../b"]
)
def test_keys_that_tensorstore_normalises_as_paths(tmp_path: Path, key: str) -> None:
    """Orbax restores each of them, so templax has to."""
    if key in ("", "/") and jax.__version_info__ < (0, 10):
        pytest.skip("the Orbax for this JAX does not save it")
    for value in ({key: jnp.arange(3.0)}, {"x": {key: jnp.arange(3.0)}}):
        path = save_with_orbax(tmp_path / str("x" in value), value)
        restored = tx.restore(path, tx.template_of(value))
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), restored, value))
